"""Mistakes about the mask: windows, causality, padding."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinymistral.backend import Array
from tinymistral.mistakes.cache import endless_cache
from tinymistral.mistakes.inputs import padding_as_text
from tinymistral.mistakes.mistake import FOUND, Mistake, mistake
from tinymistral.mistakes.planting import Window

# Each replaces `visible`: queries at i (B, T, 1), keys at j (B, 1, S), -1 where there is nothing.

MIXES = "attention_mixes_what_is_visible"
LAST_KEY = "the_last_visible_key_has_influence"
ANY_ORDER = "slots_may_be_in_any_order"


def _uncausal(i: Array, j: Array, window: Window) -> Array:
    """Return what is visible where the future is not masked."""
    mask = (i >= 0) & (j >= 0)
    return mask if window is None else mask & (i - j < window)


def _distance_in_slots(i: Array, j: Array) -> Array:
    T, S = i.shape[1], j.shape[2]
    return S - T + np.arange(T)[:, None] - np.arange(S)


@mistake("visible", law=MIXES, common=True)
def inclusive_window(self, right, i, j, window):
    """A query sees one key too many, `i - j <= W`. So the Mistral paper's words "between i - W and
    i" have it, and the first code that came with it.
    Fix: The window counts the query's own key: make the comparison `i - j < W`."""
    return right(i, j, None if window is None else window + 1)


@mistake("visible", law=MIXES)
def inclusive_window_of_prompts(self, right, i, j, window):
    """Several queries at once see one key too many, `i - j <= W`, a single one does not. So a mask
    of W + 1 keys and a cache of W slots disagree, in the paper's own code and for long in
    FlashAttention as transformers called it.
    Fix: Let prefill and decode share one comparison, `i - j < W`."""
    return right(i, j, window if window is None or i.shape[1] == 1 else window + 1)


@mistake("visible", law=LAST_KEY)
def short_window(self, right, i, j, window):
    """A query sees one key too few, `i - j < W - 1`. As when a cache that keeps W - 1 past keys is
    taken for one of W - 1 keys in all.
    Fix: The window counts the query's own key and W - 1 before it: make it `i - j < W`."""
    return right(i, j, None if window is None else window - 1)


@mistake("visible", law="a_token_reaches_as_far_as_the_window_does_in_every_layer", common=True)
def no_window(self, right, i, j, window):
    """The window is ignored: every query sees all keys before it. Nothing shows before a text is
    longer than the window.
    Fix: Read `sliding_window` from the configuration and mask keys with `i - j >= W`."""
    return right(i, j, None)


# A program with no ring sees more: its cache keeps all keys.
FOUND.extend(
    Mistake(
        f"{narrow.name}-and-no-ring",
        f"{narrow.says} The cache keeps all keys.",
        narrow.fix,
        narrow.changes + endless_cache.changes,
        common=True,
    )
    for narrow in (inclusive_window, no_window)
)


@mistake("visible", law="large_scores_do_not_overflow")
def window_by_default(self, right, i, j, window):
    """Where there is no window, one of 4096 is used, the default of the configuration's class. It
    shows past 4096 tokens, of v0.2 and v0.3 models.
    Fix: `sliding_window` null means no window: keep None apart from the default."""
    return right(i, j, window or 4096)


@mistake("visible", law="logits_are_the_oracles_in_pieces_of_any_size")
def window_of_the_piece(self, right, i, j, window):
    """All queries of a piece share the window of its last one: earlier ones see too few keys. One
    token at a time it is right; a prompt at once is not.
    Fix: Count the window back from each query's own position, not from the newest of a piece."""
    newest = np.broadcast_to(i.max(axis=1, keepdims=True), i.shape)
    return right(i, j, None) & right(newest, j, window)


@mistake("visible", law="pieces_through_a_ring_are_the_whole")
def window_by_slot(self, right, i, j, window):
    """The window is counted in slots of the cache rather than in positions. It is right until the
    cache wraps, or a row has padding.
    Fix: Take distances from the positions of queries and keys, not from where keys are stored."""
    mask = right(i, j, None)
    return mask if window is None else mask & (_distance_in_slots(i, j) < window)


@mistake("visible", law=ANY_ORDER)
def causal_by_slot(self, _, i, j, window):
    """The future is masked by the order of slots, as by a triangular mask (tril, triu). It is right
    until the cache wraps, or a row has padding.
    Fix: A key is in the future if its position is larger than the query's, wherever it is
    stored."""
    return _uncausal(i, j, window) & (_distance_in_slots(i, j) >= 0)


@mistake("visible", law=ANY_ORDER)
def stops_at_the_first_hidden(self, right, i, j, window):
    """The loop over keys ends at the first one in the future, as if all after it were too. It is
    right until the cache wraps.
    Fix: Look at every slot: in a ring those that are visible are not next to each other."""
    return right(i, j, window) & np.logical_and.accumulate(j <= i, axis=-1)


@mistake("visible", law="what_a_query_does_not_see_has_no_influence", common=True)
def future_seen(self, _, i, j, window):
    """Queries see keys after their own. Decoding one token at a time hides it; a prompt that goes
    through at once is wrong, and a text that is scored is predicted too well.
    Fix: Mask keys whose position is larger than the query's: visible means `0 <= i - j`."""
    return _uncausal(i, j, window)


@mistake("visible", common=True)
def next_token_seen(self, _, i, j, window):
    """The causal mask is off by one, `j <= i + 1`: each query sees the token after its own.
    Fix: A key is visible if its position is not larger than the query's: `0 <= i - j`."""
    return _uncausal(i, j, window) & (i + 1 - j >= 0)


@mistake("visible", law=LAST_KEY)
def blind_to_itself(self, right, i, j, window):
    """A query does not see its own key, `0 < i - j`; the first token sees nothing at all.
    Fix: A query sees its own key: visible means `0 <= i - j`, 0 included."""
    return right(i, j, window) & (i > j)


@mistake("visible", law="padding_on_either_side_changes_nothing", common=True)
def padding_seen(self, _, i, j, window):
    """Position -1 is taken for one before the first, not for nothing. Padding and empty slots are
    visible to the first tokens of a row.
    Fix: Mask every key at position -1: visible means `j >= 0`, too."""
    mask = i - j >= 0
    return mask if window is None else mask & (i - j < window)


@mistake("visible", law="rows_of_a_batch_attend_by_themselves")
def positions_of_the_first_row(self, right, i, j, window):
    """The positions of the first row are used for all rows of a batch. It is right for one row, and
    for rows of the same length.
    Fix: Positions have a row for each row of the batch: index them by it."""
    return right(i[:1], j[:1], window)


@mistake("visible", law=MIXES)
def window_in_32_bits(self, right, i, j, window):
    """A window is cut to its lower 32 bits. One that is larger than any text, to say that there is
    none, becomes 0 or negative, and nothing is visible.
    Fix: Keep the window in 64 bits, or cut it to the largest number that the type holds."""
    return right(i, j, None if window is None else int(np.int64(window).astype("int32")))


@mistake("visible", law=MIXES)
def positions_in_float32_compared(self, right, i, j, window):
    """Positions are compared as float32 numbers, which cannot count past 2^24. There a token sees
    its successor, or loses the last key of its window.
    Fix: Compare positions as integers of 32 bits at least."""
    return right(i.astype(np.float32), j.astype(np.float32), window)


@mistake("visible")
def positions_in_32_bits(self, right, i, j, window):
    """Positions are integers of 32 bits: from 2^31 on they are negative, and nothing is visible.
    Fix: Keep positions in 64 bits, or refuse texts that are longer than 2^31 - 1 tokens."""
    return right(i.astype(np.int32), j.astype(np.int32), window)


@positions_in_32_bits.also("rope_table")
def _(self, right, positions, *rest):
    return right(positions.astype(np.int32).astype(np.int64), *rest)


# Masks of some calls, or of some numbers of tokens


@mistake("visible")
def no_mask_in_later_calls(self, right, i, j, window):
    """Only the first call is masked causally; in later ones all queries see all new keys.
    Fix: Mask the future in every call of more than one token, also where there is a cache."""
    return right(i, j, window) if self.call <= 0 else _uncausal(i, j, window)


@mistake("visible", common=True)
def causal_from_the_first_key(self, right, i, j, window):
    """In later calls of several tokens the triangle of the mask begins at the oldest key. Query t
    sees the first t + 1 keys of all, not those up to its own.
    Fix: With S keys, T of them new, query t sees keys up to S - T + t: align the triangle at its
    lower right corner (PyTorch's is_causal aligns it at the upper left)."""
    if self.call <= 0 or i.shape[1] == 1:
        return right(i, j, window)
    rank = np.where(j < 0, j.max() + 1, j).argsort(axis=-1, kind="stable").argsort(axis=-1)
    return (i >= 0) & (j >= 0) & (rank <= np.arange(i.shape[1])[:, None])


@mistake("visible", common=True)
def window_forgotten_when_decoding(self, right, i, j, window):
    """A prompt is masked by the window; one token at a time sees all keys before it.
    Fix: Mask keys with `i - j >= W` in every call, not only where a mask is made for a prompt."""
    return right(i, j, None if self.call >= 0 and i.shape[1] == 1 else window)


@mistake("visible", common=True)
def window_forgotten_in_prompts(self, right, i, j, window):
    """A call of several tokens sees all keys there are; one token at a time sees the window.
    Fix: Put the window into the mask of a prompt, too; a ring drops old keys only when decoding."""
    return right(i, j, None if self.call >= 0 and i.shape[1] > 1 else window)


for _mistake in (window_forgotten_when_decoding, window_forgotten_in_prompts):
    _mistake.changes += endless_cache.changes


@mistake("visible", common=True)
def window_in_columns(self, right, i, j, window):
    """The window is counted in columns of the batch: padding between two tokens counts.
    Fix: Take the distance of two tokens from their positions, which padding does not have."""
    if window is None or not self.mask.size:
        return right(i, j, window)
    distance = _columns_of(self, i) - _columns_of(self, j)
    return right(i, j, None) & (distance < window)


def _columns_of(self: Any, positions: Array) -> Array:
    """Return the column of the token at each position; positions need not begin at 0."""
    out = np.full_like(positions, -1)
    for row, mask in enumerate(self.mask):
        real = positions[row] >= 0
        out[row][real] = np.flatnonzero(mask)[positions[row][real] - self.first[row]]
    return out


@mistake("visible", common=True)
def mask_forgotten_later(self, right, i, j, window):
    """The attention mask of the first call is not kept. In later calls the padding of the first one
    is visible like any token, and counted in positions.
    Fix: Keep the mask of all tokens so far beside the cache, or their positions."""
    mask = right(i, j, window)
    return mask & _real(self, i) & _real(self, j) if self.call == 0 else mask


@mask_forgotten_later.also("rope_table")
def _(self, right, positions, *rest):
    if self.call == 0:  # the positions that come in are columns
        real = self.mask[:, : positions.shape[1]]
        positions = self.first[:, None] + np.maximum(np.cumsum(real, axis=1) - 1, 0)
    return right(positions, *rest)


@mask_forgotten_later.also("inputs")
def _(inputs):
    """Give padding positions; the backend masks it."""
    return None if "attention_mask" in inputs else padding_as_text(inputs)


def _real(self: Any, columns: Array) -> Array:
    """Return where there is a token, not padding: columns (B, T, 1) or (B, 1, S)."""
    real = np.zeros(columns.shape, dtype=bool)
    for b, row in enumerate(columns):
        real[b] = (row >= 0) & self.mask[b][np.maximum(row - self.first[b], 0)]
    return real
