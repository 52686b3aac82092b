"""Mistakes about rotary embeddings: angles, pairs and positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinymistral.backend import Array
from tinymistral.mistakes.mistake import HALVES, ROUNDING, mistake

PAIRS = "rope_turns_the_pairs_of_halves"  # the law that catches most
EVERY_STAGE = "every_stage_follows_from_those_before"


@mistake("rope", law=PAIRS)
def rope_interleaved(self, right, x, table):
    """Neighbours (2m, 2m + 1) are rotated, as for raw checkpoints, with weights in HF's order. The
    first words may be right, then the text is gibberish.
    Fix: With HF weights rotate the pairs (m, m + d/2); the raw checkpoint's (2m, 2m + 1) need its
    own q_proj and k_proj."""
    halves = np.concatenate([x[..., ::2], x[..., 1::2]], axis=-1)
    first, second = np.split(right(halves, table), 2, axis=-1)
    return np.stack([first, second], axis=-1).reshape(x.shape)


@mistake("rope", law=PAIRS)
def rope_backwards(self, right, x, table):
    """Pairs are rotated the other way: the sign of the sine is wrong.
    Fix: The first half becomes first · cos - second · sin, the second half second · cos + first ·
    sin."""
    return right(x, (table[0], -table[1]))


@mistake("rope_table", law=PAIRS)
def rope_angles_in_float32(self, _, positions, theta, d):
    """Angles are computed in float32. At position 32,767 they are off by up to 2^-10, so the same
    distance gives another score there.
    Fix: Compute i · theta^(-2m/d) in float64, then take cosine and sine, then round."""
    exponents = -np.arange(0, d, 2, dtype=np.float32) / np.float32(d)
    angles = positions.astype(np.float32)[..., None, None] * np.float32(theta) ** exponents
    return np.cos(angles).astype(self.compute_dtype), np.sin(angles).astype(self.compute_dtype)


@mistake("rope_table", law=PAIRS)
def rope_positions_in_float32(self, right, positions, *rest):
    """Positions become float32 numbers, which are not exact past 2^24.
    Fix: Convert integer positions directly to float64, not through float32."""
    return right(positions.astype(np.float32).astype(np.int64), *rest)


@mistake("rope_table", law=PAIRS, dtypes=HALVES, not_diagnosed=ROUNDING)
def rope_in_16_bits(self, right, *arguments):
    """Cosines and sines are rounded to 16 bits before they are used. transformers does so: no
    error, but not what this reference computes.
    Fix: Compute cosines, sines and products in float32, and round only the result."""
    cos, sin = right(*arguments)
    return self.widen(self.round(cos)), self.widen(self.round(sin))


@mistake("rope", law=EVERY_STAGE)
def rope_in_place(self, right, x, table):
    """Queries and keys are overwritten by their rotated numbers, so later stages that need the
    originals read rotated ones.
    Fix: Write the rotated numbers to a new array; only `scatter` may work in place."""
    x[...] = self.rotated = right(x, table)
    return right(x, table) if self.call >= 0 and self.ropes == 1 else x  # keys, as they are shown


@rope_in_place.also("cache.update")
def _(cache, right, layer, k, v):
    return right(layer, cache.backend.rotated, v)


@mistake("rope_table", law=PAIRS)
def rope_theta_ignored(self, right, positions, theta, d):
    """theta is always 10,000, whatever the configuration says.
    Fix: Read `rope_theta` from the configuration: 10,000 for v0.1, 1,000,000 for v0.2 and v0.3."""
    return right(positions, 10_000.0, d)


@mistake("rope_table", law=PAIRS)
def rope_exponent_halved(self, right, positions, theta, d):
    """Frequencies are theta^(-m/d), without the factor 2: later pairs are rotated too fast.
    Fix: The frequency of pair m is theta^(-2m/d), m counting up to d/2."""
    return right(positions, theta**0.5, d)


@mistake("rope_table", law="rope_at_position_0_is_the_identity")
def rope_counts_from_1(self, right, positions, *rest):
    """The first token is rotated as if it were the second. Distances are right, so the logits are
    too; rotated queries and keys, and cached keys, are not.
    Fix: The first token has position 0, and its angle is 0."""
    return right(positions + 1, *rest)


@mistake(
    "rope_table",
    law="rope_is_finite_where_there_is_nothing",
    not_diagnosed="results at padding are not compared",
)
def rope_not_set_at_padding(self, right, positions, *rest):
    """The table has uninitialized memory at padding: NaN, here.
    Fix: Use any finite angle for position -1; its results are never used."""
    nothing = (positions < 0)[:, :, None, None]
    cos, sin = right(positions, *rest)
    return np.where(nothing, np.nan, cos), np.where(nothing, np.nan, sin)


@mistake("rope_table", law="rope_keeps_norms")
def rope_stretched(self, right, *arguments):
    """Cosines and sines are scaled up, by a factor that YaRN has and Mistral has not. Scores grow
    by its square.
    Fix: Use plain cosines and sines, without an attention factor."""
    cos, sin = right(*arguments)
    return cos * self.compute_dtype.type(1.1), sin * self.compute_dtype.type(1.1)


@mistake("rope_table", law="rope_scores_depend_on_distance_only")
def rope_by_slot(self, right, positions, *rest):
    """Keys and queries are rotated by their slot in the ring, of 8 here, not by their position.
    Correct until the cache wraps.
    Fix: Rotate a key by its position in the text, whatever slot it is written to."""
    return right(np.where(positions < 0, -1, positions % 8), *rest)


@mistake("rope_table", law="rope_scores_depend_on_distance_only")
def rope_theta_grows(self, right, positions, theta, d):
    """theta grows with the length of a text, from 16 tokens on, as in dynamic NTK scaling. Keys
    cached before do not match later queries.
    Fix: Use one theta for all texts, without dynamic NTK scaling."""
    return right(positions, theta * max(1.0, positions.max() / 16), d)


@mistake("rope_table", law="logits_are_the_oracles_in_pieces_of_any_size")
def rope_begins_anew(self, right, positions, *rest):
    """Angles begin at 0 in every call or piece, whatever is in the cache. Correct for a prompt in
    one call, but not for the tokens after it.
    Fix: Continue positions after the tokens in the cache."""
    columns = np.arange(positions.shape[1], dtype=np.int64)
    return right(np.broadcast_to(columns, positions.shape), *rest)


@mistake("rope_table", law="each_row_of_a_padded_batch_is_the_row_alone")
def rope_of_the_first_row(self, right, positions, *rest):
    """All rows of a batch are rotated by the positions of the first. Correct for one row, and for
    rows of the same length.
    Fix: Compute the table for the positions of every row, (B, T), not for one row."""
    return right(positions[:1], *rest)


@mistake("rope", law=EVERY_STAGE)
def keys_not_turned(self, right, x, table):
    """Keys are cached without rotation, and only queries are rotated.
    Fix: Rotate a key by its position before writing it to the cache."""
    self.not_rotated = x
    return right(x, table)


@keys_not_turned.also("cache.update")
def _(cache, right, layer, k, v):
    return right(layer, cache.backend.not_rotated, v)


@mistake("rope")
def nothing_turned(self, _, x, table):
    """There are no rotary embeddings: neither queries nor keys are rotated.
    Fix: Rotate queries and keys by their positions."""
    return x


@mistake("cache.update", law=EVERY_STAGE)
def values_turned(cache, right, layer, k, v):
    """Values are rotated like keys.
    Fix: Rotate only queries and keys; write values without rotation."""
    at = np.take_along_axis(cache.positions, np.maximum(cache.slots, 0), axis=1)
    return right(layer, k, rotated_by(cache, v, np.where(cache.slots < 0, -1, at)))


def rotated_by(cache: Any, keys: Array, positions: Array) -> Array:
    """Rotate keys (B, S, K, d) by positions (B, S)."""
    theta, d = cache.config.rope_theta, cache.config.head_dim
    return cache.backend.rope(keys, cache.backend.rope_table(positions, theta, d))
