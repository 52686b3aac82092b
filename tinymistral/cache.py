"""RollingCache: keys, values and positions in a ring of slots."""

from __future__ import annotations

import copy

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
    there on are dropped, so up to C tokens that were guessed ahead and rejected need no clean-up.

    A call of a model works on what `begin` returns. Its tokens count only once `commit` adds them
    to the cache, by one assignment. So an error or an interrupt, wherever it falls, leaves whole
    pieces, and `count` says how many tokens they are. Only what a piece replaces is gone once it
    has begun.

    Attributes: `k[n]`, `v[n]` (B, storage, K, d) of layer n, on the backend; on the host
    `positions` (B, storage), -1 in an empty slot; `count` (B,), each row's number of tokens, and
    `last` (B,), the position of the last one, -1 before the first. `slots` (B, T) is where the
    piece that is going through the layers is written, -1 for padding.
    """

    def __init__(
        self, config: MistralConfig, backend: Backend, rows: int, chunk: int | None = None
    ):
        """Make an empty cache for a batch of `rows`; `chunk` is C, by default the backend's."""
        self.config = config
        self.backend = backend
        self.window = config.sliding_window
        self.chunk = backend.chunk_for(rows) if chunk is None else chunk
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
        self.origin: RollingCache | None = None  # the cache that `begin` was called on

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
                # A call that was broken off may have left more room than `have`.
                arrays[layer] = self.backend.scatter(grown, slots, old[:, :have]) if have else grown
        empty = np.full((rows, need - have), -1, dtype=np.int64)
        self.positions = np.concatenate([self.positions, empty], axis=1)

    def begin(self) -> RollingCache:
        """Return a cache for one call: it shares keys and values with this one, nothing else."""
        call = copy.copy(self)
        call.origin = self
        return call

    def commit(self) -> None:
        """Let the cache that `begin` was called on hold what this one holds."""
        if self.origin is not None:
            # One operation, written in C, which no interrupt divides.
            vars(self.origin).update(vars(self) | {"origin": None, "slots": self.slots[:, :0]})

    def update(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Write the piece's rotated keys and values (B, T, K, d) -> `read(layer)`."""
        self.k[layer] = self.backend.scatter(self.k[layer], self.slots, k)
        self.v[layer] = self.backend.scatter(self.v[layer], self.slots, v)
        return self.read(layer)

    def admit(self, positions: np.ndarray) -> None:
        """Assign a piece's positions (B, T), rising in a row, to `slots`, -1 for padding."""
        self.take_back(positions)
        new = positions >= 0
        order = self.count[:, None] + np.cumsum(new, axis=1) - 1
        self.reserve(int(order.max()) + 1 - int(self.count.max()))
        self.slots = np.where(new, order if self.capacity is None else order % self.capacity, -1)
        self.evict(self.slots)
        b, t = np.nonzero(new)
        self.positions[b, self.slots[b, t]] = positions[b, t]
        self.count = self.count + new.sum(axis=1)
        self.last = np.maximum(self.last, positions.max(axis=1))
        self.add_to_mask(new)

    def evict(self, slots: np.ndarray) -> None:
        """Empty the slots (B, T) that a piece will overwrite; committed, as nothing undoes it."""
        b, t = np.nonzero(slots >= 0)
        at = b, slots[b, t]
        self.evicted, self.positions = self.evicted.copy(), self.positions.copy()
        np.maximum.at(self.evicted, b, self.positions[at])
        self.positions[at] = -1
        self.commit()
        self.positions = self.positions.copy()  # the committed array stays as it is

    def add_to_mask(self, columns: np.ndarray) -> None:
        """Remember columns (B, T) of the attention mask."""
        if not columns.all():
            ones = np.ones((len(columns), self.columns - self.mask.shape[1]), dtype=bool)
            mask = np.concatenate([self.mask, ones, columns], axis=1)
            self.mask = mask[:, : np.flatnonzero(~mask.all(axis=0))[-1] + 1]
        self.columns += columns.shape[1]

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
        self.positions = np.where(stale, -1, self.positions)
        self.count = self.count - stale.sum(axis=1)
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
