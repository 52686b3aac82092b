"""The names of tensors: which expected one is meant, or resembled."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tinymistral.golden.manifest import Case

LOOKED_UP = 10  # unknown names, among the known ones


def full_name(case: Case, name: str, expected: Iterable[str]) -> str:
    """Return the expected name that a given one stands for; itself if it stands for none."""
    full = f"calls.0.{name}"
    return full if case.kind == "model" and case.calls == 1 and full in expected else name


def is_of_a_cache(case: Case, name: str) -> bool:
    """Tell whether a name is of what a cache holds, be it expected or not."""
    return case.kind == "model" and ".cache." in f".{name}"


def nearest(unknown: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Return for each unknown name the known one that it resembles, or ""; for the first few."""
    known, found = list(known), {}
    without_call = {name.split(".", 2)[-1]: name for name in reversed(known)}
    for n, name in enumerate(unknown):
        close = [without_call.get(name, "")]
        if not close[0] and n < LOOKED_UP:
            close = difflib.get_close_matches(name[:120], known, 1)
            close = [n for n in close if ("cache." in n) == ("cache." in name)]
        found[name] = close[0] if close else ""
    return found
