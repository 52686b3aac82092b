"""Mistakes about the softmax of attention, and about the mix that it makes."""

# ruff: noqa: D102 (textbook.py says what the methods do)

from __future__ import annotations

import numpy as np

from tinymistral.conformance.mistakes.catalogue import HALVES, mistake
from tinymistral.conformance.mistakes.textbook import Textbook
from tinymistral.numpy_backend import NumpyBackend

TILE = 4  # slots at a time, of a softmax that is made tile by tile


@mistake(
    "scores-not-scaled",
    law="attention_weights_are_the_softmax",
    fix="Multiply the scores by head_dim^-0.5 before the softmax.",
)
class ScoresNotScaled(Textbook):
    """Scores are not divided by sqrt(d): attention is too sharp, nearly all on one key."""

    def scale(self, H: int, d: int) -> float:
        return 1.0


@mistake(
    "scores-scaled-twice",
    law="attention_weights_are_the_softmax",
    fix="Scale the queries or the scores by head_dim^-0.5, not both.",
)
class ScoresScaledTwice(Textbook):
    """Scores are divided by d rather than by its root: attention is too flat.

    As when queries are scaled, and then the scores again.
    """

    def scale(self, H: int, d: int) -> float:
        return 1 / d


@mistake(
    "scores-scaled-by-the-model-width",
    law="attention_mixes_what_is_visible",
    fix="Scale by the width of a head, head_dim^-0.5, not by that of all heads.",
)
class ScoresScaledByTheModelWidth(Textbook):
    """Scores are divided by the root of the width of all heads, H·d, rather than of one head."""

    def scale(self, H: int, d: int) -> float:
        return float((H * d) ** -0.5)


@mistake(
    "softmax-overflows",
    law="large_scores_do_not_overflow",
    fix="Subtract the row's largest visible score before exp.",
)
class SoftmaxOverflows(Textbook):
    """exp is taken of the scores as they are.

    Past 88 it is infinite in float32, and the quotient NaN.
    """

    def exps(self, scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return np.where(seen, np.exp(scores), 0)


@mistake(
    "maximum-of-hidden-scores",
    law="what_a_query_does_not_see_has_no_influence",
    fix="Mask first, then take the row's largest score.",
)
class MaximumOfHiddenScores(Textbook):
    """The largest score is looked for among hidden ones too.

    A large one, or a NaN in an empty slot, makes all weights 0 or NaN.
    """

    def exps(self, scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
        largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        return np.where(seen, np.exp(scores - largest), 0)


@mistake(
    "masked-by-adding",
    law="who_sees_nothing_gets_zeros",
    fix="Leave hidden scores out, or make them -inf, and give zeros to a row that sees nothing.",
)
class MaskedByAdding(Textbook):
    """A large negative number is added to hidden scores.

    A row that sees nothing, such as padding, then sees all keys alike; and NaN stays NaN.
    """

    def exps(self, scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return super().exps(scores + np.where(seen, 0, -1e9).astype(scores.dtype), seen | True)

    def mix(self, weights: np.ndarray, v: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return super().mix(weights, v, seen | True)


@mistake(
    "masked-by-multiplying",
    law="attention_mixes_what_is_visible",
    fix="Make hidden scores -inf before the softmax; a score of 0 is not a weight of 0.",
)
class MaskedByMultiplying(Textbook):
    """Hidden scores are multiplied by 0. Each still has the weight of a score of 0."""

    def exps(self, scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return super().exps(scores * seen, seen | True)

    def mix(self, weights: np.ndarray, v: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return super().mix(weights, v, seen | True)


@mistake(
    "masked-after-the-softmax",
    law="weights_sum_to_1_or_0_and_mix_the_values",
    fix="Mask the scores before the softmax, so that the weights of visible keys sum to 1.",
)
class MaskedAfterTheSoftmax(Textbook):
    """Hidden weights are made 0 after the softmax: those that are left sum to less than 1."""

    def softmax(self, scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return super().softmax(scores, seen | True) * seen


@mistake(
    "zero-times-nan",
    law="what_a_query_does_not_see_has_no_influence",
    fix="Leave hidden values out of the sum, or keep what is in unused slots finite.",
)
class ZeroTimesNan(Textbook):
    """Hidden values are multiplied by a weight of 0, and 0 · NaN is NaN.

    One that is left in an empty slot, or in padding, spreads to every query of the row.
    """

    def mix(self, weights: np.ndarray, v: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return super().mix(weights, v, seen | True)


@mistake(
    "nan-for-who-sees-nothing",
    law="who_sees_nothing_gets_zeros",
    fix="Where the sum of a row's weights is 0, give zeros rather than divide by it.",
)
class NanForWhoSeesNothing(Textbook):
    """A row that sees nothing, such as padding, is 0 / 0: NaN, which later layers may spread."""

    def mix(self, weights: np.ndarray, v: np.ndarray, seen: np.ndarray) -> np.ndarray:
        sees_any = np.any(seen, axis=-1)[:, :, None, None]
        return np.where(sees_any, super().mix(weights, v, seen), np.nan)


@mistake(
    "nan-swallowed",
    law="what_is_not_finite_reaches_whoever_sees_it",
    fix="Let NaN and infinity of visible values through; make zeros only where nothing is seen.",
)
class NanSwallowed(Textbook):
    """Whatever is not finite is made 0, as by nan_to_num.

    A model that is damaged, or overflows, goes on with wrong numbers and nobody is told.
    """

    def mix(self, weights: np.ndarray, v: np.ndarray, seen: np.ndarray) -> np.ndarray:
        mix = super().mix(weights, v, seen)
        return np.where(np.isfinite(mix), mix, 0)


@mistake(
    "softmax-not-divided",
    law="weights_sum_to_1_or_0_and_mix_the_values",
    fix="Divide by the sum of the row's exponentials, at the end where tiles are summed.",
)
class SoftmaxNotDivided(Textbook):
    """The exponentials are not divided by their sum: the more keys, the larger the mix."""

    def softmax(self, scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return self.exps(scores, seen)


@mistake(
    "softmax-over-queries",
    law="weights_sum_to_1_or_0_and_mix_the_values",
    fix="The softmax is over the keys of one query, the last axis of (B, H, T, S).",
)
class SoftmaxOverQueries(Textbook):
    """The softmax is taken along the wrong axis: over queries, not over keys.

    The weights of a key sum to 1, those of a query to anything.
    """

    def softmax(self, scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return super().softmax(scores.swapaxes(2, 3), seen.swapaxes(2, 3)).swapaxes(2, 3)


@mistake(
    "online-softmax-not-rescaled",
    law="attention_mixes_what_is_visible",
    fix="When a tile raises the largest score, multiply sum and mix so far by exp(old - new).",
)
class OnlineSoftmaxNotRescaled(Textbook):
    """A softmax is made tile by tile, and sums are not scaled down when a larger score comes.

    Earlier tiles weigh too much. Of a text that fits one tile all is right.
    """

    def exps(self, scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
        scores, out = (
            np.where(seen, scores, -np.inf),
            np.zeros(scores.shape, dtype=self.compute_dtype),
        )
        for start in range(0, scores.shape[-1], TILE):
            tile = np.s_[..., start : start + TILE]
            largest = scores[..., : start + TILE].max(axis=-1, keepdims=True)
            out[tile] = np.exp(scores[tile] - np.where(largest == -np.inf, 0, largest))
        return out


@mistake(
    "online-softmax-forgets-the-tail",
    law="the_last_visible_key_has_influence",
    fix="Count tiles by rounding up, and hide what the last one has beyond the end.",
)
class OnlineSoftmaxForgetsTheTail(Textbook):
    """The last keys, which do not fill a tile, are left out: S // tile is rounded down."""

    def sees(self, i: np.ndarray, j: np.ndarray, window: int | None) -> np.ndarray:
        S = j.shape[-1]
        return super().sees(i, j, window) & (np.arange(S) < S // TILE * TILE)


@mistake(
    "online-softmax-nan-of-a-hidden-tile",
    law="padding_on_either_side_changes_nothing",
    fix="While nothing visible was met the largest score is -inf: skip the tile, or subtract 0.",
)
class OnlineSoftmaxNanOfAHiddenTile(Textbook):
    """A softmax is made tile by tile, and where all of the first one is hidden it is NaN.

    The largest score so far is -inf then, and exp of -inf - -inf is NaN. Rows with padding, or with
    a window that has moved on, become NaN.
    """

    def exps(self, scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
        nothing_yet = ~np.any(seen[..., :TILE], axis=-1, keepdims=True)
        return np.where(nothing_yet, np.nan, super().exps(scores, seen))


@mistake(
    "softmax-in-16-bits",
    law="attention_mixes_what_is_visible",
    fix="Keep scores and softmax in float32, and round the mix alone.",
    dtypes=HALVES,
)
class SoftmaxIn16Bits(Textbook):
    """Scores are rounded to 16 bits before exp: weights are off by percents."""

    def exps(self, scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return super().exps(self.widen(self.round(scores)), seen)


@mistake(
    "weights-without-the-window",
    law="weights_sum_to_1_or_0_and_mix_the_values",
    fix="Let `attention_weights` hide what `attention` hides.",
)
class WeightsWithoutTheWindow(NumpyBackend):
    """`attention_weights`, a slow path beside a fused `attention`, does not know the window.

    It shows weights that were never used.
    """

    def attention_weights(
        self,
        q: np.ndarray,
        k: np.ndarray,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        window: int | None,
    ) -> np.ndarray:
        return super().attention_weights(q, k, q_positions, k_positions, None)
