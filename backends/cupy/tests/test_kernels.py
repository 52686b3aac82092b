"""Each kernel on the emulator: right in every dtype, at ragged edges, and as cheap as it says."""

from __future__ import annotations

from functools import cache
from typing import Any

import kernel_checks as check
import numpy as np
import pytest
from kernel_checks import attend, drawn

from tinymistral.conformance.cases import Attention, filled
from tinymistral.numpy_backend import NUMPY_DTYPES
from tinymistral_cupy.emulator import cupy_stand_in as cp
from tinymistral_cupy.emulator.counts import LineCounts
from tinymistral_cupy.emulator.cupy_stand_in import _card, _raw
from tinymistral_cupy.emulator.machine import Launch
from tinymistral_cupy.kernels import DTYPES, NO_WINDOW, SOURCE, Kernels

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@cache
def kernels_for(dtype: str) -> Kernels:
    return Kernels(cp, dtype)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What is launched from here on, with what it cost."""
    kept: list[Launch] = []
    launch = _raw.launch
    monkeypatch.setattr(_raw, "launch", lambda *args: kept.append(launch(*args)))
    return kept


# A token by itself


@every_dtype
@pytest.mark.parametrize("D", [1, 2, 6, 40, 257, 4104])
def test_rms_norm_and_add_rms_norm(dtype, D):
    check.norms(kernels_for(dtype), dtype, 3, D)


@every_dtype
def test_rounding_is_to_the_nearest_even(dtype):
    check.roundings(kernels_for(dtype), dtype)


@every_dtype
@pytest.mark.parametrize("size", [1, 6, 1000, 5000])
def test_silu_mul(dtype, size):
    check.silu(kernels_for(dtype), dtype, size)


# Its position


@every_dtype
@pytest.mark.parametrize("T, H, d", [(1, 1, 2), (3, 5, 6), (2, 3, 80), (2, 32, 128)])
def test_rope(dtype, T, H, d):
    check.rotations(kernels_for(dtype), dtype, T, H, d)


@every_dtype
def test_nan_is_not_rounded_to_a_number(dtype):
    check.keeps_nan(kernels_for(dtype), dtype)


@every_dtype
@pytest.mark.parametrize("T, S, K, d", [(1, 5, 1, 2), (6, 4, 2, 6), (5, 9, 20, 128)])
def test_store_and_scatter(dtype, T, S, K, d):
    check.writes(kernels_for(dtype), dtype, T, S, K, d)


# Attention: by splits up to 32 rows (tokens times heads of a group), else by tiles of 32 rows (8
# for heads wider than 128). Keys come 32 at a time, for splits 128.

SPLIT = [
    Attention(B=1, T=1, S=200, K=2, group=4, d=128, window=None, first=0, seed=1),
    Attention(B=2, T=1, S=130, K=1, group=1, d=64, window=50, first=32_760, seed=2),
    Attention(B=1, T=2, S=65, K=2, group=4, d=32, window=33, first=0, seed=3),
    Attention(B=2, T=5, S=33, K=1, group=3, d=6, window=7, first=2**24 + 1, seed=4),
    Attention(B=1, T=1, S=1, K=3, group=2, d=2, window=1, first=0, seed=5),
    Attention(B=1, T=3, S=300, K=1, group=5, d=80, window=None, first=5, seed=6),
    Attention(B=1, T=1, S=40, K=1, group=2, d=256, window=20, first=0, seed=7),
    Attention(B=1, T=1, S=37, K=1, group=16, d=254, window=None, first=0, seed=8),
]
TILES = [
    Attention(B=1, T=17, S=200, K=1, group=4, d=128, window=50, first=0, seed=1),
    Attention(B=2, T=40, S=65, K=2, group=1, d=64, window=None, first=5, seed=2),
    Attention(B=1, T=17, S=33, K=3, group=2, d=6, window=10, first=32_760, seed=3),
    Attention(B=1, T=33, S=70, K=1, group=3, d=32, window=7, first=2**24 + 1, seed=4),
    Attention(B=1, T=5, S=35, K=1, group=8, d=256, window=20, first=0, seed=5),
    Attention(B=2, T=33, S=31, K=2, group=1, d=2, window=None, first=0, seed=6),
    Attention(B=1, T=12, S=96, K=1, group=3, d=80, window=1, first=0, seed=7),
]
NARROW = [SPLIT[2], TILES[3]]  # d = 32, with a window and several tiles of keys
by_either = pytest.mark.parametrize("case", NARROW, ids=["split", "tiles"])
# Tokens and heads of a group.
by_either_shape = pytest.mark.parametrize("T, group", [(1, 2), (3, 11)], ids=["split", "tiles"])


@pytest.mark.slow
@every_dtype
@pytest.mark.parametrize("case", SPLIT + TILES, ids=str)
def test_attention_is_a_softmax_over_what_is_visible(dtype, case):
    check.mixes(kernels_for(dtype), dtype, case)


@by_either
def test_a_few_tokens_go_by_splits_and_many_by_tiles(launches, case):
    check.mixes(kernels_for("float32"), "float32", case)
    names = [launch.kernel for launch in launches]
    assert names in (["attention_split_8", "attention_combine"], ["attention"])
    assert (names == ["attention"]) == (case.T * case.group > 32)


@every_dtype
@by_either
def test_keys_may_be_the_used_part_of_a_cache(dtype, case):
    check.mixes(kernels_for(dtype), dtype, Attention(**(vars_of(case) | {"B": 2})), spare=3)


def vars_of(case: Attention) -> dict[str, Any]:
    return {name: getattr(case, name) for name in Attention.__dataclass_fields__}


@pytest.mark.parametrize("multiprocessors", [1, 2])
def test_a_split_may_have_several_tiles(multiprocessors):
    check.goes_in_rounds(kernels_for("float32"), "float32", multiprocessors)


@every_dtype
@by_either
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e4])
def test_what_is_not_visible_has_no_influence(dtype, case, value):
    check.hides(kernels_for(dtype), dtype, case, value)


@every_dtype
@by_either
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_whoever_sees_it(dtype, case, value):
    check.lets_through(kernels_for(dtype), dtype, case, value)


@every_dtype
@pytest.mark.parametrize("T", [2, 40], ids=["split", "tiles"])
def test_a_key_that_one_query_of_a_tile_sees_does_not_reach_the_others(dtype, T):
    check.only_the_last_sees_the_last(kernels_for(dtype), dtype, T)


BLIND = [
    Attention(B=2, T=5, S=40, K=1, group=2, d=6, window=2, first=0, seed=4),
    Attention(B=2, T=19, S=40, K=1, group=2, d=6, window=2, first=0, seed=4),
]


@every_dtype
@pytest.mark.parametrize("case", BLIND, ids=["split", "tiles"])
def test_who_sees_nothing_gets_zeros(dtype, case):
    check.zeros(kernels_for(dtype), dtype, case)


@every_dtype
@by_either_shape
def test_without_keys_there_are_zeros(dtype, T, group):
    q, nothing = drawn(dtype, 1, T, group, 4), drawn(dtype, 1, 0, 1, 4)
    where = (np.zeros((1, T), dtype=np.int64), np.zeros((1, 0), dtype=np.int64), None)
    out = attend(kernels_for(dtype), q, nothing, nothing, where)
    assert out.dtype == q.dtype
    np.testing.assert_array_equal(out, np.zeros(q.shape))


@every_dtype
@by_either
def test_large_scores_do_not_overflow(dtype, case):
    check.large_scores(kernels_for(dtype), dtype, case)


@by_either_shape
def test_an_infinite_score_is_what_a_softmax_makes_of_it(T, group):
    """exp(inf - inf) is NaN; a key whose score is -infinity has weight 0."""
    q, k = drawn("float32", 1, T, group, 4), drawn("float32", 1, 40, 1, 4)
    v, q[..., 0] = drawn("float32", 1, 40, 1, 4, seed=1), 1
    where = (np.full((1, T), 50), np.arange(40)[None], None)
    kernels = kernels_for("float32")
    k[0, 5, 0, 0] = np.inf
    assert np.isnan(attend(kernels, q, k, v, where)).all()
    k[0, 5, 0, 0] = -np.inf
    others = np.delete(np.arange(40), 5)
    expected = attend(kernels, q, k[:, others], v[:, others], (where[0], others[None], None))
    out = attend(kernels, q, k, v, where)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


@by_either_shape
def test_positions_are_told_apart_up_to_2_to_the_62(T, group):
    check.tells_far_positions(kernels_for("float32"), "float32", T, group)


@by_either_shape
def test_a_window_counts_the_query_s_own_key(T, group):
    check.window_of_positions(kernels_for("float32"), "float32", T, group)


def test_a_window_wider_than_positions_are_is_none():
    q, k = drawn("float32", 1, 1, 1, 2), drawn("float32", 1, 3, 1, 2)
    where = (np.full((1, 1), 2**62), np.array([[0, 1, 2**62]]))
    outs = [
        attend(kernels_for("float32"), q, k, k, (*where, window))
        for window in (None, NO_WINDOW, 2**100)
    ]
    np.testing.assert_array_equal(outs[1:], outs[:1] * 2)


# Whatever the alignment, the scratch, and nothing at all


@every_dtype
@pytest.mark.parametrize("offset", [1, 2])
def test_arrays_may_begin_where_16_bytes_do_not(dtype, offset):
    kernels = kernels_for(dtype)
    check.norms(kernels, dtype, 2, 40, offset)
    check.silu(kernels, dtype, 40, offset)
    check.rotations(kernels, dtype, 2, 2, 16, offset)
    for case in NARROW:
        check.mixes(kernels, dtype, case, offset=offset)


def test_scratch_memory_is_kept_and_grows():
    kernels, dtype = Kernels(cp, "float16"), "float16"
    q, k = (cp.asarray(drawn(dtype, 1, n, 2, 4)) for n in (1, 300))
    where = (cp.asarray(np.full((1, 1), 300)), cp.asarray(np.arange(300)[None]))
    for S in (300, 20):
        kernels.attention(q, k[:, :S], k[:, :S], where[0], cp.asarray(np.arange(S)[None]), None)
    before = _card.CARD.allocations
    out = kernels.attention(q, k, k, *where, None)
    assert _card.CARD.allocations == before + 1  # `out` alone
    q = cp.asarray(drawn(dtype, 1, 2, 8, 4))  # more rows than there was room for
    check.mixes(kernels, dtype, Attention(2, 2, 300, 2, 4, 6, None, 0, 1))
    assert out.shape == (1, 1, 2, 4)


@every_dtype
def test_empty_arrays_launch_nothing(launches, dtype):
    kernels, kind = kernels_for(dtype), NUMPY_DTYPES[dtype]

    def empty(*shape: int, dtype: Any = kind) -> Any:
        return cp.zeros(shape, dtype=dtype)

    weight, slots, angles = empty(8), empty(0, 3, dtype=np.int64), empty(0, 3, 4, dtype=np.float32)
    heads, cache = empty(0, 3, 2, 8), empty(0, 5, 2, 8)
    assert kernels.rms_norm(empty(0, 8), weight, 1e-5).shape == (0, 8)
    assert [a.shape for a in kernels.add_rms_norm(*[empty(0, 8)] * 2, weight, 1e-5)] == [(0, 8)] * 2
    assert kernels.silu_mul(empty(0, 8), empty(0, 8)).shape == (0, 8)
    assert kernels.rope(heads, angles, angles).shape == heads.shape
    kernels.store(heads, heads, angles, angles, cache, cache, slots)
    kernels.scatter(cache, slots, heads)
    out = kernels.attention(heads, cache, cache, slots, empty(0, 5, dtype=np.int64), None)
    assert out.shape == heads.shape
    assert launches == []


def test_an_array_of_another_dtype_is_refused():
    x, weight = (cp.asarray(drawn(dtype, 8)) for dtype in ("float16", "float32"))
    with pytest.raises(ValueError, match="weight is float32, but these kernels are for float16"):
        kernels_for("float16").rms_norm(x, weight, 1e-5)
    with pytest.raises(ValueError, match="dtype 'float64': the kernels are for float32, float16"):
        Kernels(cp, "float64")


# More than 2^31 numbers, in 16 bits so as to take less of the host's addresses


@pytest.mark.parametrize("what", ["store", "scatter"])
def test_slots_may_lie_more_than_2_to_the_31_numbers_apart_when_written(what):
    check.writes_far(kernels_for("bfloat16"), "bfloat16", what)


by_few_and_many = pytest.mark.parametrize("T", [1, 40], ids=["split", "tiles"])


@by_few_and_many
def test_rows_of_keys_may_lie_more_than_2_to_the_31_numbers_apart(T):
    check.in_far_rows(kernels_for("bfloat16"), "bfloat16", T)


@by_few_and_many
def test_keys_may_lie_more_than_2_to_the_31_numbers_apart(T):
    check.in_far_slots(kernels_for("bfloat16"), "bfloat16", T)


@by_few_and_many
def test_a_batch_is_as_large_as_a_grid_may_be(monkeypatch, T):
    grids = []
    monkeypatch.setattr(_raw, "launch", lambda kernel, grid, *args: grids.append(grid))
    q, at = cp.zeros((65536, T, 1, 2), np.float16), cp.zeros((65536, T), np.int64)
    k, of = cp.zeros((65536, 1, 1, 2), np.float16), cp.zeros((65536, 1), np.int64)
    attention = kernels_for("float16").attention
    attention(*(array[1:] for array in (q, k, k, at, of)), None)
    assert grids[0][2] == 65535
    said = "a batch of 65536 rows, of which a grid takes at most 65535; pass fewer rows at once"
    with pytest.raises(ValueError, match=said):
        attention(q, k, k, at, of, None)


# What it costs

S, D_HEAD, WINDOW = 256, 32, 20
T, GROUP = 8, 5  # 40 rows, two blocks of 32


def in_order(T: int, last: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Where T tokens up to a last position see a window of S keys whose slots are in order."""
    return np.arange(last - T + 1, last + 1)[None], np.arange(S)[None], WINDOW


MOVES = ("load", "store", "load_floats", "store_floats", "copy")  # of the source's functions


def bytes_loaded(launch: Launch) -> int:
    """Bytes of stored numbers: of q, k and v in attention."""
    return lines(launch)["load"].bytes


def lines(launch: Launch) -> dict[str, LineCounts]:
    """Sum the counts by the function that moves numbers, else by the source line's text."""
    out: dict[str, LineCounts] = {}
    names: dict[int, str] = {}
    function = ""
    for number, text in enumerate(SOURCE.read_text(encoding="utf-8").splitlines(), 1):
        if text.startswith(("__device__ void ", "extern")):
            function = text.removeprefix("__device__ void ").partition("(")[0]
        names[number] = function if function in MOVES else text.strip()
    for number, counts in launch.lines.items():
        if number:
            out.setdefault(names[number], LineCounts()).add(counts)
    return out


@every_dtype
@pytest.mark.parametrize("last, tiles", [(S - 1, 1), (63, 1), (70, 2), (S + 40, 0)])
def test_tiles_that_no_query_of_a_block_sees_are_not_fetched(launches, dtype, last, tiles):
    size = NUMPY_DTYPES[dtype].itemsize
    q = drawn(dtype, 1, T, GROUP, D_HEAD)
    k, v = (drawn(dtype, 1, S, 1, D_HEAD, seed=seed) for seed in (1, 2))
    where = in_order(T, last)
    unseen = ~((where[1] > last - T - WINDOW + 1) & (where[1] <= last))
    unread = (filled(array, unseen, np.nan) for array in (k, v))
    check.mix_agrees(attend(kernels_for(dtype), q, *unread, where), q, k, v, where, dtype)
    assert bytes_loaded(launches[0]) == 2 * (32 + tiles * 2 * 32) * D_HEAD * size


@every_dtype
def test_a_tile_in_any_order_is_judged_by_its_positions(launches, dtype):
    """One key of a tile is visible, the last: that fetches it, and no other."""
    size = NUMPY_DTYPES[dtype].itemsize
    q = drawn(dtype, 1, T, GROUP, D_HEAD)
    k, v = (drawn(dtype, 1, S, 1, D_HEAD, seed=seed) for seed in (1, 2))
    k_positions = np.arange(1000, 1000 + S)[None]
    k_positions[0, 95] = 500
    where = (np.arange(500, 500 + T)[None], k_positions, 100)
    out = attend(kernels_for(dtype), q, k, v, where)
    np.testing.assert_array_equal(out, np.broadcast_to(v[:, 95:96], out.shape))
    assert bytes_loaded(launches[0]) == 2 * (32 + 2 * 32) * D_HEAD * size


@every_dtype
@pytest.mark.parametrize("last, warps", [(31, 1), (S - 1, 1), (70, 2), (S + 40, 0)])
def test_decoding_reads_a_key_once_for_its_group(launches, dtype, last, warps):
    """One token, four heads: those 32 keys of which one is visible, and no others, once each."""
    group, size = 4, NUMPY_DTYPES[dtype].itemsize
    q = drawn(dtype, 1, 1, group, D_HEAD)
    k, v = (drawn(dtype, 1, S, 1, D_HEAD, seed=seed) for seed in (1, 2))
    attend(kernels_for(dtype), q, k, v, in_order(1, last))
    split, _ = launches
    # Of a query each team of lanes has a copy, in each of four warps of the two blocks.
    team = D_HEAD * size // 16
    copies = 32 // team * 4 * 2
    assert bytes_loaded(split) == (copies * group + warps * 2 * 32) * D_HEAD * size


# Where lanes read, or write, in 16 bits, floats that are 32 bytes apart: twice the fewest.
TWICE = {"load_floats": "sectors", "store_floats": "conflicts"}


@every_dtype
def test_accesses_are_coalesced_and_free_of_conflicts(launches, dtype):
    kernels = kernels_for(dtype)
    check.norms(kernels, dtype, 2, 512)
    check.silu(kernels, dtype, 1024)
    check.rotations(kernels, dtype, 2, 4, 128)
    check.writes(kernels, dtype, 5, 9, 4, 128)
    for case in (SPLIT[0], TILES[0]):
        check.mixes(kernels, dtype, case)
    assert {launch.kernel for launch in launches} == {
        *("rms_norm", "add_rms_norm", "silu_mul", "rope", "store_rotated", "scatter"),
        *("attention", "attention_split_4", "attention_combine"),
    }
    for launch in launches:
        for name, counts in lines(launch).items():
            more = TWICE.get(name) if NUMPY_DTYPES[dtype].itemsize == 2 else None
            where = f"{launch.kernel}: {name}"
            assert counts.sectors == counts.fewest_sectors * (1 + (more == "sectors")), where
            assert counts.conflicts * 2 == counts.wavefronts * (more == "conflicts"), where
