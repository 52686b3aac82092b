"""Mistakes about norms, and about the gate of the feed-forward network."""

# ruff: noqa: D102 (backend.py says what the methods do)

from __future__ import annotations

import numpy as np

from tinymistral.conformance.mistakes.catalogue import HALVES, mistake
from tinymistral.numpy_backend import NumpyBackend


@mistake(
    "norm-over-the-batch",
    law="rows_of_a_batch_are_independent",
    fix="Take the mean square of each token by itself, over the last axis.",
)
class NormOverTheBatch(NumpyBackend):
    """All tokens are divided by one root mean square, taken over all axes."""

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        wide = self.widen(x)
        root = np.sqrt(np.square(wide).mean() + self.compute_dtype.type(eps))
        return self.round(wide / root * self.widen(weight))


@mistake(
    "eps-outside-the-root",
    law="rms_norm_divides_by_the_root_mean_square",
    fix="Add epsilon to the mean square, then take the root.",
)
class EpsOutsideTheRoot(NumpyBackend):
    """Epsilon is added to the root, not under it.

    Small activations, as those of the embedding, are scaled too much.
    """

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        wide = self.widen(x)
        root = np.sqrt(np.square(wide).mean(axis=-1, keepdims=True)) + self.compute_dtype.type(eps)
        return self.round(wide / root * self.widen(weight))


@mistake(
    "eps-forgotten",
    law="rms_norm_divides_by_the_root_mean_square",
    fix="Add `rms_norm_eps` to the mean square before the root.",
)
class EpsForgotten(NumpyBackend):
    """There is no epsilon: small activations are scaled too much, and zeros become NaN."""

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        return super().rms_norm(x, weight, 0.0)


@mistake(
    "eps-of-another-model",
    law="every_stage_follows_from_those_before",
    fix="Read `rms_norm_eps` from the configuration: 1e-5 for the published models.",
    dtypes=("float32", "float64"),
)
class EpsOfAnotherModel(NumpyBackend):
    """Epsilon is 1e-6, the default of other configurations, whatever this one says.

    Only small activations tell.
    """

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        return super().rms_norm(x, weight, 1e-6)


@mistake(
    "mean-subtracted",
    law="rms_norm_divides_by_the_root_mean_square",
    fix="RMSNorm subtracts no mean.",
)
class MeanSubtracted(NumpyBackend):
    """The mean is subtracted first, as LayerNorm does."""

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        wide = self.widen(x)
        return super().rms_norm(wide - wide.mean(axis=-1, keepdims=True), weight, eps)


@mistake(
    "sum-of-squares",
    law="rms_norm_divides_by_the_root_mean_square",
    fix="Divide the sum of squares by D before the root.",
)
class SumOfSquares(NumpyBackend):
    """Vectors are scaled to length 1, not to mean square 1: they are too small by sqrt(D)."""

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        wide = self.widen(x)
        root = np.sqrt(np.square(wide).sum(axis=-1, keepdims=True) + self.compute_dtype.type(eps))
        return self.round(wide / root * self.widen(weight))


@mistake(
    "norm-weight-plus-1",
    law="rms_norm_divides_by_the_root_mean_square",
    fix="Multiply by the weight as it is stored.",
)
class NormWeightPlus1(NumpyBackend):
    """The norm is multiplied by 1 + weight, as Gemma's is."""

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        return super().rms_norm(x, self.widen(weight) + self.compute_dtype.type(1), eps)


@mistake(
    "norm-weight-forgotten",
    law="rms_norm_divides_by_the_root_mean_square",
    fix="Multiply by the weight (D,) after the division.",
)
class NormWeightForgotten(NumpyBackend):
    """The norm is not multiplied by its weight.

    With random weights nothing shows: there it is 1.
    """

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        return super().rms_norm(x, np.ones_like(weight), eps)


@mistake(
    "norm-rounded-before-its-weight",
    law="rms_norm_divides_by_the_root_mean_square",
    fix="Multiply by the weight in float32, and round once.",
    dtypes=HALVES,
)
class NormRoundedBeforeItsWeight(NumpyBackend):
    """What is divided is rounded to 16 bits, multiplied by the weight, and rounded again.

    So does transformers: no blunder, but not what this reference computes.
    """

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        normed = super().rms_norm(x, np.ones_like(weight), eps)
        return self.round(self.widen(normed) * self.widen(weight))


@mistake(
    "squares-in-16-bits",
    law="rms_norm_divides_by_the_root_mean_square",
    fix="Convert x to float32 before it is squared.",
    dtypes=HALVES,
)
class SquaresIn16Bits(NumpyBackend):
    """Squares are rounded to 16 bits.

    In float16 those of numbers past 255 are infinite, and the norm 0.
    """

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        mean = self.widen(np.square(x)).mean(axis=-1, keepdims=True)
        root = np.sqrt(mean + self.compute_dtype.type(eps))
        return self.round(self.widen(x) / root * self.widen(weight))


@mistake(
    "residual-not-normed",
    law="add_rms_norm_is_a_sum_and_its_norm",
    fix="Norm the sum x + residual, not x.",
)
class ResidualNotNormed(NumpyBackend):
    """A fused `add_rms_norm` gives the right sum, and the norm of x before it."""

    def add_rms_norm(
        self, x: np.ndarray, residual: np.ndarray, weight: np.ndarray, eps: float
    ) -> tuple[np.ndarray, np.ndarray]:
        return x + residual, self.rms_norm(x, weight, eps)


@mistake(
    "residual-lost",
    law="add_rms_norm_is_a_sum_and_its_norm",
    fix="Write x + residual back: it is what the next layer adds to.",
)
class ResidualLost(NumpyBackend):
    """A fused `add_rms_norm` gives the right norm, and x without what was to be added."""

    def add_rms_norm(
        self, x: np.ndarray, residual: np.ndarray, weight: np.ndarray, eps: float
    ) -> tuple[np.ndarray, np.ndarray]:
        return x, self.rms_norm(x + residual, weight, eps)


@mistake(
    "gelu-for-silu",
    law="silu_mul_is_gate_times_sigmoid_times_up",
    fix="The activation is silu(x) = x / (1 + exp(-x)), also called swish.",
)
class GeluForSilu(NumpyBackend):
    """The activation is GELU, which is close to SiLU and not it."""

    def silu_mul(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        gate = self.widen(gate)
        inner = (2 / np.pi) ** 0.5 * (gate + 0.044715 * gate**3)
        return self.round(gate * (1 + np.tanh(inner)) / 2 * self.widen(up))


@mistake(
    "gate-and-up-swapped",
    law="silu_mul_is_gate_times_sigmoid_times_up",
    fix="silu is taken of gate_proj (w1 of a raw checkpoint), and up_proj (w3) multiplies it.",
)
class GateAndUpSwapped(NumpyBackend):
    """silu is taken of `up`, and `gate` multiplies it: w1 and w3 have changed places."""

    def silu_mul(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        return super().silu_mul(up, gate)


@mistake(
    "sigmoid-for-silu",
    law="silu_mul_is_gate_times_sigmoid_times_up",
    fix="silu(x) is x · sigmoid(x).",
)
class SigmoidForSilu(NumpyBackend):
    """The gate is sigmoid(x) without the factor x, as in the first gated linear units."""

    def silu_mul(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        return self.round(self.widen(up) / (1 + np.exp(-self.widen(gate))))


@mistake(
    "silu-rounded-before-up",
    law="silu_mul_is_gate_times_sigmoid_times_up",
    fix="Multiply silu(gate) by up in float32, and round once.",
    dtypes=HALVES,
)
class SiluRoundedBeforeUp(NumpyBackend):
    """silu(gate) is rounded to 16 bits, multiplied by up, and rounded again.

    So does transformers: no blunder, but not what this reference computes.
    """

    def silu_mul(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        silu = super().silu_mul(gate, np.ones_like(up))
        return self.round(self.widen(silu) * self.widen(up))


@mistake(
    "silu-overflows",
    law="silu_mul_is_gate_times_sigmoid_times_up",
    fix="Divide x by 1 + exp(-x), which is right where exp overflows: the quotient is 0.",
)
class SiluOverflows(NumpyBackend):
    """The sigmoid is exp(x) / (1 + exp(x)): inf / inf, NaN, for x past 88 in float32."""

    def silu_mul(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        gate = self.widen(gate)
        return self.round(gate * (np.exp(gate) / (1 + np.exp(gate))) * self.widen(up))
