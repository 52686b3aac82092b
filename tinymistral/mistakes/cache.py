"""Mistakes about the rolling cache: its size, its slots and its contents."""

from __future__ import annotations

import numpy as np

from tinymistral.backend import Array
from tinymistral.mistakes.inputs import padding_counted_later
from tinymistral.mistakes.mistake import mistake

AS_A_LIST = "the_cache_remembers_what_a_list_would"
PIECES = "logits_are_the_oracles_in_pieces_of_any_size"
EVERY_STAGE = "every_stage_follows_from_those_before"
SCATTER = "scatter_writes_its_slots_and_nothing_else"
NEVER = "the cases of a suite do nothing of the kind"


@mistake("cache.capacity", law=PIECES)
def evict_before_attend(cache, _):
    """The ring has only W slots, and a piece of several tokens evicts before it attends. Keys that
    its first tokens need are gone. Correct for one token at a time.
    Fix: Attend to the old keys and the new ones, then evict; or use a ring of W + C - 1 slots."""
    return None if cache.window is None else max(cache.window, cache.chunk)


@mistake("cache.capacity", law=PIECES)
def ring_too_small(cache, capacity):
    """The ring is one slot too small: the oldest query of a full piece misses its oldest key.
    Fix: Use W + C - 1 slots: the first query of a piece of C needs W - 1 keys before the piece."""
    return None if capacity is None else max(capacity - 1, cache.chunk)


@mistake(
    "cache.capacity", law="memory_is_constant_past_the_ring", not_diagnosed="the numbers are right"
)
def endless_cache(cache, _):
    """The cache grows without limit, although the window masks all but its last keys. The numbers
    are right until memory runs out.
    Fix: Keep W + C - 1 slots and overwrite the oldest."""


@mistake("cache.take_back", law=AS_A_LIST, not_diagnosed=NEVER)
def draft_not_forgotten(cache, _, positions):
    """Rejected draft tokens stay visible beside the tokens that replace them.
    Fix: When a position comes again, remove what the cache has from there on."""


@mistake("cache.select", law=AS_A_LIST, not_diagnosed=NEVER)
def copy_shares_memory(cache, right, rows):
    """A copy of a cache shares keys and values with its original: writing to one changes both.
    Fix: Copy keys and values when a cache is copied."""
    new = right(rows)
    if np.array_equal(rows, np.arange(len(cache.count))):
        new.k, new.v = list(cache.k), list(cache.v)
    return new


@mistake("cache.select", law=AS_A_LIST, not_diagnosed=NEVER)
def positions_not_reordered(cache, right, rows):
    """When rows are reordered or leave the batch, keys and values follow, but positions do not.
    Fix: Reorder everything that has a row axis: keys, values, positions and counts."""
    new, same = right(rows), np.arange(len(rows)) % len(cache.count)
    for name in ("positions", "count", "last", "evicted"):
        setattr(new, name, getattr(cache, name)[same])
    return new


@mistake("cache.reserve", law=AS_A_LIST)
def growth_forgets(cache, right, tokens):
    """When the cache grows, its contents are lost: keys and values are 0, and still visible.
    Fix: Copy the old contents into the larger arrays."""
    before = cache.positions.shape[1]
    right(tokens)
    if cache.positions.shape[1] > before:
        for arrays in (cache.k, cache.v):
            arrays[:] = [cache.backend.zeros(a.shape, cache.backend.dtype) for a in arrays]


@mistake("cache.admit", law=AS_A_LIST)
def positions_not_updated(cache, right, positions):
    """A slot that is overwritten still has the position of its first token. Correct until the cache
    wraps; then new keys are masked, or visible as old ones.
    Fix: Write a token's position wherever its key and value are written."""
    cache.take_back(positions)
    before = cache.positions.copy()
    right(positions)
    np.copyto(cache.positions[:, : before.shape[1]], before, where=before >= 0)


@mistake("cache.admit", law="log_probabilities_are_those_of_scoring_the_text_at_once")
def padding_counted(cache, right, positions):
    """The next token's position counts padding too. Tokens generated after a padded prompt are too
    far from it.
    Fix: A row's next position follows its last token, and padding has none: cumsum(mask) - 1."""
    right(positions)
    cache.last = np.full_like(cache.last, cache.columns - 1)


padding_counted.also("inputs")(padding_counted_later)


@mistake("cache.admit", law=EVERY_STAGE)
def padding_takes_slots(cache, right, positions):
    """All rows count as many tokens as the longest. Padding pushes tokens out of the ring that are
    still visible.
    Fix: Count the tokens of each row separately, and write only tokens to slots."""
    cache.count = np.full_like(cache.count, cache.count.max())
    right(positions)


@mistake("cache.read", law="each_row_of_a_padded_batch_is_the_row_alone")
def length_of_the_first_row(cache, _, layer):
    """Only as many slots are read as the first row uses: longer rows lose their newest keys.
    Fix: Read as many slots as the longest row uses, and mask empty ones by their position."""
    used = int(cache.count[0])
    return cache.k[layer][:, :used], cache.v[layer][:, :used]


@length_of_the_first_row.also("cache.key_positions")
def _(cache, right):
    return right[:, : int(cache.count[0])]


@mistake("cache.read", law=EVERY_STAGE)
def layers_share_a_cache(cache, right, layer):
    """All layers attend to the keys and values of the first. Correct for a model of one layer.
    Fix: Store keys and values for each layer, and read those of the current layer."""
    return right(0)


# What is written to which slot


def _to_all_slots(cache: Array, slots: Array, new: Array) -> Array:
    """Write to all slots; -1 is then the last one, as in NumPy."""
    cache[np.arange(len(slots))[:, None], slots] = new
    return cache


@mistake("scatter", law=SCATTER)
def padding_written_to_the_last_slot(self, _, cache, slots, new):
    """Slot -1 is used as an index from the end: padding overwrites the last slot.
    Fix: Skip slot -1: it means that there is nothing to write."""
    return _to_all_slots(cache, slots, new)


@mistake("cache.update", law=AS_A_LIST)
def padding_stored(cache, _, layer, k, v):
    """The cache writes keys and values without `scatter`, and writes padding to the last slot.
    Fix: Skip slot -1 in the cache, as `scatter` does."""
    _to_all_slots(cache.k[layer], cache.slots, k)
    _to_all_slots(cache.v[layer], cache.slots, v)
    return cache.read(layer)


@mistake("scatter", law=SCATTER)
def slots_of_the_first_row(self, right, cache, slots, new):
    """All rows of a batch are written to the slots of the first.
    Fix: Slots have a row for each row of the batch: use its own for each."""
    return right(cache, np.broadcast_to(slots[:1], slots.shape), new)


@mistake("scatter", law=SCATTER)
def added_to_the_slot(self, _, cache, slots, new):
    """New numbers are added to the slot's old ones, as scatter-add does. Correct until the cache
    wraps.
    Fix: Overwrite the slot: its old token has left the ring."""
    b, t = np.nonzero(slots >= 0)
    cache[b, slots[b, t]] += new[b, t]
    return cache
