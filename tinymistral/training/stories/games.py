"""Memory games, from which a model learns to look for what it has read.

A story says much that is new for each thing that it says again, so a model learns from stories
alone to write whole sentences long before it recalls who they were about. A *list* grows by one
thing a turn, and is said from its start each time: most of it can be copied. Its things are of
every kind that a story asks for, since what no list holds is learned tens of times more slowly.
*Rounds* say the same facts again and again, in the very sentences in which stories ask for them:
each way to ask is learned by itself too, and one story has room for few.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tinymistral.training.stories.grammar import PLOTS, SCENES, Teller
from tinymistral.training.stories.templates import Parts, slots_in
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
MADE_UP = tuple(
    start + middle + end
    for start in STARTS
    for middle in MIDDLES
    for end in (*GIRL_ENDS, *BOY_ENDS)
)
SLOTS = ("toy", "garment", "gift", "spot", "fruit", "flower")
THINGS = tuple(dict.fromkeys(word for slot in SLOTS for word in WORDS[slot]))
MOST_TURNS = 9
BEGINNING = "Let us play a game."  # no story begins so: what begins otherwise becomes a story

# All words of each kind, those of single plots too.
POOLS = {
    slot: tuple(dict.fromkeys(word for pool in pools for word in pool.get(slot, ())))
    for pools in [(WORDS, *(plot.words for plot in PLOTS.values()))]
    for slot in WORDS
}
POOLS |= {"kind": ANIMALS, "name": NAMES, "friend": MADE_UP}


def ways_to_ask() -> tuple[tuple[str, tuple[Parts, ...]], ...]:
    """Return each sentence in which a story asks for a fact, after its question, with its kind."""
    return tuple(
        (kind, told.sentences[n - (n > 0 and "?" in told.sources[n - 1]) : n + 1])
        for plot in (*PLOTS.values(), *SCENES.values())
        for step in plot.steps
        for told in step.alternatives
        for n, sentence in enumerate(told.sentences)
        for kind in dict.fromkeys(slot.name for slot in slots_in(sentence) if slot.recall)
    )


ASKED = ways_to_ask()


def growing_list(seed: int) -> str:
    """Return the list that grows of this seed, the same on every machine and Python."""
    one = _draw(seed)

    def coloured() -> str:
        return f"{article(one(WORDS['colour']))} {one(THINGS)}"

    def of_any_kind() -> str:
        return one(POOLS[one([*POOLS])])

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


def rounds(seed: int, *, always: Sequence[str] = ()) -> str:
    """Return the rounds of this seed, the same on every machine and Python.

    They ask for few facts beside those of the kinds that they `always` ask for.
    """
    teller = Teller(seed)  # whose words are those of a story
    number = teller.one(range(5) if always else range(4, 13))
    drawn = dict.fromkeys(teller.one(ASKED)[0] for _ in range(number))
    kinds = [*always, *(kind for kind in drawn if kind not in always)]
    teller.text = BEGINNING
    for _ in range(teller.one(range(3, 6))):
        left = [*kinds]
        while left:
            kind = left.pop(teller.below(len(left)))
            for sentence in teller.one([asked for of, asked in ASKED if of == kind]):
                teller.text += " "
                teller.say(sentence)
    return teller.text


def _draw(seed: int) -> Callable[[Sequence[Any]], Any]:
    """Return a function that draws one of a sequence."""
    random = Random(seed).random  # the one call that no Python version changes
    return lambda options: options[int(random() * len(options))]


def _listed(items: Sequence[str]) -> str:
    """Return "a, b and c"."""
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last
