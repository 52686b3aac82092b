"""Comparing one tensor: which of its numbers count, the largest error, and where that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinymistral.golden.compare.places import extent, shape_problem, spot
from tinymistral.golden.compare.verdicts import AGREES, DIFFERS, INCOMPARABLE, UNPROVEN, Part
from tinymistral.golden.files import BFLOAT16
from tinymistral.golden.manifest import Case, Expected

DTYPES = ("float32", "float16", "bfloat16")  # that have tolerances, the finest first


@dataclass(frozen=True)
class Tensor:
    """The expected numbers of a tensor of a case."""

    case: Case
    inputs: Mapping[str, np.ndarray]
    name: str
    axes: tuple[str, ...]  # their letters, see `places.axes_of`
    numbers: np.ndarray
    counts: np.ndarray  # which of them are compared


def counted(
    case: Case, inputs: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    """Return a mask of the numbers of an expected tensor that are compared: no padding is.

    `inputs` are those of the case; -1 among their positions marks padding.
    """
    rows = columns = None
    if case.kind == "model":
        calls, n, stage = name.split(".", 2)
        which = "cache_positions" if stage.startswith("cache.") else "positions"
        rows = inputs[f"{calls}.{n}.{which}"]
        if stage.endswith("attention_weights"):
            columns = inputs[f"{calls}.{n}.key_positions"]
    elif case.kind == "operation":
        rows = inputs.get("q_positions", inputs.get("positions"))
        columns = inputs["k_positions"] if name == "weights" else None
    mask = np.ones(shape, dtype=bool)
    if columns is not None and rows is not None:  # weights (B, H, T, S)
        mask &= (rows >= 0)[:, None, :, None] & (columns >= 0)[:, None, None, :]
    elif rows is not None:  # (B, T, ...)
        mask &= (rows >= 0).reshape(*rows.shape, *[1] * (len(shape) - 2))
    return mask


def own_dtype(arrays: Iterable[np.ndarray]) -> str:
    """Return the dtype whose tolerances apply: the coarsest of the arrays; float32 if wider."""
    found = {
        "bfloat16" if x.dtype == BFLOAT16 else "float16" if x.dtype.itemsize == 2 else "float32"
        for x in arrays
        if x.dtype.kind == "f" or x.dtype == BFLOAT16
    }
    return next((dtype for dtype in reversed(DTYPES) if dtype in found), "float32")


def compare_tensor(tensor: Tensor, got: np.ndarray, how: Expected, dtype: str) -> Part:
    """Compare numbers with those expected, by the tolerance of a dtype, or exactly."""
    problem = shape_problem(tensor.case, tensor.name, tensor.axes, got.shape, tensor.numbers.shape)
    if not problem and how.exact != (got.dtype.kind in "iu"):
        problem = f"it holds {got.dtype}, expected {'integers' if how.exact else 'floating point'}"
    if not problem and not how.exact and dtype not in how.tolerance:
        problem = f"there is no tolerance for {dtype}, but for {', '.join(how.tolerance)}"
    if problem:
        return Part(tensor.name, INCOMPARABLE, dtype, says=problem)
    return _exactly(tensor, got, how, dtype) if how.exact else _nearly(tensor, got, how, dtype)


def errors_of(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the absolute errors of numbers; for NaN and infinity 0 if equal, else infinity."""
    with np.errstate(all="ignore"):
        wide = got.astype(np.float64)
        errors = np.abs(wide - expected)
    errors[(wide == expected) | (np.isnan(wide) & np.isnan(expected))] = 0
    errors[~np.isfinite(errors)] = np.inf
    return errors


def differences(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return which integers, of any width, differ from the expected ones, which are int64."""
    if got.dtype == np.uint64:
        return (got > np.uint64(2**63 - 1)) | (got.astype(np.int64) != expected)
    return np.asarray(got != expected)


def _nearly(tensor: Tensor, got: np.ndarray, how: Expected, dtype: str) -> Part:
    errors = np.where(tensor.counts, errors_of(got, tensor.numbers), 0.0)
    largest = float(errors.max(initial=0.0))
    tolerance = how.tolerance[dtype]
    part = Part(
        tensor.name,
        AGREES if largest <= tolerance else DIFFERS,
        dtype,
        tolerance,
        largest,
        counted=int(tensor.counts.sum()),
        fits=tuple(name for name in DTYPES if largest <= how.tolerance.get(name, -1)),
    )
    if not part.counted:
        return part
    errors[~tensor.counts] = -1.0
    index = np.unravel_index(int(errors.argmax()), errors.shape)
    return _with_place(part, tensor, got, errors > tolerance, index)


def _exactly(tensor: Tensor, got: np.ndarray, how: Expected, dtype: str) -> Part:
    wrong = differences(got, tensor.numbers) & tensor.counts
    part = Part(tensor.name, AGREES, dtype, counted=int(tensor.counts.sum()), fits=DTYPES)
    if not wrong.any():
        return part
    unsafe = [name for name in DTYPES if name not in how.dtypes]
    part = replace(
        part,
        verdict=UNPROVEN if dtype in unsafe else DIFFERS,
        error=math.inf,
        says=f"in {' and '.join(unsafe)} rounding may lead to other tokens" if unsafe else "",
        fits=(),
    )
    first = np.argwhere(wrong.T)[0][::-1]  # the first column in which any row differs
    return _with_place(part, tensor, got, wrong, tuple(first))


def _with_place(
    part: Part, tensor: Tensor, got: np.ndarray, wrong: np.ndarray, index: Iterable[Any]
) -> Part:
    at = tuple(int(n) for n in index)
    return replace(
        part,
        index=at,
        where=spot(tensor.case, tensor.inputs, tensor.name, tensor.axes, at),
        expected=tensor.numbers[at].item(),
        got=got[at].item() if part.tolerance == 0 else float(got[at]),
        wrong=int(wrong.sum()),
        extent=extent(wrong, tensor.counts, tensor.axes) if wrong.any() else "",
    )
