"""Candidates that make a known mistake, and round elsewhere than the reference does.

What each operation gives is off by up to half a roundoff more than it has to be, so that no
candidate is bit by bit what a suspect computes.
"""

from collections.abc import Callable, Iterator

import numpy as np

from tinymistral.golden.checking.comparing import compare_case
from tinymistral.golden.diagnosing.evidence import Evidence
from tinymistral.golden.diagnosing.predicting import Predictions, backend_of
from tinymistral.golden.diagnosing.suspects import Suspect
from tinymistral.golden.diagnosing.suspects.knowing import Knowing
from tinymistral.golden.making.tolerances import UNIT
from tinymistral.golden.suite import Case

FORWARD = ("operation", "model", "generate")


def rounded_again(name: str) -> Callable[..., np.ndarray]:
    def method(self: "Noise", *arguments: object, **named: object) -> np.ndarray:
        x = getattr(super(Noise, self), name)(*arguments, **named)
        unit = UNIT[self.dtype] / 2
        noise = self.random.uniform(-unit, unit, x.shape)
        return (x.astype(np.float64) * (1 + noise)).astype(x.dtype)

    return method


class Noise(Knowing):
    """Each result is off by up to half a roundoff more."""

    def __init__(self, dtype: str | None = None):
        super().__init__(dtype)
        self.random = np.random.default_rng(1)

    linear = rounded_again("linear")
    rms_norm = rounded_again("rms_norm")
    rope = rounded_again("rope")
    attention = rounded_again("attention")
    attention_weights = rounded_again("attention_weights")
    silu_mul = rounded_again("silu_mul")


NOISE = Suspect("noise", "", "", backends=(Noise,))


def cases_of(predictions: Predictions) -> Iterator[Case]:
    """The demo's continuation takes as long as all other cases together."""
    for case in predictions.suite.manifest.cases.values():
        if case.kind in FORWARD and case.model != "demo":
            yield case


def candidate(
    predictions: Predictions, suspect: Suspect, dtype: str, logits: bool = False
) -> list[Evidence]:
    """What a program in `dtype` that makes the mistake gives of v1: all stages, or logits alone."""
    planted = NOISE & suspect
    assert Noise in backend_of(planted.backends).__mro__[:2]
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
