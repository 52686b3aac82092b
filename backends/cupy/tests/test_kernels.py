"""Each kernel on the emulator: right in every dtype, also for sizes that fill no tile."""

from __future__ import annotations

from typing import Any

import kernel_checks as check
import numpy as np
import pytest
from kernel_cases import SPLIT, TILES, every_dtype, kernels_for
from kernel_checks import attend, drawn

from cuda_emulator import cupy_stand_in as cp
from cuda_emulator.cupy_stand_in import _card, _raw
from tinymistral.conformance.cases import Attention
from tinymistral.operations import NUMPY_DTYPES
from tinymistral_cupy.kernels import NO_WINDOW, Kernels

# A token by itself


@every_dtype
@pytest.mark.parametrize("D", [1, 2, 6, 40, 257, 4104])
def test_rms_norm(dtype, D):
    check.norms(kernels_for(dtype), dtype, 3, D)


@every_dtype
@pytest.mark.parametrize("m, n", [(1, 1), (3, 6), (33, 40), (2, 257), (17, 2056), (5, 4104)])
def test_linear_of_one_row(dtype, m, n):
    check.products(kernels_for(dtype), dtype, m, n)


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
def test_scatter(dtype, T, S, K, d):
    check.writes(kernels_for(dtype), dtype, T, S, K, d)


# Attention

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


@pytest.mark.parametrize(("multiprocessors", "warps"), [(1, {2, 4}), (2, {4})])
def test_a_split_may_have_several_tiles(launches, multiprocessors, warps):
    check.goes_in_rounds(kernels_for("float32"), "float32", multiprocessors)
    assert {launch.block[0] // 32 for launch in launches[::2]} == warps


def test_there_may_be_more_splits_than_lanes_of_a_warp():
    check.has_34_parts(kernels_for("float32"), "float32")


@pytest.mark.parametrize(
    ("batch", "warps", "splits"),
    # Measured on an H100 as best, of those tried: 32 splits at batch 1, 4 to 8 of 4 warps at 8, and
    # 2 of 2 warps at 32
    [(1, 4, 32), (8, 4, 4), (32, 2, 2), (64, 2, 1)],
)
def test_how_a_card_of_132_multiprocessors_is_shared_out(monkeypatch, batch, warps, splits):
    shapes = []
    monkeypatch.setattr(
        Kernels,
        "_launch",
        lambda kernels, name, v, grid, threads, *rest: shapes.append((grid, threads)),
    )
    q, k = cp.zeros((batch, 1, 32, 2), np.float16), cp.zeros((batch, 4096, 8, 2), np.float16)
    where = (cp.zeros((batch, 1), np.int64), cp.zeros((batch, 4096), np.int64), 4096)
    Kernels(cp, "float16").attention(q, k, k, *where)
    assert shapes[0] == ((splits, 8, batch), warps * 32)


@every_dtype
@by_either
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e4])
def test_a_masked_key_has_no_influence(dtype, case, value):
    check.hides(kernels_for(dtype), dtype, case, value)


@every_dtype
@by_either
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_the_queries_it_is_visible_to(dtype, case, value):
    check.lets_through(kernels_for(dtype), dtype, case, value)


@every_dtype
@pytest.mark.parametrize("T", [2, 40], ids=["split", "tiles"])
def test_a_key_visible_to_one_query_of_a_tile_does_not_reach_the_others(dtype, T):
    check.the_last_key_is_visible_to_the_last_query(kernels_for(dtype), dtype, T)


ALL_MASKED = [
    Attention(B=2, T=5, S=40, K=1, group=2, d=6, window=2, first=0, seed=4),
    Attention(B=2, T=19, S=40, K=1, group=2, d=6, window=2, first=0, seed=4),
]


@every_dtype
@pytest.mark.parametrize("case", ALL_MASKED, ids=["split", "tiles"])
def test_a_query_with_no_visible_key_gets_zeros(dtype, case):
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
def test_positions_are_exact_up_to_2_to_the_62(T, group):
    check.has_exact_far_positions(kernels_for("float32"), "float32", T, group)


@by_either_shape
def test_a_window_counts_the_key_of_the_query_itself(T, group):
    check.window_of_positions(kernels_for("float32"), "float32", T, group)


def test_a_window_wider_than_all_positions_is_none():
    q, k = drawn("float32", 1, 1, 1, 2), drawn("float32", 1, 3, 1, 2)
    where = (np.full((1, 1), 2**62), np.array([[0, 1, 2**62]]))
    outs = [
        attend(kernels_for("float32"), q, k, k, (*where, window))
        for window in (None, NO_WINDOW, 2**100)
    ]
    np.testing.assert_array_equal(outs[1:], outs[:1] * 2)


# Alignment, scratch memory, and empty arrays


@every_dtype
@pytest.mark.parametrize("offset", [1, 2])
def test_arrays_may_begin_at_any_multiple_of_their_dtype(dtype, offset):
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
    assert kernels.silu_mul(empty(0, 8), empty(0, 8)).shape == (0, 8)
    assert kernels.rope(heads, angles, angles).shape == heads.shape
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


def test_slots_may_lie_more_than_2_to_the_31_numbers_apart_when_written():
    check.writes_far(kernels_for("bfloat16"), "bfloat16")


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
