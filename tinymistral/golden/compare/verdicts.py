"""Results of a comparison: of a tensor or a text, of a case, of all cases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tinymistral.golden.manifest import Case

AGREES, DIFFERS, INCOMPARABLE = "agrees", "differs", "incomparable"
UNPROVEN = "unproven"  # other tokens, in a dtype whose rounding may be the cause
ABSENT = "absent"  # nothing is given
INCOMPLETE = "incomplete"  # of all cases: required ones are absent


@dataclass(frozen=True)
class Part:
    """How one tensor of a case compares, or one text of a tokenizer or chat case."""

    name: str
    verdict: str
    dtype: str = ""  # whose tolerance applies
    tolerance: float = 0.0  # absolute; 0 where it has to be exact
    error: float = 0.0  # the largest; inf where it is not a number, or an exact value differs
    index: tuple[int, ...] = ()  # of that error
    where: str = ""  # the same in words
    expected: Any = None  # the value there
    got: Any = None
    wrong: int = 0  # how many of the compared numbers differ
    counted: int = 0  # how many were compared
    extent: str = ""  # where they differ, in words; "" if everywhere
    says: str = ""  # why it cannot be compared, or a hint
    fits: tuple[str, ...] = ()  # the dtypes by whose tolerances it agrees

    @property
    def worst(self) -> float:
        """The largest error, in units of the tolerance."""
        return self.error / self.tolerance if self.tolerance else self.error


@dataclass(frozen=True)
class Compared:
    """How a case compares."""

    case: Case
    parts: tuple[Part, ...] = ()  # what is given, in the order of computation
    names: tuple[str, ...] = ()  # of all that is expected, in that order
    unknown: Mapping[str, str] = field(default_factory=dict)  # name -> the nearest known one, or ""
    problem: str = ""  # why nothing of it can be compared
    layout: str = "hf"  # "raw": its queries and keys are in the order of a raw checkpoint
    notes: tuple[str, ...] = ()  # other orders that were recognized, in words

    @property
    def verdict(self) -> str:
        """DIFFERS if any part does; else INCOMPARABLE if any is; else AGREES, or ABSENT."""
        verdicts = {part.verdict for part in self.parts}
        if DIFFERS in verdicts:
            return DIFFERS
        if self.problem or INCOMPARABLE in verdicts or (self.unknown and not self.parts):
            return INCOMPARABLE
        return AGREES if self.parts else ABSENT

    @property
    def first(self) -> Part | None:
        """The first part that differs, in the order of computation."""
        return next((part for part in self.parts if part.verdict == DIFFERS), None)

    @property
    def worst(self) -> float:
        """The largest error of parts that have a tolerance, in units of it."""
        return max((part.worst for part in self.parts if part.tolerance), default=0.0)

    @property
    def before(self) -> tuple[Part | None, list[str]]:
        """The last part that agrees before the first that differs, and missing names in between."""
        if self.first is None:
            return None, []
        agreeing = {part.name: part for part in self.parts if part.verdict == AGREES}
        between: list[str] = []
        for name in reversed(self.names[: self.names.index(self.first.name)]):
            if name in agreeing:
                return agreeing[name], between[::-1]
            between.append(name)
        return None, between[::-1]

    @property
    def fits(self) -> tuple[str, ...]:
        """The dtypes by whose tolerances all of it agrees."""
        everything = [part.fits for part in self.parts if part.verdict != INCOMPARABLE]
        first = everything[0] if everything else ()
        return tuple(dtype for dtype in first if all(dtype in fits for fits in everything))


def verdict_of_all(results: Iterable[Compared], complete: bool = False) -> str:
    """DIFFERS if any case does; else INCOMPLETE if one is absent that must be there (`complete`).

    Else INCOMPARABLE if a case cannot be compared or none is given; else AGREES.
    """
    verdicts = {result.verdict for result in results}
    if DIFFERS in verdicts:
        return DIFFERS
    if complete and ABSENT in verdicts:
        return INCOMPLETE
    return INCOMPARABLE if INCOMPARABLE in verdicts or AGREES not in verdicts else AGREES


def exit_code(results: Iterable[Compared], complete: bool = False) -> int:
    """0 if all agree, 1 if something differs or is missing, 2 if something cannot be compared."""
    codes = {AGREES: 0, DIFFERS: 1, INCOMPLETE: 1, INCOMPARABLE: 2}
    return codes[verdict_of_all(results, complete)]


def finite(x: float) -> float | None:
    """Return a number, or None where JSON has none for it."""
    return x if math.isfinite(x) else None
