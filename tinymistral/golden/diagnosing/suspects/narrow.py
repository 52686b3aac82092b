"""Suspects about numbers of too few bits: positions, weights, sums."""

# ruff: noqa: D102 (textbook.py and backend.py say what the methods do)

from __future__ import annotations

import ml_dtypes
import numpy as np

from tinymistral.conformance.mistakes.textbook import Textbook
from tinymistral.golden.diagnosing.suspects.suspect import suspect
from tinymistral.numpy_backend import NumpyBackend

Table = tuple[np.ndarray, np.ndarray]  # cosines and sines, each (B, T, 1, d/2)


@suspect(
    "positions-in-32-bits",
    fix="Keep positions in 64 bits, or refuse texts that are longer than 2^31 - 1 tokens.",
)
class PositionsIn32Bits(Textbook):
    """Positions are integers of 32 bits: from 2^31 on they are negative, and nothing is seen."""

    def sees(self, i: np.ndarray, j: np.ndarray, window: int | None) -> np.ndarray:
        return super().sees(i.astype(np.int32), j.astype(np.int32), window)

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        return super().rope_table(positions.astype(np.int32).astype(np.int64), theta, d)


class WeightsRounded(NumpyBackend):
    """Weights are rounded to 16 bits when they are read, though all else is in float32."""

    narrow: type = np.float16

    def embedding(self, table: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return super().embedding(self._narrowed(table), ids)

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return super().linear(x, self._narrowed(weight))

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        return super().rms_norm(x, self._narrowed(weight), eps)

    def _narrowed(self, weight: np.ndarray) -> np.ndarray:
        return weight.astype(self.narrow).astype(weight.dtype)


_KEEP = "Keep weights in the dtype of their file; if you compute in 16 bits, say so by --dtype."


@suspect("weights-rounded-to-float16", fix=_KEEP, dtypes=("float32",))
class WeightsRoundedToFloat16(WeightsRounded):
    """Weights are rounded to float16 when they are read, though all else is in float32.

    Nothing shows where the checkpoint is in float16 itself.
    """


@suspect("weights-rounded-to-bfloat16", fix=_KEEP, dtypes=("float32",))
class WeightsRoundedToBfloat16(WeightsRounded):
    """Weights are rounded to bfloat16 when they are read, though all else is in float32.

    Nothing shows where the checkpoint is in bfloat16 itself.
    """

    narrow = ml_dtypes.bfloat16


@suspect(
    "softmax-summed-in-16-bits",
    fix="Add up the exponentials, and the values that they weigh, in float32.",
    dtypes=("bfloat16",),
    of_a_dtype=True,
)
class SoftmaxSummedIn16Bits(Textbook):
    """The sums of a softmax, of exponentials and of weighed values, are in 16 bits.

    Of some hundred keys that are much alike the sum stays where one more is less than its rounding.
    """

    def softmax(self, scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
        exps = self.exps(scores, seen)
        total = np.zeros(exps.shape[:-1], dtype=self.activation_dtype)
        for s in range(exps.shape[-1]):
            total = self.round(self.widen(total) + exps[..., s])
        wide = self.widen(total)[..., None]
        return np.asarray(exps / np.where(wide == 0, 1, wide))

    def mix(self, weights: np.ndarray, v: np.ndarray, seen: np.ndarray) -> np.ndarray:
        B, H, T, S = weights.shape
        out = np.zeros((B, T, H, v.shape[-1]), dtype=self.activation_dtype)
        for s in range(S):
            part = weights[..., s].swapaxes(1, 2)[..., None] * v[:, s][:, None]
            part = np.where(seen[:, :, s, None, None], part, 0)
            out = self.round(self.widen(out) + part)
        return out
