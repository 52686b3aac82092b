"""Mistakes about what is written to a cache: slots, and what is turned on the way."""

# ruff: noqa: D102 (backend.py says what the methods do)

from __future__ import annotations

from typing import Any

import numpy as np

from tinymistral.conformance.mistakes.catalogue import mistake
from tinymistral.numpy_backend import NumpyBackend

Caches = tuple[np.ndarray, np.ndarray]  # of keys and of values, each (B, S, K, d)


def _everywhere(cache: np.ndarray, slots: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Write to all slots; in NumPy -1 is the last one."""
    cache[np.arange(len(slots))[:, None], slots] = new
    return cache


@mistake(
    "padding-written-to-the-last-slot",
    law="scatter_writes_its_slots_and_nothing_else",
    fix="Skip slot -1: it says that there is nothing to write.",
)
class PaddingWrittenToTheLastSlot(NumpyBackend):
    """Slot -1 is taken for an index that counts from the end: padding overwrites the last slot."""

    def scatter(self, cache: np.ndarray, slots: np.ndarray, new: np.ndarray) -> np.ndarray:
        return _everywhere(cache, slots, new)


@mistake(
    "slots-of-the-first-row",
    law="scatter_writes_its_slots_and_nothing_else",
    fix="Slots have a row for each row of the batch: index them by it.",
)
class SlotsOfTheFirstRow(NumpyBackend):
    """All rows of a batch are written to the slots of the first."""

    def scatter(self, cache: np.ndarray, slots: np.ndarray, new: np.ndarray) -> np.ndarray:
        return super().scatter(cache, np.broadcast_to(slots[:1], slots.shape), new)


@mistake(
    "added-to-the-slot",
    law="scatter_writes_its_slots_and_nothing_else",
    fix="Overwrite what a slot held: it is a token that has left the ring.",
)
class AddedToTheSlot(NumpyBackend):
    """New numbers are added to what a slot held, as scatter-add does.

    It is right until the cache wraps.
    """

    def scatter(self, cache: np.ndarray, slots: np.ndarray, new: np.ndarray) -> np.ndarray:
        b, t = np.nonzero(slots >= 0)
        cache[b, slots[b, t]] += new[b, t]
        return cache


@mistake(
    "values-turned",
    law="store_is_rope_and_scatter",
    fix="Turn queries and keys, and write values as they are.",
)
class ValuesTurned(NumpyBackend):
    """Values are turned like keys."""

    def store(
        self, k: np.ndarray, v: np.ndarray, table: Any, cache: Caches, slots: np.ndarray
    ) -> Caches:
        return super().store(k, self.rope(v, table), table, cache, slots)


@mistake(
    "keys-not-turned",
    law="store_is_rope_and_scatter",
    fix="Turn a key by its position before it is written.",
)
class KeysNotTurned(NumpyBackend):
    """Keys are written to the cache as they are, and only queries are turned."""

    def store(
        self, k: np.ndarray, v: np.ndarray, table: Any, cache: Caches, slots: np.ndarray
    ) -> Caches:
        return self.scatter(cache[0], slots, k), self.scatter(cache[1], slots, v)


@mistake(
    "padding-stored",
    law="store_is_rope_and_scatter",
    fix="Let the fused kernel skip slot -1, as `scatter` does.",
)
class PaddingStored(NumpyBackend):
    """A fused `store` does not know what `scatter` knows, and writes padding to the last slot."""

    def store(
        self, k: np.ndarray, v: np.ndarray, table: Any, cache: Caches, slots: np.ndarray
    ) -> Caches:
        return _everywhere(cache[0], slots, self.rope(k, table)), _everywhere(cache[1], slots, v)
