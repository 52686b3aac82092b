"""Barriers, shuffles and votes that some threads do not reach, or reach by another branch."""

import numpy as np
from faulting import fault, floats
from run_kernel import compiled, run

from cuda_emulator.faults import DivergentBarrier, LostLane


def test_a_barrier_that_half_of_the_block_never_reaches() -> None:
    source = """(float* y) {
        if (threadIdx.x < 32) {
            y[threadIdx.x] = 1;
            __syncthreads();  // here
        }
    }"""
    error = fault(DivergentBarrier, source, floats(64), block=64)
    assert error.thread == (0, 0, 0)
    assert "32 of 64 threads of the block wait" in error.what
    assert "thread (32, 0, 0), have ended" in error.what


def test_two_barriers_that_threads_choose_between() -> None:
    source = """(float* y, int n) {
        if (threadIdx.x < n) {
            y[threadIdx.x] = 1;
            __syncthreads();  // here
            y[threadIdx.x] = 3;
        } else {
            y[threadIdx.x] = 2;
            __syncthreads();  // here
        }
    }"""
    error = fault(DivergentBarrier, source, floats(64), np.int32(32), block=64)
    assert "wait at the barrier on line" in error.what
    run(compiled('extern "C" __global__ void k' + source), floats(64), np.int32(64), block=64)


def test_threads_that_left_before_the_barrier() -> None:
    source = """(float* y, int n) {
        if (threadIdx.x >= n) return;
        y[threadIdx.x] = 1;
        __syncthreads();  // here
        y[threadIdx.x] = 2;
    }"""
    fault(DivergentBarrier, source, floats(64), np.int32(63), block=64)
    # The same where they left long before, so that all that are left arrive together.
    early = source.replace("(threadIdx.x >= n) return;", '(threadIdx.x >= n) asm("exit;");')
    early = early.replace("y[threadIdx.x] = 1;", "y[threadIdx.x] = 1; __syncwarp(__activemask());")
    fault(DivergentBarrier, early, floats(64), np.int32(63), block=64)
    # A whole block may leave.
    source = source.replace("threadIdx.x >= n", "blockIdx.x >= n")
    y = floats(64)
    run(compiled('extern "C" __global__ void k' + source), y, np.int32(1), block=64, grid=2)
    assert (y == 2).all()


def test_a_shuffle_that_names_lanes_in_another_branch() -> None:
    source = """(float* y) {
        if (threadIdx.x < 16) {
            y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, y[threadIdx.x], 1);  // here
        }
    }"""
    error = fault(LostLane, source, floats(32))
    assert "lanes 16, 17, 18, ..., 31" in error.what or "lanes 16, 17" in error.what
    assert "have ended" in error.what


def test_a_shuffle_that_reads_a_lane_its_mask_does_not_name() -> None:
    source = """(float* y) {
        if (threadIdx.x < 16) {
            y[threadIdx.x] = __shfl_down_sync(0x0000ffffu, y[threadIdx.x], 1);  // here
        }
    }"""
    error = fault(LostLane, source, floats(32))
    assert error.thread == (15, 0, 0)
    assert "reads lane 16" in error.what


def test_a_vote_whose_mask_does_not_name_the_lane_itself() -> None:
    source = """(int* y) {
        y[threadIdx.x] = __ballot_sync(0x0000ffffu, threadIdx.x & 1);  // here
    }"""
    error = fault(LostLane, source, np.zeros(32, dtype=np.int32))
    assert error.thread == (16, 0, 0)


def test_lanes_that_synchronize_with_different_masks() -> None:
    source = """(int* y) {
        unsigned mask = threadIdx.x ? 0xffffffffu : 0x7fffffffu;
        y[threadIdx.x] = __ballot_sync(mask, 1);  // here
    }"""
    fault(LostLane, source, np.zeros(32, dtype=np.int32))


def test_lanes_that_do_not_exist() -> None:
    source = """(int* y) {
        y[threadIdx.x] = __ballot_sync(0xffffffffu, 1);  // here
    }"""
    error = fault(LostLane, source, np.zeros(48, dtype=np.int32), block=48)
    assert "do not exist" in error.what


def test_a_shuffle_waits_for_lanes_from_another_branch() -> None:
    # Half of the warp takes a longer way; all must exchange nevertheless.
    source = """extern "C" __global__ void k(int* y, int n) {
        int v = threadIdx.x;
        if (threadIdx.x % 2)
            for (int i = 0; i < n; ++i) v = v * 3 + y[i];
        y[threadIdx.x + 32] = __shfl_xor_sync(0xffffffffu, v, 1);
    }"""
    y = np.zeros(64, dtype=np.int32)
    run(compiled(source), y, np.int32(5))
    v = np.array([i * 3**5 if i % 2 else i for i in range(32)])
    assert (y[32:] == v[np.arange(32) ^ 1]).all()
