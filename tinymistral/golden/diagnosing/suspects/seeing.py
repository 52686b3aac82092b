"""Suspects about who sees whom, beyond those that an operation can make by itself."""

# ruff: noqa: D102 (textbook.py says what the methods do)

from __future__ import annotations

import numpy as np

from tinymistral.cache import RollingCache
from tinymistral.conformance.mistakes.caches import EndlessCache
from tinymistral.conformance.mistakes.textbook import Textbook
from tinymistral.golden.diagnosing.suspects.knowing import Knowing
from tinymistral.golden.diagnosing.suspects.suspect import suspect

Positions = np.ndarray  # i (B, T, 1) of queries, j (B, 1, S) of keys; -1 where there is nothing
W = int | None


@suspect(
    "next-token-seen",
    fix="A key is visible if its position is not larger than the query's: `0 <= i - j`.",
    common=True,
)
class NextTokenSeen(Textbook):
    """The causal mask is off by one, `j <= i + 1`: each query sees the token after its own."""

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        seen = (i >= 0) & (j >= 0) & (i + 1 - j >= 0)
        return seen if window is None else seen & (i - j < window)


@suspect(
    "no-mask-in-later-calls",
    fix="Mask the future in every call of more than one token, also where there is a cache.",
)
class NoMaskInLaterCalls(Knowing, Textbook):
    """Only the first call is masked causally; in later ones all queries see all new keys."""

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        if self.call <= 0:
            return super().sees(i, j, window)
        seen = (i >= 0) & (j >= 0)
        return seen if window is None else seen & (i - j < window)


@suspect(
    "causal-from-the-first-key",
    fix="With S keys, T of them new, query t sees keys up to S - T + t: align the triangle at its "
    "lower right corner (PyTorch's is_causal aligns it at the upper left).",
    common=True,
)
class CausalFromTheFirstKey(Knowing, Textbook):
    """In later calls of several tokens the triangle of the mask begins at the oldest key.

    Query t sees the first t + 1 keys of all, not those up to its own.
    """

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        seen = super().sees(i, j, window)
        if self.call <= 0 or i.shape[1] == 1:
            return seen
        rank = np.where(j < 0, j.max() + 1, j).argsort(axis=-1, kind="stable").argsort(axis=-1)
        return (i >= 0) & (j >= 0) & (rank <= np.arange(i.shape[1])[:, None])


@suspect(
    "window-forgotten-when-decoding",
    caches=(EndlessCache,),
    fix="Hide keys with `i - j >= W` in every call, not only where a mask is made for a prompt.",
    common=True,
)
class WindowForgottenWhenDecoding(Knowing, Textbook):
    """A prompt is seen through the window; one token at a time sees all keys before it."""

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        alone = self.call >= 0 and i.shape[1] == 1
        return super().sees(i, j, None if alone else window)


@suspect(
    "window-forgotten-in-prompts",
    caches=(EndlessCache,),
    fix="Put the window into the mask of a prompt, too; a ring hides old keys only when decoding.",
    common=True,
)
class WindowForgottenInPrompts(Knowing, Textbook):
    """A call of several tokens sees all keys there are; one token at a time sees the window."""

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        several = self.call >= 0 and i.shape[1] > 1
        return super().sees(i, j, None if several else window)


@suspect(
    "window-in-columns",
    fix="Take the distance of two tokens from their positions, which padding does not have.",
    common=True,
)
class WindowInColumns(Knowing, Textbook):
    """The window is counted in columns of the batch: padding between two tokens counts."""

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        if window is None or not self.mask.size:
            return super().sees(i, j, window)
        distance = self._columns(i) - self._columns(j)
        return super().sees(i, j, None) & (distance < window)

    def _columns(self, positions: Positions) -> np.ndarray:
        """Return the column of the token at each position; positions need not begin at 0."""
        out = np.full_like(positions, -1)
        for row, mask in enumerate(self.mask):
            columns = np.flatnonzero(mask)
            there = positions[row] >= 0
            out[row][there] = columns[positions[row][there] - self.first[row]]
        return out


@suspect(
    "cache-forgotten",
    of="caches",
    fix="Keep keys and values of earlier calls, and attend to them together with the new ones.",
    common=True,
)
class CacheForgotten(RollingCache):
    """In each call only its own tokens are seen, as if there were no cache; positions go on."""

    def admit(self, positions: np.ndarray) -> np.ndarray:
        slots = super().admit(positions)
        self._before = self.positions.copy()
        old = np.ones(self.positions.shape, dtype=bool)
        b, t = np.nonzero(slots >= 0)
        old[b, slots[b, t]] = False
        self.positions[old] = -1
        return slots

    def commit(self, positions: np.ndarray) -> None:
        super().commit(positions)
        self.positions = self._before
