"""JaxBackend: the operations of a Mistral forward pass in JAX.

Each operation is one compiled function. In 16 bits it computes in float32 and rounds at the end.
Positions, slots and ids are NumPy arrays, as for every backend; while a whole model is traced
(`models.py`), they are JAX's, of int32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tinymistral.backend import Array, Backend
from tinymistral.operations import PlainBackend, visible

LAST = 2**31 - 1  # of int32


class JaxBackend(Backend):
    """JAX, on whatever device it finds."""

    name = "jax"
    dtypes = ("float32", "bfloat16", "float16") + ("float64",) * jax.config.jax_enable_x64
    has_attention_weights = True

    def __init__(self, dtype: str | None = None):
        super().__init__(dtype)
        self.wide = jnp.dtype("float64" if self.dtype == "float64" else "float32")

    @classmethod
    def check_dtype(cls, dtype: str | None) -> str:
        if dtype == "float64" and not jax.config.jax_enable_x64:
            raise ValueError(
                "dtype 'float64': JAX computes in it only if the environment variable "
                "JAX_ENABLE_X64 is 1; set it, or take another dtype"
            )
        return dtype if dtype == "float64" else super().check_dtype(dtype)

    @classmethod
    def device(cls) -> str:
        device = jax.devices()[0]
        return "CPU" if device.platform == "cpu" else str(device.device_kind)

    # Arrays

    def asarray(self, array: np.ndarray, dtype: str | None = None) -> Array:
        return jnp.array(array, dtype=dtype)  # a copy, while `asarray` may share the host's memory

    def to_numpy(self, array: Array) -> np.ndarray:
        return np.asarray(whole(array))

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        return jnp.zeros(shape, dtype)

    def take(self, array: Array, indices: np.ndarray, axis: int) -> Array:
        if isinstance(array, Slots) and axis == 0:
            return Slots(_take(array.storage, int32(indices), axis), array.used)
        return _take(whole(array), int32(indices), axis)

    # Each token alone

    def embedding(self, table: Array, ids: np.ndarray) -> Array:
        return _take(table, int32(ids), 0).astype(self.dtype)

    def linear(self, x: Array, weight: Array) -> Array:
        return _linear(x, weight, self.dtype, self.wide)

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        x = x.array if isinstance(x, Residual) else x
        return _rms_norm(x, weight, eps, self.dtype, self.wide)

    def silu_mul(self, gate: Array, up: Array) -> Array:
        return _silu_mul(gate, up, self.dtype, self.wide)

    # Positions

    def rope_table(self, positions: Any, theta: float, d: int) -> Array:
        if isinstance(positions, np.ndarray):
            return jnp.array(PlainBackend(self.dtype).rope_table(positions, theta, d))
        return traced_table(positions, theta, d, self.wide)[..., None, :]

    def rope(self, x: Array, table: Array) -> Array:
        return _rope(x, table, self.dtype, self.wide)

    # Attention

    def attention(
        self, q: Array, k: Array, v: Array, q_positions: Any, k_positions: Any, window: int | None
    ) -> Array:
        slots = isinstance(k, Slots) and isinstance(v, Slots)
        if slots and (k.shape, k.storage.shape) == (v.shape, v.storage.shape):
            empty = k.storage.shape[1] - k_positions.shape[1]
            k_positions = np.pad(k_positions, ((0, 0), (0, empty)), constant_values=-1)
            k, v = k.storage, v.storage
        mask = mask_of(q_positions, k_positions, window)
        return _attention(q, whole(k), whole(v), mask, self.dtype, self.wide)

    def attention_weights(
        self, q: Array, k: Array, q_positions: Any, k_positions: Any, window: int | None
    ) -> Array:
        mask = mask_of(q_positions, k_positions, window)
        return _attention_weights(q, whole(k), mask, self.dtype, self.wide)

    # The cache

    def scatter(self, cache: Array, slots: Any, new: Array) -> Array:
        storage = cache.storage if isinstance(cache, Slots) else cache
        written = _scatter(storage, int32(slots), whole(new))
        return Slots(written, written.shape[1])


class Slots:
    """An array (B, S, K, d) of a cache, of which the first `used` slots count.

    The model reads `[:, :used]`, one slot more for each token. Were that an array of its own, JAX
    would compile attention anew for every token.
    """

    def __init__(self, storage: Array, used: int):
        self.storage, self.used = storage, used
        B, _, K, d = storage.shape
        self.shape, self.dtype = (B, used, K, d), storage.dtype

    def __getitem__(self, index: Any) -> Any:
        match index:
            case (slice(start=None, step=None) as rows, slice(start=None | 0, step=None) as slots):
                if rows.stop is None:
                    return Slots(self.storage, len(range(self.used)[slots]))
        return whole(self)[index]


class Residual:
    """The residual stream of a traced model, (B, T, D), whose sums are rounded: see `rounded`."""

    def __init__(self, array: Array):
        self.array = array

    def __add__(self, other: Array) -> Residual:
        both = self.array.astype(jnp.float32) + other.astype(jnp.float32)
        return Residual(rounded(both, "bfloat16"))


def whole(array: Array) -> Array:
    """Return an array of JAX's: of `Slots`, those that are used."""
    return array.storage[:, : array.used] if isinstance(array, Slots) else array


def int32(array: Any) -> Array:
    """Return ids, slots or indices as int32, which is what JAX has without x64."""
    return array.astype(np.int32)


def mask_of(q_positions: Any, k_positions: Any, window: int | None) -> Array:
    """Return which keys are visible to each query -> (B, T, S); on the host, of NumPy's int64."""
    if isinstance(q_positions, np.ndarray):
        rows = zip(q_positions, k_positions, strict=True)
        return np.stack([visible(q, k, window) for q, k in rows])
    window = None if window is None else min(window, LAST)
    return jax.vmap(lambda q, k: visible(q, k, window))(q_positions, k_positions)


def traced_table(positions: Array, theta: float, d: int, wide: Any) -> Array:
    """Return cosines and sines for traced positions (B, T) -> (2, B, T, d/2).

    A float32 angle would be off by 2^-10 at position 32767. So a turn is divided into 2^32 steps,
    as many as uint32 has: sums wrap around as angles do. The steps of each byte of a position are
    looked up, and added. Of that angle the cosine at its 12 high bits is looked up too, as a
    float32 number and what this lacks; the rest is an angle below 2^-9, by which it is turned. So
    nearly all numbers are the host's to the last bit. One bit in some of them can change two thirds
    of the logits in 16 bits.
    """
    frequencies = theta ** (-np.arange(0, d, 2, dtype=np.float64) / d)
    if wide == np.float64:
        angles = positions[..., None].astype(wide) * frequencies
        return jnp.stack([jnp.cos(angles), jnp.sin(angles)])
    byte, place = np.arange(256, dtype=np.float64), 256.0 ** np.arange(4, dtype=np.float64)
    turns = place[:, None, None] * byte[:, None] * frequencies / (2 * np.pi)  # (4, 256, d/2)
    steps = np.round(turns % 1 * 2**32).astype(np.uint64).astype(np.uint32)  # 2^32 becomes 0
    parts = [jnp.asarray(steps[n])[positions >> 8 * n & 255] for n in range(4)]
    angle = sum(parts[1:], parts[0])

    high = np.arange(2**12, dtype=np.float64) * (2 * np.pi / 2**12)
    exact = np.stack([np.cos(high), np.sin(high)])
    near = exact.astype(np.float32)
    lack = (exact - near).astype(np.float32)
    at, low = angle >> 20, (angle & 2**20 - 1).astype(wide) * np.float32(2 * np.pi / 2**32)
    cos, sin = jnp.asarray(near)[:, at]
    turned = jnp.stack([-sin, cos]) * (low - low**3 / 6) - jnp.stack([cos, sin]) * (low**2 / 2)
    return jnp.stack([cos, sin]) + (jnp.asarray(lack)[:, at] + turned)


# The operations. `dtype` is that of the result, `wide` what is computed in.

compiled = partial(jax.jit, static_argnames=("dtype", "wide"))


def rounded(x: Array, dtype: str) -> Array:
    """Round to a dtype.

    XLA may leave out a rounding to bfloat16 between operations that it compiles together, but not
    `reduce_precision`. In float16 that would make 0 of subnormal numbers.
    """
    if dtype == "bfloat16":
        x = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return x.astype(dtype)


@partial(jax.jit, static_argnames="axis")
def _take(array: Array, indices: Array, axis: int) -> Array:
    return jnp.take(array, indices, axis=axis)


@compiled
def _linear(x: Array, weight: Array, dtype: str, wide: Any) -> Array:
    both = jnp.promote_types(x.dtype, weight.dtype)
    x, weight = x.astype(both), weight.astype(both)
    out = jnp.einsum("...n,mn->...m", x, weight, precision="highest", preferred_element_type=wide)
    return rounded(out, dtype)


@compiled
def _rms_norm(x: Array, weight: Array, eps: float, dtype: str, wide: Any) -> Array:
    x = x.astype(wide)
    mean_square = jnp.square(x).mean(axis=-1, keepdims=True)
    return rounded(x / jnp.sqrt(mean_square + eps) * weight.astype(wide), dtype)


@compiled
def _silu_mul(gate: Array, up: Array, dtype: str, wide: Any) -> Array:
    gate = gate.astype(wide)
    return rounded(gate / (1 + jnp.exp(-gate)) * up.astype(wide), dtype)


@compiled
def _rope(x: Array, table: Array, dtype: str, wide: Any) -> Array:
    cos, sin = table
    first, second = jnp.split(x.astype(wide), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return rounded(jnp.concatenate(rotated, axis=-1), dtype)


def _softmax(q: Array, k: Array, mask: Array, wide: Any) -> Array:
    """Attention weights (B, K, G, T, S) of q (B, T, H, d) and k (B, S, K, d); G = H/K."""
    (B, T, H, d), K = q.shape, k.shape[2]
    q = q.astype(wide).reshape(B, T, K, H // K, d) * d**-0.5
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k.astype(wide), precision="highest")
    scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
    largest = lax.stop_gradient(scores.max(axis=-1, keepdims=True, initial=-jnp.inf))
    exp = jnp.exp(scores - jnp.where(largest == -jnp.inf, 0, largest))
    total = exp.sum(axis=-1, keepdims=True)
    return exp / jnp.where(total == 0, 1, total)  # 0 where no key is visible


@compiled
def _attention(q: Array, k: Array, v: Array, mask: Array, dtype: str, wide: Any) -> Array:
    weights, v = _softmax(q, k, mask, wide), v.astype(wide)
    mix = partial(jnp.einsum, "bkgts,bskd->btkgd", precision="highest")
    # 0 · NaN is NaN: what a query does not see must not be NaN where it is mixed.
    if q.shape[1] == 1:
        out = mix(weights, jnp.where(mask.swapaxes(1, 2)[..., None], v, 0))
        return rounded(out.reshape(q.shape), dtype)

    # Of several queries each sees other values: mix the finite ones, then add the others.
    finite = jnp.isfinite(v)
    out = mix(weights, jnp.where(finite, v, 0))

    def with_others() -> Array:
        kinds = jnp.stack([jnp.isnan(v), v == jnp.inf, v == -jnp.inf])
        seen = jnp.einsum("bts,nbskd->nbtkd", mask.astype(wide), kinds.astype(wide)) > 0
        values = jnp.array([jnp.nan, jnp.inf, -jnp.inf], wide)[:, None, None, None, None]
        return out + jnp.where(seen, values, 0).sum(axis=0)[:, :, :, None]

    out = lax.cond(finite.all(), lambda: out, with_others)
    return rounded(out.reshape(q.shape), dtype)


@compiled
def _attention_weights(q: Array, k: Array, mask: Array, dtype: str, wide: Any) -> Array:
    weights = _softmax(q, k, mask, wide)
    return rounded(weights.reshape(len(q), q.shape[2], q.shape[1], k.shape[1]), dtype)


def scattered(cache: Array, slots: Array, new: Array) -> Array:
    """Return cache (B, S, ...) with new (B, T, ...) at slots (B, T), -1 for none."""
    slots = jnp.where(slots >= 0, slots, cache.shape[1])  # past the end: dropped
    rows = jnp.arange(len(slots), dtype=jnp.int32)[:, None]
    return cache.at[rows, slots].set(new.astype(cache.dtype), mode="drop")


_scatter = jax.jit(scattered, donate_argnums=0)
