"""RollingCache: keys, values and positions in a ring of slots."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tinymistral.backend import Array, Backend
from tinymistral.config import MistralConfig


class RollingCache:
    """Keys and values of the tokens so far; `past_key_values` is one of these.

    Token n of a row, counted from 0, goes to slot `n % S`. The model writes a piece, of at most C
    tokens, first and then attends to all slots; with S = W + C - 1 slots the oldest query of a
    piece still finds its W - 1 predecessors. The order of slots does not matter: a slot's position
    says which token it holds, and so to which queries that is visible.

        W = 3, C = 2, S = 4; positions 4 and 5 come, then 6 and 7, then 8:
        slot          0  1  2  3
        positions     4  5  2  3     visible to 4: 2, 3, 4; to 5: 3, 4, 5
        positions     4  5  6  7     visible to 6: 4, 5, 6; to 7: 5, 6, 7
        positions     8  5  6  7     visible to 8: 6, 7, 8

    Storage grows to S before anything wraps, and no further; without a window it grows on.
    Padding is never written. A piece may go back to an earlier position: the row's tokens from
    there on are dropped, so up to C tokens that were guessed
    ahead and rejected need no clean-up.

    Attributes: `k[n]`, `v[n]` (B, storage, K, d) of layer n, on the backend; on the host
    `positions` (B, storage), -1 in an empty slot; `count` (B,), each row's number of tokens, and
    `last` (B,), the position of the last one, -1 before the first. While a piece goes through
    (`piece`), `slots` (B, T) is where it is written, -1 for padding.
    """

    def __init__(
        self, config: MistralConfig, backend: Backend, rows: int, chunk: int | None = None
    ):
        """Make an empty cache for a batch of `rows`; `chunk` is C, by default the backend's."""
        self.config = config
        self.backend = backend
        self.window = config.sliding_window
        self.chunk = backend.chunk if chunk is None else chunk
        if not 1 <= self.chunk < 2**31:
            raise ValueError(f"chunk: expected 1 to {2**31 - 1} tokens, got {chunk}")
        no_slots = (rows, 0, config.num_key_value_heads, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.k: list[Array] = [backend.zeros(no_slots, backend.dtype) for _ in layers]
        self.v: list[Array] = [backend.zeros(no_slots, backend.dtype) for _ in layers]
        self.positions = np.empty((rows, 0), dtype=np.int64)
        self.count = np.zeros(rows, dtype=np.int64)
        self.last = np.full(rows, -1, dtype=np.int64)
        self.evicted = np.full(rows, -1, dtype=np.int64)  # the last position overwritten
        # The attention mask so far, to compare with a later one: its width, and its values without
        # the columns of ones at its end.
        self.columns = 0
        self.mask = np.empty((rows, 0), dtype=bool)
        self.slots = np.empty((rows, 0), dtype=np.int64)

    @property
    def capacity(self) -> int | None:
        """S, the most slots that a row will ever have; None where there is no window."""
        return None if self.window is None else self.window + self.chunk - 1

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more in each row, up to S slots, at least doubling storage."""
        rows, have = self.positions.shape
        need = int(self.count.max(initial=0)) + tokens
        if need > have:
            need = max(need, 2 * have)
        if self.capacity is not None:
            need = min(need, self.capacity)
        if need <= have:
            return
        shape = (rows, need, self.config.num_key_value_heads, self.config.head_dim)
        slots = np.tile(np.arange(have, dtype=np.int64), (rows, 1))
        for arrays in (self.k, self.v):
            for layer, old in enumerate(arrays):
                grown = self.backend.zeros(shape, self.backend.dtype)
                # An earlier call that ran out of memory may have left more room than `have`.
                arrays[layer] = self.backend.scatter(grown, slots, old[:, :have]) if have else grown
        empty = np.full((rows, need - have), -1, dtype=np.int64)
        self.positions = np.concatenate([self.positions, empty], axis=1)

    @contextmanager
    def piece(self, positions: np.ndarray) -> Iterator[None]:
        """Add a piece at positions (B, T), rising in each row, while it goes through the layers.

        Each layer calls `update` meanwhile. After an error or an interrupt the piece is removed
        again.
        """
        self.slots = self.admit(positions)
        try:
            yield
        except BaseException:
            self.withdraw(self.slots)
            raise
        self.commit(positions)

    def update(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Write the piece's rotated keys and values (B, T, K, d) -> `read(layer)`."""
        self.k[layer] = self.backend.scatter(self.k[layer], self.slots, k)
        self.v[layer] = self.backend.scatter(self.v[layer], self.slots, v)
        return self.read(layer)

    def admit(self, positions: np.ndarray) -> np.ndarray:
        """Assign a piece's positions (B, T), rising in a row, to slots (B, T), -1 for padding."""
        self.take_back(positions)
        new = positions >= 0
        order = self.count[:, None] + np.cumsum(new, axis=1) - 1
        self.reserve(int(order.max()) + 1 - int(self.count.max()))
        slots = np.where(new, order if self.capacity is None else order % self.capacity, -1)
        b, t = np.nonzero(new)
        np.maximum.at(self.evicted, b, self.positions[b, slots[b, t]])
        self.positions[b, slots[b, t]] = positions[b, t]
        self.count += new.sum(axis=1)
        return slots

    def commit(self, positions: np.ndarray) -> None:
        """Record that the piece at positions (B, T), padding included, has gone through."""
        self.last = np.maximum(self.last, positions.max(axis=1))
        mask = positions >= 0
        if not mask.all():
            ones = np.ones((len(mask), self.columns - self.mask.shape[1]), dtype=bool)
            columns = np.concatenate([self.mask, ones, mask], axis=1)
            self.mask = columns[:, : np.flatnonzero(~columns.all(axis=0))[-1] + 1]
        self.columns += mask.shape[1]

    def withdraw(self, slots: np.ndarray) -> None:
        """Undo `admit` of an interrupted piece: its slots are empty."""
        b, t = np.nonzero(slots >= 0)
        self.positions[b, slots[b, t]] = -1
        self.count -= (slots >= 0).sum(axis=1)

    def take_back(self, positions: np.ndarray) -> None:
        """Drop each row's tokens from the first of its positions (B, T) on."""
        first = np.where(positions >= 0, positions, np.iinfo(np.int64).max).min(axis=1)
        if (first > self.last).all():  # the usual case
            return
        lost = (self.evicted >= 0) & (first - self.evicted < (self.window or 1))
        if lost.any():
            row = int(np.argmax(lost))
            raise ValueError(
                f"position_ids: row {row} goes back to position {first[row]}, but keys in its "
                f"window are overwritten; go back by at most {self.chunk} tokens, or start with a "
                "new cache"
            )
        stale = self.positions >= first[:, None]
        self.positions[stale] = -1
        self.count -= stale.sum(axis=1)
        self.last = np.minimum(self.last, first - 1)

    def read(self, layer: int) -> tuple[Array, Array]:
        """Return a layer's keys and values (B, S, K, d), of the slots used so far."""
        used = int(self.count.max())
        return self.k[layer][:, :used], self.v[layer][:, :used]

    @property
    def key_positions(self) -> np.ndarray:
        """The positions (B, S) of the keys that `read` returns."""
        return self.positions[:, : int(self.count.max())]

    def in_token_order(self, weights: np.ndarray) -> np.ndarray:
        """Reorder attention weights over slots (B, H, T, S) -> (B, H, T, tokens so far).

        Column n is the row's n-th token; overwritten ones have weight 0.
        """
        out = np.zeros((*weights.shape[:3], int(self.count.max())), dtype=weights.dtype)
        for row, positions in enumerate(self.key_positions):
            held = np.count_nonzero(positions >= 0)
            newest = np.argsort(positions, kind="stable")[len(positions) - held :]
            count = self.count[row]
            out[row, :, :, count - held : count] = weights[row][:, :, newest]
        return out

    def select(self, rows: np.ndarray) -> RollingCache:
        """Return an independent cache of these rows (n,), in this order; a row may repeat."""
        new = copy.copy(self)
        new.k = [self.backend.take(array, rows, axis=0) for array in self.k]
        new.v = [self.backend.take(array, rows, axis=0) for array in self.v]
        for name in ("positions", "count", "last", "evicted", "mask"):
            setattr(new, name, getattr(self, name)[rows])
        return new

    def copy(self) -> RollingCache:
        """Return an independent cache with the same content."""
        return self.select(np.arange(len(self.count), dtype=np.int64))
