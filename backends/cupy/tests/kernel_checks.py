"""Compare kernels with the float64 oracle: one function for each property.

A check raises AssertionError, or the emulator a KernelFault. `test_kernels.py` applies the checks
to the kernels, `test_planted_bugs.py` to kernels with a bug.
"""

from __future__ import annotations

import weakref
from math import prod
from typing import Any

import numpy as np
import pytest

from cuda_emulator import cupy_stand_in as cp
from cuda_emulator.cupy_stand_in import _card
from cuda_emulator.memory import REGION_BITS
from cuda_emulator.report import collecting
from tinymistral.conformance import oracle
from tinymistral.conformance.bounds import (
    agree,
    attention_error,
    linear_error,
    rms_norm_error,
    rope_error,
    silu_mul_error,
)
from tinymistral.conformance.cases import Attention, filled, normal
from tinymistral.operations import NUMPY_DTYPES
from tinymistral_cupy.kernels import TENSOR_SOURCE, Kernels

EPS = 1e-5


def drawn(dtype: str, *shape: int, seed: int = 0) -> np.ndarray:
    """Draw normally distributed numbers, none of them subnormal."""
    return normal(np.random.default_rng(seed), dtype, *shape)


def at_offset(array: np.ndarray, offset: int) -> Any:
    """Copy an array to the card, `offset` numbers after the start of an allocation."""
    flat = np.concatenate([np.zeros(offset, dtype=array.dtype), array.ravel()])
    return cp.asarray(flat)[offset:].reshape(array.shape)


class Untouched:
    """A block of zeros on the card; pages that are not written take no memory of the host."""

    def __init__(self, nbytes: int):
        memory = _card.CARD.memory
        self.size, self.address = nbytes, memory.allocate(16)
        self.bytes = np.zeros(nbytes, dtype=np.uint8)
        memory._regions[self.address >> REGION_BITS] = self.bytes
        memory._sizes[self.address >> REGION_BITS] = nbytes
        weakref.finalize(self, memory.free, self.address)


def huge_cache(dtype: str, B: int, K: int, d: int) -> Any:
    """Make zeros (B, S, K, d), with just enough slots that a row has more than 2^31 numbers."""
    shape, kind = (B, 2**31 // (K * d) + 1, K, d), NUMPY_DTYPES[dtype]
    try:
        block = Untouched(prod(shape) * kind.itemsize)
    except MemoryError as error:
        pytest.skip(f"the host cannot reserve so large an address range: {error}")
    return cp.ndarray(shape, dtype=kind, memptr=cp.cuda.memory.MemoryPointer(block, 0))


# A token by itself


def norms(kernels: Kernels, dtype: str, rows: int, D: int, offset: int = 0) -> None:
    """x / sqrt(mean(x²) + eps) · weight."""
    weight = drawn(dtype, D, seed=3)
    for scale, eps in ((1, EPS), (1, 4.0), (2**8, EPS)):  # at 2^8 squares overflow float16
        x = drawn(dtype, rows, D, seed=1) * NUMPY_DTYPES[dtype].type(scale)
        exact = oracle.rms_norm(x, weight, eps)
        out = kernels.rms_norm(at_offset(x, offset), at_offset(weight, offset), eps).get()
        agree(out, exact, rms_norm_error(exact, dtype), dtype)


def products(kernels: Kernels, dtype: str, m: int, n: int, offset: int = 0) -> None:
    """x @ weight.T of one row, summed in float32, whatever the sizes are."""
    for scale in (1, 2**-7, 2**8):
        x = drawn(dtype, 1, n, seed=1) * NUMPY_DTYPES[dtype].type(scale)
        weight = drawn(dtype, m, n, seed=2)
        out = kernels.linear(at_offset(x, offset), at_offset(weight, offset)).get()
        agree(out, oracle.linear(x, weight), linear_error(x, weight, dtype), dtype)
    x, ones = np.ones((2, n), dtype=NUMPY_DTYPES[dtype])[:1], np.ones((m, n), NUMPY_DTYPES[dtype])
    x[0, 0] = 256 if dtype == "bfloat16" else 2048  # to which 1 cannot be added in 16 bits
    expected = np.full((1, m), float(x[0, 0]) + n - 1).astype(x.dtype)
    np.testing.assert_array_equal(kernels.linear(cp.asarray(x), cp.asarray(ones)).get(), expected)


def roundings(kernels: Kernels, dtype: str) -> None:
    """A float32 is rounded to the nearest even, up to infinity, and NaN stays NaN: as in NumPy.

    `rope` of a pair (1, 0) gives cos, which can be any float32.
    """
    kind = NUMPY_DTYPES[dtype]
    if kind.itemsize == 4:
        bits = np.random.default_rng(0).integers(0, 2**32, 4096).astype(np.uint32)
        x = bits.view(np.float32)
        y = np.roll(x, 1)
    else:  # every number x, plus half of its last place, a third of it, and x
        x = np.arange(2**16, dtype=np.uint16).view(kind)
        with np.errstate(all="ignore"):
            last = np.abs(np.nextafter(x, kind.type(np.inf)) - x).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            y = np.concatenate([last / 2, last / 3, x.astype(np.float32)]).astype(kind)
        x = np.tile(x, 3)
    with np.errstate(over="ignore", invalid="ignore"):
        wide = x.astype(np.float32) + y.astype(np.float32)
        expected = wide.astype(kind)
    # With -ftz=true a GPU flushes subnormal float32 operands and results to zero.
    tiny = np.finfo(np.float32).smallest_normal
    normals = np.ones(x.shape, dtype=bool)
    for array in (x, y, expected):
        size = np.abs(array.astype(np.float32))
        normals &= ~((size > 0) & (size < tiny))
    cos = wide[normals].reshape(1, 1, -1)
    pairs = np.stack([np.ones_like(cos), np.zeros_like(cos)], axis=2).astype(kind)
    pairs = cp.asarray(pairs.reshape(1, 1, 1, -1))
    out = kernels.rope(pairs, cp.asarray(cos), cp.asarray(np.zeros_like(cos))).get()
    rounded = out[0, 0, 0, : cos.size]
    np.testing.assert_array_equal(*(a.astype(np.float32) for a in (rounded, expected[normals])))


def silu(kernels: Kernels, dtype: str, size: int, offset: int = 0) -> None:
    """gate / (1 + exp(-gate)) · up, also where exp overflows."""
    gate, up = (drawn(dtype, size, seed=seed) for seed in (1, 2))
    extreme = np.array([-3e4, -120.0, -89.0, -88.0, -87.0, 87.0, 120.0, 3e4], dtype=gate.dtype)
    gate[: len(extreme)] = extreme[:size]
    exact = oracle.silu_mul(gate, up)
    out = kernels.silu_mul(at_offset(gate, offset), at_offset(up, offset)).get()
    agree(out, exact, silu_mul_error(gate, up, exact, dtype), dtype)


# Its position

THETA = 1e4


def table(positions: np.ndarray, d: int) -> tuple[Any, Any]:
    """Return cosines and sines (B, T, d/2), as the backend makes them."""
    angles = positions[..., None] * THETA ** (-np.arange(0, d, 2, dtype=np.float64) / d)
    return cp.asarray(np.cos(angles).astype(np.float32)), cp.asarray(
        np.sin(angles).astype(np.float32)
    )


def rotations(kernels: Kernels, dtype: str, T: int, H: int, d: int, offset: int = 0) -> None:
    """Each pair (m, m + d/2) is rotated by its angle."""
    x = drawn(dtype, 2, T, H, d)
    positions = np.stack([np.arange(T) + 5, np.arange(T)[::-1] + 32_760])
    out = kernels.rope(at_offset(x, offset), *table(positions, d)).get()
    exact = oracle.rope(x, positions, THETA)
    agree(out, exact, rope_error(x, positions, THETA, dtype), dtype)


def keeps_nan(kernels: Kernels, dtype: str) -> None:
    """A NaN with all payload bits set, as a GPU makes it, is not rounded up to a number."""
    x = drawn(dtype, 1, 1, 1, 4)
    nan = np.full((1, 1, 2), 0x7FFFFFFF, dtype=np.uint32).view(np.float32)
    out = kernels.rope(cp.asarray(x), *[cp.asarray(nan)] * 2).get()
    assert np.isnan(out.astype(np.float32)).all()


def writes(kernels: Kernels, dtype: str, T: int, S: int, K: int, d: int) -> None:
    """`scatter` writes its slots and nothing else; slot -1 is not written."""
    rng = np.random.default_rng(3)
    slots = np.stack([rng.permutation(max(S, T))[:T] for _ in range(2)])
    slots = np.where((slots >= S) | (rng.random(slots.shape) < 0.2), -1, slots)
    new, before = drawn(dtype, 2, T, K, d, seed=5), drawn(dtype, 2, S, K, d, seed=7)
    cache = cp.asarray(before)
    kernels.scatter(cache, cp.asarray(slots), cp.asarray(new))
    np.testing.assert_array_equal(cache.get(), oracle.scatter(before, slots, new))


def writes_far(kernels: Kernels, dtype: str) -> None:
    """`scatter` finds a slot more than 2^31 numbers from the first."""
    K, d = 8, 256
    new, cache = drawn(dtype, 1, 3, K, d, seed=2), huge_cache(dtype, 1, K, d)
    last = cache.shape[1] - 1
    kernels.scatter(cache, cp.asarray(np.array([[last, -1, 0]])), cp.asarray(new))
    for slot, token in ((last, 0), (0, 2)):
        np.testing.assert_array_equal(cache[:, slot : slot + 1].get(), new[:, [token]])
    assert not cache[:, 1:9].get().any() and not cache[:, last - 8 : last].get().any()


# Tokens together


def attend(
    kernels: Kernels,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    where: tuple[np.ndarray, np.ndarray, int | None],
    spare: int = 0,
    offset: int = 0,
) -> np.ndarray:
    """Attend on the card; after k and v come `spare` slots of NaN that are not used."""
    q_positions, k_positions, window = where
    S = k.shape[1]
    unused = ((0, 0), (0, spare), (0, 0), (0, 0))
    k, v = (np.pad(a, unused, constant_values=np.asarray(np.nan, a.dtype)) for a in (k, v))
    keys, values = (at_offset(array, offset)[:, :S] for array in (k, v))
    at = (cp.asarray(q_positions), cp.asarray(k_positions))
    return kernels.attention(at_offset(q, offset), keys, values, *at, window).get()


def mixes(kernels: Kernels, dtype: str, case: Attention, spare: int = 0, offset: int = 0) -> None:
    """Attention over the visible keys: slots in any order, padding, any position and window."""
    q, k, v = case.qkv(dtype)
    out = attend(kernels, q, k, v, case.visibility, spare, offset)
    mix_agrees(out, q, k, v, case.visibility, dtype)


def mix_agrees(
    out: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, where: Any, dtype: str
) -> None:
    weights = oracle.attention_weights(q, k, *where)
    error = attention_error(q, k, v, weights, dtype)
    agree(out, oracle.attention(q, k, v, *where), error, dtype)


def visibility(case: Attention) -> np.ndarray:
    """Return which keys are visible to which queries (B, T, S), by the oracle."""
    q_positions, k_positions, window = case.visibility
    out = np.zeros((case.B, case.T, case.S), dtype=bool)
    for b, t, s in np.ndindex(out.shape):
        out[b, t, s] = oracle.visible(int(q_positions[b, t]), int(k_positions[b, s]), window)
    return out


def hides(kernels: Kernels, dtype: str, case: Attention, value: float) -> None:
    """A masked key has no influence on a query, to the bit, even if it is NaN."""
    q, k, v = case.qkv(dtype)
    visible = visibility(case)
    expected = attend(kernels, q, k, v, case.visibility)
    tried = [(b, t) for b, t in np.argwhere(visible.any(axis=2)) if not visible[b, t].all()]
    if not tried:
        raise ValueError("the case has no query with both visible and masked keys")
    for b, t in tried[:: max(1, len(tried) // 3)]:
        hidden = np.ones(visible.shape[::2], dtype=bool)
        hidden[b] = ~visible[b, t]
        spoiled = (filled(k, hidden, value), filled(v, hidden, value))
        out = attend(kernels, q, *spoiled, case.visibility)
        np.testing.assert_array_equal(out[b, t], expected[b, t])


def lets_through(kernels: Kernels, dtype: str, case: Attention, value: float) -> None:
    """A value that is not finite reaches the queries that it is visible to, and no others."""
    q, k, v = case.qkv(dtype)
    visible = visibility(case)
    b, s = np.argwhere(visible.any(axis=1))[0]
    one = np.zeros(visible.shape[::2], dtype=bool)
    one[b, s] = True
    out = attend(kernels, q, k, filled(v, one, value), case.visibility).astype(np.float64)
    np.testing.assert_array_equal(out[b, visible[b, :, s]], value)
    assert np.isfinite(out[b, ~visible[b, :, s]]).all()


def the_last_key_is_visible_to_the_last_query(
    kernels: Kernels, dtype: str, T: int, d: int = 6
) -> None:
    """In a tile that is all visible to one query, the last key is still masked for the others.

    Its value is NaN, and only the last of T tokens may get it.
    """
    S = 64
    q, k, v = (drawn(dtype, 1, n, 1, d, seed=seed) for seed, n in enumerate((T, S, S)))
    where = (np.arange(S - T, S)[None], np.arange(S)[None], None)
    nan = v.copy()
    nan[0, S - 1] = np.nan
    out = attend(kernels, q, k, nan, where)
    assert np.isnan(out[0, T - 1].astype(np.float32)).all()
    others = tuple(array[:, : T - 1] for array in (q, where[0]))
    mix_agrees(out[:, : T - 1], others[0], k, v, (others[1], *where[1:]), dtype)


def zeros(kernels: Kernels, dtype: str, case: Attention) -> None:
    """A query with no visible key gets zeros."""
    q, k, v = case.qkv(dtype)
    masked = ~visibility(case).any(axis=2)
    if not masked.any():
        raise ValueError("in this case every query has a visible key")
    assert not attend(kernels, q, k, v, case.visibility)[masked].any()


def large_scores(kernels: Kernels, dtype: str, case: Attention) -> None:
    """Scores of n · 128 for slots n in drawn order: each time one is by far the largest."""
    rank = np.stack([np.random.default_rng(b).permutation(case.S) for b in range(case.B)])
    q, k, v = (np.zeros_like(array) for array in case.qkv(dtype))
    q[..., 0], k[..., 0] = case.d**0.5 * 16, 8 * rank[..., None]
    v[:] = (1 + rank % 100)[..., None, None]
    at = np.full((case.B, case.T), case.S)
    where = (at, np.tile(np.arange(case.S), (case.B, 1)), None)
    mix_agrees(attend(kernels, q, k, v, where), q, k, v, where, dtype)


def rising_scores(kernels: Kernels, dtype: str, case: Attention) -> None:
    """Scores that rise from slot to slot, each tile's by more than e^12 in all."""
    q, k, v = (np.zeros_like(array) for array in case.qkv(dtype))
    q[..., 0], k[..., 0] = case.d**0.5 * 16, np.arange(case.S)[None, :, None] / 64
    v[:] = (1 + np.arange(case.S) % 100)[None, :, None, None]
    at = np.full((case.B, case.T), case.S)
    where = (at, np.tile(np.arange(case.S), (case.B, 1)), None)
    mix_agrees(attend(kernels, q, k, v, where), q, k, v, where, dtype)


def follows_positions(kernels: Kernels, dtype: str) -> None:
    """Each call is about its own positions: the one tile of three that is visible moves on."""
    q, k, v = (drawn(dtype, 1, n, 1, 16, seed=n) for n in (34, 192, 193))
    v = v[:, 1:]
    for tile in range(3):
        where = (np.arange(150, 184)[None], np.roll(np.arange(192), 64 * tile)[None], 20)
        mix_agrees(attend(kernels, q, k, v, where), q, k, v, where, dtype)


def skips_what_is_empty(kernels: Kernels, dtype: str) -> None:
    """Tiles that are visible but for some empty slots, which hold NaN, or some padding."""
    q, k, v = (drawn(dtype, 1, n, 1, 16, seed=n) for n in (34, 128, 129))
    v, at, of = v[:, 1:], np.full((1, 34), 1000), np.arange(128)[None]
    for padding, empty in ((5, 0), (0, 10)):
        q_positions, k_positions = at.copy(), of.copy()
        q_positions[0, :padding], k_positions[0, :empty] = -1, -1
        where = (q_positions, k_positions, None)
        unread = (filled(array, k_positions < 0, np.nan) for array in (k, v))
        mix_agrees(attend(kernels, q, *unread, where), q, k, v, where, dtype)


S_FETCHED, WINDOW_FETCHED = 512, 129


def fetches(kernels: Kernels, dtype: str, last: int, tiles: int, edges: int) -> None:
    """Of 512 slots `attention_tensor_cores` fetches so many tiles, and masks so many of them.

    Four tokens up to position `last`, each with 16 heads; what they do not see is NaN. A tile is
    masked where its positions are read: by 4 warps, of 4 lanes each that have a key in common.
    """
    T, group, d, S = 4, 16, 16, S_FETCHED
    q, k, v = (drawn(dtype, 1, n, h, d, seed=n + h) for n, h in ((T, group), (S, 1), (S, 1)))
    where = (np.arange(last - T + 1, last + 1)[None], np.arange(S)[None], WINDOW_FETCHED)
    masked = ~((where[1] > last - T + 1 - WINDOW_FETCHED) & (where[1] <= last))
    unread = (filled(array, masked, np.nan) for array in (k, v))
    with collecting() as launches:
        out = attend(kernels, q, *unread, where)
    mix_agrees(out, q, k, v, where, dtype)
    spans, attention = launches
    assert (spans.kernel, attention.kernel) == ("key_spans", "attention_tensor_cores")
    costs = {"cp.async.cg": 0, "? k_positions[slot]": 0}
    source = TENSOR_SOURCE.read_text(encoding="utf-8").splitlines()
    for line, counts in attention.lines.items():
        for part in costs:
            if line and part in source[line - 1]:
                costs[part] += counts.bytes
    rows = 128  # a block's, of which 64 are the last one again
    assert costs["cp.async.cg"] == 2 * d * (rows + tiles * 2 * 64)
    assert costs["? k_positions[slot]"] == edges * 64 * 8 * (4 * 8)


def fetches_at_ends_of_tiles(kernels: Kernels, dtype: str) -> None:
    """The last of four tokens is the last of a tile, the first of one, and the second."""
    for last, tiles, edges in ((447, 3, 2), (448, 4, 3), (449, 4, 4)):
        fetches(kernels, dtype, last, tiles, edges)


def is_free_of_conflicts(kernels: Kernels, dtype: str, d: int) -> None:
    """Each access touches the fewest sectors, and no two lanes of it the same bank.

    Heads narrower than 64 are an exception: 8 lanes that access 16 bytes each take several rows,
    with the gaps between them, and two of the 8 have the same banks. So that takes twice as long,
    except for `ldmatrix`, which takes a column of 8 rows.
    """
    with collecting() as launches:
        mixes(kernels, dtype, Attention(1, 64, 100, 1, 2, d, None, 36, 1))
    assert launches[-1].kernel == "attention_tensor_cores"
    source = TENSOR_SOURCE.read_text(encoding="utf-8").splitlines()
    for line, counts in launches[-1].lines.items():
        twice = d < 64 and "ldmatrix" not in source[line - 1]
        assert counts.conflicts * 2 <= counts.wavefronts * twice, source[line - 1]
        # Of positions and spans there are only a few for a tile.
        if not any(few in source[line - 1] for few in ("positions", "spans")):
            assert counts.sectors == counts.fewest_sectors, source[line - 1]


def has_34_parts(kernels: Kernels, dtype: str) -> None:
    """A split for each 128 of 4300 slots, more than a warp has lanes; the last key counts most."""
    q, k, v = (drawn(dtype, 1, n, h, 6, seed=n + h) for n, h in ((1, 2), (4300, 1), (4300, 1)))
    k[0, -1, 0] = 200 * q[0, 0, 0]  # its weight overflows if it is relative to others
    where = (np.full((1, 1), 4299), np.arange(4300)[None], None)
    with collecting() as launches:
        out = attend(kernels, q, k, v, where)
    mix_agrees(out, q, k, v, where, dtype)
    assert [launch.grid[0] for launch in launches] == [34, 2]


def goes_in_rounds(kernels: Kernels, dtype: str, multiprocessors: int) -> None:
    """With few multiprocessors, and so few splits, each split takes several tiles.

    With one multiprocessor and two heads a block has two warps, else four.
    """
    number, kernels._multiprocessors = kernels._multiprocessors, multiprocessors
    try:
        mixes(kernels, dtype, Attention(1, 1, 1000, 2, 4, 6, None, 0, 1))
        large_scores(kernels, dtype, Attention(1, 1, 600, 1, 4, 6, None, 0, 1))
    finally:
        kernels._multiprocessors = number


def has_exact_far_positions(kernels: Kernels, dtype: str, T: int, group: int) -> None:
    """Positions up to 2^62, and windows, are exact to the last unit."""
    q, k, v = (drawn(dtype, 1, n, heads, 16, seed=n) for n, heads in ((T, group), (6, 1), (6, 1)))
    far = 2**62
    keys = np.array([[far, far - 1, far - 3, 2**33, 2**32 + 1, 0]])
    for i, window in ((far, 4), (far, 3), (far, far), (far, far + 1), (far - 1, None), (2**33, 3)):
        where = (np.full((1, T), i), keys, window)
        mix_agrees(attend(kernels, q, k, v, where), q, k, v, where, dtype)


def window_of_positions(kernels: Kernels, dtype: str, T: int, group: int, d: int = 2) -> None:
    """Each key of a row is visible to exactly the queries less than a window after it."""
    S, window = 40, 7
    q, k = (np.zeros((1, n, heads, d), NUMPY_DTYPES[dtype]) for n, heads in ((T, group), (S, 1)))
    v = np.zeros_like(k)
    for s in range(0, S, 3):
        v[:] = 0
        v[0, s] = 64
        for first in (s - T, s, s + window - 1, s + window):
            at = np.maximum(np.arange(first, first + T), -1)[None]
            out = attend(kernels, q, k, v, (at, np.arange(S)[None], window))
            visible = (at[0] >= s) & (at[0] - s < window)
            np.testing.assert_array_equal((out[0] != 0).all(axis=(1, 2)), visible)


def in_far_rows(kernels: Kernels, dtype: str, T: int, d: int = 6) -> None:
    """A row of the batch begins more than 2^31 numbers after the one before it."""
    B, S, K = 2, 40, 2
    q, k = (drawn(dtype, B, n, K, d, seed=seed) for seed, n in enumerate((T, S)))
    cache = huge_cache(dtype, B, K, d)  # of keys, which are values too
    for b in range(B):
        cache[b : b + 1, :S].set(k[b : b + 1])
    where = (np.tile(np.arange(S, S + T), (B, 1)), np.tile(np.arange(S), (B, 1)), None)
    at = (cp.asarray(where[0]), cp.asarray(where[1]))
    out = kernels.attention(cp.asarray(q), cache[:, :S], cache[:, :S], *at, None).get()
    mix_agrees(out, q, k, k, where, dtype)


def in_far_slots(kernels: Kernels, dtype: str, T: int, d: int = 256) -> None:
    """The one visible key lies more than 2^31 numbers after its row's first.

    To get there with few slots, K is large. Only the first head is run, for all would take the
    emulator long.
    """
    K = 2**19 // d
    q, last = (drawn(dtype, 1, n, K, d, seed=n) for n in (T, 1))
    cache, launch = huge_cache(dtype, 1, K, d), kernels._launch
    S = cache.shape[1]
    cache[:, S - 1 :].set(last)
    where = (np.full((1, T), 5), np.full((1, S), -1), None)
    where[1][0, S - 1] = 3
    at = (cp.asarray(where[0]), cp.asarray(where[1]))

    def of_one_head(name: str, vector: int, grid: tuple, *rest: Any) -> None:
        of_all = name in ("attention_combine", "key_spans")
        launch(name, vector, grid if of_all else (grid[0], 1, 1), *rest)

    kernels._launch = of_one_head  # type: ignore[method-assign]
    try:
        out = kernels.attention(cp.asarray(q), cache, cache, *at, None).get()
    finally:
        del kernels._launch
    np.testing.assert_array_equal(out[:, :, 0], np.broadcast_to(last[:, :, 0], out[:, :, 0].shape))
