"""A strict part of the module cupy, on NumPy and the PTX interpreter: what tinymistral-cupy uses.

It has only names that cupy has. It refuses what cupy refuses, and also uses that fail silently in
cupy: NumPy arrays mixed with its own, implicit conversion to NumPy, arrays with gaps as kernel
arguments, matrix products of more than two dimensions. New memory holds NaN, never zeros.
"""

from cuda_emulator.cupy_stand_in import cuda
from cuda_emulator.cupy_stand_in._array import (
    asarray,
    ascontiguousarray,
    copyto,
    empty,
    get_default_memory_pool,
    matmul,
    ndarray,
    take,
    zeros,
)
from cuda_emulator.cupy_stand_in._raw import RawModule

__all__ = [
    "RawModule",
    "asarray",
    "ascontiguousarray",
    "copyto",
    "cuda",
    "empty",
    "get_default_memory_pool",
    "matmul",
    "ndarray",
    "take",
    "zeros",
]
