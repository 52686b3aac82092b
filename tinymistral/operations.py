"""Each operation of the forward pass in its plainest NumPy: read this after `model.py`.

`PlainBackend` is complete and right in every dtype; `numpy_backend.py` computes the same, faster.
`backend.py` says what each method takes and returns.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tinymistral.backend import Backend

NUMPY_DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

RopeTable = tuple[np.ndarray, np.ndarray]  # cosines and sines, each (B, T, 1, d/2)


def visible(q_positions: np.ndarray, k_positions: np.ndarray, window: int | None) -> np.ndarray:
    """Return which keys are visible to each query: positions (T,) and (S,) -> booleans (T, S).

    The one rule of masking, windows, caches and padding: key j is visible to query i iff
    `j >= 0 and 0 <= i - j < window`. A window of W counts the query's own key, as in transformers'
    masking_utils and mistral-inference. The paper's words, "between i - W and i"
    (https://arxiv.org/abs/2310.06825), would make it W + 1 keys.
    """
    distance = q_positions[:, None] - k_positions
    mask = (k_positions >= 0) & (distance >= 0)
    return mask if window is None else mask & (distance < window)


class PlainBackend(Backend):
    """Every operation as its formula. In 16 bits: computed in float32, rounded at the end."""

    name = "plain"
    dtypes = tuple(NUMPY_DTYPES)
    has_attention_weights = True

    def __init__(self, dtype: str | None = None):
        super().__init__(dtype)
        self.activation_dtype = NUMPY_DTYPES[self.dtype]
        self.compute_dtype = np.dtype(np.float64 if self.dtype == "float64" else np.float32)

    def widen(self, array: np.ndarray) -> np.ndarray:
        """Return the array in the dtype that operations compute in, float32 or float64."""
        return array.astype(self.compute_dtype, copy=False)

    def round(self, array: np.ndarray) -> np.ndarray:
        """Return the array rounded to the dtype of activations."""
        return array.astype(self.activation_dtype, copy=False)

    # Arrays

    def asarray(self, array: np.ndarray, dtype: str | None = None) -> np.ndarray:
        return np.asarray(array, dtype=NUMPY_DTYPES[dtype] if dtype else None)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array

    def zeros(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.zeros(shape, dtype=NUMPY_DTYPES[dtype])

    def take(self, array: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:
        return np.take(array, indices, axis=axis)

    # Each token alone

    def embedding(self, table: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return self.round(table[ids])

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return self.round(self.widen(x) @ self.widen(weight).T)

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        x = self.widen(x)
        mean_square = np.square(x).sum(axis=-1, keepdims=True) / x.shape[-1]
        return self.round(x / np.sqrt(mean_square + eps) * self.widen(weight))

    def silu_mul(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        gate, up = self.widen(gate), self.widen(up)
        with np.errstate(over="ignore"):  # exp(-gate) = inf is right: the quotient is 0
            return self.round(gate / (1 + np.exp(-gate)) * up)

    # Positions

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> RopeTable:
        frequencies = theta ** (-np.arange(0, d, 2, dtype=np.float64) / d)
        angles = positions[..., None, None] * frequencies  # (B, T, 1, d/2), one for all heads
        return np.cos(angles).astype(self.compute_dtype), np.sin(angles).astype(self.compute_dtype)

    def rope(self, x: np.ndarray, table: RopeTable) -> np.ndarray:
        cos, sin = table
        first, second = np.split(self.widen(x), 2, axis=-1)  # pair m is (first[m], second[m])
        rotated = [first * cos - second * sin, second * cos + first * sin]
        return self.round(np.concatenate(rotated, axis=-1))

    # Attention. inf - inf and 0 · inf of visible numbers are NaN, without a warning.

    @np.errstate(invalid="ignore")
    def attention(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        window: int | None,
    ) -> np.ndarray:
        out = np.zeros(q.shape, dtype=self.compute_dtype)
        for b in range(len(q)):
            for t, mask in enumerate(visible(q_positions[b], k_positions[b], window)):
                if mask.any():  # only visible keys are read; others may be NaN
                    weights = self.softmax(q[b, t], k[b, mask])
                    mix = weights @ self.widen(v[b, mask]).swapaxes(0, 1)  # (K, G, d)
                    out[b, t] = mix.reshape(out.shape[2:])
        return self.round(out)

    def softmax(self, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Return the attention weights of one query (H, d) for n keys (n, K, d) -> (K, G, n).

        Softmax of the scores q · k / sqrt(d); the G = H/K query heads h with h // G = g share
        key/value head g. The largest score is subtracted first, so that exp cannot overflow.
        """
        (H, d), K = q.shape, k.shape[1]
        groups = self.widen(q).reshape(K, H // K, d)
        scores = groups @ self.widen(k).transpose(1, 2, 0) * d**-0.5
        exp = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.asarray(exp / exp.sum(axis=-1, keepdims=True))

    @np.errstate(invalid="ignore")
    def attention_weights(
        self,
        q: np.ndarray,
        k: np.ndarray,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        window: int | None,
    ) -> np.ndarray:
        B, T, H, _ = q.shape
        out = np.zeros((B, H, T, k.shape[1]), dtype=self.compute_dtype)
        for b in range(B):
            for t, mask in enumerate(visible(q_positions[b], k_positions[b], window)):
                if mask.any():
                    weights = self.softmax(q[b, t], k[b, mask])
                    out[b, :, t, mask] = weights.reshape(H, -1).T  # mask comes first: (n, H)
        return self.round(out)

    # The cache

    def scatter(self, cache: np.ndarray, slots: np.ndarray, new: np.ndarray) -> np.ndarray:
        b, t = np.nonzero(slots >= 0)
        cache[b, slots[b, t]] = new[b, t]
        return cache
