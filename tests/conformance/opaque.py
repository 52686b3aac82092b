"""A backend whose arrays can do no more than the interface says, and that takes nothing else.

It computes what numpy does. It is what backends may be at their least convenient: arrays are no
NumPy arrays and do not turn into such; slices and what `to_numpy` returns are views, the latter
read-only; and what was written to by `scatter` is another array, the old one being spoiled.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from tinymistral.backend import DTYPES, Backend
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.operations import NUMPY_DTYPES

NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
WIDE_FIRST = ("float64", "float32", "float16", "bfloat16")


def refused(*_: Any) -> NoReturn:
    """Stand in for what Python would otherwise make up by itself."""
    raise TypeError("the model may not do this with a backend's array")


class OpaqueDtype:
    """What `.dtype` of an array is: no NumPy dtype, no name, equal to nothing but itself."""

    __slots__ = ()


TOKENS = {name: OpaqueDtype() for name in DTYPES}


class OpaqueArray:
    """An array with `+`, `.reshape`, `.shape`, `.dtype` and basic slicing, and nothing else."""

    __slots__ = ("_hidden",)
    __array_ufunc__ = None  # no ufunc of NumPy's, and no operator of a NumPy array with it
    __array__ = __bool__ = __eq__ = __ne__ = __reduce_ex__ = refused
    __iter__ = __contains__ = __hash__ = None

    def __init__(self, array: np.ndarray):
        self._hidden = array

    @property
    def shape(self) -> tuple[int, ...]:
        return self._hidden.shape

    @property
    def dtype(self) -> OpaqueDtype:
        return TOKENS[NAMES[self._hidden.dtype]]

    def __add__(self, other: Any) -> OpaqueArray:
        x, y = self._hidden, opened(other)
        if y.dtype != x.dtype or y.shape not in (x.shape, x.shape[-1:]):
            raise TypeError(f"{x.dtype} {x.shape} + {y.dtype} {y.shape}")
        return OpaqueArray(x + y)

    def __getitem__(self, key: Any) -> OpaqueArray:
        keys = key if type(key) is tuple else (key,)
        for one in keys:
            bounds = (one.start, one.stop, one.step) if type(one) is slice else (one, None, None)
            if any(type(n) not in (int, type(None)) for n in bounds) or bounds[2] is not None:
                raise TypeError(f"[{one!r}] is not a basic slice")
            if one is None:
                raise TypeError("a new axis is made by reshape")
        return OpaqueArray(self._hidden[(*keys, ...)])

    def reshape(self, *shape: int) -> OpaqueArray:
        if any(type(n) is not int or n < 0 for n in shape):
            raise TypeError(f"reshape{shape!r}: not integers from 0 on")
        return OpaqueArray(self._hidden.reshape(shape))


class OpaqueTable:
    """What `rope_table` makes, which nobody but `rope` looks into."""

    __slots__ = ("_hidden",)

    def __init__(self, table: Any):
        self._hidden = table


def opened(array: Any) -> np.ndarray:
    if type(array) is not OpaqueArray:
        raise TypeError(f"expected an array of the backend's own, got {type(array).__qualname__}")
    return array._hidden


def check_host(integers: Any, *shape: int) -> None:
    """Check ids, positions, slots or indices."""
    if type(integers) is not np.ndarray or integers.dtype != np.int64:
        got = getattr(integers, "dtype", type(integers).__qualname__)
        raise TypeError(f"expected int64 in a NumPy array, got {got}")
    if integers.shape != shape:
        raise TypeError(f"expected shape {shape}, got {integers.shape}")


class OpaqueBackend(Backend):
    """NumpyBackend behind arrays that are closed."""

    name = "opaque"
    dtypes = DTYPES
    has_attention_weights = True

    def __init__(self, dtype: str | None = None):
        super().__init__(dtype)
        self._numpy = NumpyBackend(self.dtype)

    def _own(self, array: Any, *shape: int) -> np.ndarray:
        """Open an activation, which has the backend's dtype and, where it is given, the shape."""
        inner = opened(array)
        if NAMES[inner.dtype] != self.dtype:
            raise TypeError(f"expected {self.dtype}, got {inner.dtype}")
        if shape and inner.shape != shape:
            raise TypeError(f"expected shape {shape}, got {inner.shape}")
        return inner

    def _weight(self, array: Any, *shape: int) -> np.ndarray:
        """Open a weight, which may be stored narrower."""
        inner = opened(array)
        if NAMES[inner.dtype] not in WIDE_FIRST[WIDE_FIRST.index(self.dtype) :]:
            raise TypeError(f"{inner.dtype} is wider than {self.dtype}")
        if shape and inner.shape != shape:
            raise TypeError(f"expected shape {shape}, got {inner.shape}")
        return inner

    def asarray(self, array: np.ndarray, dtype: str | None = None) -> OpaqueArray:
        if type(array) not in (np.ndarray, np.memmap) or array.dtype not in NAMES:
            raise TypeError(f"expected numbers in a NumPy array, got {type(array).__qualname__}")
        return OpaqueArray(array.astype(NUMPY_DTYPES[dtype] if dtype else array.dtype))

    def to_numpy(self, array: OpaqueArray) -> np.ndarray:
        view = opened(array).view()
        view.flags.writeable = False
        return view

    def zeros(self, shape: tuple[int, ...], dtype: str) -> OpaqueArray:
        if any(type(n) is not int for n in shape):
            raise TypeError(f"zeros: {shape} are not integers")
        return OpaqueArray(self._numpy.zeros(shape, dtype))

    def take(self, array: OpaqueArray, indices: np.ndarray, axis: int) -> OpaqueArray:
        check_host(indices, len(indices))
        return OpaqueArray(self._numpy.take(opened(array), indices, axis))

    def embedding(self, table: OpaqueArray, ids: np.ndarray) -> OpaqueArray:
        check_host(ids, *ids.shape)
        return OpaqueArray(self._numpy.embedding(self._weight(table), ids))

    def linear(self, x: OpaqueArray, weight: OpaqueArray) -> OpaqueArray:
        x, (m, _) = self._own(x), weight.shape
        return OpaqueArray(self._numpy.linear(x, self._weight(weight, m, x.shape[-1])))

    def rms_norm(self, x: OpaqueArray, weight: OpaqueArray, eps: float) -> OpaqueArray:
        x = self._own(x)
        return OpaqueArray(self._numpy.rms_norm(x, self._weight(weight, x.shape[-1]), eps))

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> OpaqueTable:
        check_host(positions, *positions.shape)
        return OpaqueTable(self._numpy.rope_table(positions, theta, d))

    def rope(self, x: OpaqueArray, table: OpaqueTable) -> OpaqueArray:
        if type(table) is not OpaqueTable:
            raise TypeError("expected what rope_table made")
        return OpaqueArray(self._numpy.rope(self._own(x), table._hidden))

    def attention(
        self,
        q: OpaqueArray,
        k: OpaqueArray,
        v: OpaqueArray,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        window: int | None,
    ) -> OpaqueArray:
        opened_q, opened_k = self._scored(q, k, q_positions, k_positions, window)
        values = self._own(v, *k.shape)
        where = (q_positions, k_positions, window)
        return OpaqueArray(self._numpy.attention(opened_q, opened_k, values, *where))

    def attention_weights(
        self,
        q: OpaqueArray,
        k: OpaqueArray,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        window: int | None,
    ) -> OpaqueArray:
        scored = self._scored(q, k, q_positions, k_positions, window)
        where = (q_positions, k_positions, window)
        return OpaqueArray(self._numpy.attention_weights(*scored, *where))

    def _scored(
        self,
        q: OpaqueArray,
        k: OpaqueArray,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        window: int | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        (B, T, H, d), (_, S, K, _) = q.shape, k.shape
        check_host(q_positions, B, T)
        check_host(k_positions, B, S)
        if type(window) not in (int, type(None)) or H % K:
            raise TypeError(f"attention: window {window!r}, {H} heads on {K}")
        return self._own(q), self._own(k, B, S, K, d)

    def silu_mul(self, gate: OpaqueArray, up: OpaqueArray) -> OpaqueArray:
        return OpaqueArray(self._numpy.silu_mul(self._own(gate), self._own(up, *gate.shape)))

    def scatter(self, cache: OpaqueArray, slots: np.ndarray, new: OpaqueArray) -> OpaqueArray:
        old, (B, T, *heads) = self._own(cache), new.shape
        check_host(slots, B, T)
        S = old.shape[1]
        for row in slots:
            written = row[row >= 0]
            if len(set(written.tolist())) < len(written) or row.min() < -1 or row.max() >= S:
                raise ValueError(f"scatter: slots {row} of {S}")
        result = self._numpy.scatter(old.copy(), slots, self._own(new, old.shape[0], T, *heads))
        old[...] = np.nan  # whoever goes on with the old array, or with a slice of it, finds this
        return OpaqueArray(result)
