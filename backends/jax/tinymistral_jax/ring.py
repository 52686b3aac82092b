"""The cache of a traced model: a pytree, and what `tinymistral.model.forward` does with it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from tinymistral.backend import Array
from tinymistral.config import MistralConfig
from tinymistral_jax.backend import scattered
from tinymistral_jax.params import sharding

# "k" and "v": a list of one array (B, S, K, d) a layer; "positions": (B, S), -1 in an empty slot;
# "columns": how many columns of ids it has seen, padding included.
Cache = dict[str, Any]


def slots_for(config: MistralConfig, chunk: int, max_length: int) -> int:
    """Return S: enough for `max_length` tokens, or the ring of a window, W + C - 1."""
    window = config.sliding_window
    return max_length if window is None else min(max_length, window + chunk - 1)


def empty_cache(config: MistralConfig, dtype: str, rows: int, slots: int) -> Cache:
    """Return a cache without tokens."""
    shape = (rows, slots, config.num_key_value_heads, config.head_dim)
    layers = range(config.num_hidden_layers)
    return {
        "k": [jnp.zeros(shape, dtype) for _ in layers],
        "v": [jnp.zeros(shape, dtype) for _ in layers],
        "positions": jnp.full((rows, slots), -1, jnp.int32),
        "columns": jnp.zeros((), jnp.int32),
    }


def divided(tree: Any, mesh: Mesh | None) -> Any:
    """Divide arrays (B, T, ...) over the data axis of a mesh, keys (B, S, K, d) by heads too."""
    axes = ("data", None, "model", None)
    return (
        tree
        if mesh is None
        else jax.tree.map(
            lambda x: lax.with_sharding_constraint(
                x, sharding(mesh, *(axes if x.ndim == 4 else axes[: min(x.ndim, 1)]), shape=x.shape)
            ),
            tree,
        )
    )


class Ring:
    """`tinymistral.cache.RollingCache` of arrays that are traced: position i goes to slot i % S.

    It takes pieces of at most C consecutive positions; with S = W + C - 1 slots, no query of a
    piece misses a key. A row may go back to an earlier position: what it held from there on lies in
    the future, where it is not visible, until it is overwritten.
    """

    def __init__(self, cache: Cache):
        self.k, self.v = list(cache["k"]), list(cache["v"])
        self.key_positions, self.columns = cache["positions"], cache["columns"]

    def admit(self, positions: Array) -> None:
        """Assign a piece's positions (B, T) to slots, -1 for padding."""
        self.slots = jnp.where(positions >= 0, positions % self.key_positions.shape[1], -1)
        self.key_positions = scattered(self.key_positions, self.slots, positions)
        self.columns = self.columns + positions.shape[1]

    def update(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Write the piece's keys and values (B, T, K, d) -> those of all slots (B, S, K, d)."""
        self.k[layer] = scattered(self.k[layer], self.slots, k)
        self.v[layer] = scattered(self.v[layer], self.slots, v)
        return self.k[layer], self.v[layer]

    def cache(self) -> Cache:
        """Return the cache, with the pieces so far."""
        positions, columns = self.key_positions, self.columns
        return {"k": self.k, "v": self.v, "positions": positions, "columns": columns}


class NoCache:
    """Where there is nothing to continue: a piece attends to itself, and is not kept."""

    def admit(self, positions: Array) -> None:
        """Remember a piece's positions (B, T)."""
        self.key_positions = positions

    def update(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Return the piece's own keys and values."""
        return k, v

    def cache(self) -> None:
        """Return None."""
