"""`tensor_cores.cu` on the emulator: its instructions against the manual, and its attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kernel_checks as check
import numpy as np
import pytest
from kernel_cases import kernels_for
from kernel_checks import attend, drawn

from cuda_emulator import cupy_stand_in as cp
from cuda_emulator.cupy_stand_in import _card
from tinymistral.conformance.cases import Attention
from tinymistral.operations import NUMPY_DTYPES
from tinymistral_cupy.kernels import (
    DTYPES,
    Kernels,
    TensorTile,
    compile_options,
    source_text,
    tensor_tile,
)

in_16_bits = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])

# The instructions, each by itself
#
# Expected are the tables of the PTX ISA manual ("Matrix fragments for mma.m16n8k16 with floating
# point type", "ldmatrix"), written down again: what lane 4g + t has, as (row, column) in order.

A = [(0, 0), (0, 1), (8, 0), (8, 1), (0, 8), (0, 9), (8, 8), (8, 9)]  # plus (g, 2t)
B = [(0, 0), (1, 0), (8, 0), (9, 0)]  # plus (2t, g)
C = [(0, 0), (0, 1), (8, 0), (8, 1)]  # plus (g, 2t)


def fragments(matrix: np.ndarray, places: list[tuple[int, int]], across: bool = True) -> np.ndarray:
    """Return what each of 32 lanes has of a matrix, (32, numbers)."""
    g, t = np.divmod(np.arange(32), 4)
    row, column = (g, 2 * t) if across else (2 * t, g)
    return np.stack([matrix[row + r, column + c] for r, c in places], axis=1)


# A kernel for each, all in one compilation
WRAPPERS = """
extern "C" __global__ void call_multiply(const int* a, const int* b, float* sum)
{
    unsigned x[4];
    float s[4];
    for (int n = 0; n < 4; n++) {
        x[n] = a[threadIdx.x * 4 + n];
        s[n] = sum[threadIdx.x * 4 + n];
    }
    multiply(s, x, b[threadIdx.x * 2], b[threadIdx.x * 2 + 1]);
    for (int n = 0; n < 4; n++) sum[threadIdx.x * 4 + n] = s[n];
}

// Row r of matrix m is row 8m + r of x, from column 8 of 24 on.
extern "C" __global__ void call_load_matrices(const storage* x, int* out, int* transposed)
{
    __shared__ alignas(16) storage s[32 * 24];
    for (int n = 0; n < 24; n++) s[threadIdx.x * 24 + n] = x[threadIdx.x * 24 + n];
    __syncthreads();
    unsigned to[4];
    load_matrices(to, shared_address(s + threadIdx.x * 24 + 8));
    for (int n = 0; n < 4; n++) out[threadIdx.x * 4 + n] = to[n];
    load_transposed(to, shared_address(s + threadIdx.x * 24 + 8));
    for (int n = 0; n < 4; n++) transposed[threadIdx.x * 4 + n] = to[n];
}

// A lane copies what the lane at the other end would.
extern "C" __global__ void call_copy_16_bytes(const storage* x, storage* out)
{
    __shared__ alignas(16) storage s[256];
    copy_16_bytes(shared_address(s + threadIdx.x * 8), x + (31 - threadIdx.x) * 8);
    wait_for_copies();
    __syncwarp();
    for (int n = 0; n < 8; n++) out[threadIdx.x * 8 + n] = s[threadIdx.x * 8 + n];
}

extern "C" __global__ void call_pair(const float* x, int* out)
{
    for (int n = threadIdx.x; n < 2048; n += LANES) out[n] = pair(x[2 * n], x[2 * n + 1]);
}

extern "C" __global__ void call_not_finite(const int* x, int* out)
{
    for (int n = threadIdx.x; n < 65536; n += LANES) out[n] = not_finite(x[n]);
}
"""


def call(name: str, dtype: str, *arrays: np.ndarray) -> list[np.ndarray]:
    """Run a kernel of WRAPPERS in one warp; return its arrays afterwards."""
    options = compile_options(DTYPES[dtype][1], 8, 16, TensorTile(4, 2, 64))
    module = cp.RawModule(code=source_text(tensor_cores=True) + WRAPPERS, options=options)
    on_card = [cp.asarray(array) for array in arrays]
    module.get_function(f"call_{name}")((1,), (32,), tuple(on_card))
    return [array.get() for array in on_card]


@in_16_bits
def test_multiply(dtype: str) -> None:
    a, b = drawn(dtype, 16, 16, seed=1), drawn(dtype, 16, 8, seed=2)
    c = drawn("float32", 16, 8, seed=3)
    registers = (fragments(a, A).view(np.int32), fragments(b, B, across=False).view(np.int32))
    out = call("multiply", dtype, *registers, fragments(c, C))[2]
    exact = a.astype(np.float64) @ b.astype(np.float64) + c
    np.testing.assert_array_equal(out, fragments(exact.astype(np.float32), C))


def test_load_matrices() -> None:
    x, nothing = drawn("float16", 32, 24), np.zeros((32, 4), np.int32)
    out = call("load_matrices", "float16", x, nothing, nothing)[1:]
    plain = x[:, 8:16].reshape(4, 8, 8)
    for loaded, matrices in zip(out, (plain, plain.transpose(0, 2, 1)), strict=True):
        expected = [fragments(matrix, [(0, 0), (0, 1)]) for matrix in matrices]
        np.testing.assert_array_equal(loaded.view(np.float16), np.concatenate(expected, axis=1))


def test_copy_16_bytes() -> None:
    x = drawn("float16", 32, 8)
    out = call("copy_16_bytes", "float16", x, np.zeros_like(x))[1]
    np.testing.assert_array_equal(out, x[::-1])


@in_16_bits
def test_a_pair_is_rounded_as_numpy_rounds(dtype: str) -> None:
    kind = NUMPY_DTYPES[dtype]
    near = np.random.default_rng(1).integers(0, 2**16, 4096).astype(np.uint16).view(kind)
    with np.errstate(all="ignore"):
        x = near.astype(np.float32) * np.float32(1 + 2.0**-9)  # between two numbers of the dtype
        x = np.where(np.isnan(x) | (np.abs(x) > 1e-30), x, 0)  # a GPU flushes smaller ones to 0
        expected = x.astype(kind).astype(np.float32)
    out = call("pair", dtype, x, np.zeros(2048, np.int32))[1]
    np.testing.assert_array_equal(out.view(kind).astype(np.float32), expected)


@in_16_bits
def test_not_finite(dtype: str) -> None:
    bits = np.arange(65536, dtype=np.uint32)
    x = bits | bits[::-1] << 16  # each number in each half
    out = call("not_finite", dtype, x.view(np.int32), np.zeros(65536, np.int32))[1]
    with np.errstate(invalid="ignore"):
        numbers = bits.astype(np.uint16).view(NUMPY_DTYPES[dtype]).astype(np.float32)
    odd = ~np.isfinite(numbers)
    expected = odd * np.uint32(0x8000) | odd[::-1] * np.uint32(0x80000000)
    np.testing.assert_array_equal(out.view(np.uint32), expected)


# Which attention is chosen


@pytest.mark.parametrize(
    ("dtype", "rows", "d", "offset", "arch", "chosen"),
    [
        ("float16", 33, 16, 0, "sm_90", "attention_tensor_cores"),
        ("bfloat16", 33, 128, 8, "sm_80", "attention_tensor_cores"),
        ("float16", 32, 16, 0, "sm_90", "attention_combine"),
        ("float32", 33, 16, 0, "sm_90", "attention"),
        ("float16", 33, 48, 0, "sm_90", "attention"),
        ("float16", 33, 16, 4, "sm_90", "attention"),
        ("float16", 33, 16, 0, "sm_75", "attention"),
    ],
)
def test_which_attention_is_chosen(monkeypatch, dtype, rows, d, offset, arch, chosen):
    monkeypatch.setenv(_card.VARIABLE, arch)
    names: list[str] = []
    monkeypatch.setattr(Kernels, "_launch", lambda kernels, name, *rest: names.append(name))
    q, k = drawn(dtype, 1, rows, 1, d), drawn(dtype, 1, 5, 1, d)
    where = (np.arange(rows)[None], np.arange(5)[None], None)
    attend(Kernels(cp, dtype), q, k, k, where, offset=offset)
    assert names[-1] == chosen
    assert names[:-1] == {
        "attention_tensor_cores": ["key_spans"],
        "attention_combine": ["attention_split_8"],
        "attention": [],
    }[chosen]  # fmt: skip


def test_a_tile_has_as_many_keys_as_let_a_multiprocessor_hold_two_blocks() -> None:
    keys = {(d, kb): tensor_tile(d, kb * 1024).keys for d in (64, 128) for kb in (228, 164, 100)}
    # In KB: 102 + 3 for d = 128 and 64 keys, 54 + 3 for d = 64; with 32 keys 68 + 3 and 36 + 3
    assert keys == {
        (128, 228): 64,
        (128, 164): 32,
        (128, 100): 32,
        (64, 228): 64,
        (64, 164): 64,
        (64, 100): 32,
    }


def test_all_layers_of_a_piece_share_the_spans(monkeypatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(Kernels, "_launch", lambda kernels, name, *rest: names.append(name))
    kernels = Kernels(cp, "float16")
    q, k = (cp.asarray(drawn("float16", 1, n, 1, 16)) for n in (33, 70))
    at = cp.asarray(np.arange(37, 70)[None])
    for positions in (np.arange(70), np.arange(70)[::-1]):
        where = (at, cp.asarray(positions[None].copy()), 9)
        for _layer in range(2):
            kernels.attention(q, k, k, *where)
    assert names == ["key_spans", *["attention_tensor_cores"] * 2] * 2


# Attention: rows of a tile are 128 (tokens times heads of a group), keys 64. In NARROW the last
# tile has 22 keys, and is visible in each row of the batch.

CASES = [
    Attention(B=1, T=40, S=200, K=1, group=4, d=128, window=50, first=0, seed=1),
    Attention(B=2, T=40, S=65, K=2, group=1, d=64, window=None, first=5, seed=2),
    Attention(B=2, T=70, S=150, K=1, group=3, d=16, window=20, first=2**24 + 1, seed=3),
    Attention(B=1, T=33, S=63, K=2, group=2, d=32, window=1, first=32_760, seed=4),
    Attention(B=2, T=33, S=64, K=1, group=1, d=16, window=None, first=0, seed=5),
    Attention(B=1, T=9, S=2200, K=1, group=4, d=16, window=90, first=2100, seed=6),  # 35 tiles
]
NARROW = CASES[2]
ALL_MASKED = Attention(B=2, T=70, S=40, K=1, group=2, d=16, window=2, first=0, seed=4)


@pytest.mark.slow
@in_16_bits
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_is_a_softmax_over_what_is_visible(dtype, case):
    check.mixes(kernels_for(dtype), dtype, case)


@pytest.mark.slow
@in_16_bits
@pytest.mark.parametrize("d", [64, 128])
def test_with_tiles_of_32_keys(monkeypatch, launches, dtype, d):
    monkeypatch.setenv(_card.VARIABLE, "sm_89")
    case = Attention(B=1, T=40, S=140, K=1, group=2, d=d, window=50, first=0, seed=1)
    check.mixes(Kernels(cp, dtype), dtype, case)
    assert launches[-1].kernel == "attention_tensor_cores"
    assert launches[-1].shared < 99 * 1024


CHECKS: dict[str, Callable[[Kernels, str], Any]] = {
    "keys may be the used part of a cache": lambda k, t: check.mixes(k, t, NARROW, spare=3),
    "NaN in a masked key": lambda k, t: check.hides(k, t, NARROW, np.nan),
    "infinity in a masked key": lambda k, t: check.hides(k, t, NARROW, np.inf),
    "a large masked key": lambda k, t: check.hides(k, t, NARROW, 3e4),
    "NaN in a visible value": lambda k, t: check.lets_through(k, t, NARROW, np.nan),
    "infinity in a visible value": lambda k, t: check.lets_through(k, t, NARROW, -np.inf),
    "a query with no visible key": lambda k, t: check.zeros(k, t, ALL_MASKED),
    "large scores": lambda k, t: check.large_scores(k, t, NARROW),
    "rising scores": lambda k, t: check.rising_scores(k, t, NARROW),
    "the last key": lambda k, t: check.the_last_key_is_visible_to_the_last_query(k, t, 40, 16),
    "positions up to 2^62": lambda k, t: check.has_exact_far_positions(k, t, 3, 11),
    "a window counts the key itself": lambda k, t: check.window_of_positions(k, t, 3, 11, 16),
    "positions that change": check.follows_positions,
    "empty slots and padding": check.skips_what_is_empty,
    "ends of tiles": check.fetches_at_ends_of_tiles,
}


@pytest.mark.slow
@in_16_bits
@pytest.mark.parametrize("name", CHECKS)
def test_attention(dtype, name):
    CHECKS[name](kernels_for(dtype), dtype)


def test_rows_of_keys_may_lie_more_than_2_to_the_31_numbers_apart():
    check.in_far_rows(kernels_for("bfloat16"), "bfloat16", 40, 16)


def test_keys_may_lie_more_than_2_to_the_31_numbers_apart():
    check.in_far_slots(kernels_for("bfloat16"), "bfloat16", 33, 128)


# What it costs


@in_16_bits
@pytest.mark.parametrize(
    ("last", "tiles", "edges"),
    [
        (511, 3, 2),  # 512 tokens end with a tile; 4 tokens, a window of 129: 1 + 2 tiles
        (480, 3, 2),
        (63, 1, 1),
        (1000, 0, 0),
    ],
)
def test_tiles_that_no_row_sees_are_not_fetched_and_others_masked_where_needed(
    dtype: str, last: int, tiles: int, edges: int
) -> None:
    check.fetches(kernels_for(dtype), dtype, last, tiles, edges)


@pytest.mark.slow
@pytest.mark.parametrize("d", [16, 32, 64, 128])
def test_accesses_are_coalesced_and_free_of_conflicts(d: int) -> None:
    check.is_free_of_conflicts(kernels_for("float16"), "float16", d)
