"""What lanes exchange: shuffles as the PTX manual defines them, votes, matches and barriers."""

import numpy as np
import pytest
from run_kernel import apply, compiled, run

LANES = np.arange(32)


def shuffled(mode: str, a: list[int], b: int, width: int) -> tuple[list[int], list[bool]]:
    """`__shfl_*_sync` of a warp in groups of `width`, by what the CUDA C++ guide says of them.

    Up, down: as many places below or above, but within the group, else a lane keeps its own. Bfly:
    the lane whose number differs in the bits of b, but of no later group. Idx: place b, counted
    around, of the own group.
    """
    values, valid = [], []
    for lane in range(32):
        group, place = divmod(lane, width)
        source, good = {
            "up": (lane - b, b <= place),
            "down": (lane + b, place + b < width),
            "bfly": (lane ^ b, (lane ^ b) // width <= group),
            "idx": (group * width + b % width, True),
        }[mode]
        values.append(a[source if good else lane])
        valid.append(good)
    return values, valid


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8, 1])
def test_shuffles(mode: str, width: int) -> None:
    a = np.random.default_rng(1).integers(0, 1 << 31, 64).astype(np.int32)
    c = (32 - width) << 8 | (0 if mode == "up" else 31)
    for b in (0, 1, 3, 16, 31):
        text = f"shfl.sync.{mode}.b32 d, a, {b}, {c}, -1;"
        got = apply(text, "int32", a)
        good = apply("{ .reg .b32 x; " + text.replace(" d,", " x|d,") + " }", "bool", a)
        for at in (slice(0, 32), slice(32, 64)):
            values, valid = shuffled(mode, a[at].tolist(), b, width)
            assert got[at].tolist() == values
            assert good[at].tolist() == valid


def test_a_shuffle_from_a_different_lane_for_each() -> None:
    a = np.arange(100, 132, dtype=np.int32)
    b = (7 * LANES % 32).astype(np.int32)
    got = apply("shfl.sync.idx.b32 d, a, b, 31, 0xffffffff;", "int32", a, b)
    assert (got == a[b]).all()


def test_shuffles_within_a_mask() -> None:
    source = """extern "C" __global__ void k(int* y) {
        int lane = threadIdx.x;
        if (lane < 8) y[lane] = __shfl_xor_sync(0xffu, 3 * lane, 1);
        else y[lane] = __shfl_xor_sync(0xffffff00u, 5 * lane, 2);
    }"""
    y = np.zeros(32, dtype=np.int32)
    run(compiled(source), y)
    assert (y == np.where(LANES < 8, 3 * (LANES ^ 1), 5 * (LANES ^ 2))).all()


def test_votes() -> None:
    p = np.random.default_rng(2).integers(0, 2, 96).astype(bool)
    p[32:64] = True
    ballot = apply("vote.sync.ballot.b32 d, a, -1;", "uint32", p)
    wanted = [sum(1 << i for i in range(32) if warp[i]) for warp in p.reshape(3, 32)]
    assert (ballot.reshape(3, 32) == np.array(wanted, dtype=np.uint32)[:, None]).all()
    for how, function in {"any": np.any, "all": np.all}.items():
        got = apply(f"vote.sync.{how}.pred d, a, -1;", "bool", p)
        assert (got.reshape(3, 32) == function(p.reshape(3, 32), axis=1)[:, None]).all()
    uniform = apply("vote.sync.uni.pred d, a, -1;", "bool", p)
    assert (uniform.reshape(3, 32) == [[False], [True], [False]]).all()
    negated = apply("vote.sync.any.pred d, !a, -1;", "bool", p)
    assert (negated.reshape(3, 32) == [[True], [False], [True]]).all()


def test_votes_of_groups() -> None:
    p = LANES % 3 == 0
    masks = np.where(LANES < 10, 0x3FF, 0xFFFFFC00).astype(np.uint32)
    got = apply("vote.sync.ballot.b32 d, a, b;", "uint32", p, masks)
    bits = sum(1 << i for i in range(0, 32, 3))
    assert (got == np.uint32(bits) & masks).all()


@pytest.mark.parametrize("how", ["add", "min", "max"])
@pytest.mark.parametrize("kind", ["s32", "u32"])
def test_reductions(how: str, kind: str) -> None:
    dtype = "int32" if kind == "s32" else "uint32"
    bits = np.random.default_rng(3).integers(0, 1 << 32, 64, dtype=np.uint64).astype(np.uint32)
    a = bits.view(dtype)
    got = apply(f"redux.sync.{how}.{kind} d, a, -1;", dtype, a)
    function = {"add": np.sum, "min": np.min, "max": np.max}[how]
    wanted = [int(function(warp.astype(object))) % (1 << 32) for warp in a.reshape(2, 32)]
    assert (got.view(np.uint32).reshape(2, 32) == np.array(wanted, np.uint32)[:, None]).all()
    masks = np.where(LANES < 12, 0xFFF, 0xFFFFF000).astype(np.uint32)
    got = apply(f"redux.sync.{how}.{kind} d, a, b;", dtype, a[:32], masks).view(np.uint32)
    for part in (slice(0, 12), slice(12, 32)):
        assert (got[part] == int(function(a[:32][part].astype(object))) % (1 << 32)).all()


def test_matches() -> None:
    a = np.random.default_rng(4).integers(0, 4, 32).astype(np.int32)
    got = apply("match.any.sync.b32 d, a, -1;", "uint32", a)
    assert got.tolist() == [sum(1 << j for j in range(32) if a[j] == x) for x in a]
    masks = np.where(LANES < 10, 0x3FF, 0xFFFFFC00).astype(np.uint32)
    same = [sum(1 << j for j in range(32) if a[j] == x) for x in a]
    got = apply("match.any.sync.b32 d, a, b;", "uint32", a, masks)
    assert (got == np.array(same, dtype=np.uint32) & masks).all()
    got = apply("match.all.sync.b32 d, a, -1;", "uint32", a)
    assert not got.any()
    got = apply("match.all.sync.b32 d, a, -1;", "uint32", np.full(32, 5, dtype=np.int32))
    assert (got == 0xFFFFFFFF).all()


def test_active_lanes() -> None:
    source = """extern "C" __global__ void k(unsigned* y) {
        y[threadIdx.x] = __activemask();
        if (threadIdx.x % 3 == 0) y[threadIdx.x] = __activemask();
    }"""
    y = np.zeros(40, dtype=np.uint32)
    run(compiled(source), y, block=40)
    thirds = sum(1 << i for i in range(0, 32, 3))
    assert (y[:32] == np.where(LANES % 3 == 0, thirds, 0xFFFFFFFF)).all()
    # Threads 33, 36 and 39 are lanes 1, 4 and 7 of a warp of eight.
    assert (y[32:] == np.where(np.arange(32, 40) % 3 == 0, 0b10010010, 0xFF)).all()


def test_special_registers() -> None:
    source = """extern "C" __global__ void k(int* y) {
        int i = ((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x)
            * blockDim.x * blockDim.y * blockDim.z
            + (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        unsigned lane, warp, lt;
        asm("mov.u32 %0, %%laneid;" : "=r"(lane));
        asm("mov.u32 %0, %%warpid;" : "=r"(warp));
        asm("mov.u32 %0, %%lanemask_lt;" : "=r"(lt));
        y[3 * i] = lane; y[3 * i + 1] = warp; y[3 * i + 2] = lt;
    }"""
    grid, block = (2, 3, 2), (5, 4, 3)
    y = np.full(12 * 60 * 3, -1, dtype=np.int32)
    run(compiled(source), y, grid=grid, block=block)
    thread = np.tile(np.arange(60), 12)
    assert (y[0::3] == thread % 32).all()
    assert (y[1::3] == thread // 32).all()
    assert (y[2::3].view(np.uint32) == (1 << (thread % 32)) - 1).all()


def test_barriers_that_reduce() -> None:
    source = """extern "C" __global__ void k(int* y) {
        int i = threadIdx.x + blockIdx.x * blockDim.x;
        bool p = threadIdx.x % 3 == blockIdx.x;
        y[4 * i] = __syncthreads_count(p);
        y[4 * i + 1] = __syncthreads_or(p && threadIdx.x == 2);
        y[4 * i + 2] = __syncthreads_and(threadIdx.x < 64 || !blockIdx.x);
        if (threadIdx.x == 0) y[4 * i] += 1000;
        y[4 * i + 3] = __syncthreads_count(threadIdx.x % 2);
    }"""
    y = np.zeros(3 * 96 * 4, dtype=np.int32)
    run(compiled(source), y, grid=3, block=96)
    y = y.reshape(3, 96, 4)
    assert (y[:, 1:, 0] == 32).all()
    assert (y[:, 0, 0] == 1032).all()
    assert (y[:, :, 1] == [[0], [0], [1]]).all()
    assert (y[:, :, 2] == [[1], [0], [0]]).all()
    assert (y[:, :, 3] == 48).all()
