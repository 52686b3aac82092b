"""Loads, stores and atomics of every width and memory; branches and loops."""

import numpy as np
import pytest
from run_kernel import HEAD, compiled, run

from cuda_emulator.memory import Memory
from cuda_emulator.ptx import parse


@pytest.mark.parametrize(
    "type_",
    ["float4", "float2", "int4", "longlong2", "double2", "short4", "uchar4", "ushort2", "char2"],
)
def test_vectors(type_: str) -> None:
    source = f"""extern "C" __global__ void k(const {type_}* x, {type_}* y) {{
        __shared__ {type_} s[64];
        int i = threadIdx.x;
        s[i] = x[i];
        __syncthreads();
        y[i] = s[63 - i];
    }}"""
    size = {"float4": 16, "float2": 8, "int4": 16, "longlong2": 16, "double2": 16, "short4": 8,
            "uchar4": 4, "ushort2": 4, "char2": 2}[type_]  # fmt: skip
    x = np.random.default_rng(1).integers(0, 256, (64, size)).astype(np.uint8)
    y = np.zeros_like(x)
    run(compiled(source), x, y, block=64)
    assert (y == x[::-1]).all()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"])
def test_narrow_types_are_widened(dtype: str) -> None:
    names = {"int8": "signed char", "uint8": "unsigned char", "int16": "short", "int32": "int",
             "uint16": "unsigned short", "uint32": "unsigned", "int64": "long long"}  # fmt: skip
    source = f"""typedef {names[dtype]} number;
    extern "C" __global__ void k(const number* x, long long* wide, number* y) {{
        wide[threadIdx.x] = x[threadIdx.x];
        y[threadIdx.x] = wide[threadIdx.x] * 3 - 1;
    }}"""
    bounds = np.iinfo(dtype)
    x = np.random.default_rng(2).integers(bounds.min, bounds.max, 32, dtype=dtype, endpoint=True)
    wide, y = np.zeros(32, dtype=np.int64), np.zeros(32, dtype=dtype)
    run(compiled(source), x, wide, y)
    assert (wide == x).all()
    assert (y == (x.astype(np.int64) * 3 - 1).astype(dtype)).all()


def test_generic_addresses_of_several_memories() -> None:
    # Each lane's pointer goes to shared, global or local memory, so that only the address decides.
    source = """extern "C" __global__ void k(const float* x, float* y, int n) {
        __shared__ float s[32];
        float own[2] = {-1.0f * threadIdx.x, 0};
        s[threadIdx.x] = 100 + threadIdx.x;
        __syncthreads();
        volatile float* p = &own[n];
        if (threadIdx.x % 3 == 0) p = &s[31 - threadIdx.x];
        else if (threadIdx.x % 3 == 1) p = (float*)x + threadIdx.x;
        y[threadIdx.x] = *p;
    }"""
    x, y = np.arange(32, dtype=np.float32) + 500, np.zeros(32, dtype=np.float32)
    run(compiled(source), x, y, np.int32(0))
    i = np.arange(32)
    assert (y == np.choose(i % 3, [131 - i, 500 + i, -i])).all()


def test_variables_that_are_a_single_float() -> None:
    source = """__constant__ float low = -3.40282347e38f;
    __device__ double third = 1.0 / 3;
    extern "C" __global__ void k(double* y) { y[0] = low; y[1] = third; }"""
    y = np.zeros(2)
    run(compiled(source), y, block=1)
    assert y.tolist() == [float(np.finfo(np.float32).min), 1 / 3]


def test_constant_memory_and_variables() -> None:
    source = """__constant__ float table[4] = {1, 2.5f, -3, 4};
    __device__ int counter = 7;
    extern "C" __global__ void k(float* y, int* old) {
        y[threadIdx.x] = table[threadIdx.x % 4];
        old[threadIdx.x] = atomicAdd(&counter, 1);
    }"""
    y, old = np.zeros(32, dtype=np.float32), np.zeros(32, dtype=np.int32)
    kernel = compiled(source)
    run(kernel, y, old)
    assert (y == np.tile(np.array([1, 2.5, -3, 4]), 8)).all()
    assert sorted(old) == list(range(7, 39))
    run(kernel, y, old)
    assert min(old) == 39  # it keeps its value from launch to launch


def test_static_and_dynamic_shared_memory_together() -> None:
    source = """extern "C" __global__ void k(float* y) {
        __shared__ char odd[3];
        __shared__ double wide[2];
        extern __shared__ float4 dynamic[];
        int i = threadIdx.x;
        if (i < 3) odd[i] = i;
        if (i < 2) wide[i] = 10 * i;
        dynamic[i] = make_float4(i, i, i, 100 * i);
        __syncthreads();
        float4 v = dynamic[31 - i];
        y[i] = odd[i % 3] + wide[i % 2] + v.w + v.x - v.y + v.z - v.z;
    }"""
    y = np.zeros(32, dtype=np.float32)
    launch = run(compiled(source), y, shared=512)
    i = np.arange(32)
    assert (y == i % 3 + 10 * (i % 2) + 100 * (31 - i)).all()
    assert launch.shared == 512 + 32


ATOMICS = [
    ("atomicAdd(p, v)", "int", lambda old, v: old + v),
    ("atomicMax(p, v)", "int", max),
    ("atomicMin(p, v)", "unsigned", min),
    ("atomicAnd(p, v)", "unsigned", lambda old, v: old & v),
    ("atomicOr(p, v)", "unsigned", lambda old, v: old | v),
    ("atomicXor(p, v)", "unsigned", lambda old, v: old ^ v),
    ("atomicExch(p, v)", "int", lambda old, v: v),
    ("atomicInc(p, v)", "unsigned", lambda old, v: 0 if old >= v else old + 1),
    ("atomicDec(p, v)", "unsigned", lambda old, v: v if old == 0 or old > v else old - 1),
    ("atomicAdd(p, v)", "unsigned long long", lambda old, v: old + v),
    ("atomicAdd(p, v)", "float", lambda old, v: old + v),
    ("atomicCAS(p, v - 1, v)", "int", lambda old, v: v if old == v - 1 else old),
]


@pytest.mark.parametrize(("call", "type_", "function"), ATOMICS)
@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics(call: str, type_: str, function, space: str) -> None:
    # Each thread has a word of its own here; below they share one.
    source = f"""extern "C" __global__ void k({type_}* x, const {type_}* values, {type_}* before) {{
        __shared__ {type_} s[32];
        int i = threadIdx.x;
        s[i] = x[i];
        {type_} v = values[i];
        {type_}* p = {"&s[i]" if space == "shared" else "&x[i]"};
        before[i] = {call};
        if ({int(space == "shared")}) x[i] = s[i];
    }}"""
    dtype = {"int": "int32", "unsigned": "uint32", "float": "float32"}.get(type_, "uint64")
    rng = np.random.default_rng(3)
    x, values = rng.integers(0, 9, 32).astype(dtype), rng.integers(0, 9, 32).astype(dtype)
    start, before = x.copy(), np.zeros(32, dtype=dtype)
    run(compiled(source), x, values, before)
    assert (before == start).all()
    assert x.tolist() == [
        function(a, b) for a, b in zip(start.tolist(), values.tolist(), strict=True)
    ]


def test_atomics_on_one_word_are_one_after_the_other() -> None:
    source = """extern "C" __global__ void k(int* sum, int* old) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i % 5 != 2) old[i] = atomicAdd(sum, i);
    }"""
    total, old = np.zeros(1, dtype=np.int32), np.full(256, -1, dtype=np.int32)
    run(compiled(source), total, old, grid=4, block=64)
    took = [i for i in range(256) if i % 5 != 2]
    assert total[0] == sum(took)
    order = sorted(took, key=lambda i: (old[i], i))
    running = 0
    for i in order:
        if i:
            assert old[i] == running
        running += i


def test_loops_of_different_lengths_within_a_warp() -> None:
    source = """extern "C" __global__ void k(const int* n, int* y) {
        int i = blockIdx.x * blockDim.x + threadIdx.x, sum = 0;
        for (int j = 0; j < n[i]; ++j) {
            if (j % 3 == 1) continue;
            if (j > 40) break;
            sum += j * j;
        }
        y[i] = sum;
    }"""
    n = np.random.default_rng(4).integers(0, 60, 200).astype(np.int32)
    y = np.zeros(200, dtype=np.int32)
    run(compiled(source), n, y, grid=5, block=40)
    assert y.tolist() == [sum(j * j for j in range(min(m, 41)) if j % 3 != 1) for m in n.tolist()]


def test_a_grid_that_is_run_in_batches() -> None:
    source = """extern "C" __global__ void k(const float* x, float* y, int n) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) y[i] = x[i] + blockIdx.x;
    }"""
    n = 256 * 40 - 17
    x, y = np.arange(n, dtype=np.float32), np.zeros(n, dtype=np.float32)
    launch = run(compiled(source), x, y, np.int32(n), grid=40, block=256)
    assert (y == x + np.arange(n) // 256).all()
    assert launch.total.bytes == 8 * n


def test_shared_memory_is_each_blocks_own() -> None:
    source = """extern "C" __global__ void k(int* y) {
        __shared__ int s[33];
        s[threadIdx.x] = blockIdx.x * 100 + threadIdx.x;
        __syncthreads();
        y[blockIdx.x * 33 + threadIdx.x] = s[32 - threadIdx.x];
    }"""
    y = np.zeros(33 * 7, dtype=np.int32)
    run(compiled(source), y, grid=7, block=33)
    assert (y.reshape(7, 33) == np.arange(7)[:, None] * 100 + np.arange(33)[::-1]).all()


def test_labels_and_registers_in_scopes() -> None:
    text = """.visible .entry k(.param .u64 out) {
        .reg .b64 %rd<2>; .reg .b32 %r<4>, x;
        ld.param.u64 %rd0, [out];
        mov.u32 x, 5; mov.u32 %r1, 0;
        { .reg .b32 x; .reg .pred p; mov.u32 x, 3;
          again: add.u32 %r1, %r1, 10; add.s32 x, x, -1; setp.gt.s32 p, x, 0; @p bra again; }
        { .reg .b32 x; .reg .pred p; mov.u32 x, 2;
          again: add.u32 %r1, %r1, 100; add.s32 x, x, -1; setp.gt.s32 p, x, 0; @p bra again; }
        add.u32 %r1, %r1, x;
        st.global.u32 [%rd0], %r1;
        ret; }"""
    y = np.zeros(1, dtype=np.int32)
    run(parse(HEAD + text).kernels["k"], y, block=1)
    assert y[0] == 235


def test_a_register_that_is_set_in_one_round_of_a_loop_and_read_in_the_next() -> None:
    text = """.visible .entry k(.param .u64 out) {
        .reg .b64 %rd<3>; .reg .b32 %r<5>, x; .reg .pred p, q;
        mov.u32 %r0, %tid.x; ld.param.u64 %rd0, [out];
        mul.wide.u32 %rd1, %r0, 4; add.s64 %rd0, %rd0, %rd1;
        mov.u32 %r1, 0; mov.u32 %r2, 0; and.b32 %r3, %r0, 1; add.s32 %r3, %r3, 2;
        again: setp.gt.s32 q, %r1, 0;
          @q add.s32 %r2, %r2, x;
          add.s32 x, %r0, %r1;
          add.s32 %r1, %r1, 1; setp.lt.s32 p, %r1, %r3; @p bra again;
        st.global.u32 [%rd0], %r2;
        ret; }"""
    y = np.zeros(32, dtype=np.int32)
    run(parse(HEAD + text).kernels["k"], y)
    i = np.arange(32)
    assert (y == i + (i + 1) * (i % 2)).all()


def test_allocations_are_in_regions_of_their_own() -> None:
    memory = Memory()
    first, second = memory.allocate(10), memory.allocate(0)
    assert first % (1 << 40) == second % (1 << 40) == 0
    assert first != second
    memory.bytes(first + 4, 6)[:] = 3
    assert memory.bytes(first, 10).tolist()[4:] == [3] * 6
    for address, nbytes in ((first, 11), (first + 10, 1), (second, 1), (5, 1)):
        with pytest.raises(ValueError, match="do not lie in an allocation"):
            memory.bytes(address, nbytes)
    memory.free(first)
    with pytest.raises(ValueError, match="no allocation begins there"):
        memory.free(first)
    with pytest.raises(ValueError, match="no allocation begins there"):
        memory.free(second + 1)
