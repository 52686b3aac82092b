"""Mistakes about arrays: to the backend and back, gathered, added, reshaped."""

# ruff: noqa: D102 (backend.py says what the methods do)

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from tinymistral.conformance.mistakes.catalogue import HALVES, mistake
from tinymistral.numpy_backend import NUMPY_DTYPES, NumpyBackend


@mistake(
    "bfloat16-truncated",
    law="asarray_rounds_to_nearest",
    fix="Round to nearest, ties to even, before the lower 16 bits are dropped.",
    dtypes=("bfloat16",),
)
class Bfloat16Truncated(NumpyBackend):
    """float32 becomes bfloat16 by dropping its lower 16 bits: all numbers move towards 0."""

    def asarray(self, array: np.ndarray, dtype: str | None = None) -> np.ndarray:
        if dtype != "bfloat16" or array.dtype not in (np.float32, np.float64):
            return super().asarray(array, dtype)
        upper = (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return upper.view(ml_dtypes.bfloat16)


@mistake(
    "weights-converted-unasked",
    law="arrays_come_and_go_as_they_are",
    fix="Without a dtype, keep that of the array.",
    dtypes=("float32", "float64", "float16"),
)
class WeightsConvertedUnasked(NumpyBackend):
    """`asarray` converts everything to the dtype of the activations.

    Narrow weights take two or four times the memory.
    """

    def asarray(self, array: np.ndarray, dtype: str | None = None) -> np.ndarray:
        return super().asarray(array, dtype or self.dtype)


@mistake(
    "float32-on-the-host",
    law="arrays_come_and_go_as_they_are",
    fix="Let `to_numpy` keep the dtype, bfloat16 as `ml_dtypes.bfloat16`.",
)
class Float32OnTheHost(NumpyBackend):
    """`to_numpy` gives float32 whatever the array is."""

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array.astype(np.float32)


@mistake(
    "zeros-not-set",
    law="zeros_are_zeros",
    fix="Write zeros to memory that was just allocated.",
)
class ZerosNotSet(NumpyBackend):
    """`zeros` only allocates: what was in that memory is still there."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.full(shape, 3, dtype=NUMPY_DTYPES[dtype])


@mistake(
    "take-along-the-first-axis",
    law="take_gathers_slices_in_any_order",
    fix="Gather along the axis given.",
)
class TakeAlongTheFirstAxis(NumpyBackend):
    """`take` gathers rows whatever the axis is."""

    def take(self, array: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:
        return np.take(array, indices, axis=0, mode="clip")


@mistake(
    "take-in-order",
    law="take_gathers_slices_in_any_order",
    fix="Gather slices in the order of the indices, repeats too.",
)
class TakeInOrder(NumpyBackend):
    """`take` gives slices in rising order: rows of a cache that are reordered change places."""

    def take(self, array: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:
        return super().take(array, np.sort(indices), axis)


@mistake(
    "take-gives-a-view",
    law="what_is_taken_is_a_copy",
    fix="Copy what is gathered, also where the indices are all there are.",
)
class TakeGivesAView(NumpyBackend):
    """Where all slices are taken in their order, `take` gives the array itself.

    A copy of a cache and its original then write over each other.
    """

    def take(self, array: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:
        whole = np.array_equal(indices, np.arange(array.shape[axis]))
        return array if whole else super().take(array, indices, axis)


class ColumnMajor(np.ndarray):
    """An array whose first axis varies fastest."""

    def reshape(self, *shape: Any, **_: Any) -> Any:
        """Reshape as Fortran would."""
        return super().reshape(*shape, order="F")


@mistake(
    "column-major-reshape",
    law="arrays_add_reshape_and_slice_as_numpys_do",
    fix="In `reshape` let the last axis vary fastest.",
)
class ColumnMajorReshape(NumpyBackend):
    """`reshape` counts the first axis fastest, as in Fortran, R or Julia.

    Heads are made of numbers from all over.
    """

    def asarray(self, array: np.ndarray, dtype: str | None = None) -> np.ndarray:
        return super().asarray(array, dtype).view(ColumnMajor)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array.view(np.ndarray)


class WideSum(np.ndarray):
    """An array of 16 bits whose sums are float32."""

    def __add__(self, other: Any) -> Any:
        x, y = (np.asarray(array, dtype=np.float32) for array in (self, other))
        return x + y


@mistake(
    "sums-not-rounded",
    law="arrays_add_reshape_and_slice_as_numpys_do",
    fix="Round `x + y` to the dtype of its operands.",
    dtypes=HALVES,
)
class SumsNotRounded(NumpyBackend):
    """The sum of two arrays of 16 bits is float32, and so is all that follows from it."""

    def asarray(self, array: np.ndarray, dtype: str | None = None) -> np.ndarray:
        return super().asarray(array, dtype).view(WideSum)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array.view(np.ndarray)
