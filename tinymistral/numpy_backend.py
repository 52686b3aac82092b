"""The reference backend: each operation of `Backend` in plain NumPy."""

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

# Narrow weights are widened in blocks of this many (4 MB of float32): large enough that the
# cast runs at full speed, small enough to be multiplied while it is in the processor's cache.
WEIGHTS_A_BLOCK = 1 << 20

# Up to so many rows are multiplied one by one: a matrix product would first copy all weights into
# another order, which costs as much as eight rows do.
ROWS_ONE_BY_ONE = 8

# Scores are made in tiles of about this many (512 KB of float32) for each key/value head, for the
# same reason, and since a tile of few queries sees few keys.
SCORES_A_TILE = 1 << 17


class NumpyBackend(Backend):
    """Plain NumPy. In 16 bits: computed in float32, rounded after every operation."""

    name = "numpy"
    dtypes = tuple(NUMPY_DTYPES)
    has_attention_weights = True

    def __init__(self, dtype: str | None = None):
        super().__init__(dtype)
        self._dtype = NUMPY_DTYPES[self.dtype]
        self._wide = np.dtype(np.float64 if self.dtype == "float64" else np.float32)

    def asarray(self, array: np.ndarray, dtype: str | None = None) -> np.ndarray:
        return np.asarray(array, dtype=NUMPY_DTYPES[dtype] if dtype else None)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array

    def zeros(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.zeros(shape, dtype=NUMPY_DTYPES[dtype])

    def take(self, array: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:
        return np.take(array, indices, axis=axis)

    def embedding(self, table: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return self._round(table[ids])

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        rows = self._widen(x.reshape(-1, x.shape[-1]))
        m, n = weight.shape
        out = np.empty((len(rows), m), dtype=self._wide)
        if weight.dtype == self._wide and weight.flags.aligned:
            _multiply(rows, weight, out)
        else:
            height = min(m, max(1, WEIGHTS_A_BLOCK // n))
            block = np.empty((height, n), dtype=self._wide)
            for start in range(0, m, height):
                part = slice(start, min(m, start + height))
                wide = block[: part.stop - start]
                np.copyto(wide, weight[part])
                _multiply(rows, wide, out[:, part])
        return self._round(out).reshape(*x.shape[:-1], m)

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        x = self._widen(x)
        mean_square = np.square(x).sum(axis=-1, keepdims=True) / x.shape[-1]
        return self._round(x / np.sqrt(mean_square + eps) * self._widen(weight))

    def rope_table(
        self, positions: np.ndarray, theta: float, d: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines, each (B, T, 1, d/2): one for all heads."""
        frequencies = theta ** (-np.arange(0, d, 2, dtype=np.float64) / d)
        angles = positions[..., None, None] * frequencies
        return np.cos(angles).astype(self._wide), np.sin(angles).astype(self._wide)

    def rope(self, x: np.ndarray, table: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        cos, sin = table
        half = x.shape[-1] // 2
        first, second = self._widen(x[..., :half]), self._widen(x[..., half:])
        out = np.empty(x.shape, dtype=self._dtype)
        out[..., :half] = first * cos - second * sin
        out[..., half:] = second * cos + first * sin
        return out

    def attention(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        window: int | None,
    ) -> np.ndarray:
        out = np.zeros(q.shape, dtype=self._wide)
        group = q.shape[2] // k.shape[2]
        tokens = max(1, SCORES_A_TILE // (group * max(1, k.shape[1])))
        for row in range(len(q)):
            for start in range(0, q.shape[1], tokens):
                queries = slice(start, start + tokens)
                seen = visible(q_positions[row, queries], k_positions[row], window)
                columns = np.flatnonzero(seen.any(axis=0))
                if len(columns):
                    # A slice rather than the columns themselves: a view is not copied.
                    slots = slice(columns[0], columns[-1] + 1)
                    out[row, queries] = self._attend(
                        q[row, queries], k[row, slots], v[row, slots], seen[:, slots]
                    )
        return self._round(out)

    def _attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Attend in one tile: q (t, H, d), k and v (s, K, d), seen (t, s) -> (t, H, d)."""
        out = self._mix(q, k, v, seen)
        if not np.isfinite(out).all() and not seen.all():
            # 0 · NaN is NaN: mix without what is not finite, then add it for those who see it.
            finite = np.isfinite(v)
            out = self._mix(q, k, np.where(finite, v, v.dtype.type(0)), seen)
            slots = np.flatnonzero(~finite.all(axis=(1, 2)))
            rest = np.where(finite[slots], v.dtype.type(0), v[slots])
            rest = np.where(seen[:, slots, None, None], rest, v.dtype.type(0))
            with np.errstate(invalid="ignore"):  # inf - inf
                out += np.repeat(rest.sum(axis=1), q.shape[1] // k.shape[1], axis=1)
        return out

    def _mix(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray) -> np.ndarray:
        weights, total = self._exp_scores(q, k, seen)
        with np.errstate(invalid="ignore"):  # 0 · inf, of what is not visible
            mix = weights @ self._widen(v.swapaxes(0, 1)) / total
        return mix.reshape(q.shape[1], len(q), -1).swapaxes(0, 1)

    def _exp_scores(
        self, q: np.ndarray, k: np.ndarray, seen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Softmax before its division: the weights (K, G·t, s) and their sums (K, G·t, 1).

        q (t, H, d), k (s, K, d), seen (t, s); G = H/K query heads share a key/value head. The
        largest score is subtracted first, so that exp cannot overflow. A row that sees nothing
        has weights 0 and, so that 0 / sum is 0, sum 1.
        """
        (t, H, d), (s, K, _) = q.shape, k.shape
        q = self._widen(q.swapaxes(0, 1)).reshape(K, H // K * t, d) * d**-0.5
        with np.errstate(invalid="ignore", over="ignore"):  # of what is not visible
            scores = q @ self._widen(k.transpose(1, 2, 0))
        edge = np.flatnonzero(~seen.all(axis=0))
        if len(edge):  # in the middle every query sees every key
            part = slice(edge[0], edge[-1] + 1)
            np.copyto(scores.reshape(H, t, s)[:, :, part], -np.inf, where=~seen[:, part])
        largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        largest[largest == -np.inf] = 0
        scores -= largest
        np.exp(scores, out=scores)
        total = scores.sum(axis=-1, keepdims=True)
        total[total == 0] = 1
        return scores, total

    def attention_weights(
        self,
        q: np.ndarray,
        k: np.ndarray,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        window: int | None,
    ) -> np.ndarray:
        B, T, H, _ = q.shape
        out = np.empty((B, H, T, k.shape[1]), dtype=self._dtype)
        for row in range(B):
            seen = visible(q_positions[row], k_positions[row], window)
            weights, total = self._exp_scores(q[row], k[row], seen)
            out[row] = (weights / total).reshape(H, T, -1)
        return out

    def silu_mul(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        gate = self._widen(gate)
        with np.errstate(over="ignore"):  # exp(-gate) = inf is right: the quotient is 0
            out = np.exp(-gate)
        out += 1  # in place from here on: these are the largest arrays of a forward pass
        np.divide(gate, out, out=out)
        out *= self._widen(up)
        return self._round(out)

    def scatter(self, cache: np.ndarray, slots: np.ndarray, new: np.ndarray) -> np.ndarray:
        b, t = np.nonzero(slots >= 0)
        cache[b, slots[b, t]] = new[b, t]
        return cache

    def _widen(self, array: np.ndarray) -> np.ndarray:
        return array.astype(self._wide, copy=False)

    def _round(self, array: np.ndarray) -> np.ndarray:
        return array.astype(self._dtype, copy=False)


def _multiply(rows: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Write rows (N, n) @ weight.T, weight (m, n), into out (N, m)."""
    if len(rows) <= ROWS_ONE_BY_ONE:
        for row, into in zip(rows, out, strict=True):
            weight.dot(row, out=into)
    else:
        np.matmul(rows, weight.T, out=out)


def visible(q_positions: np.ndarray, k_positions: np.ndarray, window: int | None) -> np.ndarray:
    """Tell which keys each query sees: positions (T,) and (S,) -> booleans (T, S).

    The one rule of masking, windows, caches and padding: key j is visible to query i iff
    `j >= 0 and 0 <= i - j < window`. A window of W counts the query's own key (so does
    transformers' masking_utils, and mistral-inference); "between i - W and i", as the paper
    puts it (https://arxiv.org/abs/2310.06825), would be W + 1.
    """
    distance = q_positions[:, None] - k_positions
    seen = (k_positions >= 0) & (distance >= 0)
    return seen if window is None else seen & (distance < window)
