"""Candidates that make a known mistake, and round elsewhere than the reference does.

Of each operation that the mistake leaves alone some steps are rounded, and some formulas are
others, so that no candidate is bit by bit what a suspect computes. Angles are made in float32, as
most programs make them, where float32 can count the positions.
"""

from collections.abc import Iterator

import numpy as np

from tinymistral.golden.compare.cases import compare_case
from tinymistral.golden.diagnosing.evidence import Evidence
from tinymistral.golden.diagnosing.predicting import Predictions, backend_of
from tinymistral.golden.diagnosing.suspects import Suspect
from tinymistral.golden.rounding import RoundingBackend
from tinymistral.golden.suite import Case

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


OWN = Suspect("own", "", "", backends=(Own,))


def cases_of(predictions: Predictions) -> Iterator[Case]:
    """The demo's continuation takes as long as all other cases together."""
    for case in predictions.suite.manifest.cases.values():
        if case.kind in FORWARD and case.model != "demo":
            yield case


def candidate(
    predictions: Predictions, suspect: Suspect, dtype: str, logits: bool = False
) -> list[Evidence]:
    """What a program in `dtype` that makes the mistake gives of v1: all stages, or logits alone."""
    planted = suspect & OWN
    assert issubclass(backend_of(planted.backends), Own)
    found = []
    for case in cases_of(predictions):
        results = predictions.of(planted, case, dtype)
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
