"""Comparing the ids of texts and conversations with those expected.

    {"strings": [{"text": "a", "ids": [264], "decoded": "a"}, ...],
     "decodings": [{"ids": [264], "decoded": "a"}, ...]}
    {"conversations": [{"messages": [...], "ids": [...]}, ...]}

Entries are matched by their question (text, ids or messages), so they may come in any order, and
some may be missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tinymistral.golden.compare.tensors import DTYPES
from tinymistral.golden.compare.verdicts import AGREES, DIFFERS, Compared, Part
from tinymistral.golden.manifest import Case
from tinymistral.text import shorten

ASKED = {"strings": "text", "decodings": "ids", "conversations": "messages"}
ANSWERS = ("ids", "decoded")
UNKNOWN_MOST = 20  # entries that are reported

Entry = Mapping[str, Any]


def compare_texts(case: Case, document: Mapping[str, Any], given: Any) -> Compared:
    """Compare a parsed document with the suite's."""
    names, parts, unknown = [], [], {}
    problem = "" if isinstance(given, dict) else f"expected a JSON object, got {shown(given, 40)}"
    if not problem:
        unknown = {name: "" for name in list(given)[:UNKNOWN_MOST] if name not in document}
    for kind, asked in ASKED.items():
        entries = document.get(kind, [])
        answers = [answer for answer in ANSWERS if answer != asked]
        names += [f"{kind}.{n}.{a}" for n, e in enumerate(entries) for a in answers if a in e]
        if problem:
            continue
        try:
            found, others = match(entries, given.get(kind, []), asked)
        except ValueError as error:
            problem = f"{kind}: {error}"
            continue
        for n, entry in found.items():
            parts += [
                compare_answer(f"{kind}.{n}.{a}", entries[n], entry, asked, a)
                for a in answers
                if a in entries[n] and a in entry
            ]
        for entry in others[:UNKNOWN_MOST]:
            unknown[f"{asked} {shown(entry[asked])}"] = ""
    if not problem and not parts:
        asked = " or ".join(kind for kind in ASKED if kind in document)
        problem = f"there is no answer in it to any of the {asked}"
    if problem:
        problem = f"{case.id}.json: {problem}"
        return Compared(case, names=tuple(names), unknown=unknown, problem=problem)
    return Compared(case, tuple(parts), tuple(names), unknown)


def match(
    expected: list[dict[str, Any]], given: Any, asked: str
) -> tuple[dict[int, Entry], list[Entry]]:
    """Return the given entry for each expected one, by its number, and the entries for none."""
    if not isinstance(given, list):
        raise ValueError(f"expected a list, got {shown(given, 40)}")
    places = {key(entry[asked]): n for n, entry in reversed(list(enumerate(expected)))}
    found: dict[int, Entry] = {}
    others: list[Entry] = []
    for n, entry in enumerate(given):
        if not isinstance(entry, dict) or asked not in entry:
            raise ValueError(f"entry {n}: expected an object with {asked!r}, got {shown(entry)}")
        place = places.get(key(entry[asked]))
        if place is None:
            others.append(entry)
        elif found.setdefault(place, entry) != entry:
            raise ValueError(f"{asked} {shown(entry[asked])} is there twice, and not the same")
    return dict(sorted(found.items())), others


def compare_answer(name: str, expected: Entry, given: Entry, asked: str, answer: str) -> Part:
    """Compare one answer of an entry."""
    want, got = expected[answer], given[answer]
    if want == got:
        return Part(name, AGREES, counted=1, fits=DTYPES)
    first: tuple[int, ...] = ()
    if isinstance(got, type(want)):
        pairs = enumerate(zip(want, got, strict=False))
        first = (next((n for n, (a, b) in pairs if a != b), min(len(want), len(got))),)
    return Part(
        name,
        DIFFERS,
        error=math.inf,
        index=first,
        where=f"{asked} {shown(expected[asked])}",
        expected=want,
        got=got,
        wrong=1,
        extent=str(expected.get("group", "")),
        counted=1,
    )


def key(value: Any) -> str:
    """Return a key that is equal for equal JSON values."""
    return json.dumps(value, sort_keys=True)


def shown(value: Any, most: int = 100) -> str:
    """Return a value from a file on one line, with all its spaces, shortened if too long."""
    return shorten(repr(value), most)
