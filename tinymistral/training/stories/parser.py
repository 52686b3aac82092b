"""The parser: which sentences the grammar can say, and what a text recalls in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain

from tinymistral.training.stories.grammar import (
    FRESH,
    GENDERS,
    KINDS,
    OTHER,
    PLOTS,
    SCENES,
    inflect,
    mention,
)
from tinymistral.training.stories.templates import Parts, Slot, slots_in
from tinymistral.training.stories.words import ANIMALS, PRONOUNS, SYMBOLS, WORDS

ARTICLE = re.compile(r"an? (?=.)")
LITTLE = re.compile(r"(?:the )?little ", re.IGNORECASE)  # the hero by kind, not by name
SYMBOLS_AFTER = re.compile(f"(?: ?[{''.join(SYMBOLS)}])+")

Filled = list[tuple[Slot, str]]  # the slots of a template, and the words in them


def sentences(text: str) -> list[str]:
    """Split a text where the grammar's sentences end; a quotation does not end inside."""
    found, start, quoted = [], 0, False
    for mark in re.finditer(r'"|[.!?]+', text):
        if mark[0] == '"':
            quoted = mark.start() == 0 or text[mark.start() - 1] == " "
            if quoted or text[mark.start() - 1] not in ".!?":
                continue
        elif quoted:
            continue
        tail = SYMBOLS_AFTER.match(text, mark.end())
        end = tail.end() if tail else mark.end()
        following = text[end : end + 2]
        if following == "" or (following[0] == " " and not following[1:].islower()):
            found.append(text[start:end].strip())
            start = end
    rest = text[start:].strip()
    return [*found, rest] if rest else found


def well_formed(sentence: str) -> bool:
    """Return whether the grammar can say this sentence, any word its slot allows in each slot."""
    variants = {sentence, without_symbols(sentence)}
    return any(says(parts, one) for one in variants for parts in candidates(one))


def closes(text: str) -> bool:
    """Return whether the last sentence of the text is one that ends a story."""
    found = sentences(text)
    plain = without_symbols(found[-1]) if found else ""
    endings = SCENES["close"].steps[0].alternatives
    return any(says(one.sentences[-1], plain) for one in endings)


def without_symbols(sentence: str) -> str:
    """Return the sentence without emoji at its end."""
    return sentence.rstrip("".join(SYMBOLS) + " ") if sentence.endswith(SYMBOLS) else sentence


# What a text recalls


@dataclass(frozen=True)
class Recall:
    """A fact that a text recalls: its kind, its words, and whether they are those told before."""

    kind: str
    answer: str
    right: bool


def recalls(text: str) -> list[Recall]:
    """Return the facts that a text recalls, in order, in sentences that the grammar can say.

    Where a sentence fits several templates, the one with the fewest wrong recalls counts.
    """
    told: dict[str, str] = {}  # the words of each slot
    found: list[Recall] = []
    for sentence in map(without_symbols, sentences(text)):
        options = [
            update(told, filled)
            for parts in candidates(sentence)
            for filled in parses(parts, sentence)
        ]
        if options:
            told, recalled = min(options, key=lambda one: sum(not r.right for r in one[1]))
            found += recalled
    return found


def update(told: dict[str, str], filled: Filled) -> tuple[dict[str, str], list[Recall]]:
    """Return what is told after a sentence with these slots, and what the sentence recalls."""
    told, recalled = dict(told), []
    for slot, words in filled:
        name, word = slot.name, ARTICLE.sub("", words) if slot.form == "a" else words
        if name in ("hero", "call"):
            name, word = ("kind", LITTLE.sub("", word)) if LITTLE.match(word) else ("name", word)
        if slot.recall:
            right = name in told and is_same(told[name], word)
            recalled.append(Recall(KINDS.get(slot.name, slot.name), words, right))
        told[name] = word
    return told, recalled


def is_same(one: str, other: str) -> bool:
    """Return whether two words are the same but for a plural or a capital letter."""
    return bool(mention(one).fullmatch(other) or mention(other).fullmatch(one))


# Templates that fit a sentence


def says(parts: Parts, sentence: str) -> bool:
    """Return whether a template can say the sentence."""
    return next(parses(parts, sentence), None) is not None


def parses(parts: Parts, sentence: str) -> Iterator[Filled]:
    """Yield the words in the slots of a template, for each way in which it says the sentence."""
    for gender in genders(parts):
        yield from parses_with(gender, parts, sentence)


def parses_with(gender: str, parts: Parts, text: str) -> Iterator[Filled]:
    """Yield what `parses` does, for a hero of this gender."""
    if not parts:
        if not text:
            yield []
        return
    part, rest = parts[0], parts[1:]
    if isinstance(part, str):
        if text.startswith(part):
            yield from parses_with(gender, rest, text[len(part) :])
    elif isinstance(part, Slot):
        if found := pattern(part, gender).match(text):
            for filled in parses_with(gender, rest, text[found.end() :]):
                yield [(part, found[0]), *filled]
    else:
        for option in part:
            yield from parses_with(gender, (*option, *rest), text)


@cache
def genders(parts: Parts) -> tuple[str, ...]:
    """Return the genders of a hero with which a template has to be tried."""
    shown = any(slot.name.rpartition("_")[2] in PRONOUNS["girl"] for slot in slots_in(parts))
    return GENDERS if shown else GENDERS[:1]


def candidates(sentence: str) -> Iterator[Parts]:
    """Yield the templates that may say this sentence: first and last word and a piece agree."""
    first, last = sentence.partition(" ")[0], sentence.rpartition(" ")[2]
    for key in ((first, last), (first, ""), ("", last), ("", "")):
        for text, parts in index().get(key, ()):
            if text in sentence:
                yield parts


@cache
def index() -> dict[tuple[str, str], list[tuple[str, Parts]]]:
    """Return all templates by their first and last words, each with its longest piece of text.

    A word of the key is "" where a slot or a choice may vary it.
    """
    found: dict[tuple[str, str], list[tuple[str, Parts]]] = {}
    for parts in templates():
        head, tail = parts[0], parts[-1]
        first = head.partition(" ")[0] if isinstance(head, str) and " " in head else ""
        last = tail.rpartition(" ")[2] if isinstance(tail, str) and " " in tail else ""
        texts = [part for part in parts if isinstance(part, str)]
        found.setdefault((first, last), []).append((max(texts, key=len, default=""), parts))
    return found


@cache
def templates() -> dict[Parts, str]:
    """Return the template of each sentence that the grammar can say, and its source."""
    return {
        parts: source
        for plot in (*SCENES.values(), *PLOTS.values())
        for step in plot.steps
        for one in step.alternatives
        for parts, source in zip(one.sentences, one.sources, strict=True)
    }


@cache
def capitalized() -> frozenset[str]:
    """Return the words that begin with a capital letter in the templates themselves: no names."""
    literal = re.sub(r"\{.*?\}", " ", " ".join(templates().values()))
    return frozenset(re.findall(r"[A-Z]\w*", literal)).union(("He", "She", "His", "Her", "Him"))


@cache
def pattern(slot: Slot, gender: str) -> re.Pattern[str]:
    """Return the pattern of all that this slot may hold when the hero has this gender."""
    base = slot.name.rpartition("_")[2]
    words: tuple[str, ...] = ()
    if base in PRONOUNS[gender]:
        words = (PRONOUNS[gender if base == slot.name else OTHER[gender]][base],)
    elif slot.name in ("hero", "call"):
        the = "the " if slot.name == "hero" else ""
        words = tuple(f"{the}little {kind}" for kind in (*ANIMALS, *GENDERS))
    elif base == "kind":
        words = (*ANIMALS, *GENDERS)
    elif slot.name not in ("name", "friend"):
        pools = [plot.words.get(slot.name, ()) for plot in PLOTS.values()]
        words = (*FRESH.get(slot.name, ()), *WORDS.get(slot.name, ()), *chain(*pools))
    forms = sorted({re.escape(inflect(word, slot)) for word in words}, key=lambda form: -len(form))
    if slot.name in ("name", "friend", "hero", "call"):
        no_name = "|".join(sorted(capitalized()))
        forms.append(rf"(?!(?:{no_name})(?!\w))[A-ZÀ-Þ][^\W\d_A-Z]{{1,11}}")
    return re.compile(rf"(?:{'|'.join(forms)})(?!\w)")
