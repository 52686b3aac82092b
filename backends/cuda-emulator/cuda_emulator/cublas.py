"""A stand-in for the C library cuBLAS: the functions that a program calls by ctypes.

Matrices are in the order of Fortran, at addresses of the emulated card. A wrong argument gives a
status other than 0, as in cuBLAS: https://docs.nvidia.com/cuda/cublas.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from cuda_emulator.cupy_stand_in._card import CARD, WORK

SUCCESS, NOT_INITIALIZED, ALLOC_FAILED, INVALID_VALUE = 0, 1, 3, 7
NORMAL, TRANSPOSED = 0, 1  # cublasOperation_t
COMPUTE_32F = 68  # cublasComputeType_t
ALGORITHMS = (-1, 99)  # cublasGemmAlgo_t: the default, and that on tensor cores
DTYPES = {  # cudaDataType_t
    0: np.dtype(np.float32),
    2: np.dtype(np.float16),
    14: np.dtype(ml_dtypes.bfloat16),
}


class Library:
    """The library, with one handle."""

    _HANDLE = 7

    def __init__(self) -> None:
        self._made = False
        self._stream = 0
        self._workspace = 0

    def cublasCreate_v2(self, handle: Any) -> int:  # noqa: N802, cuBLAS's names, here and below
        """Write a handle to where ctypes.byref(...) points."""
        handle._obj.value, self._made = self._HANDLE, True
        return SUCCESS

    def cublasSetStream_v2(self, handle: Any, stream: int) -> int:  # noqa: N802
        """Do what follows on a stream; this takes a workspace away, as it does in cuBLAS."""
        self._stream, self._workspace = stream, 0
        return self._status(handle)

    def cublasSetWorkspace_v2(self, handle: Any, workspace: int, nbytes: int) -> int:  # noqa: N802
        """Use memory at an address in place of the library's own."""
        CARD.memory.bytes(workspace, nbytes)  # or an error
        self._workspace = workspace
        return self._status(handle)

    def _status(self, handle: Any) -> int:
        return SUCCESS if self._made and handle.value == self._HANDLE else NOT_INITIALIZED

    def cublasGemmEx(  # noqa: N802
        self,
        handle: Any,
        op_a: int,
        op_b: int,
        m: int,
        n: int,
        k: int,
        alpha: Any,
        a: int,
        type_a: int,
        lda: int,
        b: int,
        type_b: int,
        ldb: int,
        beta: Any,
        c: int,
        type_c: int,
        ldc: int,
        compute_type: int,
        algorithm: int,
    ) -> int:
        """C (m, n) = op(A) (m, k) · op(B) (k, n), summed in float32; alpha is 1 and beta 0 here.

        A column of A, B or C begins lda, ldb or ldc numbers after the one before.
        """
        if self._status(handle):
            return self._status(handle)
        if WORK.captured is not None and not self._workspace:
            return ALLOC_FAILED  # cuBLAS would allocate one
        rows_a = m if op_a == NORMAL else k
        rows_b = k if op_b == NORMAL else n
        right = (
            self._stream == WORK.stream  # else it would be captured by another stream, or not
            and {op_a, op_b} <= {NORMAL, TRANSPOSED}
            and {type_a, type_b, type_c} == {type_a} <= set(DTYPES)
            and min(m, n, k) > 0
            and lda >= rows_a
            and ldb >= rows_b
            and ldc >= m
            and (alpha._obj.value, beta._obj.value) == (1, 0)
            and compute_type == COMPUTE_32F
            and algorithm in ALGORITHMS
        )
        if not right:
            return INVALID_VALUE
        dtype = DTYPES[type_a]

        def columns(address: int, rows: int, columns: int, stride: int) -> np.ndarray:
            """Return a matrix's columns as rows (columns, rows)."""
            nbytes = ((columns - 1) * stride + rows) * dtype.itemsize
            numbers = CARD.memory.bytes(address, nbytes).view(dtype)
            steps = (stride * dtype.itemsize, dtype.itemsize)
            return np.lib.stride_tricks.as_strided(numbers, (columns, rows), steps)

        def work() -> None:
            x = columns(b, rows_b, n if op_b == NORMAL else k, ldb)
            y = columns(a, rows_a, k if op_a == NORMAL else m, lda)
            x = (x if op_b == NORMAL else x.T).astype(np.float32, copy=False)
            y = (y if op_a == NORMAL else y.T).astype(np.float32, copy=False)
            columns(c, m, n, ldc)[...] = np.matmul(x, y).astype(dtype, copy=False)

        WORK.do(("cublasGemmEx", dtype), work)
        return SUCCESS
