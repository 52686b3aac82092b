"""Threads that touch the same bytes with nothing between them, and those that may."""

import numpy as np
from faulting import fault, floats
from run_kernel import compiled, run

from cuda_emulator.faults import Race

MISSING_BARRIER = """(float* y) {
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x;
    BARRIER
    y[threadIdx.x] = s[63 - threadIdx.x];  // here
}"""


def test_a_missing_barrier() -> None:
    error = fault(Race, MISSING_BARRIER.replace("BARRIER", ""), floats(64), block=64)
    assert "write of 4 bytes of on line 3" in error.what
    assert "of shared memory" in error.what
    y = floats(64)
    kernel = compiled(
        'extern "C" __global__ void k' + MISSING_BARRIER.replace("BARRIER", "__syncthreads();")
    )
    run(kernel, y, block=64)
    assert y.tolist() == [63 - i for i in range(64)]


def test_a_missing_second_barrier() -> None:
    # The next round overwrites what others still read: the result is right here all the same.
    source = """(float* y) {
        __shared__ float s[64];
        for (int round = 0; round < 2; ++round) {
            s[threadIdx.x] = round;  // here
            __syncthreads();
            y[threadIdx.x] = s[63 - threadIdx.x];
        }
    }"""
    fault(Race, source, floats(64), block=64)


def test_a_warp_needs_syncwarp_within() -> None:
    source = """(float* y) {
        __shared__ float s[32];
        s[threadIdx.x] = threadIdx.x;
        MEETING
        y[threadIdx.x] = s[31 - threadIdx.x];  // here
    }"""
    fault(Race, source.replace("MEETING", ""), floats(32))
    for meeting in ("__syncwarp();", "y[0] += __shfl_xor_sync(~0u, y[threadIdx.x], 1) * 0;"):
        text = source.replace("MEETING", meeting.replace("y[0] +=", "volatile float z ="))
        y = floats(32)
        run(compiled('extern "C" __global__ void k' + text), y)
        assert y.tolist() == [31 - i for i in range(32)]


def test_syncwarp_does_not_order_other_warps() -> None:
    source = MISSING_BARRIER.replace("BARRIER", "__syncwarp();")
    fault(Race, source, floats(64), block=64)


def test_syncwarp_of_some_lanes_orders_these() -> None:
    source = """(float* y) {
        __shared__ float s[32];
        int lane = threadIdx.x;
        if (lane < 16) {
            s[lane] = lane;
            MEETING
            y[lane] = s[15 - lane];  // here
        }
    }"""
    fault(Race, source.replace("MEETING", ""), floats(32))
    y = floats(32)
    run(
        compiled('extern "C" __global__ void k' + source.replace("MEETING", "__syncwarp(65535);")),
        y,
    )
    assert y.tolist() == [15 - i for i in range(16)] + [0] * 16


def test_syncwarp_of_one_of_two_warps_orders_it() -> None:
    source = """(float* y) {
        __shared__ float s[32];
        int lane = threadIdx.x;
        if (lane < 32) {
            s[lane] = lane;
            MEETING
            y[lane] = s[31 - lane];  // here
            __syncwarp();
            s[lane] = 0;
        }
    }"""
    fault(Race, source.replace("MEETING", ""), floats(32), block=64)
    y = floats(32)
    run(
        compiled('extern "C" __global__ void k' + source.replace("MEETING", "__syncwarp();")),
        y,
        block=64,
    )
    assert y.tolist() == [31 - i for i in range(32)]


def test_syncwarp_of_some_lanes_does_not_order_others() -> None:
    source = """(float* y) {
        __shared__ float s[32];
        int lane = threadIdx.x;
        s[lane] = lane;
        if (lane >= 16) __syncwarp(0xffff0000u);
        y[lane] = s[lane < 16 ? 15 - lane : 47 - lane];  // here
    }"""
    error = fault(Race, source, floats(32))
    assert error.thread is not None
    assert error.thread[0] < 16


def test_two_threads_that_write_the_same_byte() -> None:
    source = """(float* y) {
        y[threadIdx.x / 2] = 1;  // here
    }"""
    error = fault(Race, source, floats(32))
    assert error.thread == (1, 0, 0)
    assert "thread (0, 0, 0) of block (0, 0, 0)" in error.what


def test_two_blocks_that_touch_the_same_words() -> None:
    source = """(float* y) {
        int i = threadIdx.x;
        y[32 * blockIdx.x + i] = 1;
        __syncthreads();
        if (blockIdx.x) y[64 + i] = y[i] + 1;  // here
    }"""
    error = fault(Race, source, floats(128), grid=2)
    assert error.block == (1, 0, 0)
    assert "of block (0, 0, 0)" in error.what
    assert "'argument 0'" in error.what


def test_a_barrier_orders_a_block_in_global_memory() -> None:
    source = """extern "C" __global__ void k(float* y) {
        y[threadIdx.x] = threadIdx.x;
        __syncthreads();
        float z = y[blockDim.x - 1 - threadIdx.x];
        __syncthreads();
        y[threadIdx.x] = z;
    }"""
    y = floats(64)
    run(compiled(source), y, block=64)
    assert y.tolist() == [63 - i for i in range(64)]


def test_atomics_do_not_race_with_each_other_but_with_reads() -> None:
    source = """(int* y) {
        atomicAdd(y, 1);
        READ
    }"""
    y = np.zeros(33, dtype=np.int32)
    run(compiled('extern "C" __global__ void k' + source.replace("READ", "")), y, grid=2)
    assert y[0] == 64
    fault(Race, source.replace("READ", "y[1 + threadIdx.x] = y[0];  // here"), y)


def test_an_earlier_race_is_the_cause_of_a_bad_address() -> None:
    source = """(int* y) {
        __shared__ int s[64];
        s[threadIdx.x] = threadIdx.x;
        int at = s[63 - threadIdx.x];  // here
        y[at + 1] = 1;
    }"""
    fault(Race, source, np.zeros(64, dtype=np.int32), block=64)
