"""The default backend: `PlainBackend` with the operations rewritten where speed matters.

What each of them does differently:

    linear      a weight of another dtype is converted in blocks that fit into the processor's
                cache, on all cores; up to eight rows are multiplied one by one
    rope        writes both halves into the result, which saves a copy
    silu_mul    works in place: these are the largest arrays of a forward pass
    attention   takes queries in tiles, on all cores, each over the slots visible to any query of
                the tile, and masks the scores instead of selecting keys
    scatter     selects no rows where there is no padding
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinymistral.operations import PlainBackend, RopeTable, visible
from tinymistral.threads import in_parallel, threads

# Up to this many rows are multiplied one by one: a matrix product would first copy all weights into
# another order, which costs as much as eight rows do.
ROWS_ONE_BY_ONE = 8

# They are multiplied by blocks of this many weights (4 MB of float32), which stay in the
# processor's cache from row to row. Narrow weights are widened by such blocks, and for more rows by
# larger ones, as each matrix product copies the rows.
WEIGHTS_A_BLOCK = 1 << 20
WEIGHTS_A_PRODUCT = 1 << 21

# Scores are computed in tiles of about this many (1 MB of float32) for each key/value head: they
# fit into the processor's cache, and few keys are visible to a tile of few queries.
SCORES_A_TILE = 1 << 18

# What is done by several threads of ours is at least so many weights to widen, products of numbers,
# or scores. NumPy's calls have to be long then: of two threads that make short ones each waits for
# the interpreter's lock, and to be woken takes longer than such a call. BLAS's own threads look for
# more work for some 30 ms after a product, and take a core from ours meanwhile. So a long prompt
# uses none of them. The products of single tokens in float32 are theirs: too short for ours.
WEIGHTS_IN_PARALLEL = 1 << 22
PRODUCTS_IN_PARALLEL = 1 << 22
SCORES_IN_PARALLEL = 1 << 20

# Keys are copied out of the ring where a view of it would have more than so many times as many.
MOST_SLOTS = 1.25


class NumpyBackend(PlainBackend):
    """NumPy, made fast. In 16 bits: computed in float32, rounded at the end."""

    name = "numpy"

    def __init__(self, dtype: str | None = None):
        super().__init__(dtype)
        # Memory for widened blocks, one a thread: new memory would be filled with zeros each time.
        self._spare: list[np.ndarray] = []

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        m, n = weight.shape
        rows = self.widen(x.reshape(-1, n))
        out = np.empty((len(rows), m), dtype=self.compute_dtype)
        narrow = weight.dtype != self.compute_dtype or not weight.flags.aligned
        if len(rows) <= ROWS_ONE_BY_ONE:  # float32 is read from memory, by BLAS on all cores
            size, large = WEIGHTS_A_BLOCK, narrow and weight.size >= WEIGHTS_IN_PARALLEL
        else:
            size, large = (
                -(-weight.size // threads()),
                len(rows) * weight.size >= PRODUCTS_IN_PARALLEL,
            )
            size = min(size, WEIGHTS_A_PRODUCT) if narrow else size

        def multiply(block: slice) -> None:
            if narrow:
                with self._widened(weight[block]) as wide:
                    _multiply(rows, wide, out[:, block])
            else:
                _multiply(rows, weight[block], out[:, block])

        height = max(1, -(-size // n))
        blocks = [slice(start, start + height) for start in range(0, m, height)]
        _each(multiply, blocks, large)
        return self.round(out).reshape(*x.shape[:-1], m)

    @contextmanager
    def _widened(self, block: np.ndarray) -> Iterator[np.ndarray]:
        memory = self._spare.pop() if self._spare else np.empty(0, dtype=self.compute_dtype)
        if memory.size < block.size:
            memory = np.empty(block.size, dtype=self.compute_dtype)
        wide = memory[: block.size].reshape(block.shape)
        np.copyto(wide, block)
        yield wide
        self._spare.append(memory)

    def rope(self, x: np.ndarray, table: RopeTable) -> np.ndarray:
        cos, sin = table
        half = x.shape[-1] // 2
        first, second = self.widen(x[..., :half]), self.widen(x[..., half:])
        out = np.empty(x.shape, dtype=self.compute_dtype)
        np.multiply(first, cos, out=out[..., :half])
        np.multiply(second, cos, out=out[..., half:])
        out[..., :half] -= second * sin
        out[..., half:] += first * sin
        return self.round(out)

    def silu_mul(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        gate = self.widen(gate)
        with np.errstate(over="ignore"):  # exp(-gate) = inf is right: the quotient is 0
            out = np.negative(gate)
            np.exp(out, out=out)
        out += 1
        np.divide(gate, out, out=out)
        out *= self.widen(up)
        return self.round(out)

    def attention(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        window: int | None,
    ) -> np.ndarray:
        out = np.zeros(q.shape, dtype=self.compute_dtype)
        (B, T, H, _), (_, S, K, _) = q.shape, k.shape
        large = B * T * H * S >= SCORES_IN_PARALLEL
        tokens = max(1, SCORES_A_TILE // (H // K * max(1, S)))
        if large:  # no fewer tiles than threads
            tokens = min(tokens, -(-B * T // threads()))
        tiles = [(b, slice(t, t + tokens)) for b in range(B) for t in range(0, T, tokens)]

        def attend(tile: tuple[int, slice]) -> None:
            row, queries = tile
            at, keys_at = q_positions[row, queries], k_positions[row]
            slots = _visible_slots(at, keys_at, window)
            if slots is not None:
                mask = visible(at, keys_at[slots], window)
                out[row, queries] = self._attend(
                    q[row, queries], k[row, slots], v[row, slots], mask
                )

        _each(attend, tiles, large)
        return self.round(out)

    def _attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Attend in one tile: q (t, H, d), k and v (s, K, d), mask (t, s) -> (t, H, d)."""
        out = self._mix(q, k, v, mask)
        if not np.isfinite(out).all() and not mask.all():
            # 0 · NaN is NaN: mix finite values only, then add the others where they are visible.
            finite = np.isfinite(v)
            out = self._mix(q, k, np.where(finite, v, v.dtype.type(0)), mask)
            slots = np.flatnonzero(~finite.all(axis=(1, 2)))
            rest = np.where(finite[slots], v.dtype.type(0), v[slots])
            rest = np.where(mask[:, slots, None, None], rest, v.dtype.type(0))
            with np.errstate(invalid="ignore"):  # inf - inf
                out += np.repeat(rest.sum(axis=1), q.shape[1] // k.shape[1], axis=1)
        return out

    def _mix(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
        weights, total = self._exp_scores(q, k, mask)
        with np.errstate(invalid="ignore"):  # 0 · inf, of what is not visible
            mix = weights @ self.widen(v.swapaxes(0, 1))
            mix /= total
        return mix.reshape(q.shape[1], len(q), -1).swapaxes(0, 1)

    def _exp_scores(
        self, q: np.ndarray, k: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Softmax before its division: the weights (K, G·t, s) and their sums (K, G·t, 1).

        q (t, H, d), k (s, K, d), mask (t, s); G = H/K. A query without visible keys has weights 0
        and sum 1, so that the quotient is 0.
        """
        (t, H, d), (s, K, _) = q.shape, k.shape
        q = self.widen(q.swapaxes(0, 1)).reshape(K, H // K * t, d) * d**-0.5
        keys = self.widen(k.swapaxes(0, 1))
        with np.errstate(invalid="ignore", over="ignore"):  # of what is not visible
            if t == 1:  # with the large array first the product takes half as long
                scores = np.ascontiguousarray((keys @ q.swapaxes(1, 2)).swapaxes(1, 2))
            else:
                scores = q @ keys.swapaxes(1, 2)
        hidden = ~mask
        edge = np.flatnonzero(hidden if t == 1 else hidden.any(axis=0))
        if len(edge):  # elsewhere every key is visible to every query
            part = slice(edge[0], edge[-1] + 1)
            np.copyto(scores.reshape(H, t, s)[:, :, part], -np.inf, where=hidden[:, part])
        largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        largest[largest == -np.inf] = 0
        scores -= largest
        np.exp(scores, out=scores)
        total = scores.sum(axis=-1, keepdims=True)
        total[total == 0] = 1
        return scores, total

    def attention_weights(
        self,
        q: np.ndarray,
        k: np.ndarray,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        window: int | None,
    ) -> np.ndarray:
        B, T, H, _ = q.shape
        out = np.empty((B, H, T, k.shape[1]), dtype=self.activation_dtype)
        for row in range(B):
            mask = visible(q_positions[row], k_positions[row], window)
            weights, total = self._exp_scores(q[row], k[row], mask)
            out[row] = (weights / total).reshape(H, T, -1)
        return out

    def scatter(self, cache: np.ndarray, slots: np.ndarray, new: np.ndarray) -> np.ndarray:
        if slots.min(initial=0) < 0:
            return super().scatter(cache, slots, new)
        rows = np.arange(len(slots), dtype=np.int64)[:, None]
        cache[rows, slots] = new
        return cache


def _visible_slots(
    q_positions: np.ndarray, k_positions: np.ndarray, window: int | None
) -> slice | np.ndarray | None:
    """Return slots (S,) with all keys that any of the queries (t,) can see; None if there are none.

    They are those that the last query would see through a window that is longer by how far the
    first one is before it.
    """
    last = q_positions.max(keepdims=True)
    if window is not None:
        window += int(last[0] - q_positions.min(where=q_positions >= 0, initial=last[0]))
    columns = np.flatnonzero(visible(last, k_positions, window))
    if not len(columns):
        return None
    whole = slice(columns[0], columns[-1] + 1)
    # A slice is a view. But where the ring goes on at its beginning, it would be most of the ring.
    return whole if whole.stop - whole.start <= MOST_SLOTS * len(columns) else columns


def _each(task: Callable[[Any], object], parts: Sequence[Any], large: bool) -> None:
    """Call `task(part)` for each part, on all cores if the work is large."""
    if large:
        in_parallel(task, parts)
    else:
        for part in parts:
            task(part)


def _multiply(rows: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Write rows (N, n) @ weight.T, weight (m, n), into out (N, m)."""
    if len(rows) <= ROWS_ONE_BY_ONE:
        for n in range(len(rows)):
            weight.dot(rows[n], out[n])
    else:
        np.matmul(rows, weight.T, out=out)
