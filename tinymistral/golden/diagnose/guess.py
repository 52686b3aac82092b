"""A guess of what a wrong step did, and the search of its parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

# What a guess raises for a step of which it is no guess: such as other heads or stages.
NO_NUMBERS = (
    ArithmeticError, AttributeError, LookupError, NameError, TypeError, ValueError,
)  # fmt: skip
Make = Callable[..., Any]  # the numbers of a step; None if it has none


@dataclass(frozen=True)
class Guess:
    """A sentence about a step, and the numbers that the step would give."""

    says: str
    make: Make
    name: str = ""  # of a known mistake
    last: bool = False  # it only says what is seen: it counts if no other guess fits
    parameter: str = ""  # of `make` and of the sentence, of which no value is chosen yet

    def at(self, value: float) -> Guess:
        """Return it with a value of its parameter."""
        n = self.parameter
        says = self.says.replace(f"{{{n}}}", shown(n, value))
        return replace(self, says=says, make=partial(self.make, **{n: value}), parameter="")


def refined(
    error: Callable[[float], float], grid: Sequence[float], whole: bool, rounds: int = 34
) -> float | None:
    """Return where an error is smallest: the best of a grid, then between its neighbours."""
    errors = [error(value) for value in grid]
    at = int(np.argmin(errors))
    if not math.isfinite(errors[at]):
        return None
    if whole or grid[at] == 0:
        return grid[at]
    low, high = grid[max(0, at - 1)], grid[min(len(grid) - 1, at + 1)]
    f, back = (lambda t: error(math.exp(t))), math.exp
    if low > 0:
        low, high = math.log(low), math.log(high)
    else:
        f, back = error, float
    golden = (math.sqrt(5) - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    fa, fb = f(a), f(b)
    for _ in range(rounds):
        if fa < fb:
            high, b, fb = b, a, fa
            a = high - golden * (high - low)
            fa = f(a)
        else:
            low, a, fa = a, b, fb
            b = low + golden * (high - low)
            fb = f(b)
    found = back(a if fa < fb else b)
    # What somebody would have written, if it is as near.
    for digits, near in ((1, 0.2), (2, 0.01), (3, 1e-3)):
        nice = float(f"{found:.{digits}g}")
        if abs(nice - found) <= near * abs(found) and error(nice) <= 1.5 * error(found) + 1e-12:
            return nice
    return found


def number(x: float) -> str:
    """Return a number as people write it, at most four digits."""
    if x and not 1e-3 <= abs(x) < 1e15:
        return f"{x:.3g}"
    x = float(f"{x:.4g}")
    return f"{x:,.0f}" if x == int(x) else f"{x:g}"


def shown(parameter: str, value: float) -> str:
    """Return the value of a parameter as a sentence shows it."""
    if parameter == "part":
        return str(Fraction(value).limit_denominator(9))
    if parameter in ("few", "n"):
        return f"{'+' if value > 0 else '-'} {abs(value)}"
    return number(value)
