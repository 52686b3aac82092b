"""How far rounding may move the logits of a whole forward pass: the bounds, from stage to stage.

The inputs of an operation are off already, by up to an error e. Its slope bounds what that does to
the output, and its own rounding is added (`bounds.py`). The result is a strict bound on every
stage, |stage - oracle| <= error, whatever pieces and batches the tokens go through in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinymistral.conformance import oracle
from tinymistral.conformance.bounds import (
    gamma,
    linear_error,
    repeated,
    rms_norm_error,
    rope_error,
    rounded,
    silu_mul_error,
    softmax_roundings,
)

Stages = Mapping[str, np.ndarray]


def logits_error(
    config: Any, weights: Stages, stages: Stages, positions: np.ndarray, dtype: str
) -> np.ndarray:
    """Bound the logits (B, T, V); `stages` are those of `oracle.forward` at the positions."""

    def weight(name: str) -> np.ndarray:
        return np.asarray(weights[name], dtype=np.float64)

    def after(x: str, e: np.ndarray, name: str, matrix: np.ndarray) -> np.ndarray:
        """Bound the product of a stage that is off by e and a matrix."""
        e = e.reshape(*positions.shape, -1)
        large = np.abs(stages[x]).reshape(e.shape) + e
        out = e @ np.abs(matrix).T + linear_error(large, matrix, dtype)
        return rounded(stages[name].reshape(out.shape), out, dtype).reshape(stages[name].shape)

    def normed(x: str, e: np.ndarray, name: str, scale: np.ndarray) -> np.ndarray:
        """Bound x / r, r the root mean square: e / r' + |x| |r - r'| / (r r'), r' being off."""
        r = np.sqrt(np.mean(stages[x] ** 2, axis=-1, keepdims=True) + config.rms_norm_eps)
        off = np.linalg.norm(e, axis=-1, keepdims=True) / e.shape[-1] ** 0.5
        least = np.maximum(r - off, config.rms_norm_eps**0.5)
        out = (e + np.abs(stages[x]) * off / r) / least * np.abs(scale)
        out = np.minimum(out, 2 * e.shape[-1] ** 0.5 * np.abs(scale))  # no norm is larger
        return rounded(stages[name], out + rms_norm_error(np.abs(stages[name]) + out, dtype), dtype)

    def rotated(x: str, e: np.ndarray) -> np.ndarray:
        out = e + np.roll(e, e.shape[-1] // 2, axis=-1)
        out = out + rope_error(np.abs(stages[x]) + e, positions, config.rope_theta, dtype)
        return rounded(stages[f"{x}_rotated"], out, dtype)

    def added(x: np.ndarray, y: np.ndarray, name: str) -> np.ndarray:
        return rounded(stages[name], x + y, dtype)

    e = rounded(stages["embedding"], 0.0, dtype)
    x = "embedding"
    for n in range(config.num_hidden_layers):
        at = f"layers.{n}."
        of = f"model.{at}"
        norm = normed(x, e, at + "input_layernorm", weight(of + "input_layernorm.weight"))
        q, k, v = (
            after(at + "input_layernorm", norm, at + p, weight(f"{of}self_attn.{p}_proj.weight"))
            for p in "qkv"
        )
        q, k = rotated(at + "q", q), rotated(at + "k", k)
        mix = mixed(stages, at, q, k, v, dtype)
        out = after(
            at + "attention_mix",
            mix,
            at + "attention_output",
            weight(of + "self_attn.o_proj.weight"),
        )
        e = added(e, out, at + "attention_residual")

        norm = normed(
            at + "attention_residual",
            e,
            at + "post_attention_layernorm",
            weight(of + "post_attention_layernorm.weight"),
        )
        gate, up = (
            after(at + "post_attention_layernorm", norm, at + p, weight(f"{of}mlp.{p}_proj.weight"))
            for p in ("gate", "up")
        )
        product = multiplied(stages, at, gate, up, dtype)
        out = after(
            at + "silu_mul", product, at + "mlp_output", weight(of + "mlp.down_proj.weight")
        )
        e = added(e, out, at + "output")
        x = at + "output"
    e = normed(x, e, "norm", weight("model.norm.weight"))
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return after("norm", e, "logits", weight(head))


def mixed(
    stages: Stages, at: str, eq: np.ndarray, ek: np.ndarray, ev: np.ndarray, dtype: str
) -> np.ndarray:
    """Bound attention of queries, keys and values that are off by eq, ek and ev.

    An exponent is off by δ: the effect of eq and ek on a score, and its own rounding
    (`softmax_error`). So a weight is off by a factor of e^2δ at most. A mix always lies between
    the smallest and the largest value.
    """
    q, k, v = (stages[at + name] for name in ("q_rotated", "k_rotated", "v"))
    weights = stages[at + "attention_weights"]
    seen = weights > 0
    heads, (S, d) = q.shape[2], (k.shape[1], k.shape[3])
    k, ek, v, ev = (repeated(array, heads) for array in (np.abs(k), ek, v, ev))
    q = np.abs(q)

    def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(np.einsum("bthd,bshd->bhts", a, b) * d**-0.5)

    delta = dot(eq, k + ek) + dot(q, ek) + gamma(d + 8, dtype) * dot(q + eq, k + ek)
    delta = np.max(delta * seen, axis=-1, keepdims=True, initial=0)
    with np.errstate(over="ignore"):
        factor = np.exp(np.minimum(2 * delta, 700)) * (1 + gamma(softmax_roundings(S), dtype)) - 1
    largest = np.max(np.where(seen[..., None], np.abs(v).swapaxes(1, 2)[:, :, None], 0), axis=3)
    off = np.minimum(np.einsum("bhts,bshd->bhtd", factor * weights, np.abs(v)), 2 * largest)
    most = np.max(np.where(seen[..., None], ev.swapaxes(1, 2)[:, :, None], 0), axis=3)
    name = at + "attention_mix"
    return rounded(stages[name], (off + most * (1 + gamma(S, dtype))).swapaxes(1, 2), dtype)


def multiplied(stages: Stages, at: str, gate: np.ndarray, up: np.ndarray, dtype: str) -> np.ndarray:
    """Bound silu(gate) · up where both are off; the slope of silu is at most 1.1."""
    g, u, exact = (np.abs(stages[at + name]) for name in ("gate", "up", "silu_mul"))
    silu = np.minimum(
        g, np.abs(oracle.silu_mul(stages[at + "gate"], np.ones(g.shape))) + 1.1 * gate
    )
    out = 1.1 * gate * (u + up) + silu * up
    own = silu_mul_error(g + gate, u + up, exact + out, dtype)
    return rounded(exact, out + own, dtype)
