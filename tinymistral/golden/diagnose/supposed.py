"""Mistakes supposed in the steps of the reference, where a dump has only logits or few stages.

What a step may do wrong is that of `formulas.py`. It is made in each place where it may be: queries
and keys or one of them, all layers or every second, one norm or all. Parameters are searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinymistral.golden.diagnose.evidence import Evidence
from tinymistral.golden.diagnose.formulas import GRIDS, WHOLE
from tinymistral.golden.diagnose.guess import NO_NUMBERS, refined
from tinymistral.golden.diagnose.guesses import of_formulas
from tinymistral.golden.diagnose.predictions import Predictions
from tinymistral.golden.diagnose.steps import Array, Step, results_with
from tinymistral.mistakes import MISTAKES, Mistake

# Where a mistake may be, by its kind of step: in words, stages or all, every second layer or all.
Place = tuple[str, tuple[str, ...], int | None]
PLACES: dict[str, list[Place]] = {
    "rope": [
        ("RoPE", (), None),
        ("RoPE of queries", ("q_rotated",), None),
        ("RoPE of keys", ("k_rotated",), None),
    ],
    "mask": [("", (), None), ("in layers 0, 2, ...", (), 0), ("in layers 1, 3, ...", (), 1)],
    "norm": [
        ("norms", (), None),
        *((n, (n,), None) for n in ("input_layernorm", "post_attention_layernorm", "norm")),
    ],
    "sum": [("both sums", (), None), *((n, (n,), None) for n in ("attention_residual", "output"))],
}
_FIX = {mistake.name: mistake.fix for mistake in MISTAKES}
COARSE = {"c": 6, "theta_": 12, "eps_": 6, "slope": 4}  # of the grid, each so many is tried
NEAR_1 = (0.7, 0.85, 0.95, 1.05, 1.15, 1.4)  # a factor from which 1 is nearer explains nothing
SMALL = 8  # of whole numbers, the first so many are tried


@dataclass(eq=False)
class Supposed(Mistake):
    """A mistake that is supposed: what is wrong at some place, in a kind of steps."""

    guess: Any = None  # always a `Guess`
    kind: str = ""
    place: Place = ("", (), None)

    def results(self, each: Any, predictions: Any, dtype: str) -> Mapping[str, Array] | None:
        """Return the numbers of a case with it, in float64; None if there are none."""
        if each.case.kind != "model" or each.another_length:
            return None
        with np.errstate(all="ignore"):
            try:
                return results_with(each, predictions, self.guess.make, self._touches)
            except NO_NUMBERS:
                return None

    def _touches(self, kind: str, stage: str, layer: int) -> bool:
        _, stages, parity = self.place
        here = kind == self.kind and (not stages or stage in stages)
        return here and (parity is None or layer % 2 == parity)


def supposed(each: Evidence, predictions: Predictions, least: float) -> Iterator[Supposed]:
    """Yield all that may be wrong in the steps of a case, with the best value of a parameter.

    If no value of a coarse grid explains as much as `least`, it is left out.
    """
    steps: dict[tuple[str, str], Step] = {}

    def note(s: Step) -> None:
        steps[s.kind, "" if s.kind in PLACES else s.stage] = s

    results_with(each, predictions, note)
    for (kind, stage), step in steps.items():
        if kind == "cache":
            continue
        scaled = stage in ("embedding", "v", "attention_output", "mlp_output", "logits")
        for guess in of_formulas(step, scaled):
            if "float8" in guess.says:  # such roundings are seen where stages are given
                continue
            places = PLACES.get(kind, [(stage, (stage,), None)])
            if kind == "linear" and stage == "q":
                places = [*places, ("q, k, v", ("q", "k", "v"), None)]
            for place in places if kind == "rope" or not guess.parameter else places[:1]:
                says = f"{place[0]}: {guess.says}" if place[0] else guess.says
                fix = _FIX.get(guess.name, "")
                made = Supposed(guess.name, says, fix, guess=guess, kind=kind, place=place)
                yield from [made] if not guess.parameter else _best(made, each, predictions, least)


def _best(
    made: Supposed, each: Evidence, predictions: Predictions, least: float
) -> Iterator[Supposed]:
    """Yield a mistake with the value of its parameter that explains most, if it is enough."""

    def at(value: float) -> Supposed:
        guess = made.guess.at(value)
        return replace(made, says=made.says.replace(made.guess.says, guess.says), guess=guess)

    def left(value: float) -> float:
        if value not in known:
            fit = each.fit(at(value), predictions)
            known[value] = 1.0 if fit is None else 1 - fit.share
        return known[value]

    known: dict[float, float] = {}
    n = made.guess.parameter
    grid = GRIDS[n][:SMALL] if n in WHOLE else GRIDS[n][:: COARSE[n]]
    grid = sorted([*grid, *NEAR_1]) if n == "c" else grid
    errors = [left(value) for value in grid]
    if min(errors) < 1 - least:
        best = errors.index(min(errors))
        low, high = grid[max(0, best - 1)], grid[min(best + 1, len(grid) - 1)]
        fine = grid if n in WHOLE else [low, *(x for x in GRIDS[n] if low < x < high), high]
        value = refined(left, fine, n in WHOLE, 20)
        yield from [] if value is None else [at(value)]
