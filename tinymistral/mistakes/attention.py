"""Mistakes about heads, scores, the softmax, and the mix of values."""

from __future__ import annotations

import numpy as np

from tinymistral.mistakes.mistake import BUT_FLOAT64, HALVES, ROUNDING, mistake

MIXES = "attention_mixes_what_is_visible"
SUM_TO_1 = "weights_sum_to_1_or_0_and_mix_the_values"
SOFTMAX = "attention_weights_are_the_softmax"
NO_INFLUENCE = "what_a_query_does_not_see_has_no_influence"
HEADS = "grouped_heads_are_repeated_heads"

TILE = 4  # slots at a time, in a softmax that is computed tile by tile


# Heads


@mistake("repeat", law=HEADS)
def tiled_heads(self, _, x, H):
    """Query head h reads key/value head h % K rather than h // (H/K). Correct only with one
    key/value head, or as many as query heads.
    Fix: Query head h reads key/value head h // (H/K): repeat each head, do not tile them."""
    return np.tile(x, (1, 1, H // x.shape[2], 1))


@mistake("repeat", law=HEADS)
def one_head_for_all(self, _, x, H):
    """All query heads read the first key/value head, as in multi-query attention.
    Fix: Query head h reads key/value head h // (H/K), not the first one."""
    return np.repeat(x[:, :, :1], H, axis=2)


@mistake("repeat", law=HEADS)
def heads_in_reverse(self, _, x, H):
    """Query heads read the key/value heads in reverse order: K - 1 - h // (H/K).
    Fix: Query head h reads key/value head h // (H/K)."""
    return np.repeat(x[:, :, ::-1], H // x.shape[2], axis=2)


# Scores


@mistake("scale", law=SOFTMAX)
def scores_not_scaled(self, _, H, d):
    """Scores are not divided by sqrt(d): attention is too sharp, nearly all on one key.
    Fix: Multiply the scores by head_dim^-0.5 before the softmax."""
    return 1.0


@mistake("scale", law=SOFTMAX)
def scores_scaled_twice(self, _, H, d):
    """Scores are divided by d rather than by its root, for example because the queries were scaled
    already: attention is too flat.
    Fix: Scale the queries or the scores by head_dim^-0.5, not both."""
    return 1 / d


@mistake("scale", law=MIXES)
def scores_scaled_by_the_model_width(self, _, H, d):
    """Scores are divided by the root of the width of all heads, H·d, rather than of one head.
    Fix: Scale by the width of one head, head_dim^-0.5, not by that of all heads."""
    return float((H * d) ** -0.5)


# The softmax


@mistake("masked_exp", law="large_scores_do_not_overflow", of_a_dtype=BUT_FLOAT64)
def softmax_overflows(self, _, scores, mask):
    """exp is taken of the raw scores. Above 88 it is infinite in float32, and the quotient is NaN.
    Fix: Subtract the row's largest visible score before exp."""
    return np.where(mask, np.exp(scores), 0)


@mistake("masked_exp", law=NO_INFLUENCE, of_a_dtype=BUT_FLOAT64)
def maximum_of_hidden_scores(self, _, scores, mask):
    """The row's largest score is taken over masked scores too. A large one, or a NaN in an empty
    slot, makes all weights 0 or NaN.
    Fix: Mask first, then take the row's largest score."""
    largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    return np.where(mask, np.exp(scores - largest), 0)


@mistake("masked_exp", law="who_sees_nothing_gets_zeros", of_a_dtype=BUT_FLOAT64)
def masked_by_adding(self, right, scores, mask):
    """A large negative number is added to masked scores. A row with no visible key, such as
    padding, attends to all keys; and NaN stays NaN.
    Fix: Leave masked scores out, or make them -inf, and return zeros for a row with no visible
    key."""
    return right(scores + np.where(mask, 0, -1e9).astype(scores.dtype), mask | True)


@mistake("masked_exp", law=MIXES)
def masked_by_multiplying(self, right, scores, mask):
    """Masked scores are multiplied by 0, so each still has the weight of a score of 0.
    Fix: Set masked scores to -inf before the softmax; a score of 0 is not a weight of 0."""
    return right(scores * mask, mask | True)


@mistake("mix", law=NO_INFLUENCE)
def zero_times_nan(self, right, weights, v, mask):
    """Masked values are multiplied by a weight of 0, and 0 · NaN is NaN. A NaN in an empty slot, or
    in padding, spreads to every query of the row.
    Fix: Leave masked values out of the sum, or make sure that unused slots hold finite numbers."""
    return right(weights, v, mask | True)


for _mistake in (masked_by_adding, masked_by_multiplying):
    _mistake.changes += zero_times_nan.changes


@mistake("masked_softmax", law=SUM_TO_1)
def masked_after_the_softmax(self, right, scores, mask):
    """Masked weights are set to 0 after the softmax: the remaining ones sum to less than 1.
    Fix: Mask the scores before the softmax, so that the weights of visible keys sum to 1."""
    return right(scores, mask | True) * mask


@mistake("mix", law="who_sees_nothing_gets_zeros")
def nan_for_who_sees_nothing(self, right, weights, v, mask):
    """A row with no visible key, such as padding, is 0 / 0 = NaN, which later layers may spread.
    Fix: Where a row's weights sum to 0, return zeros rather than divide by the sum."""
    sees_any = np.any(mask, axis=-1)[:, :, None, None]
    return np.where(sees_any, right(weights, v, mask), np.nan)


@mistake("mix", law="what_is_not_finite_reaches_whoever_sees_it")
def nan_swallowed(self, right, weights, v, mask):
    """NaN and infinity are replaced by 0, as by nan_to_num. A model that is damaged, or overflows,
    goes on with wrong numbers and no error.
    Fix: Let NaN and infinity of visible values through; return zeros only where nothing is
    visible."""
    mix = right(weights, v, mask)
    return np.where(np.isfinite(mix), mix, 0)


@mistake("masked_softmax", law=SUM_TO_1)
def softmax_not_divided(self, _, scores, mask):
    """The exponentials are not divided by their sum: the more keys, the larger the mix.
    Fix: Divide by the sum of the row's exponentials; with tiles, after the last one."""
    return self.masked_exp(scores, mask)


@mistake("masked_softmax", law=SUM_TO_1)
def softmax_over_queries(self, right, scores, mask):
    """The softmax is taken along the wrong axis, over queries instead of keys. The weights of a key
    sum to 1, those of a query do not.
    Fix: Take the softmax over the keys of one query, the last axis of (B, H, T, S)."""
    return right(scores.swapaxes(2, 3), mask.swapaxes(2, 3)).swapaxes(2, 3)


@mistake("masked_exp", law=MIXES)
def online_softmax_not_rescaled(self, _, scores, mask):
    """The softmax is computed tile by tile, but earlier sums are not scaled down when a larger
    score comes: earlier tiles weigh too much. Correct if all keys fit in one tile.
    Fix: When a tile raises the largest score, multiply sum and mix so far by exp(old - new)."""
    scores = np.where(mask, scores, -np.inf)
    out = np.zeros(scores.shape, dtype=self.compute_dtype)
    for start in range(0, scores.shape[-1], TILE):
        tile = np.s_[..., start : start + TILE]
        largest = scores[..., : start + TILE].max(axis=-1, keepdims=True)
        out[tile] = np.exp(scores[tile] - np.where(largest == -np.inf, 0, largest))
    return out


@mistake("visible", law="the_last_visible_key_has_influence")
def online_softmax_forgets_the_tail(self, right, i, j, window):
    """The last keys, which do not fill a tile, are left out: S // tile is rounded down.
    Fix: Round the number of tiles up, and mask the part of the last one beyond the end."""
    S = j.shape[-1]
    return right(i, j, window) & (np.arange(S) < S // TILE * TILE)


@mistake("masked_exp", law="padding_on_either_side_changes_nothing")
def online_softmax_nan_of_a_hidden_tile(self, right, scores, mask):
    """The softmax is computed tile by tile, and is NaN if the first tile is all masked: its largest
    score is -inf, and -inf - -inf is NaN. It shows in rows with padding, or whose first keys have
    left the window.
    Fix: While no key was visible the largest score is -inf: skip the tile, or subtract 0."""
    nothing_yet = ~np.any(mask[..., :TILE], axis=-1, keepdims=True)
    return np.where(nothing_yet, np.nan, right(scores, mask))


@mistake("masked_exp", law=MIXES, dtypes=HALVES, not_diagnosed=ROUNDING)
def softmax_in_16_bits(self, right, scores, mask):
    """Scores are rounded to 16 bits before exp: weights are off by several percent.
    Fix: Compute scores and softmax in float32, and round only the mix."""
    return right(self.widen(self.round(scores)), mask)


@mistake("masked_softmax", dtypes=("bfloat16",), of_a_dtype=("bfloat16",))
def softmax_summed_in_16_bits(self, _, scores, mask):
    """The softmax adds up exponentials and weighted values in 16 bits. With hundreds of similar
    keys each further term is less than the sum's rounding, and is lost.
    Fix: Add up the exponentials, and the weighted values, in float32."""
    exps = self.masked_exp(scores, mask)
    total = np.zeros(exps.shape[:-1], dtype=self.activation_dtype)
    for s in range(exps.shape[-1]):
        total = self.round(self.widen(total) + exps[..., s])
    wide = self.widen(total)[..., None]
    return exps / np.where(wide == 0, 1, wide)


@softmax_summed_in_16_bits.also("mix")
def _(self, _, weights, v, mask):
    B, H, T, S = weights.shape
    out = np.zeros((B, T, H, v.shape[-1]), dtype=self.activation_dtype)
    for s in range(S):
        part = weights[..., s].swapaxes(1, 2)[..., None] * v[:, s][:, None]
        out = self.round(self.widen(out) + np.where(mask[:, :, s, None, None], part, 0))
    return out


@mistake("attention_weights", law=SUM_TO_1)
def weights_without_the_window(self, right, q, k, q_positions, k_positions, window):
    """`attention_weights`, a slow path beside a fused `attention`, ignores the window. It returns
    weights that were never used.
    Fix: Apply the same mask in `attention_weights` as in `attention`."""
    return right(q, k, q_positions, k_positions, None)
