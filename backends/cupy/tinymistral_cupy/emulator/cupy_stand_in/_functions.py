"""The stand-in's functions of arrays."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from tinymistral_cupy.emulator.cupy_stand_in._array import FLOATS, ndarray


def _own(*arrays: Any) -> None:
    for array in arrays:
        if not isinstance(array, ndarray):
            raise TypeError(f"Unsupported type {type(array)}: expected an array on the card")


def empty(shape: Any, dtype: Any = float) -> ndarray:
    """Return an array with garbage in it."""
    return ndarray(shape, dtype)


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    """Return an array of zeros."""
    out = ndarray(shape, dtype)
    out._host[...] = 0
    return out


def asarray(a: np.ndarray, dtype: Any = None) -> ndarray:
    """Copy a NumPy array to the card, rounded to a dtype where one is given."""
    if not isinstance(a, np.ndarray):
        raise TypeError(f"Unsupported type {type(a)}: expected a NumPy array")
    return ndarray._copy(a if dtype is None else a.astype(dtype, copy=False))


def ascontiguousarray(a: ndarray) -> ndarray:
    """Return the array itself, or a copy where it has gaps."""
    _own(a)
    return a if a.flags.c_contiguous else ndarray._copy(a._host)


def take(a: ndarray, indices: ndarray, axis: int) -> ndarray:
    """Gather slices; an index that is out of range, which cupy wraps around, is an error."""
    _own(a, indices)
    if indices.dtype != np.int64:
        raise TypeError(f"indices are {indices.dtype}, expected int64")
    return ndarray._copy(np.take(a._host, indices._host, axis=axis))


def matmul(x1: ndarray, x2: ndarray, /) -> ndarray:
    """Multiply two matrices of one dtype, summing in float32 and rounding once, as cuBLAS does.

    One dot product alone is summed in its own dtype, as cupy's `_tensordot_core_mul_sum` does.
    """
    _own(x1, x2)
    if x1.ndim != 2 or x2.ndim != 2:
        raise ValueError(f"matmul of {x1.ndim} and {x2.ndim} dimensions: expected 2 and 2")
    if x1.dtype != x2.dtype or x1.dtype not in FLOATS[:3]:
        raise TypeError(f"matmul of {x1.dtype} and {x2.dtype}: expected one dtype of {FLOATS[:3]}")
    a, b, dtype = x1._host, x2._host, x1.dtype
    if len(a) == b.shape[1] == 1 and a.size:
        return ndarray._copy(np.asarray(reduce(np.add, (a[0] * b[:, 0]))).reshape(1, 1))
    product = np.matmul(a.astype(np.float32, copy=False), b.astype(np.float32, copy=False))
    return ndarray._copy(product.astype(dtype, copy=False))


class MemoryPool:
    """CuPy's pool of freed memory; here whatever is freed is gone."""

    def free_bytes(self) -> int:
        """Return how many bytes it holds that nothing uses: none."""
        return 0


def get_default_memory_pool() -> MemoryPool:
    """Return the pool."""
    return MemoryPool()
