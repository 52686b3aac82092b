"""Mistakes about who sees whom: windows, causality, padding; and which head reads which."""

# ruff: noqa: D102 (textbook.py says what the methods do)

from __future__ import annotations

import numpy as np

from tinymistral.conformance.mistakes.catalogue import mistake
from tinymistral.conformance.mistakes.textbook import Textbook

Positions = np.ndarray  # i (B, T, 1) of queries, j (B, 1, S) of keys; -1 where there is nothing
W = int | None


@mistake(
    "inclusive-window",
    law="attention_mixes_what_is_visible",
    fix="The window counts the query's own key: make the comparison `i - j < W`.",
)
class InclusiveWindow(Textbook):
    """A query sees one key too many, `i - j <= W`.

    So the Mistral paper's words "between i - W and i" have it, and the first code that came with
    it.
    """

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        return super().sees(i, j, None if window is None else window + 1)


@mistake(
    "inclusive-window-of-prompts",
    law="attention_mixes_what_is_visible",
    fix="Let prefill and decode share one comparison, `i - j < W`.",
)
class InclusiveWindowOfPrompts(Textbook):
    """Several queries at once see one key too many, `i - j <= W`, a single one does not.

    So a mask of W + 1 keys and a cache of W slots disagree, in the paper's own code and for long
    in FlashAttention as transformers called it.
    """

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        if window is not None and i.shape[1] > 1:
            window += 1
        return super().sees(i, j, window)


@mistake(
    "short-window",
    law="the_last_visible_key_has_influence",
    fix="The window counts the query's own key and W - 1 before it: make it `i - j < W`.",
)
class ShortWindow(Textbook):
    """A query sees one key too few, `i - j < W - 1`.

    As when a cache that keeps W - 1 past keys is taken for one of W - 1 keys in all.
    """

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        return super().sees(i, j, None if window is None else window - 1)


@mistake(
    "no-window",
    law="a_token_reaches_as_far_as_the_window_does_in_every_layer",
    fix="Read `sliding_window` from the configuration and hide keys with `i - j >= W`.",
)
class NoWindow(Textbook):
    """The window is ignored: every query sees all keys before it.

    Nothing shows before a text is longer than the window.
    """

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        return super().sees(i, j, None)


@mistake(
    "window-by-default",
    law="large_scores_do_not_overflow",
    fix="`sliding_window` null means no window: keep None apart from the default.",
)
class WindowByDefault(Textbook):
    """Where there is no window, one of 4096 is used, the default of the configuration's class.

    It shows past 4096 tokens, of v0.2 and v0.3 models.
    """

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        return super().sees(i, j, window or 4096)


@mistake(
    "window-of-the-piece",
    law="logits_are_the_oracles_in_pieces_of_any_size",
    fix="Count the window back from each query's own position, not from the newest of a piece.",
)
class WindowOfThePiece(Textbook):
    """All queries of a piece share the window of its last one: earlier ones see too few keys.

    One token at a time it is right; a prompt at once is not.
    """

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        newest = np.broadcast_to(i.max(axis=1, keepdims=True), i.shape)
        return super().sees(i, j, None) & super().sees(newest, j, window)


@mistake(
    "window-by-slot",
    law="pieces_through_a_ring_are_the_whole",
    fix="Take distances from the positions of queries and keys, not from where keys are stored.",
)
class WindowBySlot(Textbook):
    """The window is counted in slots of the cache rather than in positions.

    It is right until the cache wraps, or a row has padding.
    """

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        seen, distance = super().sees(i, j, None), _distance_in_slots(i, j)
        return seen if window is None else seen & (distance < window)


@mistake(
    "causal-by-slot",
    law="slots_may_be_in_any_order",
    fix="A key is in the future if its position is larger than the query's, wherever it is stored.",
)
class CausalBySlot(Textbook):
    """What is in the future is told by the order of slots, as by a triangular mask (tril, triu).

    It is right until the cache wraps, or a row has padding.
    """

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        seen = (i >= 0) & (j >= 0) & (_distance_in_slots(i, j) >= 0)
        return seen if window is None else seen & (i - j < window)


def _distance_in_slots(i: Positions, j: Positions) -> np.ndarray:
    T, S = i.shape[1], j.shape[2]
    return S - T + np.arange(T)[:, None] - np.arange(S)


@mistake(
    "stops-at-the-first-hidden",
    law="slots_may_be_in_any_order",
    fix="Look at every slot: in a ring those that are visible are not next to each other.",
)
class StopsAtTheFirstHidden(Textbook):
    """The loop over keys ends at the first one in the future, as if all after it were too.

    It is right until the cache wraps.
    """

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        return super().sees(i, j, window) & np.logical_and.accumulate(j <= i, axis=-1)


@mistake(
    "future-seen",
    law="what_a_query_does_not_see_has_no_influence",
    fix="Hide keys whose position is larger than the query's: visible means `0 <= i - j`.",
)
class FutureSeen(Textbook):
    """Queries see keys after their own.

    Decoding one token at a time hides it; a prompt that goes through at once is wrong, and text
    that is scored is too easily foreseen.
    """

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        seen = (i >= 0) & (j >= 0)
        return seen if window is None else seen & (i - j < window)


@mistake(
    "blind-to-itself",
    law="the_last_visible_key_has_influence",
    fix="A query sees its own key: visible means `0 <= i - j`, 0 included.",
)
class BlindToItself(Textbook):
    """A query does not see its own key, `0 < i - j`; the first token sees nothing at all."""

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        return super().sees(i, j, window) & (i > j)


@mistake(
    "padding-seen",
    law="padding_on_either_side_changes_nothing",
    fix="Hide every key at position -1: visible means `j >= 0`, too.",
)
class PaddingSeen(Textbook):
    """Position -1 is taken for one before the first, not for nothing.

    Padding and empty slots are seen by the first tokens of a row.
    """

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        seen = i - j >= 0
        return seen if window is None else seen & (i - j < window)


@mistake(
    "positions-of-the-first-row",
    law="rows_of_a_batch_attend_by_themselves",
    fix="Positions have a row for each row of the batch: index them by it.",
)
class PositionsOfTheFirstRow(Textbook):
    """The positions of the first row are used for all rows of a batch.

    It is right for one row, and for rows of the same length.
    """

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        return super().sees(i[:1], j[:1], window)


@mistake(
    "window-in-32-bits",
    law="attention_mixes_what_is_visible",
    fix="Keep the window in 64 bits, or cut it to the largest number that the type holds.",
)
class WindowIn32Bits(Textbook):
    """A window is cut to its lower 32 bits.

    One that is larger than any text, to say that there is none, becomes 0 or negative, and nothing
    is seen.
    """

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        return super().sees(i, j, None if window is None else int(np.int64(window).astype("int32")))


@mistake(
    "positions-in-float32-compared",
    law="attention_mixes_what_is_visible",
    fix="Compare positions as integers of 32 bits at least.",
)
class PositionsInFloat32Compared(Textbook):
    """Positions are compared as float32 numbers, which cannot count past 2^24.

    There a token sees its successor, or loses the last key of its window.
    """

    def sees(self, i: Positions, j: Positions, window: W) -> np.ndarray:
        return super().sees(i.astype(np.float32), j.astype(np.float32), window)


@mistake(
    "tiled-heads",
    law="grouped_heads_are_repeated_heads",
    fix="Query head h reads key/value head h // (H/K): repeat each head, do not tile them.",
)
class TiledHeads(Textbook):
    """Query head h reads key/value head h % K rather than h // (H/K).

    It is right for one key/value head, and for as many as query heads.
    """

    def repeat(self, array: np.ndarray, heads: int) -> np.ndarray:
        return np.tile(array, (1, 1, heads // array.shape[2], 1))


@mistake(
    "one-head-for-all",
    law="grouped_heads_are_repeated_heads",
    fix="Query head h reads key/value head h // (H/K), not the first one.",
)
class OneHeadForAll(Textbook):
    """All query heads read the first key/value head, as in multi-query attention."""

    def repeat(self, array: np.ndarray, heads: int) -> np.ndarray:
        return np.repeat(array[:, :, :1], heads, axis=2)
