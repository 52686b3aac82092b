"""What came of a comparison: of a tensor, or a text; of a case; of all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tinymistral.golden.manifest import Case

AGREES, DIFFERS, INCOMPARABLE = "agrees", "differs", "incomparable"
UNPROVEN = "unproven"  # other tokens, in a dtype whose rounding may be the cause
ABSENT = "absent"  # nothing is given
INCOMPLETE = "incomplete"  # of all cases: some are absent that have to be there


@dataclass(frozen=True)
class Part:
    """How one tensor of a case compares, or one text of a case that has texts."""

    name: str
    verdict: str
    dtype: str = ""  # whose tolerance counts
    tolerance: float = 0.0  # absolute; 0 where it has to be exact
    error: float = 0.0  # the largest one; inf where it is no number, or exactly another one
    index: tuple[int, ...] = ()  # of that error
    where: str = ""  # the same in words
    expected: Any = None  # what is there
    got: Any = None
    wrong: int = 0  # how many numbers differ, of those that count
    counted: int = 0
    extent: str = ""  # where these are, in words; "" if everywhere
    says: str = ""  # why it cannot be compared, or what else is to be known
    fits: tuple[str, ...] = ()  # the dtypes by whose tolerances it agrees

    @property
    def worst(self) -> float:
        """The largest error, in units of the tolerance."""
        return self.error / self.tolerance if self.tolerance else self.error


@dataclass(frozen=True)
class Compared:
    """How a case compares."""

    case: Case
    parts: tuple[Part, ...] = ()  # those that are given, in the order of computation
    names: tuple[str, ...] = ()  # of all that are expected, in that order
    unknown: Mapping[str, str] = field(default_factory=dict)  # name -> the nearest one, or ""
    problem: str = ""  # why nothing of it can be compared
    layout: str = "hf"  # "raw": its queries and keys are taken in the order of a raw checkpoint
    notes: tuple[str, ...] = ()  # how else than as expected it is taken

    @property
    def verdict(self) -> str:
        """DIFFERS if anything does; else INCOMPARABLE if anything is; else AGREES, or ABSENT."""
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
        """The largest error of what need not be exact, in units of its tolerance."""
        return max((part.worst for part in self.parts if part.tolerance), default=0.0)

    @property
    def before(self) -> tuple[Part | None, list[str]]:
        """The last part before the first one that differs, and what is not given in between."""
        if self.first is None:
            return None, []
        given = {part.name: part for part in self.parts if part.verdict == AGREES}
        between: list[str] = []
        for name in reversed(self.names[: self.names.index(self.first.name)]):
            if name in given:
                return given[name], between[::-1]
            between.append(name)
        return None, between[::-1]

    @property
    def fits(self) -> tuple[str, ...]:
        """The dtypes by whose tolerances all of it agrees."""
        everything = [part.fits for part in self.parts if part.verdict != INCOMPARABLE]
        first = everything[0] if everything else ()
        return tuple(dtype for dtype in first if all(dtype in fits for fits in everything))


def verdict_of_all(results: Iterable[Compared], complete: bool = False) -> str:
    """AGREES if all that is given does, DIFFERS if anything does; INCOMPLETE where all has to be.

    INCOMPARABLE if something given cannot be compared, or nothing is given.
    """
    verdicts = {result.verdict for result in results}
    if DIFFERS in verdicts:
        return DIFFERS
    if complete and ABSENT in verdicts:
        return INCOMPLETE
    return INCOMPARABLE if INCOMPARABLE in verdicts or AGREES not in verdicts else AGREES


def exit_code(results: Iterable[Compared], complete: bool = False) -> int:
    """0 if all agrees, 1 if something differs or is missing, 2 if nothing does, but more unknown.

    See `verdict_of_all`.
    """
    codes = {AGREES: 0, DIFFERS: 1, INCOMPLETE: 1, INCOMPARABLE: 2}
    return codes[verdict_of_all(results, complete)]


def finite(x: float) -> float | None:
    """Return a number as JSON can have it."""
    return x if math.isfinite(x) else None
