"""The cases that laws are tried on: a few numbers each, and the arrays made from these.

Shapes are drawn. Arrays hold normal numbers from a drawn seed, times a scale, up to the size of the
largest numbers in trained models; small ones are set to 0, so that nothing is subnormal in any
dtype (GPUs flush that to zero). Windows are drawn from 1, 2, S - 1, S, S + 1, other sizes and none.
Positions begin at 0, near 32,768 or past 2^24, where float32 cannot count them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from tinymistral.backend import Backend
from tinymistral.operations import NUMPY_DTYPES

WIDTHS = (2, 6, 16, 64, 128)  # widths of heads
PAST_A_TILE = (33, 65, 130, 200)  # kernels work in tiles of 32, 64 or 128
SMALL_ONLY = False  # set by `--tinymistral-small`
WIDE_FIRST = ("float64", "float32", "float16", "bfloat16")


def normal(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    """Draw normal numbers; small ones are 0, so that none is subnormal, also in 16 bits."""
    x = rng.standard_normal(shape)
    return np.where(np.abs(x) < 2.0**-8, 0.0, x).astype(NUMPY_DTYPES[dtype])


def sizes(most: int, *more: int) -> st.SearchStrategy[int]:
    """Draw from 1 to `most` and from `more`, evenly; `integers` would favour the smallest."""
    if SMALL_ONLY:
        more = tuple(size for size in more if size <= PAST_A_TILE[0])
    return st.sampled_from([*range(1, most + 1), *more])


seeds = st.integers(0, 2**32 - 1)
thetas = st.sampled_from([10_000.0, 1e6, 20_221.3])  # the last for twice the context, by NTK


def widths(backend: Backend) -> st.SearchStrategy[int]:
    """Draw a head width that the backend supports."""
    every = WIDTHS if backend.head_dims is None else sorted(backend.head_dims)
    some = [*(width for width in every if width in WIDTHS), every[-1]]
    return st.sampled_from(every if len(every) < 8 else some)


def stored_dtypes(backend: Backend) -> st.SearchStrategy[str]:
    """Draw the dtype of weights: that of the activations, or a narrower one."""
    own = WIDE_FIRST.index(backend.dtype)
    return st.sampled_from(
        [backend.dtype, *(WIDE_FIRST[own + 1 :] if backend.narrow_weights else ())]
    )


# How a law calls a backend: NumPy arrays in, NumPy arrays out.


def on(backend: Backend, array: np.ndarray) -> Any:
    """Bring a copy of an array to the backend."""
    return backend.asarray(array.copy())


def call(backend: Backend, operation: str, *arguments: Any) -> Any:
    """Call an operation with NumPy arrays -> a NumPy array.

    Arrays of floats go to the backend; integers (ids, positions, slots) stay on the host. Checks
    that no argument changed, but for the cache that `scatter` writes to.
    """
    given = list(arguments)
    for n, x in enumerate(arguments):
        if isinstance(x, np.ndarray):
            given[n] = x.copy() if x.dtype.kind in "iu" else on(backend, x)
    result = backend.to_numpy(getattr(backend, operation)(*given))
    for n, (x, after) in enumerate(zip(arguments, given, strict=True)):
        if isinstance(x, np.ndarray) and (operation, n) != ("scatter", 0):
            now = after if isinstance(after, np.ndarray) else backend.to_numpy(after)
            assert np.array_equal(now, x, equal_nan=True), f"{operation} changed argument {n}"
    return result


def rope(backend: Backend, x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """Rotate x (B, T, H, d) on the backend."""
    return call(backend, "rope", x, backend.rope_table(positions, theta, x.shape[-1]))


# The cases


@dataclass(frozen=True)
class Matrix:
    """Rows x (2, T, n), times a scale, and a weight (m, n); or a table (m, n) and ids."""

    T: int
    m: int
    n: int
    stored: str
    scale: float
    seed: int

    def x(self, dtype: str) -> np.ndarray:
        """Return x (2, T, n) in a dtype, at most 2^15."""
        x = normal(np.random.default_rng([self.seed, 1]), dtype, 2, self.T, self.n)
        scaled = np.clip(x.astype(np.float64) * self.scale, -(2.0**15), 2.0**15)
        scaled[np.abs(scaled) < ml_dtypes.finfo(x.dtype).smallest_normal] = 0
        return scaled.astype(x.dtype)

    def y(self, dtype: str) -> np.ndarray:
        """Return another array (2, T, n)."""
        y = normal(np.random.default_rng([self.seed, 2]), dtype, 2, self.T, self.n)
        return y * y.dtype.type(self.beside)

    @property
    def weight(self) -> np.ndarray:
        """The weight (m, n), in the dtype that it is stored in."""
        weight = normal(np.random.default_rng([self.seed, 3]), self.stored, self.m, self.n)
        return weight * weight.dtype.type(self.beside)

    @property
    def beside(self) -> float:
        """What is multiplied by a large x is small, so that float16 does not overflow."""
        return min(1.0, 2.0**8 / self.scale)

    @property
    def ids(self) -> np.ndarray:
        """Ids (2, T): rows of the weight."""
        return np.random.default_rng([self.seed, 4]).integers(0, self.m, (2, self.T))


def matrices(backend: Backend) -> st.SearchStrategy[Matrix]:
    """Draw a case of a matrix."""
    return st.builds(
        Matrix,
        T=sizes(12, *PAST_A_TILE),
        m=sizes(20, *PAST_A_TILE),
        n=sizes(20, *PAST_A_TILE, 257, 1025),
        stored=stored_dtypes(backend),
        scale=st.sampled_from([1.0, 2.0**-7, 2.0**8, 2.0**14]),
        seed=seeds,
    )


@dataclass(frozen=True)
class Rotation:
    """Heads x (B, T, H, d), times a scale, at positions (B, T), some of them -1."""

    B: int
    T: int
    H: int
    d: int
    theta: float
    first: int
    seed: int
    scale: float = 1.0

    def x(self, dtype: str) -> np.ndarray:
        """Return x (B, T, H, d)."""
        rng = np.random.default_rng([self.seed, 1])
        x = normal(rng, dtype, self.B, self.T, self.H, self.d)
        return x * x.dtype.type(self.scale)

    @property
    def positions(self) -> np.ndarray:
        """Positions (B, T), up to 32,768 past `first`; one in eight is -1."""
        rng = np.random.default_rng([self.seed, 2])
        at = self.first + rng.integers(0, 2**15, (self.B, self.T))
        return np.where(rng.random(at.shape) < 1 / 8, -1, at)


firsts = st.sampled_from([0, 5, 32_760, 2**24 + 1])


def rotations(backend: Backend) -> st.SearchStrategy[Rotation]:
    """Draw a case of rotary embeddings."""
    return st.builds(
        Rotation,
        B=sizes(2),
        T=sizes(5),
        H=sizes(3),
        d=widths(backend),
        theta=thetas,
        first=firsts,
        seed=seeds,
        scale=st.sampled_from([1.0, 2.0**13]),
    )


@dataclass(frozen=True)
class Writing:
    """Keys (2, T, K, d) to write to slots (2, T) of a cache (2, S, K, d)."""

    T: int
    S: int
    K: int
    d: int
    seed: int

    def new(self, dtype: str) -> np.ndarray:
        """Return the keys (2, T, K, d)."""
        rng = np.random.default_rng([self.seed, 1])
        return normal(rng, dtype, 2, self.T, self.K, self.d)

    def cache(self, dtype: str) -> np.ndarray:
        """Return the cache (2, S, K, d) before the write."""
        rng = np.random.default_rng([self.seed, 2])
        return normal(rng, dtype, 2, self.S, self.K, self.d)

    @property
    def slots(self) -> np.ndarray:
        """Slots (2, T), distinct in a row; -1 where T > S leaves none, and one in five times."""
        rng = np.random.default_rng([self.seed, 3])
        slots = np.stack([rng.permutation(max(self.S, self.T))[: self.T] for _ in range(2)])
        return np.where((slots >= self.S) | (rng.random(slots.shape) < 0.2), -1, slots)


def writings(backend: Backend) -> st.SearchStrategy[Writing]:
    """Draw a case of writing to a cache."""
    return st.builds(Writing, T=sizes(6), S=sizes(8), K=sizes(3), d=widths(backend), seed=seeds)


@dataclass(frozen=True)
class Attention:
    """Queries and keys, the keys in slots in any order.

    A row has S consecutive key positions, each in a random slot. In half of the cases one slot in
    five is empty; in the other half none is, since kernels may have a faster way for that. The
    queries are at T consecutive positions, some of them padding, from before the first key to past
    the last one.
    """

    B: int
    T: int
    S: int
    K: int
    group: int
    d: int
    window: int | None
    first: int
    seed: int

    def qkv(self, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return q (B, T, H, d), k and v (B, S, K, d)."""
        rng, B, K, d = np.random.default_rng([self.seed, 1]), self.B, self.K, self.d
        q = normal(rng, dtype, B, self.T, K * self.group, d)
        return q, normal(rng, dtype, B, self.S, K, d), normal(rng, dtype, B, self.S, K, d)

    @cached_property
    def visibility(self) -> tuple[np.ndarray, np.ndarray, int | None]:
        """What decides which keys are visible: q_positions (B, T), k_positions (B, S), window."""
        rng, B, T, S = np.random.default_rng([self.seed, 2]), self.B, self.T, self.S
        k_positions = np.stack([rng.permutation(S) + self.first for _ in range(B)])
        k_positions[rng.random((B, S)) < 0.2 * (self.seed % 2)] = -1
        q_positions = rng.integers(-T, S + 2, (B, 1)) + self.first + np.arange(T)
        q_positions[rng.random((B, T)) < 0.2] = -1
        return np.maximum(q_positions, -1), k_positions, self.window


@st.composite
def attentions(draw: st.DrawFn, backend: Backend) -> Attention:
    """Draw a case of attention."""
    S, T = draw(sizes(12, *PAST_A_TILE, *PAST_A_TILE)), draw(sizes(5, 17, 65))
    return Attention(
        B=draw(sizes(2)),
        T=T,
        S=S,
        K=draw(sizes(3 if T < 65 else 1)),
        group=draw(sizes(4 if T < 65 else 2)),
        d=draw(widths(backend)),
        window=draw(st.sampled_from([1, 2, max(1, S - 1), S, S + 1, 2**40, None]) | sizes(S + 1)),
        first=draw(firsts),
        seed=draw(seeds),
    )


def filled(array: np.ndarray, mask: np.ndarray, value: float | None) -> np.ndarray:
    """Return a copy with `value`, or the dtype's largest number if None, where the mask is True."""
    array = array.copy()
    array[mask] = float(ml_dtypes.finfo(array.dtype).max) if value is None else value
    return array
