"""The operations as transformers has them in PyTorch, which in 16 bits rounds more on the way."""

from __future__ import annotations

import numpy as np

from tinymistral.golden.making.permuting import Angles


class Eager(Angles):
    """The numpy backend, but each step within an operation is rounded to the dtype as it comes.

    Of attention these are scores and weights, and with large scores that is far from what a kernel
    computes that rounds its result alone: a score of 100 is off by up to 0.25 in bfloat16, its
    weight by a quarter. A norm is rounded before its weight, silu before its product, cosines too.
    """

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        """Round what is normed, then its product with the weight."""
        wide = self._widen(x)
        mean_square = np.square(wide).mean(axis=-1, keepdims=True)
        normed = self._rounded(wide / np.sqrt(mean_square + eps))
        return self._round(normed * self._rounded(weight))

    def silu_mul(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        """Round silu, then the product."""
        one = np.ones_like(gate)
        return self._round(self._widen(super().silu_mul(gate, one)) * self._widen(up))

    def rope_table(
        self, positions: np.ndarray, theta: float, d: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Round the cosines and sines."""
        cos, sin = super().rope_table(positions, theta, d)
        return self._rounded(cos), self._rounded(sin)

    def _exp_scores(
        self, q: np.ndarray, k: np.ndarray, seen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the rounded weights (K, G·t, s), and sums of 1, for they are divided already."""
        (t, H, d), (s, K, _) = q.shape, k.shape
        queries = self._widen(q.swapaxes(0, 1)).reshape(K, H // K * t, d)
        scores = self._rounded(queries @ self._widen(k.transpose(1, 2, 0)))
        scores = self._rounded(scores * self._wide.type(d**-0.5))
        np.copyto(scores.reshape(H, t, s), -np.inf, where=~seen)
        largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        largest[largest == -np.inf] = 0
        weights = np.exp(scores - largest)
        total = weights.sum(axis=-1, keepdims=True)
        total[total == 0] = 1
        return self._rounded(weights / total), np.ones_like(total)

    def _rounded(self, x: np.ndarray) -> np.ndarray:
        return self._widen(self._round(x))
