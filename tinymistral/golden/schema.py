"""What a JSON value has to look like: checks, which raise ValueError and are made of each other.

    person = fields({"name": text(".+", "a name"), "children": list_of(integer(0, 99))})
    person({"name": "Ada", "children": [7, "x"]})
    ValueError: children: 1: expected an integer from 0 to 99, got 'x'

JSON Schema has the same words; `v1/schema.json` is one, for readers in other languages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

Check = Callable[[Any], None]  # ValueError unless a value is as expected

LARGEST = 2**62  # of integers: two of them add up to less than 2**63


def text(pattern: str, expected: str) -> Check:
    """Expect a string that the whole pattern matches."""
    compiled = re.compile(pattern, re.DOTALL | re.ASCII)
    return _expect(expected, lambda x: isinstance(x, str) and compiled.fullmatch(x) is not None)


def integer(least: int, most: int = LARGEST) -> Check:
    """Expect an integer from `least` to `most`."""
    return _expect(
        f"an integer from {least} to {most}", lambda x: type(x) is int and least <= x <= most
    )


def number(least: float, most: float) -> Check:
    """Expect a number from `least` to `most`."""
    return _expect(f"a number from {least:g} to {most:g}", lambda x: least <= _finite(x) <= most)


def one_of(*choices: object) -> Check:
    """Expect one of these values."""
    listed = f"one of {', '.join(map(str, choices))}"
    return _expect(
        listed if len(choices) > 1 else repr(choices[0]),
        lambda x: any(x == choice and type(x) is type(choice) for choice in choices),
    )


def list_of(item: Check, least: int = 0) -> Check:
    """Expect a list of at least so many items, each checked."""

    def check(value: Any) -> None:
        _a_list(value)
        if len(value) < least:
            raise ValueError(f"expected at least {least} items, got {len(value)}")
        for n, x in enumerate(value):
            inside(n, item, x)

    return check


def map_of(name: Check, item: Check) -> Check:
    """Expect an object of one or more fields, of any number; names and values are checked."""

    def check(value: Any) -> None:
        an_object(value)
        if not value:
            raise ValueError("expected at least one field, got {}")
        for key, x in value.items():
            name(key)
            inside(key, item, x)

    return check


def fields(
    required: Mapping[str, Check], optional: Mapping[str, Check] = MappingProxyType({})
) -> Check:
    """Expect an object with these fields and no others, each checked."""

    def check(value: Any) -> None:
        an_object(value)
        for name in required:
            if name not in value:
                raise ValueError(f"{name!r} is missing")
        for name, x in value.items():
            item = required.get(name) or optional.get(name)
            if item is None:
                raise ValueError(f"{name!r:.100} is not expected")
            inside(name, item, x)

    return check


def _expect(expected: str, holds: Callable[[Any], bool]) -> Check:
    def check(value: Any) -> None:
        if not holds(value):
            raise ValueError(f"expected {expected}, got {value!r:.60}")

    return check


def inside(place: object, check: Check, value: Any) -> None:
    """Check a part of a value; an error names the place."""
    try:
        check(value)
    except ValueError as error:
        raise ValueError(f"{place!s:.100}: {error}") from None


def _finite(x: Any) -> float:
    """Return a number below 1e300; NaN, which is in no range, for anything else."""
    return float(x) if type(x) in (int, float) and abs(x) < 1e300 else math.nan


an_object = _expect("an object", lambda x: isinstance(x, dict))
_a_list = _expect("a list", lambda x: isinstance(x, list))
a_string = _expect("a text", lambda x: isinstance(x, str))
positive = _expect("a positive number", lambda x: _finite(x) > 0)
LINE = text(r"[^\n\r]+", "a text of one line")
ID = text(r"[a-z0-9][a-z0-9-]{0,99}", "an id like 'rms-norm'")
SHA256 = text(r"[0-9a-f]{64}", "64 hexadecimal digits")
TOKENS = list_of(integer(0, 2**31 - 1))
