"""Mistakes about norms, residual sums, and the gate of the feed-forward network."""

from __future__ import annotations

import numpy as np

from tinymistral.mistakes.mistake import BUT_FLOAT64, HALVES, ROUNDING, mistake

EVERY_STAGE = "every_stage_follows_from_those_before"
RMS_NORM = "rms_norm_divides_by_the_root_mean_square"
SILU_MUL = "silu_mul_is_gate_times_sigmoid_times_up"


@mistake("rms_norm", law="rows_of_a_batch_are_independent")
def norm_over_the_batch(self, _, x, weight, eps):
    """All tokens are divided by one root mean square, taken over all axes.
    Fix: Take the mean square of each token by itself, over the last axis."""
    wide = self.widen(x)
    root = np.sqrt(np.square(wide).mean() + self.compute_dtype.type(eps))
    return self.round(wide / root * self.widen(weight))


@mistake("rms_norm", law=RMS_NORM)
def eps_outside_the_root(self, _, x, weight, eps):
    """Epsilon is added to the root, not under it. Small activations, such as those of the
    embedding, are scaled up too much.
    Fix: Add epsilon to the mean square, then take the root."""
    wide = self.widen(x)
    root = np.sqrt(np.square(wide).mean(axis=-1, keepdims=True)) + self.compute_dtype.type(eps)
    return self.round(wide / root * self.widen(weight))


@mistake("rms_norm", law=RMS_NORM)
def eps_forgotten(self, right, x, weight, eps):
    """There is no epsilon: small activations are scaled too much, and zeros become NaN.
    Fix: Add `rms_norm_eps` to the mean square before the root."""
    return right(x, weight, 0.0)


@mistake("rms_norm", law=EVERY_STAGE, dtypes=("float32", "float64"))
def eps_of_another_model(self, right, x, weight, eps):
    """Epsilon is 1e-6, a common default, whatever the configuration says. It shows only in small
    activations.
    Fix: Read `rms_norm_eps` from the configuration: 1e-5 for the published models."""
    return right(x, weight, 1e-6)


@mistake("rms_norm", law=RMS_NORM)
def mean_subtracted(self, right, x, weight, eps):
    """The mean is subtracted first, as LayerNorm does.
    Fix: RMSNorm subtracts no mean."""
    wide = self.widen(x)
    return right(wide - wide.mean(axis=-1, keepdims=True), weight, eps)


@mistake("rms_norm", law=RMS_NORM)
def sum_of_squares(self, _, x, weight, eps):
    """Vectors are scaled to length 1, not to mean square 1: they are too small by sqrt(D).
    Fix: Divide the sum of squares by D before the root."""
    wide = self.widen(x)
    root = np.sqrt(np.square(wide).sum(axis=-1, keepdims=True) + self.compute_dtype.type(eps))
    return self.round(wide / root * self.widen(weight))


@mistake("rms_norm", law=RMS_NORM)
def norm_weight_plus_1(self, right, x, weight, eps):
    """The norm is multiplied by 1 + weight, as Gemma's is.
    Fix: Multiply by the weight as it is stored."""
    return right(x, self.widen(weight) + self.compute_dtype.type(1), eps)


@mistake("rms_norm", law=RMS_NORM)
def norm_weight_forgotten(self, right, x, weight, eps):
    """The norm is not multiplied by its weight. It does not show with new random weights: there it
    is 1.
    Fix: Multiply by the weight (D,) after the division."""
    return right(x, np.ones_like(weight), eps)


@mistake("rms_norm", law=RMS_NORM, dtypes=HALVES, not_diagnosed=ROUNDING)
def norm_rounded_before_its_weight(self, right, x, weight, eps):
    """The quotient is rounded to 16 bits, multiplied by the weight, and rounded again. transformers
    does so: no error, but not what this reference computes.
    Fix: Multiply by the weight in float32, and round once."""
    normed = right(x, np.ones_like(weight), eps)
    return self.round(self.widen(normed) * self.widen(weight))


@mistake("rms_norm", law=RMS_NORM, dtypes=HALVES, of_a_dtype=("float16",))
def squares_in_16_bits(self, _, x, weight, eps):
    """Squares are rounded to 16 bits. In float16 squares of numbers above 255 are infinite, and the
    norm is 0.
    Fix: Convert x to float32 before squaring it."""
    mean = self.widen(np.square(x)).mean(axis=-1, keepdims=True)
    root = np.sqrt(mean + self.compute_dtype.type(eps))
    return self.round(self.widen(x) / root * self.widen(weight))


# The final norm


# Residual sums: x is the input of attention or of the feed-forward network, y its output.
# `to_norm` is the input of the next norm.


@mistake("add", law=EVERY_STAGE)
def residual_not_normed(self, right, x, y):
    """The sum that goes on is right, but the next norm is of x before the sum.
    Fix: Apply the norm to the sum x + residual, not to x."""
    self.to_norm = x
    return right(x, y)


@mistake("add", law=EVERY_STAGE)
def residual_lost(self, right, x, y):
    """The norm is of the right sum, x + residual, but x alone goes on.
    Fix: Store x + residual: it is what the next layer adds to."""
    self.to_norm = right(x, y)
    return x


# The gate


@mistake("silu_mul", law=SILU_MUL)
def gelu_for_silu(self, _, gate, up):
    """The activation is GELU, in its tanh form: close to SiLU, but not equal.
    Fix: The activation is silu(x) = x / (1 + exp(-x)), also called swish."""
    gate = self.widen(gate)
    inner = (2 / np.pi) ** 0.5 * (gate + 0.044715 * gate**3)
    return self.round(gate * (1 + np.tanh(inner)) / 2 * self.widen(up))


@mistake("silu_mul", law=SILU_MUL)
def gate_and_up_swapped(self, right, gate, up):
    """silu is applied to `up`, which `gate` multiplies: w1 and w3 are swapped.
    Fix: Apply silu to gate_proj (w1 of a raw checkpoint), and multiply by up_proj (w3)."""
    return right(up, gate)


@mistake("silu_mul", law=SILU_MUL)
def sigmoid_for_silu(self, _, gate, up):
    """The gate is sigmoid(x) without the factor x, as in the first gated linear units.
    Fix: silu(x) is x · sigmoid(x)."""
    return self.round(self.widen(up) / (1 + np.exp(-self.widen(gate))))


@mistake("silu_mul", law=SILU_MUL, dtypes=HALVES, not_diagnosed=ROUNDING)
def silu_rounded_before_up(self, right, gate, up):
    """silu(gate) is rounded to 16 bits, multiplied by up, and rounded again. transformers does so:
    no error, but not what this reference computes.
    Fix: Multiply silu(gate) by up in float32, and round once."""
    return self.round(self.widen(right(gate, np.ones_like(up))) * self.widen(up))


@mistake("silu_mul", law=SILU_MUL, of_a_dtype=BUT_FLOAT64)
def silu_overflows(self, _, gate, up):
    """The sigmoid is exp(x) / (1 + exp(x)), which is inf / inf = NaN for x above 88 in float32.
    Fix: Divide x by 1 + exp(-x): where exp overflows the quotient is 0, which is right."""
    gate = self.widen(gate)
    return self.round(gate * (np.exp(gate) / (1 + np.exp(gate))) * self.widen(up))
