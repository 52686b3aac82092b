"""Faults of kernels: each is caught, with its line and thread."""

import numpy as np
import pytest
from faulting import fault, floats
from run_kernel import compiled, run

from cuda_emulator.faults import (
    KernelFault,
    Misaligned,
    OutOfBounds,
    TooLong,
    Trap,
    Uninitialised,
    UnknownInstruction,
)


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
def test_a_fault_in_a_later_round_of_a_loop(bytes_: int, kind: type[KernelFault]) -> None:
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


def test_bytes_of_the_allocation_beyond_the_argument() -> None:
    source = """(const float* x, float* y) {
        y[threadIdx.x] = x[threadIdx.x + 1];  // here
    }"""
    error = fault(OutOfBounds, source, floats(32), floats(32), spare=4)
    assert error.thread == (31, 0, 0)


def test_a_null_pointer() -> None:
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


def test_before_shared_memory() -> None:
    source = """(float* y, int n) {
        __shared__ float s[32];
        s[threadIdx.x] = 1;
        __syncthreads();
        y[threadIdx.x] = s[(int)threadIdx.x - n];  // here
    }"""
    error = fault(OutOfBounds, source, floats(32), np.int32(1))
    assert error.thread == (0, 0, 0)
    assert "byte -4 of shared memory" in error.what


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


def test_a_read_of_uninitialised_shared_memory() -> None:
    source = """(float* y) {
        __shared__ float s[64];
        s[threadIdx.x] = 1;
        __syncthreads();
        y[threadIdx.x] = s[threadIdx.x + 16];  // here
    }"""
    error = fault(Uninitialised, source, floats(32))
    assert error.thread == (16, 0, 0)
    assert "byte 128 of shared memory" in error.what


def test_an_endless_loop() -> None:
    source = """(volatile int* y) {
        while (y[threadIdx.x] == 0)  // here
            y[threadIdx.x] = 0;  // here
    }"""
    error = fault(TooLong, source, np.zeros(32, dtype=np.int32), budget=1000)
    assert "after 1000 instructions" in error.what


def test_trap() -> None:
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
