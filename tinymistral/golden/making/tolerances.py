"""How near one has to come: measured for each tensor and dtype, by computing in several ways.

A case is computed in the dtype itself, many times, by right programs: sums in other orders (inner
dimensions of the weights permuted, a text cut into other pieces), rotary angles made in float64
and in float32, steps of an operation rounded too, other formulas for the same thing
(`elsewhere.py`). The largest error of all these on a tensor, times FACTOR, is its tolerance.

Why FACTOR is enough: a third of the ways round wherever anybody does, all places at once, so a
candidate rounds no more often. What is left is chance. An error is a sum of many roundings, whose
deviation these ways tell: the largest of some hundred such sums is 2.5 deviations or more. For
FACTOR times that, by chance, one would need ten deviations; or sixteen times as many roundings as
at all places together. Unseen ways reach 2.5 of the 4 on tensors of few numbers (tests/golden).

No tensor is asked for more than ROUNDINGS of its largest number: one of 16 bits; of float32 eight,
since exp, cosine and root are good to four units in the last place there, as hardware has them.

A bound that holds for any order of summation (`conformance/propagation.py`) would be wider by
orders of magnitude after a few layers, and a mistake would hide in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.golden.checking.closeness import errors_of
from tinymistral.golden.making import calls
from tinymistral.golden.making.drafts import Draft
from tinymistral.golden.making.elsewhere import (
    CHOICES,
    FLASH_ATTENTION,
    TRANSFORMERS,
    Elsewhere,
    drawn,
)
from tinymistral.golden.making.permuting import Permuted, order
from tinymistral.golden.making.truth import logprobs, positions_of
from tinymistral.golden.running import run_calls, run_operation
from tinymistral.golden.where import counted
from tinymistral.heads import MistralForCausalLM

Arrays = dict[str, np.ndarray]
Weights = Mapping[str, np.ndarray]

FACTOR = 4
UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # roundoff of one number
ROUNDINGS = {"float32": 8, "float16": 1, "bfloat16": 1}


@dataclass(frozen=True)
class Way:
    """A right way of computing: sums in an order, in pieces, and what `elsewhere.py` has."""

    seed: int = 0  # of the order; 0: as it is
    angles: str = "float64"  # what rotary angles are made in
    width: int = 0  # columns at once; 0: all
    choices: tuple[str, ...] = ()


WAYS = [
    Way(),
    Way(0, "float32", 1),
    Way(1, "float64", 3, CHOICES),
    Way(2, "float32", 0, TRANSFORMERS),
    Way(3, "float64", 1, FLASH_ATTENTION),
    Way(4, "float32", 2, CHOICES),
]
# A tensor of few numbers has a largest error that varies more: it is tried in more ways.
MANY_WAYS = [
    *WAYS,
    *(
        Way(
            seed,
            ("float64", "float32")[seed % 2],
            (0, 1, 3, 0, 2)[seed % 5],
            CHOICES if seed % 3 == 0 else drawn(seed),
        )
        for seed in range(5, 23)
    ),
]


def tolerances(
    draft: Draft, expected: Mapping[str, np.ndarray], tries: Callable[[str], Iterator[Arrays]]
) -> dict[str, dict[str, float]]:
    """Return a tolerance for each expected tensor and dtype; `tries(dtype)` computes them anew."""
    found: dict[str, dict[str, float]] = {name: {} for name in expected}
    counts = {n: counted(draft.case, draft.inputs, n, x.shape) for n, x in expected.items()}
    for dtype, unit in UNIT.items():
        least = ROUNDINGS[dtype] * unit / FACTOR
        worst = {n: least * np.abs(x[np.isfinite(x)]).max(initial=0) for n, x in expected.items()}
        for got in tries(dtype):
            for name, exact in expected.items():
                error = errors_of(got[name], exact)[counts[name]]
                worst[name] = max(worst[name], error.max(initial=0))
        for name in expected:
            found[name][dtype] = rounded_up(FACTOR * float(worst[name]))
    return found


def whole_text(
    config: MistralConfig, tensors: Weights, inputs: Weights, dtype: str, way: Way
) -> Arrays:
    """Compute the stages of a text, given as the calls of a case, in a way."""
    ids, positions, _ = calls.text_of(inputs)
    permuted = Permuted(config, way.seed)
    backend = Elsewhere(dtype, way.angles, permuted.pairs, way.choices)
    model = MistralForCausalLM(config, backend=backend, tensors=permuted.tensors(tensors))
    full = ids.shape[1]
    widths = [min(way.width or full, full - at) for at in range(0, full, way.width or full)]
    results = run_calls(model, calls.inputs_of(ids, positions, widths, config.sliding_window))
    return permuted.undo(calls.join(results, len(widths)))


def ways_of(draft: Draft, ways: list[Way]) -> Iterator[Way]:
    """Give those ways, with angles in float64 alone where float32 cannot count the positions."""
    for way in ways:
        yield replace(way, angles="float64") if draft.exact_angles else way


def of_calls(config: MistralConfig, tensors: Weights, draft: Draft, dtype: str) -> Iterator[Arrays]:
    """Compute a case of kind model in many ways."""
    for way in ways_of(draft, MANY_WAYS):
        yield calls.cut(whole_text(config, tensors, draft.inputs, dtype, way), draft.inputs)


def of_continuation(
    config: MistralConfig, tensors: Weights, draft: Draft, sequences: np.ndarray, dtype: str
) -> Iterator[Arrays]:
    """Compute in several ways what sequences that continue the prompts of a case are chosen by."""
    mask = draft.inputs["attention_mask"]
    T = mask.shape[1]
    positions = positions_of(sequences, mask)
    inputs = calls.inputs_of(sequences, positions, [sequences.shape[1]], config.sliding_window)
    for way in WAYS:
        whole = whole_text(config, tensors, inputs, dtype, way)
        scores = whole["logits"][:, T - 1 : -1]
        yield {"scores": scores, "logprobs": logprobs(scores, sequences[:, T:])}


def of_operation(draft: Draft, dtype: str) -> Iterator[Arrays]:
    """Compute a case of kind operation in many ways."""
    for way in ways_of(draft, MANY_WAYS):
        yield operation(draft, dtype, way)


def operation(draft: Draft, dtype: str, way: Way) -> Arrays:
    """Compute a case of kind operation in a way: what it sums over in an order."""
    inputs, undo = dict(draft.inputs), {}

    def reorder(axis: int, *names: str) -> np.ndarray:
        n = inputs[names[0]].shape[axis]
        new = order([way.seed, axis % 8], n) if way.seed else np.arange(n, dtype=np.int64)
        inputs.update({name: np.take(inputs[name], new, axis) for name in names})
        return np.argsort(new)

    if draft.operation == "rms_norm":
        undo["out"] = reorder(-1, "x", "weight")
    elif draft.operation == "linear":
        reorder(-1, "x", "weight")
    elif draft.operation == "attention":
        undo["weights"] = reorder(1, "k", "v", "k_positions")
        reorder(-1, "q", "k")
        undo["out"] = reorder(-1, "v")
    backend = Elsewhere(dtype, way.angles, choices=way.choices)
    results = run_operation(str(draft.operation), backend, inputs, draft.parameters)
    return {n: x[..., undo[n]] if n in undo else x for n, x in results.items()}


def rounded_up(x: float) -> float:
    """Round up to two digits."""
    if not 0 < x < math.inf:
        raise ValueError(f"no tolerance can be made of an error of {x}")
    unit = 10.0 ** (math.floor(math.log10(x)) - 1)
    return float(f"{math.ceil(x / unit) * unit:.1e}")
