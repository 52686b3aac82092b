"""What the backend uses of the module cupy, on NumPy and the PTX interpreter, and strict.

It has only names that cupy has, and refuses what cupy refuses, or what is wrong there without
being told: NumPy arrays among its own, implicit conversion to NumPy, arrays with gaps as kernel
arguments, matrix products of more than two dimensions. New memory holds NaN, never zeros.
"""

from tinymistral_cupy.emulator.cupy_stand_in import cuda
from tinymistral_cupy.emulator.cupy_stand_in._array import ndarray
from tinymistral_cupy.emulator.cupy_stand_in._functions import (
    asarray,
    ascontiguousarray,
    empty,
    get_default_memory_pool,
    matmul,
    take,
    zeros,
)
from tinymistral_cupy.emulator.cupy_stand_in._raw import RawModule

__all__ = [
    "RawModule",
    "asarray",
    "ascontiguousarray",
    "cuda",
    "empty",
    "get_default_memory_pool",
    "matmul",
    "ndarray",
    "take",
    "zeros",
]
