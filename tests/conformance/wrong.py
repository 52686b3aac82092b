"""Backends with mistakes of size, range and memory, each with the law that catches it.

Real kernels have such mistakes: a limit or a tile that small cases do not reach. `golden diagnose`
tries none of them, since golden outputs are of small models; so the catalogue has none.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tinymistral.numpy_backend import NumpyBackend

WRONG: dict[type[NumpyBackend], str] = {}


def caught_by(law: str):
    def enter(kind: type[NumpyBackend]) -> type[NumpyBackend]:
        WRONG[kind] = law
        return kind

    return enter


# Of size


@caught_by("linear_at_real_sizes")
class OutputsPast32768(NumpyBackend):
    """Outputs past the first 32,768 are left at 0."""

    def linear(self, x, weight):
        out = super().linear(x, weight)
        out[..., 32_768:] = 0
        return out


@caught_by("linear_at_real_sizes")
class InputsPast8192(NumpyBackend):
    """A product adds up 8,192 inputs at most, fewer than the feed-forward width has."""

    def linear(self, x, weight):
        return super().linear(x[..., :8192], weight[:, :8192])


@caught_by("embedding_at_real_sizes")
class IdsIn16Bits(NumpyBackend):
    """Ids are kept in 16 bits, so those from 65,536 on begin again at 0."""

    def embedding(self, table, ids):
        return super().embedding(table, ids & 0xFFFF)


@caught_by("rms_norm_at_real_sizes")
class NormsPast4096(NumpyBackend):
    """Of a row the squares of the first 4,096 numbers are added up."""

    def rms_norm(self, x, weight, eps):
        x = self.widen(x)
        mean_square = np.square(x[..., :4096]).sum(axis=-1, keepdims=True) / x.shape[-1]
        return self.round(x / np.sqrt(mean_square + eps) * self.widen(weight))


@caught_by("silu_mul_at_real_sizes")
class GatesPast8192(NumpyBackend):
    """The last numbers of a row, those past the last whole block of 8,192, are not multiplied."""

    def silu_mul(self, gate, up):
        out, n = super().silu_mul(gate, up), gate.shape[-1]
        whole = n if n < 8192 else n // 8192 * 8192
        out[..., whole:] = gate[..., whole:]
        return out


@caught_by("rope_at_real_sizes")
class RotatesUpTo128(NumpyBackend):
    """Heads wider than 128 are cut: the numbers past 128 are not rotated."""

    def rope(self, x, table):
        cos, sin = (part.copy() for part in table)
        cos[..., 64:], sin[..., 64:] = 1, 0
        return super().rope(x, (cos, sin))


@caught_by("attention_at_real_sizes")
class HeadsPast128(NumpyBackend):
    """Scores of heads wider than 128 are those of their first 128 numbers."""

    def attention(self, q, k, v, *visibility):
        if q.shape[-1] <= 128:
            return super().attention(q, k, v, *visibility)
        q, k = q.copy(), k.copy()
        q[..., 128:] = 0
        return super().attention(q, k, v, *visibility)


@caught_by("attention_at_real_sizes")
class LastTileOf256(NumpyBackend):
    """Of more than 512 slots, those past the last whole tile of 256 are forgotten."""

    def attention(self, q, k, v, q_positions, k_positions, window):
        S = k.shape[1]
        kept = S if S <= 512 else S // 256 * 256
        kept_positions = k_positions[:, :kept]
        return super().attention(q, k[:, :kept], v[:, :kept], q_positions, kept_positions, window)


@caught_by("attention_at_real_sizes")
class SlotsPast4096(NumpyBackend):
    """Slots past the first 4,096 are not looked at."""

    def attention(self, q, k, v, q_positions, k_positions, window):
        k, v, k_positions = k[:, :4096], v[:, :4096], k_positions[:, :4096]
        return super().attention(q, k, v, q_positions, k_positions, window)


@caught_by("attention_at_real_sizes")
class RowsPastTheFourth(NumpyBackend):
    """Rows of a batch past the fourth read row 0's keys."""

    def attention(self, q, k, v, *visibility):
        k = k.copy()
        k[4:] = k[0]
        return super().attention(q, k, v, *visibility)


@caught_by("scatter_at_real_sizes")
class WritesUpTo4096(NumpyBackend):
    """Slots from 4,096 on, which a ring of W + C - 1 has, are not written to."""

    def scatter(self, cache, slots, new):
        return super().scatter(cache, np.where(slots < 4096, slots, -1), new)


# Of range


@caught_by("small_weights_count")
class ExpIs0BelowMinus20(NumpyBackend):
    """In a softmax exp(x) is 0 where x < -20."""

    def _exp_scores(self, q, k, mask):
        exp, _ = super()._exp_scores(q, k, mask)
        exp[exp < np.exp(-20)] = 0
        total = exp.sum(axis=-1, keepdims=True)
        total[total == 0] = 1
        return exp, total


def clipped(x: np.ndarray) -> np.ndarray:
    return np.clip(x, x.dtype.type(-1e4), x.dtype.type(1e4))


@caught_by("linear_is_dot_products")
class LinearClips(NumpyBackend):
    """Inputs of `linear` are clipped at 1e4."""

    def linear(self, x, weight):
        return super().linear(clipped(x), weight)


@caught_by("rms_norm_divides_by_the_root_mean_square")
class NormClips(NumpyBackend):
    """Inputs of `rms_norm` are clipped at 1e4."""

    def rms_norm(self, x, weight, eps):
        return super().rms_norm(clipped(x), weight, eps)


@caught_by("silu_mul_is_gate_times_sigmoid_times_up")
class GateClips(NumpyBackend):
    """Inputs of `silu_mul` are clipped at 1e4."""

    def silu_mul(self, gate, up):
        return super().silu_mul(clipped(gate), up)


@caught_by("rope_turns_the_pairs_of_halves")
class RopeClips(NumpyBackend):
    """Inputs of `rope` are clipped at 1e4."""

    def rope(self, x, table):
        return super().rope(clipped(x), table)


@caught_by("rope_turns_the_pairs_of_halves")
class IntegerTheta(NumpyBackend):
    """Theta is taken as an integer."""

    def rope_table(self, positions, theta, d):
        return super().rope_table(positions, int(theta), d)


# Of memory


@caught_by("attention_mixes_what_is_visible")
class HiddenBecome0(NumpyBackend):
    """Values that no query sees are set to 0, in the cache itself."""

    def attention(self, q, k, v, q_positions, k_positions, window):
        last = q_positions.max(axis=1, initial=-1)[:, None]
        v[(k_positions < 0) | (k_positions > last)] = 0
        return super().attention(q, k, v, q_positions, k_positions, window)


@caught_by("results_share_no_memory_with_arguments")
class ValueItself(NumpyBackend):
    """With one slot and a value for each head, the result is a view of the values."""

    def attention(self, q, k, v, q_positions, k_positions, window):
        out = super().attention(q, k, v, q_positions, k_positions, window)
        return v if out.shape == v.shape and np.array_equal(out, v) else out


@caught_by("results_share_no_memory_with_arguments")
class RowsThemselves(NumpyBackend):
    """Ids that follow each other get a view of the table."""

    def embedding(self, table, ids):
        flat = ids.ravel()
        if table.dtype != self.activation_dtype or (np.diff(flat) != 1).any():
            return super().embedding(table, ids)
        return table[flat[0] : flat[-1] + 1].reshape(*ids.shape, -1)


# Of steps that are computed as a whole


@caught_by("steps_of_one_token_give_the_logits_of_the_whole_text")
class OneResult(NumpyBackend):
    """A step overwrites the result of the last one."""

    results: ClassVar[dict[tuple[int, ...], np.ndarray]] = {}

    def run_piece(self, *piece):
        out = super().run_piece(*piece)
        if out.shape[1] > 1:
            return out
        result = self.results.setdefault(out.shape, out)
        result[...] = out
        return result


@caught_by("steps_of_one_token_give_the_logits_of_the_whole_text")
class IdsOfTheLastStep(NumpyBackend):
    """A step computes the ids of the one before, if that had as many rows."""

    last = np.empty((0, 1), dtype=np.int64)

    def run_piece(self, forward, ids, *rest):
        if ids.shape[1] == 1:
            stale, self.last = self.last, ids
            ids = stale if stale.shape == ids.shape else ids
        return super().run_piece(forward, ids, *rest)
