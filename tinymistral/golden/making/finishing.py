"""A case is finished: its expected numbers, and how near one has to come to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinymistral.golden.checking.closeness import errors_of
from tinymistral.golden.making import tolerances, truth
from tinymistral.golden.making.drafts import Draft
from tinymistral.golden.making.models import MODELS
from tinymistral.golden.running import run_calls, run_generate, run_operation
from tinymistral.golden.where import counted
from tinymistral.heads import MistralForCausalLM
from tinymistral.numpy_backend import NumpyBackend

Arrays = dict[str, np.ndarray]

AGREEMENT = 1e-11  # of the oracle and the numpy backend, both in float64
SMALLEST_GAP = 50  # tolerances of a logit in float32, between the likeliest token and the next
LEFT = 0.5  # of its lead, at the least, in whatever way it is computed, so that ids are exact


@dataclass(frozen=True)
class Finished:
    """The expected tensors of a case, and what the manifest says of each."""

    expected: Arrays
    how: dict[str, Any]


def finish(draft: Draft) -> Finished:
    """Compute a case; ValueError if it is one that cannot be part of a suite."""
    if draft.kind == "operation":
        return _operation(draft)
    return _calls(draft) if draft.kind == "model" else _generate(draft)


def _operation(draft: Draft) -> Finished:
    assert draft.operation is not None
    found = run_operation(draft.operation, NumpyBackend("float64"), draft.inputs, draft.parameters)
    return _settle(
        draft,
        truth.of_operation(draft),
        found,
        lambda dtype: tolerances.of_operation(draft, dtype),
    )


def _calls(draft: Draft) -> Finished:
    model = _model(draft, "float64")
    return _settle(
        draft,
        truth.of_calls(model.config, model.tensors, draft),
        run_calls(model, draft.inputs),
        lambda dtype: tolerances.of_calls(model.config, model.tensors, draft, dtype),
    )


def _generate(draft: Draft) -> Finished:
    model = _model(draft, "float64")
    found = run_generate(model, draft.inputs, draft.parameters)
    sequences, mask = found["sequences"], draft.inputs["attention_mask"]
    chosen = sequences[:, mask.shape[1] :]
    exact = truth.of_continuation(model.config, model.tensors, sequences, mask)
    leads = _leads(exact["scores"], chosen)
    left: dict[str, float] = {}

    def tries(dtype: str) -> Iterator[Arrays]:
        for got in tolerances.of_continuation(model.config, model.tensors, draft, sequences, dtype):
            least = float((_leads(got["scores"], chosen) / leads).min())
            left[dtype] = min(left.get(dtype, 1.0), least)
            yield got

    finished = _settle(draft, exact, found | {"scores": exact["scores"]}, tries)
    gap = float(leads.min())
    near = finished.how.pop("scores")["tolerance"]
    del finished.expected["scores"]
    if gap < SMALLEST_GAP * near["float32"]:
        raise ValueError(f"case {draft.id}: two tokens are nearly as likely; choose another seed")
    dtypes = [dtype for dtype in near if left[dtype] >= LEFT]
    for dtype in dtypes:
        again = run_generate(_model(draft, dtype), draft.inputs, draft.parameters)
        if not np.array_equal(again["sequences"], sequences):
            raise ValueError(f"case {draft.id}: in {dtype} it goes on otherwise")
    finished.expected["sequences"] = sequences
    finished.how["sequences"] = {"exact": True, "dtypes": dtypes}
    return finished


def _leads(scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return by how much logits of the chosen tokens (B, n) are above all others."""
    others = scores.copy()
    np.put_along_axis(others, chosen[..., None], -np.inf, axis=-1)
    best = np.take_along_axis(scores, chosen[..., None], axis=-1)[..., 0]
    return np.asarray(best - others.max(axis=-1))


def _model(draft: Draft, dtype: str) -> MistralForCausalLM:
    source = MODELS[str(draft.model)]
    return MistralForCausalLM(source.config, backend=NumpyBackend(dtype), tensors=source.tensors)


def _settle(
    draft: Draft,
    exact: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    tries: Callable[[str], Iterator[Arrays]],
) -> Finished:
    """Hold the numpy backend in float64 against the oracle, and measure the tolerances."""
    expected: Arrays = {}
    for name, numbers in exact.items():
        where = counted(draft.case, draft.inputs, name, numbers.shape)
        expected[name] = np.where(where, numbers, 0.0)
        error = errors_of(found[name], numbers)[where].max(initial=0)
        if not error <= AGREEMENT:
            raise ValueError(f"case {draft.id}: {name}: the oracle and numpy are {error:g} apart")
    measured = tolerances.tolerances(draft, expected, tries)
    return Finished(expected, {name: {"tolerance": how} for name, how in measured.items()})
