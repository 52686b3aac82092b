"""A story from a seed, with the facts that it recalls."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import TypeVar

from tinymistral.training.stories.templates import (
    Alternative,
    Parts,
    Slot,
    Step,
    read,
)
from tinymistral.training.stories.words import (
    ANIMALS,
    BOY_ENDS,
    BOYS,
    FOREIGN,
    GIRL_ENDS,
    GIRLS,
    LETTERS,
    MIDDLES,
    PRONOUNS,
    STARTS,
    SYMBOLS,
    WORDS,
    article,
    plural,
)

SCENES = read(Path(__file__).with_name("scenes.txt").read_text(encoding="utf-8"))
PLOTS = read(Path(__file__).with_name("plots.txt").read_text(encoding="utf-8"))

GENDERS = ("girl", "boy")
# Friend and helper have the other gender than the hero, so that a pronoun points at one of them.
OTHER = {"girl": "boy", "boy": "girl"}
# What some slots are called in the tables of grades; the others go by their own name.
KINDS = {"kind": "animal", "friend_kind": "animal", "spot": "place"}
KINDS |= dict.fromkeys(("gift", "toy", "garment"), "thing")
# Told once a story: a second "One rainy morning" would begin it again.
TOLD_ONCE = frozenset({"weather", "day", "home", "where"})
# Most stories say a fact again, as one does to children, before it lies this many letters back
# (some 220 tokens), so that a short memory can follow them. The others do not: they show what a
# model makes of a fact that its window has lost.
REMINDED = 0.85  # the share of stories
FORGOTTEN = 950  # letters
# A reminder stands where a scene begins, in good time: the next such place may be far.
FADING = 600  # letters
# Words that a slot draws afresh each time: no facts.
FRESH = {"emoji": SYMBOLS, "letter": LETTERS, "foreign": FOREIGN}

T = TypeVar("T")


@dataclass(frozen=True)
class Fact:
    """A place of a story where something told earlier is asked for again."""

    kind: str  # "name", "colour", "helper", "promise", "number", "place", ...
    answer: str
    choices: tuple[str, ...]  # all answers that the grammar could have put there, this one too
    told: int  # offset of the end of the answer's last mention before this place
    recalled: int  # offset where the answer begins


@dataclass(frozen=True)
class Story:
    """A whole story, the name of its plot, and its recalls in order."""

    text: str
    plot: str
    facts: tuple[Fact, ...]


def story(seed: int) -> Story:
    """Return the story of this seed, the same on every machine and Python."""
    return Teller(seed).tell()


class Teller:
    """Tells one story: draws its facts, then its sentences step by step."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed).random  # the one call that no Python version changes
        self.text = ""
        self.facts: list[Fact] = []
        self.said: dict[str, int] = {}  # the slots that the text has told, and where last
        self.later: frozenset[str] = frozenset()  # the slots that the rest of the plot recalls
        self.used: set[tuple[str, ...]] = set()  # the alternatives that it has used up
        self.opening_word = ""  # of the last sentence
        self.plot = self.one(tuple(PLOTS))
        self.own = _own(self.plot)
        self.pools = {**WORDS, **PLOTS[self.plot].words}
        self.fillers = self.below(5)
        self.reminded = self.chance(REMINDED)
        self.words = self.draw_words()

    def below(self, count: int) -> int:
        """Draw a number from 0 to count - 1."""
        return int(self.random() * count)

    def one(self, options: Sequence[T]) -> T:
        """Draw one of the options."""
        return options[self.below(len(options))]

    def chance(self, share: float) -> bool:
        """Return true in this share of all draws."""
        return self.random() < share

    def draw_words(self) -> dict[str, str]:
        """Draw the story's word for each slot."""
        gender = self.one(GENDERS)
        words = {slot: self.one(pool) for slot, pool in self.pools.items()}
        name, friend = self.draw_name(gender), self.draw_name(OTHER[gender])
        while friend[0] == name[0]:
            friend = self.draw_name(OTHER[gender])
        kinds = self.pools.get("kind", ANIMALS)
        kind = gender if self.chance(0.12) and kinds is ANIMALS else self.one(kinds)
        friend_kind = self.one([other for other in ANIMALS if other != kind])
        by_kind = self.chance(0.35)
        words |= {
            "name": name,
            "kind": kind,
            "hero": f"the little {kind}" if by_kind else name,
            "call": f"little {kind}" if by_kind else name,
            "friend": friend,
            "friend_kind": friend_kind,
        }
        for prefix, of in (("", gender), ("friend_", OTHER[gender]), ("helper_", OTHER[gender])):
            words |= {prefix + slot: pronoun for slot, pronoun in PRONOUNS[of].items()}
        return words

    def draw_name(self, gender: str) -> str:
        """Draw a name, one in five made up."""
        if self.chance(0.8):
            return self.one(GIRLS if gender == "girl" else BOYS)
        last = self.one(GIRL_ENDS if gender == "girl" else BOY_ENDS)
        return self.one(STARTS) + self.one(MIDDLES) + last

    def tell(self) -> Story:
        """Tell the whole story."""
        if self.chance(0.1):
            self.step(Step(scene="before"))
        self.step(Step(scene="once" if self.chance(0.5) else "open"))
        if self.chance(0.6):
            self.step(Step(scene="about"))
        steps = PLOTS[self.plot].steps
        for n, step in enumerate(steps):
            self.later = _recalled(self.plot, n)
            self.step(step)
        if self.chance(0.25):
            self.step(Step(scene="quiz name", optional=True))
        self.step(Step(scene="close"))
        return Story(self.text, self.plot, tuple(self.facts))

    def step(self, step: Step) -> None:
        """Tell a step of the plot, or leave it out."""
        if step.optional and self.chance(0.5):
            return
        if self.reminded and step.scene and not step.optional:
            self.remind()
        if step.repeated:
            for _ in range(min(3, self.below(self.fillers + 1))):
                if len(self.text) < 1400:
                    self.say_one_of(step)
        else:
            self.say_one_of(step)

    def remind(self) -> None:
        """Say again what the plot will recall, where it was said long ago."""
        for slot in sorted(self.fading(FADING) & self.later):
            self.say_one_of(Step(scene=f"remind {slot}", optional=True))

    def fading(self, letters: int) -> set[str]:
        """Return the slots that were last said more than this many letters ago."""
        return {slot for slot, end in self.said.items() if len(self.text) - end > letters}

    def say_one_of(self, step: Step) -> None:
        """Say one of a step's alternatives that fit, if any has to be said."""
        kept = self.said.keys() | self.own if step.scene else self.said.keys()
        told = TOLD_ONCE & kept
        fitting = [one for one in _alternatives(step) if self.fits(one, told)]
        if self.reminded:
            forgotten = self.fading(FORGOTTEN)
            known = [one for one in fitting if not one.recalls & forgotten]
            fitting = known if known or step.optional else fitting
        if not fitting and (step.optional or step.repeated):
            return
        assert fitting, f"{self.plot}: nothing fits in place of {_alternatives(step)[0].sources}"
        fresh = [one for one in fitting if one.opening_word != self.opening_word]
        chosen = self.one(fresh or fitting)
        self.used.add(chosen.sources)
        for parts in chosen.sentences:
            self.text += " " if self.text else ""
            self.say(parts)
            if self.chance(0.003):
                self.text += " " + self.one(SYMBOLS) * (1 + self.below(2))
        self.opening_word = chosen.sources[-1].split()[0]

    def fits(self, alternative: Alternative, told: frozenset[str]) -> bool:
        """Return whether all that the alternative recalls was told, and nothing is told twice."""
        if alternative.sources in self.used:
            return False
        if alternative.condition:
            slot, values = alternative.condition
            if self.words[slot] not in values:
                return False
        return alternative.recalls <= self.said.keys() and not alternative.tells & told

    def say(self, parts: Parts) -> None:
        """Say a sentence, and note what it tells and recalls."""
        for part in parts:
            if isinstance(part, str):
                self.text += part
            elif isinstance(part, tuple):
                self.say(self.one(part))
            elif part.name in FRESH:
                self.text += self.one(FRESH[part.name])
            else:
                answer = inflect(self.words[part.name], part)
                if part.recall and part.name in self.said:
                    self.facts.append(self.recall(part, answer))
                self.text += answer
                self.said[part.name] = len(self.text)
                if part.name in ("hero", "call"):
                    named = "name" if self.words["hero"] == self.words["name"] else "kind"
                    self.said[named] = len(self.text)

    def recall(self, slot: Slot, answer: str) -> Fact:
        """Return the fact that the answer, said next, recalls."""
        told = [found.end() for found in mention(self.words[slot.name]).finditer(self.text)]
        if slot.name in ("name", "friend"):
            pool = tuple(dict.fromkeys((*GIRLS, *BOYS, answer)))
        elif slot.name in ("kind", "friend_kind"):
            pool = (*ANIMALS, *GENDERS)
        else:
            pool = self.pools[slot.name]
        choices = tuple(inflect(word, slot) for word in pool)
        return Fact(KINDS.get(slot.name, slot.name), answer, choices, told[-1], len(self.text))


def inflect(word: str, slot: Slot) -> str:
    """Return the word in the form that the slot asks for."""
    if slot.form == "a":
        word = article(word)
    elif slot.form == "s":
        word = plural(word)
    return word[0].upper() + word[1:] if slot.capital else word


@cache
def mention(word: str) -> re.Pattern[str]:
    """Return the pattern of all that names the word's thing: one or many, at a start or inside."""
    return re.compile(rf"\b(?:{word}|{plural(word)})\b", re.IGNORECASE)


@cache
def _own(plot: str) -> frozenset[str]:
    """Return the slots told once that the plot itself tells: no shared scene may tell them."""
    told = (one.tells for step in PLOTS[plot].steps for one in step.alternatives)
    return TOLD_ONCE & frozenset[str]().union(*told)


@cache
def _recalled(plot: str, n: int) -> frozenset[str]:
    """Return the slots that the steps of a plot from number n on recall."""
    steps = [step for step in PLOTS[plot].steps[n:] if not step.scene]
    return frozenset[str]().union(*(one.recalls for step in steps for one in step.alternatives))


def _alternatives(step: Step) -> tuple[Alternative, ...]:
    return SCENES[step.scene].steps[0].alternatives if step.scene else step.alternatives
