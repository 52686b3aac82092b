"""Suspects of structure: norms, residuals and heads that are joined the wrong way."""

# ruff: noqa: D102 (backend.py says what the methods do)

from __future__ import annotations

import numpy as np

from tinymistral.golden.diagnosing.suspects.knowing import Knowing
from tinymistral.golden.diagnosing.suspects.suspect import suspect

Pair = tuple[np.ndarray, np.ndarray]

FINAL = "model.norm"
AFTER_ATTENTION = "post_attention_layernorm"


@suspect(
    "final-norm-missing",
    fix="Norm the last layer's output by `model.norm` before the head.",
    common=True,
)
class FinalNormMissing(Knowing):
    """The logits are made of the last layer's output as it is, without the final norm."""

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        return x if self.name_of(weight) == FINAL else super().rms_norm(x, weight, eps)


@suspect("final-norm-twice", fix="Norm the last layer's output by `model.norm` once.")
class FinalNormTwice(Knowing):
    """The final norm is applied twice, as by the model and once more by its head."""

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        x = super().rms_norm(x, weight, eps)
        return super().rms_norm(x, weight, eps) if self.name_of(weight) == FINAL else x


@suspect(
    "attention-residual-forgotten",
    fix="Add a layer's input to what its attention gives: x + attention(norm(x)).",
    common=True,
)
class AttentionResidualForgotten(Knowing):
    """What attention gives takes the place of a layer's input, rather than being added to it."""

    def add_rms_norm(
        self, x: np.ndarray, residual: np.ndarray, weight: np.ndarray, eps: float
    ) -> Pair:
        if self.is_a(weight, AFTER_ATTENTION):
            return residual, self.rms_norm(residual, weight, eps)
        return super().add_rms_norm(x, residual, weight, eps)


@suspect(
    "mlp-residual-forgotten",
    fix="Add what the feed-forward network gives to what it was given: h + mlp(norm(h)).",
    common=True,
)
class MlpResidualForgotten(Knowing):
    """What the feed-forward network gives takes the place of its input.

    It should be added to it.
    """

    def add_rms_norm(
        self, x: np.ndarray, residual: np.ndarray, weight: np.ndarray, eps: float
    ) -> Pair:
        if self.name_of(weight) and not self.is_a(weight, AFTER_ATTENTION):
            return residual, self.rms_norm(residual, weight, eps)
        return super().add_rms_norm(x, residual, weight, eps)


@suspect(
    "residual-of-the-norm",
    fix="Keep x as it was before the norm, and add to that: x + attention(norm(x)).",
    common=True,
)
class ResidualOfTheNorm(Knowing):
    """What is added to is the normed input, norm(x) + attention(norm(x)), as if x were overwritten.

    So it was in the first transformers, whose norms came after the sum.
    """

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        self._normed = super().rms_norm(x, weight, eps)
        return self._normed

    def add_rms_norm(
        self, x: np.ndarray, residual: np.ndarray, weight: np.ndarray, eps: float
    ) -> Pair:
        return super().add_rms_norm(self._normed, residual, weight, eps)


@suspect(
    "mlp-beside-attention",
    fix="The feed-forward network reads norm(x + attention(...)), after attention has been added.",
)
class MlpBesideAttention(Knowing):
    """Attention and feed-forward network read the same x, side by side, as in GPT-J and PaLM."""

    def add_rms_norm(
        self, x: np.ndarray, residual: np.ndarray, weight: np.ndarray, eps: float
    ) -> Pair:
        total, normed = super().add_rms_norm(x, residual, weight, eps)
        beside = self.is_a(weight, AFTER_ATTENTION)
        return total, self.rms_norm(x, weight, eps) if beside else normed


@suspect(
    "heads-joined-across-tokens",
    fix="Bring (B, H, T, d) into (B, T, H, d), by transpose(1, 2), before the heads are joined.",
    common=True,
)
class HeadsJoinedAcrossTokens(Knowing):
    """The mix is still (B, H, T, d) when it is reshaped to (B, T, H·d), so that tokens mingle.

    One token at a time is right.
    """

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        if self.config is not None and self.is_a(weight, "o_proj"):
            by_head = x.reshape(*x.shape[:2], -1, self.config.head_dim).swapaxes(1, 2)
            x = by_head.reshape(x.shape)
        return super().linear(x, weight)


@suspect(
    "heads-cut-across-tokens",
    fix="Cut q, k and v into (B, T, heads, d) first, and bring that into (B, heads, T, d).",
    common=True,
)
class HeadsCutAcrossTokens(Knowing):
    """q, k and v are reshaped to (B, heads, T, d) without a transpose, so that tokens mingle.

    One token at a time is right.
    """

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        y = super().linear(x, weight)
        if self.config is not None and self.is_a(weight, "q_proj", "k_proj", "v_proj"):
            B, T, n = y.shape
            y = y.reshape(B, -1, T, self.config.head_dim).swapaxes(1, 2).reshape(B, T, n)
        return y


@suspect(
    "up-forgotten",
    fix="Multiply silu(gate) by up: a SwiGLU has three matrices.",
)
class UpForgotten(Knowing):
    """The feed-forward network is down(silu(gate(x))): `up_proj` is not used."""

    def silu_mul(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        return super().silu_mul(gate, np.ones_like(up))
