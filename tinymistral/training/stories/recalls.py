"""What a text recalls, read from it with the templates, and whether it had told so before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tinymistral.training.stories.grammar import (
    KINDS,
    _genders,
    _likely,
    _mention,
    _pattern,
    _without_symbols,
    sentences,
)
from tinymistral.training.stories.templates import Parts, Slot

ARTICLE = re.compile(r"an? (?=.)")
LITTLE = re.compile(r"(?:the )?little ", re.IGNORECASE)  # the hero by kind, not by name


@dataclass(frozen=True)
class Recall:
    """A fact that a text recalls: its kind, its words, and whether they are those told before."""

    kind: str
    answer: str
    right: bool


Reading = tuple[dict[str, str], list[Recall]]  # what has been told, by slot; what is recalled


def recalls(text: str) -> list[Recall]:
    """Return the facts that a text recalls, in order, in sentences that the grammar can say.

    Where a sentence fits several templates, the one with the fewest wrong recalls counts.
    """
    told: dict[str, str] = {}
    found: list[Recall] = []
    for sentence in sentences(text):
        readings = [read(slots, told) for slots in slots_of(_without_symbols(sentence))]
        if readings:
            told, recalled = min(readings, key=lambda one: sum(not r.right for r in one[1]))
            found += recalled
    return found


def read(slots: list[tuple[Slot, str]], told: dict[str, str]) -> Reading:
    """Return what is told after these words in slots, and what they recall."""
    told, recalled = dict(told), []
    for slot, words in slots:
        name, word = slot.name, ARTICLE.sub("", words) if slot.form == "a" else words
        if name in ("hero", "call"):
            name, word = ("kind", LITTLE.sub("", word)) if LITTLE.match(word) else ("name", word)
        if slot.recall:
            before = told.get(name)
            right = before is not None and is_same(before, word)
            recalled.append(Recall(KINDS.get(slot.name, slot.name), words, right))
        told[name] = word
    return told, recalled


def is_same(one: str, other: str) -> bool:
    """Return whether two words are the same but for a plural or a capital letter."""
    return bool(_mention(one).fullmatch(other) or _mention(other).fullmatch(one))


def slots_of(sentence: str) -> Iterator[list[tuple[Slot, str]]]:
    """Yield, for each way to say a sentence, the slots of the template and the words in them."""
    for parts in _likely(sentence):
        for gender in _genders(parts):
            for end, slots in parses(parts, sentence, 0, gender):
                if end == len(sentence):
                    yield slots


def parses(
    parts: Parts, text: str, start: int, gender: str
) -> Iterator[tuple[int, list[tuple[Slot, str]]]]:
    """Yield each way to read parts at `start`: where they end, and the words in their slots."""
    if not parts:
        yield start, []
        return
    first, rest = parts[0], parts[1:]
    for end, slots in parses_of_one(first, text, start, gender):
        for last, more in parses(rest, text, end, gender):
            yield last, [*slots, *more]


def parses_of_one(
    part: str | Slot | tuple[Parts, ...], text: str, start: int, gender: str
) -> Iterator[tuple[int, list[tuple[Slot, str]]]]:
    """Yield each way to read one part."""
    if isinstance(part, str):
        if text.startswith(part, start):
            yield start + len(part), []
    elif isinstance(part, Slot):
        if found := _pattern(part, gender).match(text, start):
            yield found.end(), [(part, found[0])]
    else:
        for option in part:
            yield from parses(option, text, start, gender)
