"""The stand-in's ndarray, a NumPy array inside a block of the card's memory; array functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from math import prod
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from cuda_emulator.cupy_stand_in._card import CARD, COPIES, WORK
from cuda_emulator.cupy_stand_in.cuda.memory import MemoryPointer, MemoryPool, alloc

FLOATS = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)))
DTYPES = (*FLOATS, np.dtype(np.int32), np.dtype(np.int64))


class ndarray:  # noqa: N801, cupy's name
    """An array on the card, with few methods and basic slices."""

    def __init__(self, shape: Any, dtype: Any = float, memptr: MemoryPointer | None = None):
        """Make an array in new memory, which holds garbage, or in the memory at `memptr`."""
        dtype = np.dtype(dtype)
        if dtype not in DTYPES:
            raise TypeError(f"the stand-in has no arrays of {dtype}")
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        nbytes = prod(shape) * dtype.itemsize
        self.data = alloc(nbytes) if memptr is None else memptr
        if memptr is not None and memptr.mem.size < memptr._offset + nbytes:
            raise ValueError(f"{nbytes} bytes are asked of memory that ends before them")
        start = self.data._offset
        self._host = self.data.mem.bytes[start : start + nbytes].view(dtype).reshape(shape)

    def _slice(self, host: np.ndarray) -> ndarray:
        """Return a view: `host` lies within this array's own."""
        out = ndarray.__new__(ndarray)
        out._host = host
        first = host.__array_interface__["data"][0] - self._host.__array_interface__["data"][0]
        out.data = MemoryPointer(self.data.mem, self.data._offset + (first if host.size else 0))
        return out

    @classmethod
    def _of(cls, host: np.ndarray) -> ndarray:
        """Return a new array with the numbers of one on the host, which waits for the copy."""
        WORK.refuse("a copy from the host")
        out = cls(host.shape, dtype=host.dtype)
        out._host[...] = host
        return out

    def _finder(self) -> Callable[[], np.ndarray]:
        """Return what finds its numbers by address, also when this object is gone."""
        if WORK.captured is None or self.size == 0:
            return lambda: self._host
        if not self.flags.c_contiguous:
            raise NotImplementedError("the stand-in captures no arrays with gaps")
        address, nbytes, dtype, shape = self.data.ptr, self.nbytes, self.dtype, self.shape
        return lambda: CARD.memory.bytes(address, nbytes).view(dtype).reshape(shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """As NumPy's."""
        return self._host.shape

    @property
    def dtype(self) -> np.dtype:
        """As NumPy's."""
        return self._host.dtype

    @property
    def ndim(self) -> int:
        """As NumPy's."""
        return self._host.ndim

    @property
    def size(self) -> int:
        """As NumPy's."""
        return self._host.size

    @property
    def itemsize(self) -> int:
        """As NumPy's."""
        return self._host.itemsize

    @property
    def nbytes(self) -> int:
        """As NumPy's."""
        return self._host.nbytes

    @property
    def strides(self) -> tuple[int, ...]:
        """As NumPy's, in bytes."""
        return self._host.strides

    @property
    def flags(self) -> Any:
        """As NumPy's; only `.c_contiguous` is used."""
        return self._host.flags

    @property
    def T(self) -> ndarray:  # noqa: N802, cupy's name
        """The transpose, a view."""
        return self._slice(self._host.T)

    def reshape(self, *shape: Any) -> ndarray:
        """Return a view, or a copy where the array has gaps."""
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        host = self._host.reshape(shape)
        viewed = host.size == 0 or np.may_share_memory(host, self._host)
        return self._slice(host) if viewed else ascontiguousarray(self).reshape(shape)

    def __getitem__(self, slices: Any) -> ndarray:
        """Return a view; only basic slices are taken."""
        keys = slices if isinstance(slices, tuple) else (slices,)
        if not all(k is None or k is Ellipsis or isinstance(k, int | slice) for k in keys):
            raise TypeError(f"the stand-in takes basic slices, not [{slices!r}]")
        return self._slice(self._host[keys if Ellipsis in keys else (*keys, ...)])

    def __add__(self, other: Any) -> ndarray:
        """Add an array of the same dtype."""
        if not isinstance(other, ndarray):
            return NotImplemented
        if self.dtype != other.dtype or self.dtype not in FLOATS:
            raise TypeError(f"{self.dtype} + {other.dtype}: expected floats of one dtype")
        shape = np.broadcast_shapes(self.shape, other.shape)
        return _made("add", np.add, shape, self, other)

    def get(self) -> np.ndarray:
        """Wait for all copies so far, and return a copy on the host."""
        COPIES.wait()
        return self._host.copy()

    def set(self, arr: np.ndarray) -> None:
        """Copy a NumPy array of the same shape and dtype into it, while the host goes on."""
        if type(arr) is not np.ndarray:
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        COPIES.copy(self._host, arr)

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse, as cupy does."""
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __iter__(self) -> NoReturn:
        """Refuse to go element by element, which is slow on a GPU."""
        raise TypeError("an array on the card is not iterated over")

    __bool__ = __float__ = __int__ = __len__ = __iter__


# Functions of arrays


def _own(*arrays: Any) -> None:
    for array in arrays:
        if not isinstance(array, ndarray):
            raise TypeError(f"Unsupported type {type(array)}: expected an array on the card")


def _run(kernel: str, function: Callable[..., Any], out: ndarray, *arrays: ndarray) -> None:
    """Let one of CuPy's own kernels write function(*arrays) to an array."""
    to, *from_ = (array._finder() for array in (out, *arrays))

    def work() -> None:
        to()[...] = function(*(find() for find in from_))

    WORK.do((kernel, out.dtype, *(array.ndim for array in arrays)), work)


def _made(kernel: str, function: Callable[..., Any], shape: Any, *arrays: ndarray) -> ndarray:
    """Return function(*arrays) as a new array, of the first one's dtype."""
    out = ndarray(shape, arrays[0].dtype)
    _run(kernel, function, out, *arrays)
    return out


def empty(shape: Any, dtype: Any = float) -> ndarray:
    """Return an array with garbage in it."""
    return ndarray(shape, dtype)


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    """Return an array of zeros."""
    out = ndarray(shape, dtype)
    _run("zeros", lambda: 0, out)
    return out


def asarray(a: np.ndarray, dtype: Any = None) -> ndarray:
    """Copy a NumPy array to the card, rounded to a dtype where one is given."""
    if not isinstance(a, np.ndarray):
        raise TypeError(f"Unsupported type {type(a)}: expected a NumPy array")
    return ndarray._of(a if dtype is None else a.astype(dtype, copy=False))


def ascontiguousarray(a: ndarray) -> ndarray:
    """Return the array itself, or a copy where it has gaps."""
    _own(a)
    return a if a.flags.c_contiguous else _made("copy", np.copy, a.shape, a)


def copyto(dst: ndarray, src: ndarray) -> None:
    """Copy an array into another of its shape and dtype, both on the card."""
    _own(dst, src)
    if dst.shape != src.shape or dst.dtype != src.dtype:
        raise ValueError(f"{src.dtype} {src.shape} is not copied to {dst.dtype} {dst.shape}")
    _run("copy", np.copy, dst, src)


def take(a: ndarray, indices: ndarray, axis: int) -> ndarray:
    """Gather slices; an index out of range is an error, while cupy wraps it around."""
    _own(a, indices)
    if indices.dtype != np.int64:
        raise TypeError(f"indices are {indices.dtype}, expected int64")
    axis %= a.ndim
    shape = (*a.shape[:axis], *indices.shape, *a.shape[axis + 1 :])
    return _made("take", partial(np.take, axis=axis), shape, a, indices)


def matmul(x1: ndarray, x2: ndarray, /) -> ndarray:
    """Multiply two matrices of one dtype, summing in float32 and rounding once, as cuBLAS does.

    A single dot product is summed in its own dtype, as in cupy's `_tensordot_core_mul_sum`.
    """
    _own(x1, x2)
    WORK.refuse("calling cuBLAS", NotImplementedError)
    if x1.ndim != 2 or x2.ndim != 2:
        raise ValueError(f"matmul of {x1.ndim} and {x2.ndim} dimensions: expected 2 and 2")
    if x1.dtype != x2.dtype or x1.dtype not in FLOATS[:3]:
        raise TypeError(f"matmul of {x1.dtype} and {x2.dtype}: expected one dtype of {FLOATS[:3]}")
    a, b, dtype = x1._host, x2._host, x1.dtype
    if len(a) == b.shape[1] == 1 and a.size:
        return ndarray._of(np.asarray(reduce(np.add, (a[0] * b[:, 0]))).reshape(1, 1))
    product = np.matmul(a.astype(np.float32, copy=False), b.astype(np.float32, copy=False))
    return ndarray._of(product.astype(dtype, copy=False))


def get_default_memory_pool() -> MemoryPool:
    """Return a pool of freed memory; by default none is kept."""
    return MemoryPool()
