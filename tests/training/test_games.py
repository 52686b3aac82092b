"""Memory games: the same from a seed; what is said again is what was said before."""

import hashlib
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from tinymistral.training.documents import LAST_FROM, LEARNED_LAST, LISTS_FIRST, Stories
from tinymistral.training.stories import (
    grammar,
    growing_list,
    recalls,
    rounds,
    sentences,
    story,
    well_formed,
)
from tinymistral.training.stories.games import ASKED, BEGINNING
from tinymistral.training.stories.grammar import KINDS


@pytest.mark.parametrize(
    ("game", "hashed"), [(growing_list, "1ddac5f58167140d"), (rounds, "9fde354c4802ae09")]
)
def test_a_seed_gives_the_same_game_on_every_machine(game, hashed: str) -> None:
    """The hashes were recorded once: a change of the games has to record them anew."""
    text = "\n".join(map(game, range(100)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == hashed
    assert text.count(BEGINNING) == 100


def test_a_turn_says_the_turn_before_and_one_thing_more() -> None:
    lengths: Counter[int] = Counter()
    for seed in range(300):
        text = growing_list(seed).removeprefix(BEGINNING)
        turns = [re.split(", | and (?!packed)", turn) for turn in re.findall(r"[^.]+", text)]
        lengths[len(turns)] += 1
        for before, after in pairwise(turns):
            assert [part.strip() for part in after[:-1]] == [part.strip() for part in before]
    assert sorted(lengths) == [3, 4, 5, 6, 7, 8, 9]


@pytest.mark.slow
def test_rounds_say_every_kind_of_fact_again_and_always_with_the_same_word() -> None:
    asked: Counter[str] = Counter()
    for seed in range(300):
        text = rounds(seed).removeprefix(f"{BEGINNING} ")
        assert all(map(well_formed, sentences(text)))
        said = len(recalls(text))
        again = recalls(f"{text} {text}")[said:]  # when each fact has been told
        assert all(recall.right for recall in again)
        asked.update({recall.kind for recall in again})
    assert asked.keys() >= {KINDS.get(kind, kind) for kind, _ in ASKED}
    assert asked["colour"] > 200  # stories ask for it in the most ways


def test_rounds_ask_in_all_the_ways_that_stories_do() -> None:
    """Counted in the source itself: each sentence with a `{slot!}`, once for each such slot."""
    folder = Path(grammar.__file__).parent
    lines = "".join((folder / f"{name}.txt").read_text("utf-8") for name in ("plots", "scenes"))
    marked = re.findall(r"[^/|\n]*!\}[^/\n]*", re.sub(r"\([^()]*\)", "", lines))
    assert len(ASKED) == sum(len({*re.findall(r"(\w+)!\}", one.lower())}) for one in marked)


def test_lists_come_first_then_stories_and_rounds_in_turn() -> None:
    documents, first = Stories(seed=0), LISTS_FIRST
    for n in (0, 1, 2, first - 1):
        assert documents[n] == growing_list(n)
    then = [story(first).text, rounds(first + 1), story(first + 2).text, rounds(first + 3)]
    assert [documents[n] for n in range(first, first + 4)] == then
    late = documents[LAST_FROM + 1]
    assert late == rounds(LAST_FROM + 1, always=LEARNED_LAST) != rounds(LAST_FROM + 1)
    asked = Counter(recall.kind for recall in recalls(late))
    assert min(asked[kind] for kind in LEARNED_LAST) >= 3
    assert [text for _, text in zip(range(4), documents.each_once(), strict=False)] == then


def test_no_story_begins_as_a_game_and_no_game_is_held_out() -> None:
    texts = [story(seed).text for seed in range(300)] + Stories(seed=0).held_out
    assert not any(text.startswith(BEGINNING) for text in texts)
