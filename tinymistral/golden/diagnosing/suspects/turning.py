"""Suspects about what is turned by which position."""

# ruff: noqa: D102 (backend.py says what the methods do)

from __future__ import annotations

from typing import Any

import numpy as np

from tinymistral.cache import RollingCache
from tinymistral.conformance.mistakes.rotation import RopeInterleaved
from tinymistral.golden.diagnosing.suspects.knowing import Knowing
from tinymistral.golden.diagnosing.suspects.suspect import FOUND, Suspect, suspect
from tinymistral.golden.diagnosing.suspects.weights import raw_not_permuted

Table = tuple[np.ndarray, np.ndarray]  # cosines and sines, each (B, T, 1, d/2)
Caches = tuple[np.ndarray, np.ndarray]  # of keys and of values, each (B, S, K, d)


@suspect(
    "decoding-one-behind",
    fix="After n tokens the next position is n: its angle is n · theta^(-2m/d).",
    common=True,
)
class DecodingOneBehind(Knowing):
    """From the second call on tokens are turned by the position before their own.

    The first token after a prompt has the position of the prompt's last one.
    """

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        behind = positions - (positions > 0) * (self.call > 0)
        return super().rope_table(behind, theta, d)


@suspect(
    "decoding-one-ahead",
    fix="After n tokens the next position is n: its angle is n · theta^(-2m/d).",
    common=True,
)
class DecodingOneAhead(Knowing):
    """From the second call on tokens are turned by the position after their own.

    After a prompt one position is left out.
    """

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        ahead = positions + (positions >= 0) * (self.call > 0)
        return super().rope_table(ahead, theta, d)


@suspect(
    "positions-of-columns",
    fix="Positions count a row's tokens, not its padding: cumsum(mask) - 1.",
    common=True,
)
class PositionsOfColumns(Knowing):
    """A token is turned by its column in the batch, padding before it being counted.

    With padding on the left alone distances are right, and the logits do not tell.
    """

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        if self.call >= 0:
            columns = np.arange(self.stop - self.width, self.stop, dtype=np.int64)
            positions = np.where(positions < 0, -1, columns)
        return super().rope_table(positions, theta, d)


@suspect("queries-not-turned", fix="Turn queries by their positions as keys are.")
class QueriesNotTurned(Knowing):
    """Keys are turned and queries are not."""

    _of_queries = False

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        self._of_queries = self.call >= 0
        return super().rope_table(positions, theta, d)

    def rope(self, x: np.ndarray, table: Table) -> np.ndarray:
        return x if self._of_queries else super().rope(x, table)

    def store(
        self, k: np.ndarray, v: np.ndarray, table: Any, cache: Caches, slots: np.ndarray
    ) -> Caches:
        self._of_queries = False
        return super().store(k, v, table, cache, slots)

    def attention(self, *arguments: Any, **named: Any) -> np.ndarray:
        self._of_queries = self.call >= 0  # of the next layer
        return super().attention(*arguments, **named)


@suspect("nothing-turned", fix="Turn queries and keys by their positions.")
class NothingTurned(Knowing):
    """There are no rotary embeddings: neither queries nor keys know their positions."""

    def rope(self, x: np.ndarray, table: Table) -> np.ndarray:
        return x


FOUND.append(
    Suspect(
        "pairs-turned-always",
        "Neighbours (2m, 2m + 1) are turned with any weights as they are stored: raw checkpoints "
        "come out right, Hugging Face's do not.",
        "With HF weights turn the pairs (m, m + d/2); neighbours are for a raw checkpoint's wq "
        "and wk.",
        backends=(RopeInterleaved,),
        checkpoints=(raw_not_permuted,),
    )
)


@suspect(
    "keys-turned-again",
    of="caches",
    fix="A key is turned once, by its position, before it is cached; turn the new keys alone.",
    common=True,
)
class KeysTurnedAgain(RollingCache):
    """In every call all cached keys are turned once more, by their own positions."""

    def admit(self, positions: np.ndarray) -> np.ndarray:
        for layer, keys in enumerate(self.k):
            self.k[layer] = turned_by(self, keys, self.positions)
        return super().admit(positions)


@suspect(
    "keys-turned-again-when-read",
    of="caches",
    fix="A key is turned once, by its position, before it is cached; turn the new keys alone.",
)
class KeysTurnedAgainWhenRead(RollingCache):
    """Keys from earlier calls are turned a second time when they are attended to.

    What is cached stays right.
    """

    def admit(self, positions: np.ndarray) -> np.ndarray:
        slots = super().admit(positions)
        self._old = self.positions.copy()
        b, t = np.nonzero(slots >= 0)
        self._old[b, slots[b, t]] = 0  # the position that turns by nothing
        return slots

    def read(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        keys, values = super().read(layer)
        return turned_by(self, keys, self._old[:, : keys.shape[1]]), values

    def commit(self, positions: np.ndarray) -> None:
        super().commit(positions)
        self._old = np.zeros_like(self.positions)


def turned_by(cache: RollingCache, keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Turn keys (B, S, K, d) by positions (B, S)."""
    config, backend = cache.config, cache.backend
    table = backend.rope_table(positions, config.rope_theta, config.head_dim)
    turned: np.ndarray = backend.rope(keys, table)
    return turned
