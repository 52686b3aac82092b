"""Kernels that do what they must not: each is caught, on its line, with who did it."""

import numpy as np
import pytest
from run_kernel import compiled, run

from tinymistral_cupy.emulator.faults import (
    DivergentBarrier,
    KernelFault,
    LostLane,
    Misaligned,
    OutOfBounds,
    Race,
    TooLong,
    Trap,
    Uninitialised,
    UnknownInstruction,
)


def fault(kind: type[KernelFault], source: str, *args, **options) -> KernelFault:
    """Run a kernel that must fail, and see that it does on the line that says `// here`."""
    kernel = compiled('extern "C" __global__ void k' + source)
    lines = [i for i, line in enumerate(source.splitlines(), 1) if "// here" in line]
    with pytest.raises(kind) as caught:
        run(kernel, *args, **options)
    error = caught.value
    assert error.kernel == "k"
    assert error.source == "mistral.cu"
    assert error.line in lines, str(error)
    assert f"mistral.cu:{error.line}, block" in str(error)
    return error


floats = lambda n: np.zeros(n, dtype=np.float32)  # noqa: E731


def test_a_read_beyond_the_end() -> None:
    error = fault(
        OutOfBounds,
        """(const float* x, float* y) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            y[i] = x[i + 1];  // here
        }""",
        floats(64), floats(64), grid=2,
    )  # fmt: skip
    assert (error.block, error.thread) == ((1, 0, 0), (31, 0, 0))
    assert "read of 4 bytes" in error.what
    assert "byte 256 of 'argument 0', which has 256 bytes" in error.what


def test_a_write_before_the_start() -> None:
    error = fault(
        OutOfBounds,
        """(float* y) {
            y[(int)threadIdx.x - 1] = 1;  // here
        }""",
        floats(64),
    )
    assert error.thread == (0, 0, 0)
    assert "write of 4 bytes at byte -4 of 'argument 0'" in error.what


@pytest.mark.parametrize(("bytes_", "kind"), [(4, OutOfBounds), (2, Misaligned)])
def test_what_goes_wrong_later_in_a_loop(bytes_: int, kind: type[KernelFault]) -> None:
    # The instruction has been in order before; the argument ends where no power of two does.
    source = """(const char* x, float* y, int n, int step) {
        float sum = 0;
        #pragma unroll 1
        for (int i = 0; i < n; ++i)
            sum += *(const float*)(x + 4 * threadIdx.x + i * step);  // here
        y[threadIdx.x] = sum;
    }"""
    x = floats(35)
    run(compiled('extern "C" __global__ void k' + source), x, floats(32), np.int32(4), np.int32(4))
    args = (x, floats(32), np.int32(5), np.int32(bytes_))
    error = fault(kind, source, *args)
    assert error.thread == ((31 if bytes_ == 4 else 0), 0, 0)


def test_what_the_allocation_has_but_the_argument_has_not() -> None:
    source = """(const float* x, float* y) {
        y[threadIdx.x] = x[threadIdx.x + 1];  // here
    }"""
    error = fault(OutOfBounds, source, floats(32), floats(32), spare=4)
    assert error.thread == (31, 0, 0)


def test_a_pointer_to_nothing() -> None:
    source = """(float* y) {
        ((float*)64)[threadIdx.x] = 1;  // here
    }"""
    error = fault(OutOfBounds, source, floats(1))
    assert "address 0x40, which belongs to no argument" in error.what


def test_beyond_shared_memory() -> None:
    source = """(float* y, int n) {
        __shared__ float s[32];
        s[threadIdx.x] = 1;
        __syncthreads();
        y[threadIdx.x] = s[threadIdx.x + n];  // here
    }"""
    error = fault(OutOfBounds, source, floats(64), np.int32(1))
    assert error.thread == (31, 0, 0)
    assert "byte 128 of shared memory, which has 128 bytes" in error.what


def test_beyond_dynamic_shared_memory() -> None:
    source = """(float* y) {
        extern __shared__ float s[];
        s[threadIdx.x] = 1;  // here
        y[threadIdx.x] = s[threadIdx.x];
    }"""
    run(compiled('extern "C" __global__ void k' + source), floats(32), shared=128)
    error = fault(OutOfBounds, source, floats(32), shared=124)
    assert error.thread == (31, 0, 0)


def test_beyond_a_local_array() -> None:
    source = """(float* y, int n) {
        float a[4];
        for (int i = 0; i < 4; ++i) a[i] = y[i];
        y[threadIdx.x] = a[n];  // here
    }"""
    run(compiled('extern "C" __global__ void k' + source), floats(32), np.int32(3), block=1)
    error = fault(OutOfBounds, source, floats(32), np.int32(4), block=1)
    assert "the thread's local memory" in error.what


def test_a_vector_that_the_array_is_not_aligned_for() -> None:
    # A `float s[]` is aligned to 4 bytes, not to the 16 that a float4 asks for.
    source = """(float* y, int n) {
        __shared__ float s[68];
        for (int i = threadIdx.x; i < 68; i += blockDim.x) s[i] = i;
        __syncthreads();
        float4 four = *reinterpret_cast<const float4*>(s + threadIdx.x * n);  // here
        y[threadIdx.x] = four.x + four.y + four.z + four.w;
    }"""
    run(compiled('extern "C" __global__ void k' + source), floats(2), np.int32(4), block=2)
    error = fault(Misaligned, source, floats(2), np.int32(1), block=2)
    assert error.thread == (1, 0, 0)
    assert "read of 16 bytes at byte 4 of shared memory, which is no multiple of 16" in str(error)


def test_a_misaligned_word_of_global_memory() -> None:
    source = """(const char* x, float* y) {
        y[threadIdx.x] = *reinterpret_cast<const float*>(x + 4 * threadIdx.x + 2);  // here
    }"""
    error = fault(Misaligned, source, floats(64), floats(32))
    assert "read of 4 bytes at byte 2 of 'argument 0'" in error.what
    assert "no multiple of 4" in error.what


def test_a_vector_of_global_memory_at_a_multiple_of_4() -> None:
    source = """(const float* x, float* y, int n) {
        float4 four = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x + n);  // here
        y[threadIdx.x] = four.x + four.y + four.z + four.w;
    }"""
    args = floats(16), floats(3)
    run(compiled('extern "C" __global__ void k' + source), *args, np.int32(4), block=3)
    for n in (1, 2):
        error = fault(Misaligned, source, *args, np.int32(n), block=3)
        assert error.thread == (0, 0, 0)
        assert f"read of 16 bytes at byte {4 * n} of 'argument 0'" in error.what
        assert "no multiple of 16" in error.what


def test_a_vector_of_global_memory_that_was_aligned_before() -> None:
    source = """(const char* x, float* y, int step) {
        float sum = 0;
        #pragma unroll 1
        for (int i = 0; i < 3; ++i) {
            float4 four = *reinterpret_cast<const float4*>(x + i * step);  // here
            sum += four.x + four.y + four.z + four.w;
        }
        y[threadIdx.x] = sum;
    }"""
    args = floats(16), floats(32)
    run(compiled('extern "C" __global__ void k' + source), *args, np.int32(16))
    for step in (4, 8):
        error = fault(Misaligned, source, *args, np.int32(step))
        assert f"at byte {step} of 'argument 0'" in error.what


def test_a_read_of_shared_memory_that_nobody_wrote() -> None:
    source = """(float* y) {
        __shared__ float s[64];
        s[threadIdx.x] = 1;
        __syncthreads();
        y[threadIdx.x] = s[threadIdx.x + 16];  // here
    }"""
    error = fault(Uninitialised, source, floats(32))
    assert error.thread == (16, 0, 0)
    assert "byte 128 of shared memory" in error.what


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
    # So too where they left long before, so that all who are left come together.
    early = source.replace("(threadIdx.x >= n) return;", '(threadIdx.x >= n) asm("exit;");')
    early = early.replace("y[threadIdx.x] = 1;", "y[threadIdx.x] = 1; __syncwarp(__activemask());")
    fault(DivergentBarrier, early, floats(64), np.int32(63), block=64)
    # A whole block that leaves is no matter.
    source = source.replace("threadIdx.x >= n", "blockIdx.x >= n")
    y = floats(64)
    run(compiled('extern "C" __global__ void k' + source), y, np.int32(1), block=64, grid=2)
    assert (y == 2).all()


def test_a_shuffle_that_names_lanes_which_went_elsewhere() -> None:
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


def test_lanes_that_meet_with_different_masks() -> None:
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


def test_a_shuffle_waits_for_lanes_that_come_another_way() -> None:
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


def test_an_endless_loop() -> None:
    source = """(volatile int* y) {
        while (y[threadIdx.x] == 0)  // here
            y[threadIdx.x] = 0;  // here
    }"""
    error = fault(TooLong, source, np.zeros(32, dtype=np.int32), budget=1000)
    assert "after 1000 instructions" in error.what


def test_a_trap() -> None:
    source = """(int* y, int n) {
        if (n > 3) __trap();  // here
        y[threadIdx.x] = n;
    }"""
    fault(Trap, source, np.zeros(32, dtype=np.int32), np.int32(4))
    run(compiled('extern "C" __global__ void k' + source), np.zeros(32, np.int32), np.int32(3))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('asm volatile("mov.u32 %0, %%clock;" : "=r"(n));', "%clock"),
        ('asm volatile("dp4a.s32.s32 %0, %0, %0, %0;" : "+r"(n));', "dp4a.s32.s32"),
        ('asm volatile("add.cc.u32 %0, %0, %0;" : "+r"(n));', "add.cc.u32"),
        ('asm volatile("bar.sync 1, 32;");', "bar.sync"),
    ],
)
def test_an_instruction_that_is_not_known(text: str, named: str) -> None:
    source = 'extern "C" __global__ void k(int* y, int n) {\n' + text + "\ny[threadIdx.x] = n; }"
    with pytest.raises(UnknownInstruction) as caught:
        run(compiled(source), np.zeros(32, dtype=np.int32), np.int32(4))
    assert named in str(caught.value)
    assert caught.value.line == 2


def test_an_earlier_race_is_the_cause_of_a_bad_address() -> None:
    source = """(int* y) {
        __shared__ int s[64];
        s[threadIdx.x] = threadIdx.x;
        int at = s[63 - threadIdx.x];  // here
        y[at + 1] = 1;
    }"""
    fault(Race, source, np.zeros(64, dtype=np.int32), block=64)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "has 2 parameters, not 0"),
        ((np.zeros(32, np.float32), np.int64(1)), "parameter 1"),
        ((np.zeros(32, np.float32), 1), "expected a Span or a NumPy scalar, not int"),
        ((np.int64(0), np.float32(1)), ""),
        ((np.zeros(32, np.float32), np.zeros(1, np.float32)), "is a .u32, no pointer"),
    ],
)
def test_arguments_that_do_not_fit(args: tuple, message: str) -> None:
    kernel = compiled('extern "C" __global__ void k(float* y, int n) { if (n == 7) y[0] = n; }')
    if not message:
        run(kernel, *args)  # a null pointer and 4 bytes are taken as they are
        return
    with pytest.raises(ValueError, match=message):
        run(kernel, *args)
