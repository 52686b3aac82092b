"""Memory games: the same from a seed; what is said again is what was said before."""

import hashlib
import re
from collections import Counter
from itertools import pairwise

from tinymistral.training.documents import GAMES_FIRST, Stories
from tinymistral.training.stories import game, story
from tinymistral.training.stories.games import BEGINNING, POOLS, ROUND

# Of each slot, what matches its sentences, with the word in a group.
SAYS = {
    slot: re.compile("|".join(re.escape(text).replace(r"\{\}", "(.+)") for text in texts))
    for slot, texts in ROUND.items()
}


def games(count: int) -> list[str]:
    """Return the games of the first seeds, without the sentence that all begin with."""
    return [game(seed).removeprefix(f"{BEGINNING} ") for seed in range(count)]


def test_a_seed_gives_the_same_game_on_every_machine() -> None:
    """The hash was recorded once: a change of the games has to record it anew."""
    text = "\n".join(map(game, range(100)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "e27020238b04f52c"


def test_a_turn_says_the_turn_before_and_one_thing_more() -> None:
    lengths: Counter[int] = Counter()
    for text in games(600):
        if facts_of(text):  # a round
            continue
        turns = [re.split(", | and (?!packed)", turn) for turn in re.findall(r"[^.]+", text)]
        lengths[len(turns)] += 1
        for before, after in pairwise(turns):
            assert [part.strip() for part in after[:-1]] == [part.strip() for part in before]
    assert sorted(lengths) == [3, 4, 5, 6, 7, 8, 9]
    assert 200 < lengths.total() < 280


def facts_of(text: str) -> list[tuple[str, str]]:
    """Return the slots and words that the sentences of a round say; none for a list."""
    said = []
    for sentence in re.split(r"(?<=[.?!]) ", text):
        for slot, pattern in SAYS.items():
            match = pattern.fullmatch(sentence)
            word = next(filter(None, match.groups())) if match else ""
            if word in POOLS[slot]:
                said.append((slot, word))
    return said


def test_a_round_says_each_fact_in_each_round_and_with_the_same_word() -> None:
    counts: Counter[int] = Counter()
    seen: set[str] = set()
    for text in games(300):
        said = facts_of(text)
        size = len(set(said))
        for start in range(0, len(said), size or 1):
            assert {*said[start : start + size]} == {*said}
        if said:
            assert 4 <= size == len(dict(said)) <= 12
            counts[len(said) // size] += 1
            seen |= {slot for slot, _ in said}
    assert sorted(counts) == [2, 3, 4]
    assert seen == ROUND.keys()


def test_no_story_begins_as_a_game() -> None:
    assert all(game(seed).startswith(BEGINNING) for seed in range(100))
    assert not any(story(seed).text.startswith(BEGINNING) for seed in range(300))


def test_games_come_first_and_then_after_each_story_and_none_is_held_out() -> None:
    documents, first = Stories(seed=0), GAMES_FIRST
    assert [documents[n] for n in (0, 1, first - 1)] == [game(0), game(1), game(first - 1)]
    then = [story(first).text, game(first + 1), story(first + 2).text]
    assert [documents[n] for n in range(first, first + 3)] == then
    assert [text for _, text in zip(range(3), documents.each_once(), strict=False)] == then
    assert not any(text.startswith(BEGINNING) for text in documents.held_out)
