"""Matrix instructions against the tables of the PTX manual, and asynchronous copies."""

import ml_dtypes
import numpy as np
import pytest
from run_kernel import compiled, run

from cuda_emulator.faults import LostLane, Misaligned, Race, Uninitialised

KINDS = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def lane_elements(matrix: str, lane: int, count: int) -> list[tuple[int, int]]:
    """Row and column of each element of a lane, case by case as the manual lists them."""
    g, t = lane // 4, lane % 4
    places = []
    for i in range(count):
        if matrix == "A":
            row = g if i in (0, 1, 4, 5) else g + 8
            places.append((row, 2 * t + (i & 1) + (8 if i >= 4 else 0)))
        elif matrix == "B":
            places.append((2 * t + (i & 1) + (8 if i >= 2 else 0), g))
        else:
            places.append((g if i < 2 else g + 8, 2 * t + (i & 1)))
    return places


def spread(matrix: str, values: np.ndarray, count: int) -> np.ndarray:
    """A matrix (rows, columns) as what each of the 32 lanes holds, (32, count)."""
    return np.array([[values[at] for at in lane_elements(matrix, i, count)] for i in range(32)])


@pytest.mark.parametrize("k", [8, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_mma(kind: str, k: int) -> None:
    ra, rb = k // 4, k // 8
    source = f"""extern "C" __global__ void k(
        const unsigned* a, const unsigned* b, const float* c, float* d
    ) {{
        int i = threadIdx.x;
        asm volatile("mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32 "
            "{{%0, %1, %2, %3}}, {{{", ".join(f"%{4 + j}" for j in range(ra))}}}, "
            "{{{", ".join(f"%{4 + ra + j}" for j in range(rb))}}}, "
            "{{{", ".join(f"%{4 + ra + rb + j}" for j in range(4))}}};"
            : "=f"(d[4 * i]), "=f"(d[4 * i + 1]), "=f"(d[4 * i + 2]), "=f"(d[4 * i + 3])
            : {", ".join(f'"r"(a[{ra} * i + {j}])' for j in range(ra))},
              {", ".join(f'"r"(b[{rb} * i + {j}])' for j in range(rb))},
              {", ".join(f'"f"(c[4 * i + {j}])' for j in range(4))});
    }}"""
    rng = np.random.default_rng(1)
    warps = 2
    A = rng.standard_normal((warps, 16, k)).astype(KINDS[kind])
    B = rng.standard_normal((warps, k, 8)).astype(KINDS[kind])
    C = rng.standard_normal((warps, 16, 8)).astype(np.float32)
    a = np.stack([spread("A", each, 2 * ra) for each in A]).astype(KINDS[kind]).view(np.uint32)
    b = np.stack([spread("B", each, 2 * rb) for each in B]).astype(KINDS[kind]).view(np.uint32)
    c = np.stack([spread("C", each, 4) for each in C]).astype(np.float32)
    d = np.zeros_like(c)
    run(compiled(source), a, b, c, d, block=32 * warps)
    exact = A.astype(np.float64) @ B.astype(np.float64) + C
    wanted = np.stack([spread("C", each, 4) for each in exact.astype(np.float32)])
    assert (d == wanted).all()


def test_mma_needs_the_whole_warp() -> None:
    source = """extern "C" __global__ void k(unsigned* a, float* d) {
        if (threadIdx.x < 16) {
            asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                "{%0, %1, %2, %3}, {%4, %4}, {%4}, {%0, %1, %2, %3};"
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]));
        }
    }"""
    with pytest.raises(LostLane) as caught:
        run(compiled(source), np.zeros(1, np.uint32), np.zeros(4, np.float32))
    assert "mma.sync" in str(caught.value)


LDMATRIX = """extern "C" __global__ void k(const uint4* x, unsigned* y) {
    __shared__ __align__(16) uint4 s[65];
    int i = threadIdx.x;
    s[2 * i] = x[2 * i]; s[2 * i + 1] = x[2 * i + 1];
    __syncthreads();
    unsigned r[4] = {0, 0, 0, 0};
    unsigned at = (unsigned)__cvta_generic_to_shared(&s[(5 * i + 3) % 64]) + OFFSET;
    asm volatile("ldmatrix.sync.aligned.m8n8.xCOUNT.TRANSshared.b16 {RESULTS}, [%4];"
        : "+r"(r[0]), "+r"(r[1]), "+r"(r[2]), "+r"(r[3]) : "r"(at));
    for (int j = 0; j < 4; ++j) y[4 * i + j] = r[j];
}"""


def ldmatrix(count: int, transposed: bool, offset: int = 0) -> str:
    results = ", ".join(f"%{i}" for i in range(count))
    source = LDMATRIX.replace("COUNT", str(count)).replace("RESULTS", results)
    return source.replace("TRANS", "trans." if transposed else "").replace("OFFSET", str(offset))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(count: int, transposed: bool) -> None:
    x = np.arange(64 * 8, dtype=np.uint16)
    y = np.zeros((32, 4), dtype=np.uint32)
    launch = run(compiled(ldmatrix(count, transposed)), x, y)
    rows = x.reshape(64, 8)[[(5 * i + 3) % 64 for i in range(32)]]
    got = y.view(np.uint16).reshape(32, 4, 2)
    for lane in range(32):
        g, t = lane // 4, lane % 4
        for i in range(4):
            matrix = rows[8 * i : 8 * i + 8]
            matrix = matrix.T if transposed else matrix
            wanted = matrix[g, 2 * t : 2 * t + 2] if i < count else [0, 0]
            assert (got[lane, i] == wanted).all()
    # Rows 80 bytes apart: eight of 16 bytes fall in different banks.
    assert launch.lines[8].conflicts == 0
    assert launch.lines[8].wavefronts == count


def test_ldmatrix_needs_rows_of_16_bytes() -> None:
    with pytest.raises(Misaligned):
        run(
            compiled(ldmatrix(4, False, offset=8)),
            np.zeros(512, np.uint16),
            np.zeros(128, np.uint32),
        )


COPY = """extern "C" __global__ void k(const float4* x, float4* y, int n) {
    __shared__ __align__(16) float4 s[2][32];
    int i = threadIdx.x;
    for (int stage = 0; stage < 2; ++stage) {
        unsigned at = (unsigned)__cvta_generic_to_shared(&s[stage][i]);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
            :: "r"(at), "l"(x + 32 * stage + i), "r"(i < n ? 16 : 0) : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    FIRST
    y[i] = s[0][31 - i];
    SECOND
    y[32 + i] = s[1][31 - i];
}"""
WAIT = 'asm volatile("cp.async.wait_group %d;" ::: "memory"); __syncthreads();'


def test_asynchronous_copies() -> None:
    source = COPY.replace("FIRST", WAIT % 1).replace("SECOND", WAIT % 0)
    x = np.arange(64 * 4, dtype=np.float32).reshape(2, 32, 4) + 1
    y = np.zeros_like(x)
    run(compiled(source), x, y, np.int32(32))
    assert (y == x[:, ::-1]).all()
    run(compiled(source), x, y, np.int32(7))  # the rest is filled with zeros
    x[:, 7:] = 0
    assert (y == x[:, ::-1]).all()


def test_asynchronous_copies_without_a_wait() -> None:
    x, y = np.zeros(256, dtype=np.float32), np.zeros(256, dtype=np.float32)
    early = COPY.replace("FIRST", WAIT % 2).replace("SECOND", WAIT % 0)
    with pytest.raises((Uninitialised, Race)):
        run(compiled(early), x, y, np.int32(32))
    unsynchronised = COPY.replace("FIRST", WAIT % 1).replace(
        "SECOND", (WAIT % 0).split("__sync")[0]
    )
    with pytest.raises(Race):
        run(compiled(unsynchronised), x, y, np.int32(32))


def test_an_asynchronous_copy_over_memory_that_is_still_read() -> None:
    source = """extern "C" __global__ void k(const float* x, float* y) {
        __shared__ float s[32];
        int i = threadIdx.x;
        s[i] = i;
        __syncthreads();
        y[i] = s[31 - i];
        BARRIER
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;"
            :: "r"((unsigned)__cvta_generic_to_shared(&s[i])), "l"(x + i) : "memory");
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncthreads();
        y[i] += s[31 - i];
    }"""
    x, y = np.arange(32, dtype=np.float32) * 100, np.zeros(32, dtype=np.float32)
    run(compiled(source.replace("BARRIER", "__syncthreads();")), x, y)
    assert (y == 101 * np.arange(31, -1, -1)).all()
    with pytest.raises(Race):
        run(compiled(source.replace("BARRIER", "")), x, y)
    # It may arrive before the barrier that comes between it and the wait.
    wait = 'asm volatile("cp.async.wait_all'
    late = source.replace("BARRIER", "").replace(wait, "__syncthreads(); " + wait)
    with pytest.raises(Race):
        run(compiled(late), x, y)


# Two buffers in turn: while one is read, the next numbers are on their way to the other.
IN_TURN = """
__device__ void copy(const float* to, const float* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;"
        :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
}
extern "C" __global__ void k(const float* x, float* y) {
    __shared__ float s[2][64];
    int i = threadIdx.x;
    copy(&s[0][i], x + i);
    for (int step = 0; step < 4; ++step) {
        if (step < 2) asm volatile("cp.async.wait_group 0;" ::: "memory");
        else asm volatile("cp.async.wait_group WAIT;" ::: "memory");
        BARRIER
        if (step < 3) copy(&s[(step + 1) % 2][i], x + 64 * (step + 1) + i);  // copy
        LATE
        y[64 * step + i] = s[step % 2][63 - i];  // read
    }
}"""


def in_turn(wait: int = 0, barrier: str = "__syncthreads();", late: str = "") -> str:
    return IN_TURN.replace("WAIT", str(wait)).replace("BARRIER", barrier).replace("LATE", late)


def test_two_buffers_in_turn() -> None:
    x = np.arange(256, dtype=np.float32)
    y = np.zeros_like(x)
    run(compiled(in_turn()), x, y, block=64)
    assert (y.reshape(4, 64) == x.reshape(4, 64)[:, ::-1]).all()


@pytest.mark.parametrize(
    "source",
    [
        # From the third time on, the numbers may still be on their way when they are read.
        in_turn(wait=1),
        # All wait for each other, but not for the copies.
        in_turn(wait=1, late="__syncthreads();"),
        # A thread of the other warp may still read the buffer that the next numbers go to.
        in_turn(barrier=""),
        in_turn(barrier="__syncwarp();"),
        # The buffer that is read is the one that the next numbers go to.
        in_turn().replace("s[step % 2]", "s[(step + 1) % 2]"),
    ],
)
def test_two_buffers_in_turn_with_a_mistake(source: str) -> None:
    x = np.arange(256, dtype=np.float32)
    with pytest.raises(Race) as caught:
        run(compiled(source), x, np.zeros_like(x), block=64)
    assert source.splitlines()[caught.value.line - 1].endswith("// read")


def test_a_thread_that_does_not_wait_for_its_own_copy() -> None:
    source = """extern "C" __global__ void k(const float* x, float* y) {
        __shared__ __align__(16) float s[128];
        int i = threadIdx.x;
        for (int n = 0; n < 4; ++n) s[4 * i + n] = 0;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
            :: "r"((unsigned)__cvta_generic_to_shared(&s[4 * i])), "l"(x + 4 * i) : "memory");
        y[i] = s[4 * i + 2];
        asm volatile("cp.async.wait_all;" ::: "memory");
    }"""
    with pytest.raises(Race) as caught:
        run(compiled(source), np.zeros(128, np.float32), np.zeros(32, np.float32), grid=2)
    said = "read of 4 bytes at byte 8 of shared memory, to which thread (0, 0, 0) of block "
    assert f"{said}(0, 0, 0) has a copy under way since line 5" in caught.value.what
