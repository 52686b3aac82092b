"""CupyBackend: the operations of a Mistral forward pass on an NVIDIA GPU.

CuPy computes products of matrices (by cuBLAS), gathers and additions; each other operation is a
kernel of `mistral.cu`. Weights are on the card in the backend's dtype. Arrays are CuPy's and stay
on the card; positions, slots and ids come from the host by `Upload`. All operations of a step of
decoding are launched at once, see `graphs.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from tinymistral.backend import Array, Backend, BackendUnavailable
from tinymistral.cache import RollingCache
from tinymistral.config import MistralConfig
from tinymistral_cupy.card import (
    INSTALL,
    INSTALL_EMULATOR,
    OutOfMemoryInOneLine,
    check_card,
    check_room,
    first_line,
    import_cupy,
)
from tinymistral_cupy.cublas import library
from tinymistral_cupy.graphs import Graphs
from tinymistral_cupy.kernels import TENSOR_CAPABILITY, TENSOR_WIDTHS, Kernels
from tinymistral_cupy.uploads import Upload

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

Table = tuple[Array, Array]  # cosines and sines (B, T, d/2) in float32


class CupyBackend(Backend):
    """CuPy, cuBLAS and our own kernels. Sums, norms and softmax are float32 in every dtype.

    Use one object for one stream only: its scratch memory relies on that stream's order.
    """

    name = "cupy"
    dtypes = tuple(DTYPES)
    head_dims = range(2, 257, 2)
    narrow_weights = False  # cuBLAS multiplies two matrices of one dtype
    # All rows of a batch together. A product of few tokens leaves most of a card idle: on an H100
    # one of 512 tokens reached 264 TFLOP/s of 891. More tokens take more memory, for activations,
    # and for the slots that a ring has beyond its window.
    chunk = 4096

    @classmethod
    def module(cls) -> Any:
        """Return cupy or its stand-in; raise BackendUnavailable where it is not installed."""
        return import_cupy()

    @classmethod
    def cublas(cls) -> Any:
        """Return the functions of cuBLAS, or their stand-in; raise OSError where they are not."""
        return library(cls.module())

    @classmethod
    def device(cls) -> str:
        return check_card(cls.module())

    @classmethod
    def details(cls) -> str:
        widths = ", ".join(map(str, TENSOR_WIDTHS))
        if int(cls.module().cuda.Device().compute_capability) >= TENSOR_CAPABILITY:
            return f"prompts by tensor cores in float16 and bfloat16, for heads of {widths} numbers"
        least = f"{TENSOR_CAPABILITY // 10}.{TENSOR_CAPABILITY % 10}"
        return f"prompts by plain kernels; those for tensor cores need compute capability {least}"

    def __init__(self, dtype: str | None = None):
        """Compile the kernels for the card; raise BackendUnavailable where that fails."""
        super().__init__(dtype)
        self._cp = cp = self.module()
        self._dtype = DTYPES[self.dtype]
        self._kernels = _compiled(cp, self.dtype)
        self._memory = OutOfMemoryInOneLine(cp)
        self._ids, self._indices, self._slots = Upload(cp), Upload(cp), Upload(cp)
        self._q_positions, self._k_positions = Upload(cp), Upload(cp)
        self.graphs = Graphs()

    def prepare(self, config: MistralConfig) -> None:
        self._kernels.prepare(config)

    # Arrays

    def chunk_for(self, rows: int) -> int:
        return max(1, self.chunk // max(1, rows))

    def check_memory(self, nbytes: int) -> None:
        check_room(self._cp, nbytes, self.dtype)

    def asarray(self, array: np.ndarray, dtype: str | None = None) -> Array:
        with self._memory:
            return self._cp.asarray(array, dtype=DTYPES[dtype] if dtype else None)

    def to_numpy(self, array: Array) -> np.ndarray:
        with self._memory:  # a slice that is not contiguous is copied on the card first
            return array.get()

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        with self._memory:
            return self._cp.zeros(shape, dtype=DTYPES[dtype])

    def take(self, array: Array, indices: np.ndarray, axis: int) -> Array:
        with self._memory:
            return self._cp.take(array, self._indices(indices), axis=axis)

    # A token by itself

    def embedding(self, table: Array, ids: np.ndarray) -> Array:
        with self._memory:
            return self._cp.take(table, self._ids(ids), axis=0)

    def linear(self, x: Array, weight: Array) -> Array:
        (m, n), rows = weight.shape, prod(x.shape[:-1])
        with self._memory:
            flat = x.reshape(rows, n)  # CuPy 14 multiplies bfloat16 only in two dimensions
            if rows == 1:  # an H100 took 15% less for a token than with cuBLAS
                out = self._kernels.linear(self._whole(flat), self._whole(weight))
            else:
                out = self._product(flat, weight)
            return out.reshape(*x.shape[:-1], m)

    def _product(self, x: Array, weight: Array) -> Array:
        return self._cp.matmul(x, weight.T)

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        with self._memory:
            return self._kernels.rms_norm(self._whole(x), weight, eps)

    def silu_mul(self, gate: Array, up: Array) -> Array:
        with self._memory:
            return self._kernels.silu_mul(self._whole(gate), self._whole(up))

    # Its position

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        with self._memory:
            cos_sin = self._angles(angles(positions, theta, d))
        return cos_sin[0], cos_sin[1]

    def _angles(self, table: np.ndarray) -> Array:
        return self._cp.asarray(table)  # new memory each time, since the caller may keep it

    def rope(self, x: Array, table: Table) -> Array:
        with self._memory:
            return self._kernels.rope(self._whole(x), *table)

    # Tokens together

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        window: int | None,
    ) -> Array:
        with self._memory:
            if not (_rows_are_whole(k) and _rows_are_whole(v) and k.strides == v.strides):
                k, v = self._whole(k), self._whole(v)
            where = (self._q_positions(q_positions), self._k_positions(k_positions), window)
            return self._kernels.attention(self._whole(q), k, v, *where)

    # The cache

    def scatter(self, cache: Array, slots: np.ndarray, new: Array) -> Array:
        with self._memory:
            cache = self._whole(cache)
            self._kernels.scatter(cache, self._slots(slots), self._whole(new))
            return cache

    # All of them

    def run_piece(
        self,
        forward: Callable[..., Array],
        ids: np.ndarray,
        weights: Any,
        positions: np.ndarray,
        cache: RollingCache,
        config: MistralConfig,
    ) -> Array:
        if ids.size and ids.shape[1] == 1:
            with self._memory:
                cache.reserve(1)
                step = self.graphs.step(self, forward, weights, cache, config)
                if step is not None:
                    table = angles(positions, config.rope_theta, config.head_dim)
                    return step(ids, positions, cache, table)
        return super().run_piece(forward, ids, weights, positions, cache, config)

    def _whole(self, array: Array) -> Array:
        """Return the array if it is contiguous, as kernels need it, else a copy."""
        return self._cp.ascontiguousarray(array)


class EmulatedBackend(CupyBackend):
    """The same code on cuda-emulator, which stands in for CuPy and runs the kernels on NumPy."""

    name = "cupy-emulated"

    @classmethod
    def module(cls) -> Any:
        """Return the stand-in for cupy; raise BackendUnavailable where the emulator cannot run."""
        try:
            import cuda_emulator
            from cuda_emulator import cupy_stand_in
        except ImportError:
            raise BackendUnavailable("cuda-emulator is not installed", INSTALL_EMULATOR) from None
        try:
            cuda_emulator.compile_cuda("")
            cupy_stand_in.cuda.runtime.getDeviceProperties(0)
        except cuda_emulator.Unavailable as error:
            raise BackendUnavailable(error.reason, error.remedy) from None
        return cupy_stand_in

    @classmethod
    def cublas(cls) -> Any:
        """Return the emulator's stand-in for cuBLAS."""
        from cuda_emulator.cublas import Library

        return Library()


def angles(positions: np.ndarray, theta: float, d: int) -> np.ndarray:
    """Return the cosines and sines of `rope_table`, in one array for one copy (2, B, T, d/2)."""
    frequencies = theta ** (-np.arange(0, d, 2, dtype=np.float64) / d)
    angles = positions[:, :, None] * frequencies
    table = np.empty((2, *angles.shape), dtype=np.float32)
    table[0], table[1] = np.cos(angles), np.sin(angles)
    return table


def _rows_are_whole(array: Array) -> bool:
    """Return whether (B, S, K, d) is contiguous except for gaps between its B rows."""
    _, _, K, d = array.shape
    return array.strides[1:] == (K * d * array.itemsize, d * array.itemsize, array.itemsize)


def _compiled(cp: Any, dtype: str) -> Kernels:
    """Compile the kernels, and check that CuPy finds cuBLAS, which it loads only when needed."""
    try:
        kernels = Kernels(cp, dtype)
        _ = cp.cuda.Device().cublas_handle
    except (cp.cuda.compiler.CompileException, ImportError, RuntimeError) as error:
        raise BackendUnavailable(
            f"on the {check_card(cp)} NVRTC or cuBLAS fails: {first_line(error)}",
            f"check that CUDA's libraries are installed: {INSTALL}",
        ) from error
    return kernels
