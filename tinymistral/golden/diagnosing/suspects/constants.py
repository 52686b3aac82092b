"""Suspects about constants and activations: epsilon, theta, the scale of scores, SiLU."""

# ruff: noqa: D102 (backend.py says what the methods do)

from __future__ import annotations

import math

import numpy as np

from tinymistral.conformance.mistakes.textbook import Textbook
from tinymistral.golden.diagnosing.suspects.knowing import Knowing
from tinymistral.golden.diagnosing.suspects.suspect import suspect
from tinymistral.numpy_backend import NumpyBackend

Table = tuple[np.ndarray, np.ndarray]  # cosines and sines, each (B, T, 1, d/2)


@suspect(
    "theta-of-v0.2",
    fix="Read `rope_theta` from the configuration: 10,000 for v0.1, 1,000,000 for v0.2 and v0.3.",
    common=True,
)
class ThetaOfV02(NumpyBackend):
    """theta is always 1,000,000, whatever the configuration says."""

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        return super().rope_table(positions, 1_000_000.0, d)


@suspect(
    "eps-of-mistral",
    fix="Read `rms_norm_eps` from the configuration: it is 1e-6 in some.",
)
class EpsOfMistral(NumpyBackend):
    """Epsilon is always 1e-5, whatever the configuration says."""

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        return super().rms_norm(x, weight, 1e-5)


@suspect(
    "scores-scaled-by-hidden-size",
    fix="Scale by the width of a head, head_dim^-0.5, not by that of the model.",
)
class ScoresScaledByHiddenSize(Knowing, Textbook):
    """Scores are divided by the root of `hidden_size` rather than of the width of a head."""

    def scale(self, H: int, d: int) -> float:
        return float((self.config.hidden_size if self.config else d) ** -0.5)


@suspect("silu-forgotten", fix="Take silu of gate before it is multiplied by up.")
class SiluForgotten(NumpyBackend):
    """The feed-forward network multiplies gate by up, with no activation."""

    def silu_mul(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        return self.round(self.widen(gate) * self.widen(up))


@suspect("relu-for-silu", fix="The activation is silu(x) = x / (1 + exp(-x)), also called swish.")
class ReluForSilu(NumpyBackend):
    """The activation is ReLU, max(x, 0)."""

    def silu_mul(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        return self.round(np.maximum(self.widen(gate), 0) * self.widen(up))


@suspect(
    "exact-gelu-for-silu",
    fix="The activation is silu(x) = x / (1 + exp(-x)), also called swish.",
)
class ExactGeluForSilu(NumpyBackend):
    """The activation is GELU by its definition, x · Φ(x), not by tanh; and it is not SiLU."""

    def silu_mul(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        wide = self.widen(gate)
        erf = np.array(
            [math.erf(x / 2**0.5) for x in wide.ravel().tolist()], dtype=self.compute_dtype
        )
        return self.round(wide * (1 + erf.reshape(wide.shape)) / 2 * self.widen(up))
