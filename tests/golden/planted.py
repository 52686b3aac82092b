"""Candidates that make a known mistake, and round at other places than the reference does.

Of each operation that the mistake leaves alone some steps are rounded, and some formulas are
others, so that no candidate is bit by bit what is predicted for a mistake. Angles are made in
float32, as most programs make them, where float32 can count the positions.
"""

from collections.abc import Iterator

import numpy as np

from tinymistral.golden.compare.cases import compare_case
from tinymistral.golden.diagnose.evidence import Evidence
from tinymistral.golden.diagnose.predictions import Predictions
from tinymistral.golden.rounding import RoundingBackend
from tinymistral.golden.suite import Case
from tinymistral.mistakes import Mistake

FORWARD = ("operation", "model", "generate")


class Own(RoundingBackend):
    """A right program of somebody's own."""

    def __init__(self, dtype: str | None = None):
        choices = ("normed", "silu", "cosines", "queries", "exps", "halves", "reciprocals")
        super().__init__(dtype or "float32", choices=choices)

    def rope_table(
        self, positions: np.ndarray, theta: float, d: int
    ) -> tuple[np.ndarray, np.ndarray]:
        self._angles = np.dtype(np.float32 if positions.max(initial=0) < 2**24 else np.float64)
        return super().rope_table(positions, theta, d)


def cases_of(predictions: Predictions) -> Iterator[Case]:
    """The demo's continuation takes as long as all other cases together."""
    for case in predictions.suite.manifest.cases.values():
        if case.kind in FORWARD and case.model != "demo":
            yield case


def candidate(
    predictions: Predictions, mistake: Mistake, dtype: str, logits: bool = False
) -> list[Evidence]:
    """What a program in `dtype` that makes the mistake gives of v1: all stages, or logits alone."""
    found = []
    for case in cases_of(predictions):
        results = predictions.of(mistake, case, dtype, base=Own)
        results = {n: x for n, x in (results or {}).items() if not logits or n.endswith("logits")}
        evidence = as_evidence(predictions, case, results, dtype)
        found += [] if evidence is None else [evidence]
    return found


def as_evidence(
    predictions: Predictions, case: Case, results: dict[str, np.ndarray], dtype: str
) -> Evidence | None:
    arrays = predictions.arrays(case)
    compared = compare_case(predictions.suite, case, results, dtype, arrays)
    return Evidence.of(compared, results, arrays, dtype)
