"""Mistakes about the mask: windows, causality, padding."""

from __future__ import annotations

import numpy as np

from tinymistral.backend import Array
from tinymistral.mistakes.mistake import mistake
from tinymistral.mistakes.planting import Window

# Each replaces `visible`: queries at i (B, T, 1), keys at j (B, 1, S); -1: padding, empty slot.

MIXES = "attention_mixes_what_is_visible"
LAST_KEY = "the_last_visible_key_has_influence"
ANY_ORDER = "slots_may_be_in_any_order"


def _uncausal(i: Array, j: Array, window: Window) -> Array:
    """Return the mask without causality."""
    mask = (i >= 0) & (j >= 0)
    return mask if window is None else mask & (i - j < window)


def _distance_in_slots(i: Array, j: Array) -> Array:
    T, S = i.shape[1], j.shape[2]
    return S - T + np.arange(T)[:, None] - np.arange(S)


@mistake("visible", law=MIXES)
def inclusive_window(self, right, i, j, window):
    """One key too many is visible, `i - j <= W`, as in the Mistral paper's words "between i - W and
    i" and the first code published with it.
    Fix: The window counts the query's own key: make the comparison `i - j < W`."""
    return right(i, j, None if window is None else window + 1)


@mistake("visible", law=MIXES)
def inclusive_window_of_prompts(self, right, i, j, window):
    """One key too many is visible to several queries at once, `i - j <= W`, but not to a single
    one. The paper's own code had it, with a mask of W + 1 keys and a cache of W slots; so had
    FlashAttention, as transformers called it, for long.
    Fix: Use one comparison, `i - j < W`, for prefill and decode."""
    return right(i, j, window if window is None or i.shape[1] == 1 else window + 1)


@mistake("visible", law=LAST_KEY)
def short_window(self, right, i, j, window):
    """One key too few is visible, `i - j < W - 1`, for example because a cache of W - 1 past keys
    is taken for W - 1 keys in all.
    Fix: The window is the query's own key and W - 1 before it: make it `i - j < W`."""
    return right(i, j, None if window is None else window - 1)


@mistake("visible", law="a_token_reaches_as_far_as_the_window_does_in_every_layer")
def no_window(self, right, i, j, window):
    """The window is ignored: every query attends to all keys before it. It shows only in texts
    longer than the window.
    Fix: Read `sliding_window` from the configuration and mask keys with `i - j >= W`."""
    return right(i, j, None)


@mistake("visible", law="large_scores_do_not_overflow")
def window_by_default(self, right, i, j, window):
    """Where there is no window, one of 4096 is used, the configuration class's default. It shows
    past 4096 tokens, with v0.2 and v0.3 models.
    Fix: `sliding_window` null means no window: do not replace it by the default."""
    return right(i, j, window or 4096)


@mistake("visible", law="logits_are_the_oracles_in_pieces_of_any_size")
def window_of_the_piece(self, right, i, j, window):
    """All queries of a piece share the window of its last one: earlier ones lack keys. Correct for
    one token at a time, but not for a prompt.
    Fix: Count the window back from each query's own position, not from the newest of a piece."""
    newest = np.broadcast_to(i.max(axis=1, keepdims=True), i.shape)
    return right(i, j, None) & right(newest, j, window)


@mistake("visible", law="pieces_through_a_ring_are_the_whole")
def window_by_slot(self, right, i, j, window):
    """The window is counted in slots of the cache rather than in positions. Correct until the cache
    wraps, or a row has padding.
    Fix: Compute distances from the positions of queries and keys, not from their slots."""
    mask = right(i, j, None)
    return mask if window is None else mask & (_distance_in_slots(i, j) < window)


@mistake("visible", law=ANY_ORDER)
def causal_by_slot(self, _, i, j, window):
    """The future is masked by the order of slots, as by a triangular mask (tril, triu). Correct
    until the cache wraps, or a row has padding.
    Fix: Mask a key if its position is larger than the query's, whatever its slot."""
    return _uncausal(i, j, window) & (_distance_in_slots(i, j) >= 0)


@mistake("visible", law=ANY_ORDER)
def stops_at_the_first_hidden(self, right, i, j, window):
    """The loop over keys ends at the first one in the future, as if all after it were too. Correct
    until the cache wraps.
    Fix: Test every slot: in a ring, visible keys need not be adjacent."""
    return right(i, j, window) & np.logical_and.accumulate(j <= i, axis=-1)


@mistake("visible", law="what_a_query_does_not_see_has_no_influence")
def future_seen(self, _, i, j, window):
    """Keys after the query are visible. One token at a time is right; a prompt in one call is
    wrong, and a scored text is predicted too well.
    Fix: Mask keys whose position is larger than the query's: visible means `0 <= i - j`."""
    return _uncausal(i, j, window)


@mistake("visible", law=LAST_KEY)
def blind_to_itself(self, right, i, j, window):
    """A query's own key is masked, `0 < i - j`; for the first token nothing is visible.
    Fix: A query's own key is visible: use `0 <= i - j`, 0 included."""
    return right(i, j, window) & (i > j)


@mistake("visible", law="padding_on_either_side_changes_nothing")
def padding_seen(self, _, i, j, window):
    """Position -1 is treated as one before the first, not as an empty slot. Padding and empty slots
    are visible to the first tokens of a row.
    Fix: Mask every key at position -1: visible means also `j >= 0`."""
    mask = i - j >= 0
    return mask if window is None else mask & (i - j < window)


@mistake("visible", law="rows_of_a_batch_attend_by_themselves")
def positions_of_the_first_row(self, right, i, j, window):
    """The positions of the first row are used for all rows of a batch. Correct for one row, and for
    rows of the same length.
    Fix: Positions have a row for each row of the batch: use its own for each."""
    return right(i[:1], j[:1], window)


@mistake("visible", law=MIXES)
def window_in_32_bits(self, right, i, j, window):
    """A window is cut to its lower 32 bits. A huge one, which means no window, becomes 0 or
    negative, and nothing is visible.
    Fix: Store the window in 64 bits, or limit it to the type's largest number."""
    return right(i, j, None if window is None else int(np.int64(window).astype("int32")))


@mistake("visible", law=MIXES)
def positions_in_float32_compared(self, right, i, j, window):
    """Positions are compared as float32 numbers, which are not exact past 2^24. There the next
    token is visible, or the last key of the window is not.
    Fix: Compare positions as integers of 32 bits at least."""
    return right(i.astype(np.float32), j.astype(np.float32), window)
