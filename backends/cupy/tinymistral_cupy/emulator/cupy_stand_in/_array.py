"""The stand-in's ndarray: a NumPy array inside a block of the card's memory, and closed."""

from __future__ import annotations

from math import prod
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from tinymistral_cupy.emulator.cupy_stand_in._stream import STREAM
from tinymistral_cupy.emulator.cupy_stand_in.cuda.memory import MemoryPointer, alloc

FLOATS = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)))
DTYPES = (*FLOATS, np.dtype(np.int32), np.dtype(np.int64))


class ndarray:  # noqa: N801, cupy's name
    """What the backend, its kernels and the model do with an array, and nothing else."""

    def __init__(self, shape: Any, dtype: Any = float, memptr: MemoryPointer | None = None):
        """Make one with garbage in it, or of the memory that is there."""
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
    def _copy(cls, host: np.ndarray) -> ndarray:
        """Return a new array with the numbers of one on the host."""
        out = cls(host.shape, dtype=host.dtype)
        out._host[...] = host
        return out

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
        """As NumPy's; `.c_contiguous` is what counts."""
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
        return self._slice(host) if viewed else self._copy(host)

    def __getitem__(self, slices: Any) -> ndarray:
        """Return the view that a basic slice is."""
        keys = slices if isinstance(slices, tuple) else (slices,)
        if not all(k is None or k is Ellipsis or isinstance(k, int | slice) for k in keys):
            raise TypeError(f"the stand-in takes basic slices, not [{slices!r}]")
        return self._slice(self._host[keys if Ellipsis in keys else (*keys, ...)])

    def __add__(self, other: Any) -> ndarray:
        """Add an array of one dtype with it."""
        if not isinstance(other, ndarray):
            return NotImplemented
        if self.dtype != other.dtype or self.dtype not in FLOATS:
            raise TypeError(f"{self.dtype} + {other.dtype}: expected floats of one dtype")
        return self._copy(self._host + other._host)

    def get(self) -> np.ndarray:
        """Return a copy on the host, after all that was asked for before."""
        STREAM.wait()
        return self._host.copy()

    def set(self, arr: np.ndarray) -> None:
        """Copy a NumPy array of this very shape and dtype into it, while the host goes on."""
        if type(arr) is not np.ndarray:
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        STREAM.copy(self._host, arr)

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse, as cupy does."""
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __iter__(self) -> NoReturn:
        """Refuse what is slow on a GPU: an element at a time."""
        raise TypeError("an array on the card is not iterated over")

    __bool__ = __float__ = __int__ = __len__ = __iter__
