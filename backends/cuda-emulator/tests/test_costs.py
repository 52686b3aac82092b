"""What accesses cost, counted by hand for patterns that the CUDA manuals work out."""

import numpy as np
import pytest
from run_kernel import HEAD, compiled, run

from cuda_emulator.counts import LineCounts
from cuda_emulator.ptx import parse


def line(source: str, *args, **options) -> LineCounts:
    """The counts of the line that says `// here`."""
    lines = [i for i, text in enumerate(source.splitlines(), 1) if "// here" in text]
    launch = run(compiled('extern "C" __global__ void k' + source), *args, **options)
    assert len(lines) == 1
    return launch.lines[lines[0]]


SHARED = """(float* y, int n) {
    __shared__ float s[32 * 33];
    for (int i = threadIdx.x; i < 32 * 33; i += 32) s[i] = i;
    __syncthreads();
    float v = s[threadIdx.x * n];  // here
    y[threadIdx.x] = v;
}"""


@pytest.mark.parametrize(
    ("stride", "degree"),
    # 32 banks: lanes i and j meet in one where (i - j) · stride is a multiple of 32.
    [(0, 1), (1, 1), (2, 2), (3, 1), (4, 4), (8, 8), (16, 16), (32, 32), (33, 1)],
)
def test_conflicts_of_strided_words(stride: int, degree: int) -> None:
    counts = line(SHARED, np.zeros(32, dtype=np.float32), np.int32(stride))
    assert (counts.conflicts, counts.wavefronts) == (degree - 1, degree)


VECTORS = """(float* y, int n) {
    __shared__ __align__(16) float s[2048];
    for (int i = threadIdx.x; i < 2048; i += 32) s[i] = i;
    __syncthreads();
    float4 v = *reinterpret_cast<const float4*>(s + threadIdx.x * n);  // here
    y[threadIdx.x] = v.x + v.y + v.z + v.w;
}"""


@pytest.mark.parametrize(
    ("stride", "wavefronts"),
    # Eight lanes are served at once, 8 · 16 bytes = 32 banks: none conflict side by side, two in
    # a bank at 32 bytes, eight at 128; padding by one vector ends it.
    [(4, 4), (8, 8), (32, 32), (36, 4)],
)
def test_conflicts_of_vectors(stride: int, wavefronts: int) -> None:
    counts = line(VECTORS, np.zeros(32, dtype=np.float32), np.int32(stride))
    assert (counts.wavefronts, counts.conflicts) == (wavefronts, wavefronts - 4)


def test_conflicts_are_within_a_warp() -> None:
    source = SHARED.replace("threadIdx.x * n", "threadIdx.x % 32 * n").replace("+= 32", "+= 64")
    counts = line(source, np.zeros(64, dtype=np.float32), np.int32(2), block=64)
    assert (counts.conflicts, counts.wavefronts) == (2, 4)


def test_rows_padded_against_columns() -> None:
    source = """(float* y) {
        __shared__ float s[32][WIDTH];
        for (int i = 0; i < 32; ++i) s[i][threadIdx.x] = i;
        __syncthreads();
        float v = s[threadIdx.x][0];  // here
        y[threadIdx.x] = v;
    }"""
    y = np.zeros(32, dtype=np.float32)
    assert line(source.replace("WIDTH", "32"), y).conflicts == 31
    assert line(source.replace("WIDTH", "33"), y).conflicts == 0


GLOBAL = """(const float* x, float* y, int n) {
    float v = x[threadIdx.x * n];  // here
    y[threadIdx.x] = v;
}"""


@pytest.mark.parametrize(
    ("stride", "sectors", "fewest"),
    # 32 lanes of 4 bytes are 4 sectors of 32; at stride 8 each lane has a sector of its own.
    [(0, 1, 1), (1, 4, 4), (2, 8, 4), (4, 16, 4), (8, 32, 4), (32, 32, 4)],
)
def test_sectors_of_strided_words(stride: int, sectors: int, fewest: int) -> None:
    x, y = np.zeros(1024, dtype=np.float32), np.zeros(32, dtype=np.float32)
    counts = line(GLOBAL, x, y, np.int32(stride))
    assert (counts.sectors, counts.fewest_sectors, counts.bytes) == (sectors, fewest, 128)


def test_sectors_of_words_that_start_between_two() -> None:
    source = GLOBAL.replace("* n", "+ n")
    x, y = np.zeros(1024, dtype=np.float32), np.zeros(32, dtype=np.float32)
    counts = line(source, x, y, np.int32(1))
    assert (counts.sectors, counts.fewest_sectors) == (5, 4)


def test_sectors_of_some_lanes() -> None:
    source = GLOBAL.replace("float v =", "if (threadIdx.x >= 24) return;\nfloat v =")
    x, y = np.zeros(64, dtype=np.float32), np.zeros(32, dtype=np.float32)
    counts = line(source, x, y, np.int32(1))
    assert (counts.sectors, counts.bytes) == (3, 96)


LOOP = """
.visible .entry k(.param .u32 n) {
    .reg .b32 %r<3>; .reg .pred %p;
    .loc 1 7 0
    ld.param.u32 %r1, [n];
loop:
    .loc 1 8 0
    mul.lo.s32 %r2, %r1, %r1;
    add.s32 %r1, %r1, -1;
    .loc 1 9 0
    setp.ne.s32 %p, %r1, 0;
    @%p bra loop;
    .loc 1 10 0
    ret;
}
.file 1 "loop.cu"
"""


def test_instructions_by_warp_and_line() -> None:
    kernel = parse(HEAD + LOOP).kernels["k"]
    launch = run(kernel, np.int32(5), block=64, grid=3)
    counted = {number: counts.instructions for number, counts in launch.lines.items()}
    assert launch.source == "loop.cu"
    assert counted == {7: 6, 8: 2 * 5 * 6, 9: 2 * 5 * 6, 10: 6}  # six warps


JOIN = """
.visible .entry k() {
    .reg .b32 %r<3>; .reg .pred %p;
    .loc 1 7 0
    mov.u32 %r1, %tid.x;
    setp.lt.u32 %p, %r1, 7;
    @%p bra other;
    .loc 1 8 0
    add.s32 %r1, %r1, 1;
    bra.uni join;
other:
    .loc 1 9 0
    add.s32 %r1, %r1, 2;
join:
    .loc 1 10 0
    add.s32 %r1, %r1, 3;
    ret;
}
.file 1 "join.cu"
"""


def test_diverged_lanes_converge_again() -> None:
    launch = run(parse(HEAD + JOIN).kernels["k"], block=64)
    counted = {number: counts.instructions for number, counts in launch.lines.items()}
    # The first warp goes both ways and then on as one, the second one way.
    assert counted == {7: 6, 8: 4, 9: 1, 10: 4}


def test_a_branch_costs_the_warps_that_take_it() -> None:
    source = """extern "C" __global__ void k(float* y) {
        if (threadIdx.x < 40)
            y[threadIdx.x] = sqrtf(y[threadIdx.x + 40]);
    }"""
    for threads, warps in ((32, 1), (64, 2), (96, 2), (128, 2)):
        launch = run(compiled(source), np.zeros(256, dtype=np.float32), block=threads)
        one = run(compiled(source), np.zeros(256, dtype=np.float32), block=32)
        assert launch.lines[3].instructions == warps * one.lines[3].instructions
