"""The forward pass of Mistral, top to bottom.

The letters, here and everywhere in this project:

    B  batch: rows of tokens              D  model width (hidden_size)
    T  new tokens of a row                F  feed-forward width (intermediate_size)
    S  cached keys of a row               V  vocabulary size
    H  query heads                        W  window: keys visible to a query, its own included
    K  key/value heads                    C  chunk: most tokens that go through at once
    d  head width (head_dim)

Every token has an absolute position, -1 for padding. Tokens go through in pieces of at most C;
each layer writes a piece's keys and values into a ring (`cache.py`), then attends to all of it.
No mask is passed: `backend.attention` finds from positions alone which keys are visible to a query.
What a model computes for padding (position -1) means nothing, and nobody reads it.
The operations are the backend's; `operations.py` has each of them in plain NumPy. `pretrained.py`
calls `forward`, for token ids by the backend's `run_piece`, which makes x of them; `heads.py` makes
logits of the result.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from tinymistral.backend import Array, Backend
from tinymistral.cache import RollingCache
from tinymistral.config import MistralConfig


class Parameter(Protocol):
    """A module of one weight, such as `q_proj` or `norm`."""

    weight: Array


class SelfAttention(Protocol):
    """The weights of `attention`."""

    q_proj: Parameter  # (H·d, D)
    k_proj: Parameter  # (K·d, D)
    v_proj: Parameter  # (K·d, D)
    o_proj: Parameter  # (D, H·d)


class MLP(Protocol):
    """The weights of `mlp`."""

    gate_proj: Parameter  # (F, D)
    up_proj: Parameter  # (F, D)
    down_proj: Parameter  # (D, F)


class Layer(Protocol):
    """The weights of one layer."""

    input_layernorm: Parameter  # (D,)
    self_attn: SelfAttention
    post_attention_layernorm: Parameter  # (D,)
    mlp: MLP


class Weights(Protocol):
    """The weights of a model without its output layer, by their names in a checkpoint."""

    embed_tokens: Parameter  # (V, D)
    layers: list[Layer]
    norm: Parameter  # (D,)


def attention(
    x: Array,
    weights: SelfAttention,
    n: int,
    positions: np.ndarray,
    rope_table: Array,
    cache: RollingCache,
    config: MistralConfig,
    backend: Backend,
) -> Array:
    """Grouped-query attention of layer n: normed x (B, T, D) at positions (B, T) -> (B, T, D).

    H/K query heads share a key/value head, so the cache is only K/H as large
    (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245).
    """
    (B, T, _), d = x.shape, config.head_dim
    H, K, window = config.num_attention_heads, config.num_key_value_heads, config.sliding_window
    q = backend.linear(x, weights.q_proj.weight).reshape(B, T, H, d)
    k = backend.linear(x, weights.k_proj.weight).reshape(B, T, K, d)
    v = backend.linear(x, weights.v_proj.weight).reshape(B, T, K, d)
    q, k = backend.rope(q, rope_table), backend.rope(k, rope_table)
    k, v = cache.update(n, k, v)  # (B, S, K, d), earlier tokens included
    mix = backend.attention(q, k, v, positions, cache.key_positions, window)
    return backend.linear(mix.reshape(B, T, H * d), weights.o_proj.weight)


def mlp(x: Array, weights: MLP, backend: Backend) -> Array:
    """SwiGLU, down(silu(gate(x)) · up(x)): normed x (B, T, D) -> (B, T, D)."""
    gate = backend.linear(x, weights.gate_proj.weight)
    up = backend.linear(x, weights.up_proj.weight)
    return backend.linear(backend.silu_mul(gate, up), weights.down_proj.weight)


def forward(
    x: Array,
    weights: Weights,
    positions: np.ndarray,
    cache: RollingCache,
    config: MistralConfig,
    backend: Backend,
) -> Array:
    """Run embedded tokens x (B, T, D) at positions (B, T) through all layers -> (B, T, D), normed.

    T is at most the cache's chunk; the tokens' keys and values are added to the cache.
    """
    eps = config.rms_norm_eps
    table = backend.rope_table(positions, config.rope_theta, config.head_dim)
    cache.admit(positions)
    for n, layer in enumerate(weights.layers):
        normed = backend.rms_norm(x, layer.input_layernorm.weight, eps)
        x = x + attention(normed, layer.self_attn, n, positions, table, cache, config, backend)
        normed = backend.rms_norm(x, layer.post_attention_layernorm.weight, eps)
        x = x + mlp(normed, layer.mlp, backend)
    return backend.rms_norm(x, weights.norm.weight, eps)
