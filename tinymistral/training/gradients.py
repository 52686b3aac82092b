"""The backward pass of Mistral by hand: each operation of the forward pass, then its gradient.

`loss_and_gradients` at the end runs one row of tokens forward, as `model.forward` does, then the
same steps in reverse. The letters are those at the top of `model.py`; the G = H/K query heads h
with h // G = g share key/value head g. Each operation is a pair of functions:

    OPERATION           returns y, and what the gradient needs
    OPERATION_backward  takes dy, the gradient of the loss with respect to y; returns the gradient
                        with respect to each input, which has that input's shape

The gradient of an array that several operations read is the sum of what each returns for it. All
is computed in the dtype of the weights, float32 or float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.losses import IGNORED
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.operations import RopeTable, visible

Arrays = Mapping[str, np.ndarray]
Kept = tuple[Any, ...]  # what a gradient needs of the forward pass

# Queries in a tile of attention: few, so that few of the tile's slots are hidden from a query and
# the scores fit into the processor's cache; many, so that the matrix products are large.
QUERIES_PER_TILE = 48


# Each token alone


def embedding_backward(dx: np.ndarray, ids: np.ndarray, d_table: np.ndarray) -> None:
    """Add the gradient of x = table[ids] to d_table (V, D): the rows dx (T, D) of each id, summed.

    d_table[i] += sum of dx[t] over all t with ids[t] = i
    """
    order = np.argsort(ids, kind="stable")
    used, first = np.unique(ids[order], return_index=True)
    d_table[used] += np.add.reduceat(dx[order], first, axis=0)


def linear(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return y = x @ weight.T: x (T, n), weight (m, n) -> (T, m)."""
    return x @ weight.T


def linear_backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return dx = dy @ weight and d_weight = dy.T @ x."""
    return dy @ weight, dy.T @ x


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, Kept]:
    """Return y = u · weight, where u = x · r and r = 1 / sqrt(mean(x²) + eps): x (T, D)."""
    r = np.einsum("td,td->t", x, x)[:, None]
    r /= x.shape[1]
    r += eps
    np.sqrt(r, out=r)
    np.reciprocal(r, out=r)
    u = x * r
    return u * weight, (u, r)


def rms_norm_backward(
    dy: np.ndarray, kept: Kept, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return dx = r · (du - u · mean(u · du)), where du = dy · weight, and d_weight.

    The second term is there since r depends on x: dr/dx = -r³ · x / D. d_weight is the sum of
    dy · u over all tokens.
    """
    u, r = kept
    d_weight = np.einsum("td,td->d", dy, u)
    dx = dy * weight
    mean = np.einsum("td,td->t", u, dx)[:, None]
    mean /= u.shape[1]
    dx -= u * mean
    dx *= r
    return dx, d_weight


def silu_mul(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, Kept]:
    """Return y = silu · up, where silu = gate · s and s = sigmoid(gate) = 1 / (1 + exp(-gate))."""
    s = np.negative(gate)
    with np.errstate(over="ignore"):  # exp(-gate) = inf is right: s is 0
        np.exp(s, out=s)
    s += 1
    np.reciprocal(s, out=s)
    silu = gate * s
    return silu * up, (s, silu, up)


def silu_mul_backward(dy: np.ndarray, kept: Kept) -> tuple[np.ndarray, np.ndarray]:
    """Return d_gate = dy · up · (s + silu · (1 - s)) and d_up = dy · silu.

    In brackets is the derivative of silu = gate · s, since that of s is s · (1 - s).
    """
    s, silu, up = kept
    d_gate = 1 - s
    d_gate *= silu
    d_gate += s
    d_gate *= up
    d_gate *= dy
    return d_gate, dy * silu


# Positions


def rope(x: np.ndarray, table: RopeTable) -> np.ndarray:
    """Rotate the pairs of numbers of x (T, H, d) by the angles of the table, (T, 1, d/2) each."""
    return NumpyBackend(x.dtype.name).rope(x, table)


def rope_backward(dy: np.ndarray, table: RopeTable) -> np.ndarray:
    """Return dx: dy rotated back, by the negative angles. A rotation's transpose is its inverse."""
    cos, sin = table
    return rope(dy, (cos, -sin))


# Attention


class Tile(NamedTuple):
    """Some queries of a row, and a range of slots with all keys that any of them can see."""

    queries: slice  # t of them
    slots: slice  # s of them
    bias: np.ndarray  # (t, 1, s), added to the scores: 0 where the key is visible, else -inf


def attention_tiles(positions: np.ndarray, window: int | None, dtype: np.dtype) -> list[Tile]:
    """Cut a row at positions (T,) into tiles; queries that see nothing may be in none."""
    tiles = []
    for start in range(0, len(positions), QUERIES_PER_TILE):
        queries = slice(start, min(start + QUERIES_PER_TILE, len(positions)))
        mask = visible(positions[queries], positions, window)
        columns = np.flatnonzero(mask.any(axis=0))
        if len(columns):
            slots = slice(columns[0], columns[-1] + 1)
            bias = np.where(mask[:, None, slots], dtype.type(0), dtype.type(-np.inf))
            tiles.append(Tile(queries, slots, bias))
    return tiles


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, tiles: list[Tile]
) -> tuple[np.ndarray, Kept]:
    """Return y = P @ v: q (K, T, G, d), k and v (K, T, d) -> (K, T, G, d).

    P = exp(scores - largest) / total, scores = q @ k.T / sqrt(d), for the keys that `visible` shows
    to a query; the others have weight 0. What is kept of P is the numerator, a tile each, and
    1 / total.
    """
    K, _, G, d = q.shape
    q = q * d**-0.5
    y = np.zeros_like(q)
    scale = np.zeros((*q.shape[:3], 1), dtype=q.dtype)
    exps = []
    for queries, slots, bias in tiles:
        t, s = len(bias), bias.shape[-1]
        exp = q[:, queries].reshape(K, t * G, d) @ k[:, slots].swapaxes(1, 2)
        scores = exp.reshape(K, t, G, s)
        scores += bias
        # A query that sees no key has the largest score -inf; a finite one gives it weights of 0.
        exp -= exp.max(axis=-1, keepdims=True, initial=np.finfo(q.dtype).min)
        np.exp(exp, out=exp)
        total = exp.sum(axis=-1, keepdims=True)
        np.maximum(total, 1, out=total)  # the largest is exp(0): under 1 is only the sum of none
        scale[:, queries] = (1 / total).reshape(K, t, G, 1)
        y[:, queries] = (exp @ v[:, slots]).reshape(K, t, G, d)
        exps.append(exp)
    y *= scale
    return y, (q, k, v, exps, scale, y)


def attention_backward(
    dy: np.ndarray, kept: Kept, tiles: list[Tile]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return dq, dk and dv.

        dP = dy @ v.T                         d_scores = P · (dP - sum(P · dP))
        dq = d_scores @ k / sqrt(d)           dk = d_scores.T @ q / sqrt(d)           dv = P.T @ dy

    The sum is over the keys of a query, and equals sum(dy · y) over d (Dao et al. 2022,
    https://arxiv.org/abs/2205.14135, appendix B.2). P is exp / total: its division is done in dy.
    """
    q, k, v, exps, scale, y = kept  # q is divided by sqrt(d) already
    K, _, G, d = q.shape
    dy = dy * scale
    sums = np.einsum("ktgd,ktgd->ktg", dy, y)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for (queries, slots, bias), exp in zip(tiles, exps, strict=True):
        t = len(bias)
        dy_tile = dy[:, queries].reshape(K, t * G, d)
        dv[:, slots] += exp.swapaxes(1, 2) @ dy_tile
        d_scores = dy_tile @ v[:, slots].swapaxes(1, 2)
        d_scores -= sums[:, queries].reshape(K, t * G, 1)
        d_scores *= exp
        dq[:, queries] = (d_scores @ k[:, slots]).reshape(K, t, G, d)
        dk[:, slots] += d_scores.swapaxes(1, 2) @ q[:, queries].reshape(K, t * G, d)
    dq *= d**-0.5
    return dq, dk, dv


# The loss


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the sum over rows of log(sum_c exp(x_c)) - x_target, and its gradient.

    The gradient is softmax(x) - 1 at the target, softmax(x) elsewhere; it overwrites the logits x
    (N, V), which are the largest array of all.
    """
    rows = np.arange(len(targets), dtype=np.int64)
    logits -= logits.max(axis=1, keepdims=True)  # so that exp cannot overflow
    chosen = logits[rows, targets]
    np.exp(logits, out=logits)
    total = logits.sum(axis=1, keepdims=True)
    logits /= total
    logits[rows, targets] -= 1
    return float((np.log(total[:, 0]) - chosen).sum()), logits


# The model


class Shared(NamedTuple):
    """What all layers read when a row goes through the model."""

    table: RopeTable
    tiles: list[Tile]
    config: MistralConfig


def self_attention(x: np.ndarray, weights: Arrays, shared: Shared) -> tuple[np.ndarray, Kept]:
    """Grouped-query attention of one layer: normed x (T, D) -> (T, D), as `model.attention`."""
    table, tiles, config = shared
    T, H, K, d = len(x), config.num_attention_heads, config.num_key_value_heads, config.head_dim
    q = rope(linear(x, weights["self_attn.q_proj"]).reshape(T, H, d), table)
    k = rope(linear(x, weights["self_attn.k_proj"]).reshape(T, K, d), table)
    v = linear(x, weights["self_attn.v_proj"]).reshape(T, K, d)
    q = np.ascontiguousarray(q.reshape(T, K, H // K, d).swapaxes(0, 1))
    mix, kept = attention(q, k.swapaxes(0, 1), v.swapaxes(0, 1), tiles)
    mix = mix.swapaxes(0, 1).reshape(T, H * d)
    return linear(mix, weights["self_attn.o_proj"]), (x, mix, kept)


def self_attention_backward(
    dy: np.ndarray, kept: Kept, weights: Arrays, shared: Shared
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return dx (T, D), and the gradients of the layer's weights of attention."""
    table, tiles, config = shared
    T, H, K, d = len(dy), config.num_attention_heads, config.num_key_value_heads, config.head_dim
    x, mix, of_attention = kept
    gradients = {}
    d_mix, gradients["self_attn.o_proj"] = linear_backward(dy, mix, weights["self_attn.o_proj"])
    d_mix = np.ascontiguousarray(d_mix.reshape(T, K, H // K, d).swapaxes(0, 1))
    dq, dk, dv = attention_backward(d_mix, of_attention, tiles)
    dq = rope_backward(dq.swapaxes(0, 1).reshape(T, H, d), table)
    dk = rope_backward(dk.swapaxes(0, 1), table)
    dv = dv.swapaxes(0, 1)
    dx = np.zeros_like(x)
    for name, dz in (("self_attn.q_proj", dq), ("self_attn.k_proj", dk), ("self_attn.v_proj", dv)):
        part, gradients[name] = linear_backward(dz.reshape(T, -1), x, weights[name])
        dx += part
    return dx, gradients


def mlp(x: np.ndarray, weights: Arrays) -> tuple[np.ndarray, Kept]:
    """SwiGLU, down(silu(gate(x)) · up(x)): normed x (T, D) -> (T, D), as `model.mlp`."""
    gate = linear(x, weights["mlp.gate_proj"])
    up = linear(x, weights["mlp.up_proj"])
    hidden, kept = silu_mul(gate, up)
    return linear(hidden, weights["mlp.down_proj"]), (x, hidden, kept)


def mlp_backward(
    dy: np.ndarray, kept: Kept, weights: Arrays
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return dx (T, D), and the gradients of the layer's weights of the feed-forward network."""
    x, hidden, of_silu_mul = kept
    gradients = {}
    d_hidden, gradients["mlp.down_proj"] = linear_backward(dy, hidden, weights["mlp.down_proj"])
    d_gate, d_up = silu_mul_backward(d_hidden, of_silu_mul)
    dx, gradients["mlp.gate_proj"] = linear_backward(d_gate, x, weights["mlp.gate_proj"])
    part, gradients["mlp.up_proj"] = linear_backward(d_up, x, weights["mlp.up_proj"])
    dx += part
    return dx, gradients


def layer_weights(weights: Arrays, n: int) -> Arrays:
    """Return the weights of layer n by their names within it, such as "mlp.gate_proj"."""
    prefix = f"model.layers.{n}."
    return {
        name.removeprefix(prefix).removesuffix(".weight"): array
        for name, array in weights.items()
        if name.startswith(prefix)
    }


def layer(x: np.ndarray, weights: Arrays, shared: Shared) -> tuple[np.ndarray, Kept]:
    """Run x (T, D) through one layer: attention, then the feed-forward network, each added to x."""
    eps = shared.config.rms_norm_eps
    normed, of_norm = rms_norm(x, weights["input_layernorm"], eps)
    out, of_attention = self_attention(normed, weights, shared)
    x = x + out
    normed, of_second_norm = rms_norm(x, weights["post_attention_layernorm"], eps)
    out, of_mlp = mlp(normed, weights)
    return x + out, (of_norm, of_attention, of_second_norm, of_mlp)


def layer_backward(
    dx: np.ndarray, kept: Kept, weights: Arrays, shared: Shared
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the gradient of the layer's input (T, D) and of its weights.

    As x is added to what a block makes of it, the gradient goes round the block as well as through.
    """
    of_norm, of_attention, of_second_norm, of_mlp = kept
    d_normed, gradients = mlp_backward(dx, of_mlp, weights)
    name = "post_attention_layernorm"
    part, gradients[name] = rms_norm_backward(d_normed, of_second_norm, weights[name])
    dx = dx + part
    d_normed, of_weights = self_attention_backward(dx, of_attention, weights, shared)
    gradients |= of_weights
    name = "input_layernorm"
    part, gradients[name] = rms_norm_backward(d_normed, of_norm, weights[name])
    return dx + part, gradients


def loss_and_gradients(
    weights: Arrays,
    ids: np.ndarray,
    targets: np.ndarray,
    positions: np.ndarray,
    config: MistralConfig,
) -> tuple[float, int, dict[str, np.ndarray]]:
    """Return the summed loss of one row, the number of its targets, and the sum's gradients.

    ids (T,); targets (T,), the token that each is to predict, -100 for none; positions (T,), -1 for
    padding, which predicts nothing. Texts packed into one row do not see each other if their
    positions lie at least W apart: the window hides the earlier one. Weights and gradients have the
    names of a checkpoint.
    """
    embed, norm = weights["model.embed_tokens.weight"], weights["model.norm.weight"]
    head = embed if config.tie_word_embeddings else weights["lm_head.weight"]
    table = NumpyBackend(embed.dtype.name).rope_table(positions, config.rope_theta, config.head_dim)
    tiles = attention_tiles(positions, config.sliding_window, embed.dtype)
    shared = Shared(table, tiles, config)
    layers = [layer_weights(weights, n) for n in range(config.num_hidden_layers)]

    x = embed[ids]
    kept = []
    for layer_n in layers:
        x, of_layer = layer(x, layer_n, shared)
        kept.append(of_layer)
    predicting = np.flatnonzero(targets != IGNORED)
    normed, of_norm = rms_norm(x[predicting], norm, config.rms_norm_eps)
    loss, d_logits = cross_entropy(linear(normed, head), targets[predicting])

    d_normed, d_head = linear_backward(d_logits, normed, head)
    part, d_norm = rms_norm_backward(d_normed, of_norm, norm)
    dx = np.zeros_like(x)
    dx[predicting] = part
    gradients = {"model.norm.weight": d_norm}
    for n in reversed(range(len(layers))):
        dx, of_weights = layer_backward(dx, kept.pop(), layers[n], shared)
        gradients |= {f"model.layers.{n}.{name}.weight": of_weights[name] for name in of_weights}
    d_embed = d_head if config.tie_word_embeddings else np.zeros_like(embed)
    embedding_backward(dx, ids, d_embed)
    gradients["model.embed_tokens.weight"] = d_embed
    if not config.tie_word_embeddings:
        gradients["lm_head.weight"] = d_head
    return loss, len(predicting), gradients
