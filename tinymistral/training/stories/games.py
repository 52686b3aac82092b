"""Memory games: a list that grows by one thing a turn, and is said from its start each time.

Most of a game can be copied from the turn before. A model that reads games between stories soon
learns to copy; without them it writes whole sentences long before it recalls who they were about,
since a story says much that is new for each thing that it says again.
"""

from collections.abc import Sequence
from random import Random

from tinymistral.training.stories.words import ANIMALS, BOYS, GIRLS, WORDS, article

NAMES = (*GIRLS, *BOYS)
SLOTS = ("toy", "garment", "gift", "spot", "fruit", "flower")
THINGS = tuple(dict.fromkeys(word for slot in SLOTS for word in WORDS[slot]))
MOST_TURNS = 9


def game(seed: int) -> str:
    """Return the game of this seed, the same on every machine and Python."""
    random = Random(seed).random  # the one call that no Python version changes

    def one(options: Sequence[str]) -> str:
        return options[int(random() * len(options))]

    def coloured() -> str:
        return f"{article(one(WORDS['colour']))} {one(THINGS)}"

    begin, draw = (
        (f"{one(NAMES)} went on a journey and packed", coloured),
        ("In my bag I put", lambda: article(one(THINGS))),
        ("At the party I met", lambda: one(NAMES)),
        ("In the meadow I saw", lambda: f"{one(WORDS['number'])} {one(WORDS['colour'])} kites"),
        ("On the bridge I met", lambda: article(one(ANIMALS))),
        ("It rained on", lambda: one(WORDS["day"])),
        ("For supper there was", lambda: one(WORDS["food"])),
    )[int(random() * 7)]
    items = [draw() for _ in range(3 + int(random() * (MOST_TURNS - 2)))]
    turns = (items[: n + 1] for n in range(len(items)))
    return " ".join(f"{begin} {_listed(turn)}." for turn in turns)


def _listed(items: Sequence[str]) -> str:
    """Return "a, b and c"."""
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last
