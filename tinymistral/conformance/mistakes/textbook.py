"""Attention as a textbook has it: right, in one go, in parts that a mistake replaces one of."""

from __future__ import annotations

import numpy as np

from tinymistral.numpy_backend import NumpyBackend


class Textbook(NumpyBackend):
    """The same as `NumpyBackend`, but for rounding, the time and the memory that it takes."""

    def sees(self, i: np.ndarray, j: np.ndarray, window: int | None) -> np.ndarray:
        """Tell whether queries at i (B, T, 1) see keys at j (B, 1, S) -> booleans (B, T, S)."""
        seen = (j >= 0) & (i - j >= 0)
        return seen if window is None else seen & (i - j < window)

    def repeat(self, array: np.ndarray, heads: int) -> np.ndarray:
        """Give each query head its key/value head: (B, S, K, d) -> (B, S, H, d)."""
        return np.repeat(array, heads // array.shape[2], axis=2)

    def scale(self, H: int, d: int) -> float:
        """Return what scores are multiplied by."""
        return float(d**-0.5)

    def exps(self, scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Return exp(score - largest), 0 where hidden: scores (B, H, T, S), seen (B, 1, T, S)."""
        scores = np.where(seen, scores, -np.inf)
        largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        return np.exp(scores - np.where(largest == -np.inf, 0, largest))

    def softmax(self, scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Return weights (B, H, T, S); of a row that sees nothing all are 0."""
        exps = self.exps(scores, seen)
        total = exps.sum(axis=-1, keepdims=True)
        return np.asarray(exps / np.where(total == 0, 1, total))

    def mix(self, weights: np.ndarray, v: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Weigh what is seen of v (B, S, H, d) -> (B, T, H, d); 0 · NaN would be NaN."""
        B, T, _ = seen.shape
        out = np.zeros((B, T, *v.shape[2:]), dtype=self.compute_dtype)
        for b, t in np.ndindex(B, T):
            slots = seen[b, t]
            out[b, t] = np.einsum("hs,shd->hd", weights[b, :, t][:, slots], v[b, slots])
        return out

    def attention_weights(
        self,
        q: np.ndarray,
        k: np.ndarray,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        window: int | None,
    ) -> np.ndarray:
        """Return the weights (B, H, T, S)."""
        return self.round(self._weights(q, k, self._seen(q_positions, k_positions, window)))

    def attention(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        window: int | None,
    ) -> np.ndarray:
        """Return the mix (B, T, H, d)."""
        seen = self._seen(q_positions, k_positions, window)
        v = self.repeat(self.widen(v), q.shape[2])
        return self.round(self.mix(self._weights(q, k, seen), v, seen))

    def _seen(
        self, q_positions: np.ndarray, k_positions: np.ndarray, window: int | None
    ) -> np.ndarray:
        seen = self.sees(q_positions[:, :, None], k_positions[:, None, :], window)
        return np.broadcast_to(seen, (*q_positions.shape, k_positions.shape[1]))

    def _weights(self, q: np.ndarray, k: np.ndarray, seen: np.ndarray) -> np.ndarray:
        k = self.repeat(self.widen(k), q.shape[2])
        scores = np.einsum("bthd,bshd->bhts", self.widen(q), k) * self.scale(*q.shape[2:])
        return self.softmax(scores, seen[:, None])
