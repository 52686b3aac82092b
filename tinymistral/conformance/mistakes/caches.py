"""Mistakes about the rolling cache: its size, its slots, and what it remembers."""

# ruff: noqa: D102 (cache.py says what the methods do)

from __future__ import annotations

import numpy as np

from tinymistral.backend import Array
from tinymistral.cache import RollingCache
from tinymistral.conformance.mistakes.catalogue import mistake


@mistake(
    "evict-before-attend",
    law="logits_are_the_oracles_in_pieces_of_any_size",
    fix="Attend to the old keys and the new ones, then evict; or give the ring W + C - 1 slots.",
)
class EvictBeforeAttend(RollingCache):
    """The ring has W slots, i % W, and a piece of several tokens evicts before it attends.

    Its first tokens have lost what they should see. One token at a time is right.
    """

    @property
    def capacity(self) -> int | None:
        return None if self.window is None else max(self.window, self.chunk)


@mistake(
    "ring-too-small",
    law="logits_are_the_oracles_in_pieces_of_any_size",
    fix="W + C - 1 slots: the first query of a piece of C sees W - 1 keys before the piece.",
)
class RingTooSmall(RollingCache):
    """The ring is one slot too small: the oldest query of a full piece misses its oldest key."""

    @property
    def capacity(self) -> int | None:
        return None if self.window is None else max(self.window + self.chunk - 2, self.chunk)


@mistake(
    "endless-cache",
    law="memory_is_constant_past_the_ring",
    fix="Keep W + C - 1 slots and overwrite the oldest.",
)
class EndlessCache(RollingCache):
    """The cache grows for ever, although the window hides all but its last keys.

    The numbers are right, until memory is out.
    """

    @property
    def capacity(self) -> int | None:
        return None


@mistake(
    "draft-not-forgotten",
    law="the_cache_remembers_what_a_list_would",
    fix="When a position is given again, forget what the cache has from there on.",
)
class DraftNotForgotten(RollingCache):
    """Draft tokens that were rejected stay visible beside those that replace them."""

    def take_back(self, positions: np.ndarray) -> None:
        return None


@mistake(
    "copy-shares-memory",
    law="the_cache_remembers_what_a_list_would",
    fix="Copy keys and values when a cache is copied.",
)
class CopySharesMemory(RollingCache):
    """A copy of a cache has the keys and values of its original: what one is told, both know."""

    def select(self, rows: np.ndarray) -> RollingCache:
        new = super().select(rows)
        if np.array_equal(rows, np.arange(len(self.count))):
            new.k, new.v = list(self.k), list(self.v)
        return new


@mistake(
    "positions-not-reordered",
    law="the_cache_remembers_what_a_list_would",
    fix="Reorder all that a cache has by row: keys, values, positions and counts.",
)
class PositionsNotReordered(RollingCache):
    """When rows change places or leave the batch, keys and values go along, positions do not."""

    def select(self, rows: np.ndarray) -> RollingCache:
        new, same = super().select(rows), np.arange(len(rows)) % len(self.count)
        for name in ("positions", "count", "last", "evicted"):
            setattr(new, name, getattr(self, name)[same])
        return new


@mistake(
    "growth-forgets",
    law="the_cache_remembers_what_a_list_would",
    fix="Copy what is there into the larger arrays.",
)
class GrowthForgets(RollingCache):
    """When the cache grows, what it held is lost: keys and values are 0, and still visible."""

    def reserve(self, tokens: int) -> None:
        before = self.positions.shape[1]
        super().reserve(tokens)
        if self.positions.shape[1] > before:
            for arrays in (self.k, self.v):
                arrays[:] = [self.backend.zeros(a.shape, self.backend.dtype) for a in arrays]


@mistake(
    "positions-not-updated",
    law="the_cache_remembers_what_a_list_would",
    fix="Write a token's position wherever its key and value are written.",
)
class PositionsNotUpdated(RollingCache):
    """A slot keeps the position of its first token when others overwrite it.

    It is right until the cache wraps; then new keys are not seen, or as old ones.
    """

    def admit(self, positions: np.ndarray) -> np.ndarray:
        self.take_back(positions)
        before = self.positions.copy()
        slots = super().admit(positions)
        held = self.positions[:, : before.shape[1]]
        np.copyto(held, before, where=before >= 0)
        return slots


@mistake(
    "padding-counted",
    law="log_probabilities_are_those_of_scoring_the_text_at_once",
    fix="A row's next position follows its last token, and padding has none: cumsum(mask) - 1.",
)
class PaddingCounted(RollingCache):
    """The next token's position counts padding too.

    What is generated after a prompt that was padded is too far from it.
    """

    def commit(self, positions: np.ndarray) -> None:
        super().commit(positions)
        self.last = np.full_like(self.last, self.columns - 1)


@mistake(
    "padding-takes-slots",
    law="every_stage_follows_from_those_before",
    fix="Count the tokens of each row by itself, and give slots to tokens alone.",
)
class PaddingTakesSlots(RollingCache):
    """All rows are taken to be as long as the longest.

    Padding pushes tokens out of the ring that are still to be seen.
    """

    def admit(self, positions: np.ndarray) -> np.ndarray:
        self.count[:] = self.count.max()
        return super().admit(positions)


@mistake(
    "length-of-the-first-row",
    law="each_row_of_a_padded_batch_is_the_row_alone",
    fix="Attend to as many slots as the longest row has, and let positions say which are empty.",
)
class LengthOfTheFirstRow(RollingCache):
    """Only as many slots are read as the first row has: longer rows lose their newest keys."""

    def read(self, layer: int) -> tuple[Array, Array]:
        used = int(self.count[0])
        return self.k[layer][:, :used], self.v[layer][:, :used]

    def read_positions(self) -> np.ndarray:
        return self.positions[:, : int(self.count[0])]


@mistake(
    "layers-share-a-cache",
    law="every_stage_follows_from_those_before",
    fix="Give every layer keys and values of its own, and read those of the layer at work.",
)
class LayersShareACache(RollingCache):
    """All layers attend to the keys and values of the first. A model of one layer is right."""

    def read(self, layer: int) -> tuple[Array, Array]:
        return super().read(0)
