"""Mistakes about rotary embeddings."""

# ruff: noqa: D102 (backend.py says what the methods do)

from __future__ import annotations

import numpy as np

from tinymistral.conformance.mistakes.catalogue import HALVES, mistake
from tinymistral.numpy_backend import NumpyBackend

Table = tuple[np.ndarray, np.ndarray]  # cosines and sines, each (B, T, 1, d/2)


@mistake(
    "rope-interleaved",
    law="rope_turns_the_pairs_of_halves",
    fix="With HF weights turn the pairs (m, m + d/2); the raw checkpoint's (2m, 2m + 1) need "
    "its own q_proj and k_proj.",
)
class RopeInterleaved(NumpyBackend):
    """Neighbours (2m, 2m + 1) are turned, as raw checkpoints want it, with weights in HF's order.

    A few words come out well, then gibberish.
    """

    def rope(self, x: np.ndarray, table: Table) -> np.ndarray:
        halves = np.concatenate([x[..., ::2], x[..., 1::2]], axis=-1)
        first, second = np.split(super().rope(halves, table), 2, axis=-1)
        return np.stack([first, second], axis=-1).reshape(x.shape)


@mistake(
    "rope-backwards",
    law="rope_turns_the_pairs_of_halves",
    fix="The first half becomes first · cos - second · sin, the second one second · cos + "
    "first · sin.",
)
class RopeBackwards(NumpyBackend):
    """Pairs are turned the other way: the sign of the sine is wrong."""

    def rope(self, x: np.ndarray, table: Table) -> np.ndarray:
        return super().rope(x, (table[0], -table[1]))


@mistake(
    "rope-angles-in-float32",
    law="rope_turns_the_pairs_of_halves",
    fix="Compute i · theta^(-2m/d) in float64, then take cosine and sine, then round.",
)
class RopeAnglesInFloat32(NumpyBackend):
    """Angles are computed in float32.

    At position 32,767 they are off by up to 2^-10, so the same distance gives another score there.
    """

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        exponents = -np.arange(0, d, 2, dtype=np.float32) / np.float32(d)
        angles = positions.astype(np.float32)[..., None, None] * np.float32(theta) ** exponents
        return np.cos(angles).astype(self.compute_dtype), np.sin(angles).astype(self.compute_dtype)


@mistake(
    "rope-positions-in-float32",
    law="rope_turns_the_pairs_of_halves",
    fix="Convert positions from integers to float64, never through float32.",
)
class RopePositionsInFloat32(NumpyBackend):
    """Positions become float32 numbers, which cannot count past 2^24."""

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        return super().rope_table(positions.astype(np.float32).astype(np.int64), theta, d)


@mistake(
    "rope-in-16-bits",
    law="rope_turns_the_pairs_of_halves",
    fix="Keep cosines, sines and products in float32, and round what comes out alone.",
    dtypes=HALVES,
)
class RopeIn16Bits(NumpyBackend):
    """Cosines and sines are rounded to 16 bits before they are used.

    So does transformers: no blunder, but not what this reference computes.
    """

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        cos, sin = super().rope_table(positions, theta, d)
        return self.widen(self.round(cos)), self.widen(self.round(sin))


@mistake(
    "rope-in-place",
    law="every_stage_follows_from_those_before",
    fix="Write what is turned to an array of its own; only `scatter` may work in place.",
)
class RopeInPlace(NumpyBackend):
    """Queries and keys are overwritten by what they are turned to.

    Who looks at them later, or turns them again, finds them turned already.
    """

    def rope(self, x: np.ndarray, table: Table) -> np.ndarray:
        x[...] = super().rope(x, table)
        return x


@mistake(
    "rope-theta-ignored",
    law="rope_turns_the_pairs_of_halves",
    fix="Read `rope_theta` from the configuration: 10,000 for v0.1, 1,000,000 for v0.2 and v0.3.",
)
class RopeThetaIgnored(NumpyBackend):
    """theta is always 10,000, whatever the configuration says."""

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        return super().rope_table(positions, 10_000.0, d)


@mistake(
    "rope-exponent-halved",
    law="rope_turns_the_pairs_of_halves",
    fix="The frequency of pair m is theta^(-2m/d), m counting up to d/2.",
)
class RopeExponentHalved(NumpyBackend):
    """Frequencies are theta^(-m/d), the factor 2 being lost: later pairs turn too fast."""

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        return super().rope_table(positions, theta**0.5, d)


@mistake(
    "rope-counts-from-1",
    law="rope_at_position_0_is_the_identity",
    fix="The first token is at position 0, and its angle is 0.",
)
class RopeCountsFrom1(NumpyBackend):
    """The first token is turned as if it were the second.

    Within a model nothing shows, since distances are right; keys that are compared, or cached by
    others, are not.
    """

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        return super().rope_table(positions + 1, theta, d)


@mistake(
    "rope-not-set-at-padding",
    law="rope_is_finite_where_there_is_nothing",
    fix="Give position -1 any angle that is finite; what is turned by it is never looked at.",
)
class RopeNotSetAtPadding(NumpyBackend):
    """The table has no numbers for padding, but what happened to be in memory: NaN, here."""

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        nothing = (positions < 0)[:, :, None, None]
        cos, sin = super().rope_table(positions, theta, d)
        return np.where(nothing, np.nan, cos), np.where(nothing, np.nan, sin)


@mistake(
    "rope-stretched",
    law="rope_keeps_norms",
    fix="Mistral's tables are cosines and sines as they are, without an attention factor.",
)
class RopeStretched(NumpyBackend):
    """Cosines and sines are scaled up, by a factor that YaRN has and Mistral has not.

    Scores are larger by its square.
    """

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        cos, sin = super().rope_table(positions, theta, d)
        return cos * self.compute_dtype.type(1.1), sin * self.compute_dtype.type(1.1)


@mistake(
    "rope-by-slot",
    law="rope_scores_depend_on_distance_only",
    fix="Turn a key by its position in the text, before it is written to whatever slot.",
)
class RopeBySlot(NumpyBackend):
    """Keys and queries are turned by their slot in the ring, of 8 here, not by their position.

    It is right until the cache wraps.
    """

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        return super().rope_table(np.where(positions < 0, -1, positions % 8), theta, d)


@mistake(
    "rope-theta-grows",
    law="rope_scores_depend_on_distance_only",
    fix="theta is one number for all texts: leave out dynamic NTK scaling.",
)
class RopeThetaGrows(NumpyBackend):
    """theta grows with the length of a text, from 16 tokens on, as in dynamic NTK scaling.

    Keys that were cached before do not fit to later queries.
    """

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        return super().rope_table(positions, theta * max(1.0, positions.max() / 16), d)


@mistake(
    "rope-begins-anew",
    law="logits_are_the_oracles_in_pieces_of_any_size",
    fix="Count positions on from the tokens that are in the cache.",
)
class RopeBeginsAnew(NumpyBackend):
    """Angles begin at 0 in every call or piece, whatever is in the cache.

    A prompt at once is right, what is generated after it is not.
    """

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        columns = np.arange(positions.shape[1], dtype=np.int64)
        return super().rope_table(np.broadcast_to(columns, positions.shape), theta, d)


@mistake(
    "rope-of-the-first-row",
    law="each_row_of_a_padded_batch_is_the_row_alone",
    fix="Make the table for the positions of every row, (B, T), not for one row.",
)
class RopeOfTheFirstRow(NumpyBackend):
    """All rows of a batch are turned by the positions of the first.

    It is right for one row, and for rows of the same length.
    """

    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Table:
        return super().rope_table(positions[:1], theta, d)
