"""Cublas: products of matrices by cuBLAS itself, called by ctypes, also while a stream captures.

CuPy refuses to call cuBLAS then (`setStream` in cupy_backends/cuda/libs/cublas.pyx). cuBLAS itself
can be captured: https://docs.nvidia.com/cuda/cublas/#cuda-graphs-support.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

from tinymistral.backend import Array

WORKSPACE = 32 << 20  # bytes, as many as cuBLAS takes by itself on an H100
TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # cudaDataType_t
NORMAL, TRANSPOSED = 0, 1  # cublasOperation_t
COMPUTE_32F = 68  # cublasComputeType_t
DEFAULT, DEFAULT_TENSOR_OP = -1, 99  # cublasGemmAlgo_t


def library(cp: Any) -> ctypes.CDLL:
    """Return the cuBLAS that CuPy has loaded; raise OSError where it is not found."""
    major = cp.cuda.runtime.runtimeGetVersion() // 1000
    windows = sys.platform == "win32"
    cublas = ctypes.CDLL(f"cublas64_{major}.dll" if windows else f"libcublas.so.{major}")
    pointer, number = ctypes.c_void_p, ctypes.c_int
    a_or_b = (pointer, number, number)  # address, type, distance of columns
    cublas.cublasCreate_v2.argtypes = (pointer,)
    cublas.cublasSetStream_v2.argtypes = (pointer, pointer)
    cublas.cublasSetWorkspace_v2.argtypes = (pointer, pointer, ctypes.c_size_t)
    sizes = (number,) * 5
    scaled = (pointer, *a_or_b, *a_or_b)
    cublas.cublasGemmEx.argtypes = (pointer, *sizes, *scaled, *scaled[:4], number, number)
    return cublas


class Cublas:
    """A handle of cuBLAS, with memory of its own to work in."""

    def __init__(self, cp: Any, functions: Any, dtype: str):
        """Make it; `functions` is what `library` returns, or the emulator's stand-in for that."""
        self._cp, self._functions, self._type = cp, functions, TYPES[dtype]
        # The algorithm that CuPy names (`tensordot_core_v11`), so that results have the same bits.
        capability = int(cp.cuda.Device().compute_capability)
        tensor = capability >= 80 or (capability >= 70 and dtype == "float16")
        self._algorithm = DEFAULT_TENSOR_OP if tensor else DEFAULT
        self._workspace = cp.empty(WORKSPACE // 4, dtype=np.float32)
        self._handle = ctypes.c_void_p()
        self._one, self._zero = ctypes.c_float(1), ctypes.c_float(0)
        self._call("cublasCreate_v2", ctypes.byref(self._handle))

    def use(self, stream: Any) -> None:
        """Do what follows on a stream."""
        self._call("cublasSetStream_v2", self._handle, stream.ptr)
        # Afterwards, since another stream takes it away.
        workspace = self._workspace
        self._call("cublasSetWorkspace_v2", self._handle, workspace.data.ptr, workspace.nbytes)

    def product(self, x: Array, weight: Array) -> Array:
        """Return x (rows, n) times weight (m, n) transposed -> (rows, m); all contiguous.

        cuBLAS reads a row as a column. So it computes the transpose, weight^T^T · x^T.
        """
        (rows, n), m = x.shape, weight.shape[0]
        out = self._cp.empty((rows, m), dtype=x.dtype)
        self._call(
            "cublasGemmEx",
            self._handle,
            *(TRANSPOSED, NORMAL, m, rows, n),
            *(ctypes.byref(self._one), weight.data.ptr, self._type, n),
            *(x.data.ptr, self._type, n),
            *(ctypes.byref(self._zero), out.data.ptr, self._type, m),
            *(COMPUTE_32F, self._algorithm),
        )
        return out

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._functions, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} of cuBLAS failed with status {status}")
