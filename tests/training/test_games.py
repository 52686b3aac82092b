"""Memory games: the same from a seed, and each turn says the one before again."""

import hashlib
import re
from collections import Counter
from itertools import pairwise

from tinymistral.training.documents import Stories
from tinymistral.training.stories import game, story


def test_a_seed_gives_the_same_game_on_every_machine() -> None:
    """The hash was recorded once: a change of the games has to record it anew."""
    text = "\n".join(map(game, range(100)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "a8b566eb807a156f"


def test_a_turn_says_the_turn_before_and_one_thing_more() -> None:
    lengths: Counter[int] = Counter()
    for seed in range(300):
        turns = [re.split(", | and (?!packed)", turn) for turn in re.findall(r"[^.]+", game(seed))]
        lengths[len(turns)] += 1
        for before, after in pairwise(turns):
            assert [part.strip() for part in after[:-1]] == [part.strip() for part in before]
    assert sorted(lengths) == [3, 4, 5, 6, 7, 8, 9]


def test_every_second_document_is_a_game_and_none_of_those_held_out() -> None:
    documents = Stories(seed=0)
    assert [documents[n] for n in range(4)] == [story(0).text, game(1), story(2).text, game(3)]
    assert not set(documents.held_out) & {documents[n] for n in range(1, 400, 2)}
