"""The cases of kind sampling: logits, what is asked for, and the probabilities that come of it.

What is no parameter of a case is switched off, also what has another default elsewhere (top_k of
50 in transformers). The previous ids are there in all cases; they bear on the penalty alone.

Sampling is done in float32 whatever the model's dtype is, as transformers and others do. So the
tolerances of 16 bits allow for a result rounded to them, not for sums in them. These tolerances
are bounds, see `bounds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from tinymistral.golden.making.drafts import Vector
from tinymistral.golden.making.tolerances import FACTOR, UNIT, rounded_up
from tinymistral.golden.vectors import definition
from tinymistral.golden.vectors.logits import steady_inputs
from tinymistral.golden.vectors.mistakes import MISTAKES
from tinymistral.golden.vectors.running import run_sampling

AGREEMENT = 1e-12  # of the definition and tinymistral's sampling, both in float64
ROWS = ("wide", "narrow", "below zero", "peaked")

# id, what it tests, parameters, rows if others
CASES: list[tuple[str, str, dict[str, float], tuple[str, ...]]] = [
    ("softmax", "nothing is asked for: the softmax of the logits", {}, ROWS),
    ("far-logits", "logits of 300 apart, whose exp is no float32", {}, ("far", "far below")),
    ("temperature-low", "below 1 the likely becomes likelier", {"temperature": 0.25}, ROWS),
    ("temperature-high", "above 1 the unlikely becomes likelier", {"temperature": 5.0}, ROWS),
    ("top-k", "the five highest logits, row by row", {"top_k": 5}, ROWS),
    ("top-k-of-one", "only the likeliest is left", {"top_k": 1}, ROWS),
    ("top-k-above-the-vocabulary", "more than there are: all", {"top_k": 1000}, ROWS),
    ("top-k-and-twins", "equal logits on either side, none across", {"top_k": 6}, ("twins",)),
    ("top-p", "the token that reaches the sum is kept", {"top_p": 0.9}, ROWS),
    ("top-p-of-half", "in one row a single token has that much", {"top_p": 0.5}, ROWS),
    ("top-p-tiny", "one token is always kept", {"top_p": 1e-6}, ROWS),
    ("top-p-of-one", "nothing is filtered, also not by rounding", {"top_p": 1.0}, ROWS),
    ("min-p", "a tenth of the likeliest, not of 1", {"min_p": 0.1}, ROWS),
    ("min-p-of-zero", "nothing is filtered", {"min_p": 0.0}, ROWS),
    ("min-p-of-one", "only the likeliest is left", {"min_p": 1.0}, ROWS),
    (
        "repetition-penalty",
        "previous ids become less likely: divided if positive, multiplied if negative, once",
        {"repetition_penalty": 1.3},
        ROWS,
    ),
    (
        "repetition-reward",
        "a penalty below 1 makes previous ids likelier",
        {"repetition_penalty": 0.75},
        ROWS,
    ),
    (
        "forbidden-tokens",
        "logits of -inf stay at probability 0, penalized or not; top_k is more than the others",
        {"repetition_penalty": 1.5, "temperature": 0.8, "top_k": 60},
        ("forbidden", "all but one forbidden"),
    ),
    ("temperature-top-p", "temperature first", {"temperature": 1.8, "top_p": 0.8}, ROWS),
    ("temperature-min-p", "temperature first", {"temperature": 2.0, "min_p": 0.2}, ROWS),
    ("top-k-top-p", "top_p of what top_k leaves", {"top_k": 12, "top_p": 0.75}, ROWS),
    ("top-p-min-p", "both cut, in different rows", {"top_p": 0.85, "min_p": 0.15}, ROWS),
    (
        "penalty-temperature-top-k",
        "the penalty changes who is among the highest",
        {"repetition_penalty": 1.4, "temperature": 0.7, "top_k": 8},
        ROWS,
    ),
    (
        "everything",
        "penalty, temperature, top_k, top_p, min_p: in this order",
        {
            "repetition_penalty": 1.2,
            "temperature": 1.25,
            "top_k": 20,
            "top_p": 0.9,
            "min_p": 0.08,
        },
        ROWS,
    ),
]


def cases() -> list[Vector]:
    """Compute all of them."""
    return [vector(n, *case) for n, case in enumerate(CASES)]


def vector(
    number: int, name: str, says: str, parameters: dict[str, float], rows: tuple[str, ...]
) -> Vector:
    """Compute a case, having held tinymistral's sampling in float64 against the definition."""
    inputs = steady_inputs(number, parameters, rows)
    truth = definition.probabilities(inputs["logits"], inputs["previous_ids"], parameters)
    found = run_sampling(inputs, parameters, "float64")["probabilities"]
    if not np.abs(found - truth).max() <= AGREEMENT or not np.array_equal(found == 0, truth == 0):
        raise ValueError(f"sampling-{name}: the definition and tinymistral's sampling differ")
    how = tolerance(inputs, parameters, truth)
    entry = {
        "id": f"sampling-{name}",
        "kind": "sampling",
        "parameters": parameters,
        "says": says,
        "catches": caught(inputs, parameters, truth, how["float32"]),
        "expected": {"probabilities": {"tolerance": how}},
    }
    arrays = {f"inputs.{n}": x for n, x in inputs.items()} | {"expected.probabilities": truth}
    return Vector(entry, arrays=arrays)


def tolerance(
    inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any], truth: np.ndarray
) -> dict[str, float]:
    """Return how near to come: a bound in float32, of 16 bits FACTOR roundings of the result too.

    Nothing is measured, so that any machine comes to the same.
    """
    near = {"float32": float(bounds(inputs, parameters, truth).max())}
    for dtype in ("float16", "bfloat16"):
        rounded = truth.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        error = float(np.abs(rounded.astype(np.float64) - truth).max())
        near[dtype] = near["float32"] + max(FACTOR * error, UNIT[dtype] * float(truth.max()))
    return {dtype: rounded_up(error) for dtype, error in near.items()}


def bounds(
    inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any], truth: np.ndarray
) -> np.ndarray:
    """Return by how much each probability (B, V) may be off in float32, however it is summed.

    To first order in the roundoff u. A score s is off by 2u of itself for a penalty, and as much
    for a temperature, which are rounded and divide. Its distance from the largest score m has both
    errors, and with log2(e), for who takes powers of 2, three more roundings; exp is good to 4
    units in the last place, 8u. A sum of n such numbers is off by their mean error and by nu at
    most, whatever its order, a quotient by 2u.
    """
    out, u = np.zeros(truth.shape, dtype=np.float64), UNIT["float32"]
    steps = 2 * sum(name in parameters for name in ("repetition_penalty", "temperature"))
    for b, row in enumerate(inputs["logits"].tolist()):
        scores = definition.kept(row, set(inputs["previous_ids"][b].tolist()), parameters)
        largest = max(scores.values())
        exps = {
            token: u * (steps * (abs(s) + abs(largest)) + 3 * (largest - s) + 8)
            for token, s in scores.items()
        }
        mean = sum(truth[b, token] * error for token, error in exps.items())
        for token, error in exps.items():
            out[b, token] = truth[b, token] * (error + mean + (len(scores) + 2) * u)
    return out


def caught(
    inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any], truth: np.ndarray, near: float
) -> list[str]:
    """Name the mistakes that come to other probabilities than the right ones."""
    logits = inputs["logits"].astype(np.float32)
    names = []
    for mistake in MISTAKES:
        with np.errstate(all="ignore"):
            wrong = mistake.probabilities(logits, inputs["previous_ids"], parameters)
        if not np.abs(wrong - truth).max() <= near:  # NaN is not near either
            names.append(mistake.name)
    return names
