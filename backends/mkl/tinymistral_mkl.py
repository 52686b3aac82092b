"""MklBackend: the NumPy backend, with products by the bfloat16 units of a processor.

NumPy's library has no product of bfloat16 matrices. Intel's MKL has one: it reads bfloat16, with
the instructions of AVX-512 BF16 or AMX where there are any, and sums in float32. So a backend for
these processors is one operation, `linear`; all others are those of `NumpyBackend`.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache
from importlib import metadata

import ml_dtypes
import numpy as np

from tinymistral.backend import BackendUnavailable
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.threads import in_parallel, threads

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# By the dtype of activations, how many bfloat16 numbers each is the sum of (`split`). What is not
# here goes to NumPy, and every weight that is not bfloat16: for float32 weights MKL would use the
# same units of the processor as NumPy does, and a model in float16 has float16 weights.
PARTS = {"bfloat16": 1, "float32": 3}

# A product is done by several threads if it has at least so many weights to read, or products of
# numbers. Less takes a core with these units 0.2 ms, not much more than to wake a thread.
WEIGHTS_IN_PARALLEL = 1 << 20
PRODUCTS_IN_PARALLEL = 1 << 26

# One call of MKL computes about so many numbers (16 MB of float32): memory of 32 MB or more would
# be filled with zeros each time, and each call arranges the rows anew. The inherited `chunk`, 512
# tokens, is 1,536 rows in float32: enough that to read the weights takes little of the time.
NUMBERS_A_CALL = 1 << 22

# From mkl_cblas.h and mkl_service.h
ROW_MAJOR, AS_IT_IS, TRANSPOSED = 101, 111, 112
LP64, SEQUENTIAL = 0, 1  # MKL_INTERFACE_LP64: integers have 32 bits


class MklBackend(NumpyBackend):
    """The NumPy backend, where MKL computes products with bfloat16 weights."""

    name = "mkl"

    @classmethod
    def device(cls) -> str:
        """Return "CPU"; BackendUnavailable where there is no MKL."""
        library()
        return "CPU"

    @classmethod
    def details(cls) -> str:
        """Say which units MKL uses, or what is slower without."""
        version, processor = about()
        if "BF16" in processor:
            return f"MKL {version} with AVX-512 BF16" + " and AMX" * ("AMX" in processor)
        return (
            f"MKL {version} uses no bfloat16 units (AVX-512 BF16, AMX) on this processor: numpy is "
            "faster, in float32 about three times"
        )

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Map x (..., n) by weight (m, n) -> x @ weight.T (..., m).

        A bfloat16 weight is read where it lies, such as in a mapped file. Each part of x is
        multiplied, as further rows of one product, and the results are added, the smallest first.
        Products of bfloat16 numbers are exact in float32, and the parts of a number have its sign,
        so with γ of `conformance.bounds` the error is at most γ(n-1) Σ|x||w| for the sums, and a
        rounding for each addition: no more than that of a float32 product. But an infinite weight
        gives NaN where a part is 0.
        """
        m, n = weight.shape
        if (
            self.dtype not in PARTS
            or weight.dtype != BFLOAT16
            or not (weight.flags.c_contiguous and weight.flags.aligned)
            or not x.size
        ):
            return super().linear(x, weight)
        parts = split(x.reshape(-1, n), PARTS[self.dtype])  # (1 or 3, N, n)
        rows = parts.reshape(-1, n)
        out = np.empty((parts.shape[1], m), dtype=self.activation_dtype)

        def multiply(block: slice) -> None:
            *larger, total = product(rows, weight[block]).reshape(*parts.shape[:2], -1)
            for part in reversed(larger):
                total += part
            out[:, block] = total

        large = (
            weight.size >= WEIGHTS_IN_PARALLEL or len(rows) * weight.size >= PRODUCTS_IN_PARALLEL
        )
        height = min(NUMBERS_A_CALL // len(rows), -(-m // threads()) if large else m)
        height = -(-max(1, height) // 64) * 64  # as kernels compute tiles of some power of two
        blocks = [slice(start, start + height) for start in range(0, m, height)]
        if large:
            in_parallel(multiply, blocks)
        else:
            for block in blocks:
                multiply(block)
        return out.reshape(*x.shape[:-1], m)


@np.errstate(invalid="ignore")  # inf - inf, and any use of a signalling NaN
def split(x: np.ndarray, count: int) -> np.ndarray:
    """Split numbers (N, n) into bfloat16 numbers (count, N, n) whose sum they are, largest first.

    Those of float32 are x = x1 + x2 + x3, exactly. The upper half of a float32's bits is a bfloat16
    with the first 8 of its 24 significant bits, the other 16 cut off: x1. So x - x1 has at most
    these 16 bits; it is a float32, and the subtraction is exact. x2 is the upper half of x - x1,
    its first 8 significant bits. At most 8 are left, which are a bfloat16 as they are: x3. Bits are
    cut off, not rounded, so that nothing overflows, and each part has the sign of x or is 0.

    But a bfloat16 has no smaller step than 2^-133. The last bit of a number below 2^-110 may be
    smaller, and the sum is off by less than 2^-133. MKL's units take a part below 2^-126 as 0, and
    lose less than that. Where x is not finite, x1 is x, and the others are 0.
    """
    if count == 1:
        return np.ascontiguousarray(x)[None]
    parts = np.empty((count, *x.shape), dtype=np.uint16)
    rest = x.copy()
    for part in parts:
        upper = rest.view(np.uint32) >> 16
        part[...] = upper
        upper <<= 16
        rest -= upper.view(np.float32)
    parts = parts.view(BFLOAT16)
    strange = ~np.isfinite(x)
    if strange.any():
        parts[0, strange], parts[1:, strange] = x[strange], 0
    return parts


def product(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return rows (N, n) @ weight.T, weight (m, n), both bfloat16, as float32 (N, m), by MKL."""
    (N, n), m = rows.shape, len(weight)
    out = np.empty((N, m), dtype=np.float32)
    a, b, c = (array.ctypes.data for array in (rows, weight, out))
    library().cblas_gemm_bf16bf16f32(
        ROW_MAJOR, AS_IT_IS, TRANSPOSED, N, m, n, 1.0, a, n, b, n, 0.0, c, m
    )
    return out


@cache
def library() -> ctypes.CDLL:
    """Load MKL, as the distribution `mkl` has it; BackendUnavailable where that is impossible.

    It is told to compute each product in the thread that calls, and the threads are ours, as many
    as `--threads` says: MKL's would be those of an OpenMP library, of which PyTorch has another,
    and Intel's ends a process that loads it twice.
    """
    try:
        files = metadata.files("mkl") or []
    except metadata.PackageNotFoundError:
        raise BackendUnavailable(
            "MKL is not installed",
            'pip install "mkl>=2026"; it exists for Linux and Windows on x86-64 alone, elsewhere '
            "take numpy",
        ) from None
    try:
        named = (file.locate() for file in files if re.match(r"(lib)?mkl_rt\.", file.name))
        mkl = ctypes.CDLL(str(next(named, "mkl_rt")))
        call = mkl.cblas_gemm_bf16bf16f32
    except (OSError, AttributeError) as error:
        raise BackendUnavailable(
            f"MKL cannot be loaded: {error}", 'pip install --force-reinstall "mkl>=2026"'
        ) from error
    mkl.MKL_Set_Interface_Layer(LP64)
    mkl.MKL_Set_Threading_Layer(SEQUENTIAL)
    call.restype = None
    size, pointer, scale = ctypes.c_int, ctypes.c_void_p, ctypes.c_float
    call.argtypes = [*[size] * 6, scale, pointer, size, pointer, size, scale, pointer, size]
    return mkl


class Version(ctypes.Structure):
    """MKLVersion of mkl_types.h."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("major", "minor", "update")),
        *((name, ctypes.c_char_p) for name in ("status", "build", "processor", "platform")),
    )


def about() -> tuple[str, str]:
    """Return MKL's version, and what it says of the instructions that it uses here.

    They may be fewer than the processor has: on those of other makers than Intel it uses few.
    """
    version = Version()
    library().MKL_Get_Version(ctypes.byref(version))
    return f"{version.major}.{version.update}", version.processor.decode()
