"""A guess of what a wrong step did, and what all guesses need: rounding, fitting, numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinymistral.golden.diagnose.steps import Array, Step
from tinymistral.operations import NUMPY_DTYPES

HALVES = ("bfloat16", "float16")
# What a guess raises for a step of which it is no guess: such as other heads or stages.
NO_NUMBERS = (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError)
Make = Callable[..., Array | None]  # the numbers of a step; None if it has none


@dataclass(frozen=True)
class Guess:
    """A sentence about a step, and the numbers that the step would give.

    Before " | " in `text` stands the name of a known mistake, if it is one.
    """

    text: str
    make: Make
    last: bool = False  # it only says what is seen: it counts if no other guess fits

    @property
    def name(self) -> str:
        """The name in the catalogue of mistakes, or ""."""
        return self.text.rpartition(" | ")[0]

    @property
    def says(self) -> str:
        """The sentence."""
        return self.text.rpartition(" | ")[2]


def each(table: Mapping[str, Callable[..., Any]], of: Callable[[Step], Any]) -> Iterator[Guess]:
    """Yield a guess for each formula of a table; `of` gives its arguments."""
    for text, f in table.items():
        yield Guess(text, lambda s, f=f: f(*of(s)))


def is_known(first: Step) -> bool:
    """Return whether a step has a result to measure, not only what is right."""
    return first.out is not first.right


def rounded(x: Array, dtype: str) -> Array:
    """Round to 16 bits, or to float32."""
    with np.errstate(over="ignore"):
        return np.asarray(x.astype(np.float32).astype(NUMPY_DTYPES[dtype]).astype(np.float64))


def sig(x: Array) -> Array:
    """Return 1 / (1 + exp(-x))."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def pairs_to_halves(d: int) -> Array:
    """Return the order 0, 2, ..., 1, 3, ... of the numbers of a head."""
    return np.arange(d).reshape(-1, 2).T.ravel()


def halves_to_pairs(d: int) -> Array:
    """Return the order 0, d/2, 1, ... of the numbers of a head."""
    return np.arange(d).reshape(2, -1).T.ravel()


def number(x: float) -> str:
    """Return a number as people write it, at most four digits."""
    if x and not 1e-3 <= abs(x) < 1e15:
        return f"{x:.3g}"
    x = float(f"{x:.4g}")
    return f"{x:,.0f}" if x == int(x) else f"{x:g}"


def refined(error: Callable[..., float], grid: Iterable[float], rounds: int = 34) -> float:
    """Return where an error is smallest: the best of a grid, then between its neighbours."""
    points = list(grid)
    at = min(range(len(points)), key=lambda n: error(points[n]))
    low, high = points[max(0, at - 1)], points[min(len(points) - 1, at + 1)]
    log = low > 0 and high / low > 1.5
    low, high = (math.log(low), math.log(high)) if log else (low, high)
    golden = (math.sqrt(5) - 1) / 2
    f = (lambda t: error(math.exp(t))) if log else error
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
    best = a if fa < fb else b
    found = math.exp(best) if log else best
    nice = float(f"{found:.2g}")  # what somebody would have written, if it is as near
    near = abs(nice - found) <= 0.01 * abs(found)
    return nice if near and error(nice) <= 1.5 * error(found) + 1e-12 else found
