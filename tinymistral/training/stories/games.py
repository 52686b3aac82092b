"""Memory games, from which a model learns to look for what it has read.

A story says much that is new for each thing that it says again, so a model learns from stories
alone to write whole sentences long before it recalls who they were about. A *list* grows by one
thing a turn, and is said from its start each time: most of it can be copied. Its things are of
every kind that a story asks for, since what no list holds is learned tens of times more slowly.
*Rounds* say the same facts again and again, in another order and other words: of each kind, such as
a colour or a day, there is one to look for, as in a story.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tinymistral.training.stories.words import (
    ANIMALS,
    BOY_ENDS,
    BOYS,
    GIRL_ENDS,
    GIRLS,
    MIDDLES,
    STARTS,
    WORDS,
    article,
)

NAMES = (*GIRLS, *BOYS)
ENDS = (*GIRL_ENDS, *BOY_ENDS)
SLOTS = ("toy", "garment", "gift", "spot", "fruit", "flower")
THINGS = tuple(dict.fromkeys(word for slot in SLOTS for word in WORDS[slot]))
MOST_TURNS = 9
BEGINNING = "Let us play a game."  # no story begins so: what begins otherwise becomes a story

# How a round can say a fact of each kind.
ROUND = {
    slot: tuple(texts.split("|"))
    for slot, texts in {
        "colour": "The ball was {}.|Who has the {} pencil?|I like the {} one.|"
        "There was a {} light.|Paint it {}!",
        "number": "There were {} of them.|I counted {} stones.|"
        "At {} o'clock they woke up.|It is {}.",
        "day": "It was on {}.|They came on a {}.|On {} there was cake.|Wait until {}.",
        "weather": "It was a {} day.|One {} morning they went out.|What a {} night!",
        "helper": "The {} came by.|Thank you, said the {}.|They met the {} again.|Ask the {}!",
        "toy": "Under the bed lay the {}.|Where is my {}?|They played with the {}.",
        "garment": "She put on the {}.|The {} was too big.|Who lost the {}?",
        "spot": "It was in the {}.|They looked into the {}.|Behind the {} sat a cat.",
        "gift": "He gave her the {}.|You may keep the {}.|He held the {} up.",
        "promise": "I promise you a {}.|Bring me the {}!|The {} was still missing.",
        "food": "There was {} for supper.|I smell {}.|They shared the {}.|More {}, please!",
        "fruit": "She ate a ripe {}.|The {} was sweet.|The {} fell from the tree.",
        "flower": "He picked a {}.|The {} smelled good.|In the vase stood a {}.",
        "song": "They sang about {}.|It was a song about {}.|She dreamed of {}.",
        "password": 'The word was "{}".|Say "{}"!|"{}," she whispered.',
        "boat": "The boat was called the {}.|They sailed on the {}.|The {} lay in the harbour.",
        "animal": "Once there was a little {}.|The {} was happy.|Good night, little {}.",
        "name": "{} laughed.|This is {}.|Hello, {}!|It was {} who knew.",
        "made-up name": "{} laughed.|This is {}.|Hello, {}!|It was {} who knew.",
    }.items()
}
MADE_UP = tuple(start + middle + end for start in STARTS for middle in MIDDLES for end in ENDS)
POOLS = {**WORDS, "animal": ANIMALS, "name": NAMES, "made-up name": MADE_UP}
KINDS = tuple(ROUND)


def growing_list(seed: int) -> str:
    """Return the list that grows of this seed, the same on every machine and Python."""
    one = _draw(seed)

    def coloured() -> str:
        return f"{article(one(WORDS['colour']))} {one(THINGS)}"

    def of_any_kind() -> str:
        return one(POOLS[one(KINDS)])

    begin, draw = one(
        (
            ("The words to remember are", of_any_kind),
            ("What comes next is", of_any_kind),
            ("This is what they said:", of_any_kind),
            (f"{one(NAMES)} went on a journey and packed", coloured),
            ("In my bag I put", lambda: article(one(THINGS))),
            ("At the party I met", lambda: one(NAMES)),
            ("In the meadow I saw", lambda: f"{one(WORDS['number'])} {one(WORDS['colour'])} kites"),
            ("On the bridge I met", lambda: article(one(ANIMALS))),
        )
    )
    items = [draw() for _ in range(one(range(3, MOST_TURNS + 1)))]
    turns = (f"{begin} {_listed(items[: n + 1])}." for n in range(len(items)))
    return " ".join([BEGINNING, *turns])


def rounds(seed: int) -> str:
    """Return the rounds of this seed, the same on every machine and Python."""
    one = _draw(seed)
    slots = list(ROUND)
    slots = [slots.pop(one(range(len(slots)))) for _ in range(one(range(4, 13)))]
    words = {slot: one(POOLS[slot]) for slot in slots}
    said = [BEGINNING]
    for _ in range(one(range(2, 5))):
        left = list(slots)
        while left:
            slot = left.pop(one(range(len(left))))
            said.append(one(ROUND[slot]).format(words[slot]))
    return " ".join(said)


def _draw(seed: int) -> Callable[[Sequence[Any]], Any]:
    """Return a function that draws one of a sequence."""
    random = Random(seed).random  # the one call that no Python version changes
    return lambda options: options[int(random() * len(options))]


def _listed(items: Sequence[str]) -> str:
    """Return "a, b and c"."""
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last
