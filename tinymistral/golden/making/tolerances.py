"""How near one has to come: measured for each tensor and dtype, by rounding in several ways.

The numpy backend computes a case in the dtype itself, several times: the sums in other orders
(inner dimensions of the weights permuted, a text cut into other pieces), rotary angles made in
float64 and in float32. The largest error of these on a tensor, times FACTOR, is its tolerance.

Why that is fair: all of these are right programs, and so is a candidate, which rounds as often but
elsewhere. Its errors are of the same size; the factor is for what differs: sums in blocks or in one
long row, a fused multiply-add, cosines or a softmax rounded to 16 bits on the way, an exp good to
a few units in the last place. Who rounds wherever transformers does in 16 bits, twice as often, is
three quarters of a tolerance off at most, and a seventh as a rule (tests/golden). No tensor is
asked for more than one rounding of its largest number.

A bound that holds for any order of summation (`conformance/propagation.py`) would be wider by
orders of magnitude after a few layers, and a mistake would hide in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.golden.making import calls
from tinymistral.golden.making.drafts import Draft
from tinymistral.golden.making.permuting import Angles, Permuted, order
from tinymistral.golden.making.truth import logprobs, positions_of
from tinymistral.golden.running import run_calls, run_operation
from tinymistral.golden.where import counted
from tinymistral.model import MistralForCausalLM

Arrays = dict[str, np.ndarray]
Weights = Mapping[str, np.ndarray]

FACTOR = 8
UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # roundoff of one number
Way = tuple[int, str, int]  # the seed of an order, 0: as it is; angles in; columns at once, 0: all
WAYS: list[Way] = [
    (0, "float64", 0),
    (0, "float32", 1),
    (1, "float64", 3),
    (2, "float32", 0),
    (3, "float64", 1),
    (4, "float32", 2),
]
# A tensor of few numbers has a largest error that varies more: it is tried in more ways.
MANY_WAYS: list[Way] = [
    *WAYS,
    *((seed, ("float64", "float32")[seed % 2], (0, 1, 3, 0, 2)[seed % 5]) for seed in range(5, 19)),
]


def tolerances(
    draft: Draft, expected: Mapping[str, np.ndarray], tries: Callable[[str], Iterator[Arrays]]
) -> dict[str, dict[str, float]]:
    """Return a tolerance for each expected tensor and dtype; `tries(dtype)` computes them anew."""
    found: dict[str, dict[str, float]] = {name: {} for name in expected}
    counts = {n: counted(draft.case, draft.inputs, n, x.shape) for n, x in expected.items()}
    for dtype, unit in UNIT.items():
        worst = {n: unit / FACTOR * np.abs(x).max(initial=0) for n, x in expected.items()}
        for got in tries(dtype):
            for name, exact in expected.items():
                error = np.abs(got[name].astype(np.float64) - exact)[counts[name]]
                worst[name] = max(worst[name], error.max(initial=0))
        for name in expected:
            found[name][dtype] = rounded_up(FACTOR * float(worst[name]))
    return found


def whole_texts(
    config: MistralConfig, tensors: Weights, inputs: Weights, dtype: str, ways: list[Way]
) -> Iterator[Arrays]:
    """Compute the stages of a text, given as the calls of a case, in these ways."""
    ids, positions, _ = calls.text_of(inputs)
    for seed, angles, width in ways:
        permuted = Permuted(config, seed)
        backend = Angles(dtype, angles, permuted.pairs)
        model = MistralForCausalLM(config, backend=backend, tensors=permuted.tensors(tensors))
        full = ids.shape[1]
        widths = [min(width or full, full - start) for start in range(0, full, width or full)]
        results = run_calls(model, calls.inputs_of(ids, positions, widths, config.sliding_window))
        yield permuted.undo(calls.join(results, len(widths)))


def of_calls(config: MistralConfig, tensors: Weights, draft: Draft, dtype: str) -> Iterator[Arrays]:
    """Compute a case of kind model in many ways."""
    for whole in whole_texts(config, tensors, draft.inputs, dtype, MANY_WAYS):
        yield calls.cut(whole, draft.inputs)


def of_continuation(
    config: MistralConfig, tensors: Weights, draft: Draft, sequences: np.ndarray, dtype: str
) -> Iterator[Arrays]:
    """Compute in several ways what sequences that continue the prompts of a case are chosen by."""
    mask = draft.inputs["attention_mask"]
    T = mask.shape[1]
    positions = positions_of(sequences, mask)
    inputs = calls.inputs_of(sequences, positions, [sequences.shape[1]], config.sliding_window)
    for whole in whole_texts(config, tensors, inputs, dtype, WAYS):
        scores = whole["logits"][:, T - 1 : -1]
        yield {"scores": scores, "logprobs": logprobs(scores, sequences[:, T:])}


def of_operation(draft: Draft, dtype: str) -> Iterator[Arrays]:
    """Compute a case of kind operation in many ways: what it sums over in other orders."""
    assert draft.operation is not None
    for seed, angles, _ in MANY_WAYS:
        inputs, undo = dict(draft.inputs), {}

        def reorder(
            axis: int, *names: str, seed: int = seed, inputs: Arrays = inputs
        ) -> np.ndarray:
            n = inputs[names[0]].shape[axis]
            new = order([seed, axis % 8], n) if seed else np.arange(n, dtype=np.int64)
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
        results = run_operation(draft.operation, Angles(dtype, angles), inputs, draft.parameters)
        yield {n: x[..., undo[n]] if n in undo else x for n, x in results.items()}


def rounded_up(x: float) -> float:
    """Round up to two digits."""
    if not 0 < x < math.inf:
        raise ValueError(f"no tolerance can be made of an error of {x}")
    unit = 10.0 ** (math.floor(math.log10(x)) - 1)
    return float(f"{math.ceil(x / unit) * unit:.1e}")
