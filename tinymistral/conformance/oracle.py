"""The oracle: what each operation of a Mistral forward pass means, in float64 and plain loops.

It shares no code with any backend, so that it cannot share a mistake: it has no cache, and states
the window rule again. Each function takes NumPy arrays of any float dtype and returns float64.
The letters B, T, S, ... are explained at the top of `model.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def embedding(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the rows of a table (V, D) at ids (B, T) -> (B, T, D)."""
    out = np.zeros((*ids.shape, table.shape[1]), dtype=np.float64)
    for b, t in np.ndindex(ids.shape):
        out[b, t] = table[ids[b, t]]
    return out


def linear(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the dot products of x (..., n) with each row of weight (m, n) -> (..., m)."""
    x, weight = _float64(x, weight)
    out = np.zeros((*x.shape[:-1], len(weight)), dtype=np.float64)
    for token in np.ndindex(x.shape[:-1]):
        for m in range(len(weight)):
            output = (*token, m)
            out[output] = np.dot(x[token], weight[m])
    return out


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Divide each vector of x (..., D) by its root mean square, then scale by weight (D,)."""
    x, weight = _float64(x, weight)
    out = np.zeros(x.shape, dtype=np.float64)
    for token in np.ndindex(x.shape[:-1]):
        mean_square = math.fsum(number * number for number in x[token]) / x.shape[-1]
        out[token] = x[token] / math.sqrt(mean_square + eps) * weight
    return out


def rope(x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """Rotate each pair of numbers of x (B, T, H, d) by an angle that grows with the position.

    Pair m is the numbers m and m + d/2 of a head: a point in the plane. At position i it is rotated
    by i · theta^(-2m/d) radians: pair 0 by one radian a token, later pairs by less. The dot product
    of a rotated query and a rotated key then depends only on the distance of their positions.
    """
    (x,) = _float64(x)
    B, T, _, d = x.shape
    out = np.zeros(x.shape, dtype=np.float64)
    for b, t in np.ndindex(B, T):
        for m in range(d // 2):
            angle = int(positions[b, t]) * theta ** (-2 * m / d)
            cos, sin = math.cos(angle), math.sin(angle)
            first, second = x[b, t, :, m], x[b, t, :, m + d // 2]
            out[b, t, :, m] = first * cos - second * sin
            out[b, t, :, m + d // 2] = first * sin + second * cos
    return out


def visible(i: int, j: int, window: int | None) -> bool:
    """Return whether the key at position j (-1: none) is visible to the query at position i."""
    if j < 0 or j > i:
        return False
    return window is None or i - j < window


def attention_weights(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray,
    k_positions: np.ndarray,
    window: int | None,
) -> np.ndarray:
    """Return the weight of each key for each query: q (B, T, H, d), k (B, S, K, d) -> (B, H, T, S).

    The score of a visible key is its dot product with the query, over sqrt(d), which keeps scores
    at the size of one product whatever d is. The softmax exp(score) / sum turns scores into
    weights: positive, with the sum 1. (Subtracting the largest score changes no quotient.) Keys
    that are not visible take no part and have the weight 0.
    """
    q, k = _float64(q, k)
    B, T, H, d = q.shape
    S, K = k.shape[1:3]
    weights = np.zeros((B, H, T, S), dtype=np.float64)
    for b, h, t in np.ndindex(B, H, T):
        kv_head = h // (H // K)  # consecutive query heads share a key/value head
        i = int(q_positions[b, t])
        seen = [s for s in range(S) if visible(i, int(k_positions[b, s]), window)]
        scores = [np.dot(q[b, t, h], k[b, s, kv_head]) / math.sqrt(d) for s in seen]
        largest = max(scores, default=0.0)
        exps = [math.exp(score - largest) for score in scores]
        total = math.fsum(exps)
        for s, exp in zip(seen, exps, strict=True):
            weights[b, h, t, s] = exp / total
    return weights


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    q_positions: np.ndarray,
    k_positions: np.ndarray,
    window: int | None,
) -> np.ndarray:
    """Mix the values by the weights: q (B, T, H, d), k and v (B, S, K, d) -> (B, T, H, d)."""
    (v,) = _float64(v)
    group = q.shape[2] // v.shape[2]
    weights = attention_weights(q, k, q_positions, k_positions, window)
    out = np.zeros(q.shape, dtype=np.float64)
    for b, h, t, s in np.argwhere(weights != 0):  # the others have no influence, but 0 · NaN is NaN
        out[b, t, h] += weights[b, h, t, s] * v[b, s, h // group]
    return out


def silu_mul(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Return silu(gate) · up, where silu(x) = x · sigmoid(x) = x / (1 + exp(-x))."""
    gate, up = _float64(gate, up)
    out = np.zeros(gate.shape, dtype=np.float64)
    for at in np.ndindex(gate.shape):
        x = float(gate[at])
        # exp of a negative number alone: it cannot overflow.
        sigmoid = 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
        out[at] = x * sigmoid * up[at]
    return out


def scatter(cache: np.ndarray, slots: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Write new (B, T, K, d) into a copy of cache (B, S, K, d) at slots (B, T), -1: nowhere."""
    out = np.array(cache, dtype=np.float64)
    for b, t in np.ndindex(slots.shape):
        if slots[b, t] >= 0:
            out[b, slots[b, t]] = new[b, t]
    return out


def forward(
    config: Any, weights: Mapping[str, np.ndarray], ids: np.ndarray, positions: np.ndarray
) -> dict[str, np.ndarray]:
    """Return every stage of a whole forward pass, under the names of `model.STAGES`.

    `config` has the attributes of MistralConfig, `weights` the checkpoint's names. There is
    no cache and there are no pieces, only ids and positions (B, T); padding is at position -1.
    """
    x = embedding(weights["model.embed_tokens.weight"], ids)
    stages = {"embedding": x}
    for n in range(config.num_hidden_layers):
        stages_of_block = block(config, weights, n, x, positions)
        stages |= {f"layers.{n}.{name}": array for name, array in stages_of_block.items()}
        x = stages_of_block["output"]
    stages["norm"] = rms_norm(x, weights["model.norm.weight"], config.rms_norm_eps)
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    stages["logits"] = linear(stages["norm"], weights[head])
    return stages


def block(
    config: Any, weights: Mapping[str, np.ndarray], n: int, x: np.ndarray, positions: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the stages of layer n: attention, then the feed-forward network, each added to x."""

    def weight(name: str) -> np.ndarray:
        return weights[f"model.layers.{n}.{name}.weight"]

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(*positions.shape, -1, config.head_dim)

    at: dict[str, np.ndarray] = {}
    normed = rms_norm(x, weight("input_layernorm"), config.rms_norm_eps)
    at["input_layernorm"] = normed
    at["q"] = heads(linear(normed, weight("self_attn.q_proj")))
    at["k"] = heads(linear(normed, weight("self_attn.k_proj")))
    at["v"] = heads(linear(normed, weight("self_attn.v_proj")))
    q = at["q_rotated"] = rope(at["q"], positions, config.rope_theta)
    k = at["k_rotated"] = rope(at["k"], positions, config.rope_theta)
    rule = (positions, positions, config.sliding_window)
    at["attention_weights"] = attention_weights(q, k, *rule)
    mix = at["attention_mix"] = attention(q, k, at["v"], *rule)
    flat = mix.reshape(*positions.shape, -1)
    at["attention_output"] = linear(flat, weight("self_attn.o_proj"))
    x = at["attention_residual"] = x + at["attention_output"]

    normed = rms_norm(x, weight("post_attention_layernorm"), config.rms_norm_eps)
    at["post_attention_layernorm"] = normed
    at["gate"] = linear(normed, weight("mlp.gate_proj"))
    at["up"] = linear(normed, weight("mlp.up_proj"))
    at["silu_mul"] = silu_mul(at["gate"], at["up"])
    at["mlp_output"] = linear(at["silu_mul"], weight("mlp.down_proj"))
    at["output"] = x + at["mlp_output"]
    return at


def _float64(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(array, dtype=np.float64) for array in arrays)
