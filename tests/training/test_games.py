"""Memory games: the same from a seed; what is said again is what was said before."""

import hashlib
import re
from collections import Counter
from itertools import pairwise

import pytest

from tinymistral.training.documents import LISTS_FIRST, Stories
from tinymistral.training.stories import growing_list, rounds, story
from tinymistral.training.stories.games import BEGINNING, POOLS, ROUND


@pytest.mark.parametrize(
    ("game", "hashed"), [(growing_list, "5f6d4800aa26d446"), (rounds, "80abd3f3207d229d")]
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


def test_a_fact_is_said_in_each_round_and_always_with_the_same_word() -> None:
    says = {
        slot: re.compile("|".join(re.escape(text).replace(r"\{\}", "(.+)") for text in texts))
        for slot, texts in ROUND.items()
    }
    counts: Counter[int] = Counter()
    seen: set[str] = set()
    for seed in range(300):
        said = []
        for sentence in re.split("(?<=[.?!]) ", rounds(seed).removeprefix(f"{BEGINNING} ")):
            matches = {slot: pattern.fullmatch(sentence) for slot, pattern in says.items()}
            words = {slot: max(filter(None, m.groups())) for slot, m in matches.items() if m}
            slots = tuple(slot for slot, word in words.items() if word in POOLS[slot])
            assert len(slots) == 1 or words["name"] == "Bella"  # a name of both lists
            said.append((slots, words[slots[0]]))
        size = len(dict(said))
        assert 4 <= size == len(set(said)) <= 12
        for start in range(0, len(said), size):
            assert {*said[start : start + size]} == {*said}
        counts[len(said) // size] += 1
        seen |= {slot for slots, _ in said for slot in slots}
    assert sorted(counts) == [2, 3, 4]
    assert seen == ROUND.keys()


def test_lists_come_first_then_stories_with_a_list_and_rounds_after_each() -> None:
    documents, first = Stories(seed=0), LISTS_FIRST
    for n in (0, 1, 2, first - 1):
        assert documents[n] == growing_list(n)
    then = [story(first).text, growing_list(first + 1), rounds(first + 2), story(first + 3).text]
    assert [documents[n] for n in range(first, first + 4)] == then
    assert [text for _, text in zip(range(4), documents.each_once(), strict=False)] == then


def test_no_story_begins_as_a_game_and_no_game_is_held_out() -> None:
    texts = [story(seed).text for seed in range(300)] + Stories(seed=0).held_out
    assert not any(text.startswith(BEGINNING) for text in texts)
