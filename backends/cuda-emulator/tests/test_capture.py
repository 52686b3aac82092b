"""Streams that capture, graphs, pools of memory, and cuBLAS: what they do, and what is refused."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest

from cuda_emulator import cublas
from cuda_emulator import cupy_stand_in as cp
from cuda_emulator.cupy_stand_in import _card

ADD = 'extern "C" __global__ void add(float* x, float y) { x[threadIdx.x] += y; }'


@pytest.fixture
def add():
    return cp.RawModule(code=ADD).get_function("add")


def on(*numbers, dtype=np.float32):
    return cp.asarray(np.array(numbers, dtype=dtype))


@contextmanager
def capturing() -> Iterator[cp.cuda.Stream]:
    """Return a context in which a new stream captures."""
    with cp.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            yield stream
        finally:
            _card.WORK.captures.pop(stream.ptr, None)


def captured(work: Callable[[], object], pool: cp.cuda.MemoryPool) -> cp.cuda.Graph:
    """Run it, which loads its kernels, then capture it."""
    with cp.cuda.using_allocator(pool.malloc), cp.cuda.Stream(non_blocking=True) as stream:
        work()
        stream.begin_capture()
        work()
        return stream.end_capture()


@pytest.fixture
def pool():
    return cp.cuda.MemoryPool()


# What a graph does


def test_a_graph_does_again_what_was_launched_and_nothing_while_it_is_captured(add, pool):
    x = on(1, 2)
    graph = captured(lambda: add((1,), (2,), (x, np.float32(10))), pool)
    np.testing.assert_array_equal(x.get(), [11, 12])  # by the run before
    for expected in ([21, 22], [31, 32]):
        graph.launch()
        np.testing.assert_array_equal(x.get(), expected)


def test_it_reads_what_lies_at_its_addresses_then(pool):
    x, index, sum_ = on(1, 2, 3), on(2, dtype=np.int64), on(0)

    def work() -> None:
        zero = cp.zeros(1, np.float32)
        cp.copyto(sum_, cp.take(x, index, axis=0) + sum_ + zero)

    graph = captured(work, pool)
    assert sum_.get()[0] == 3
    x.set(np.array([10, 20, 30], dtype=np.float32))
    index.set(np.array([1]))
    graph.launch()
    assert sum_.get()[0] == 3 + 20


def test_arguments_are_those_of_the_capture(add, pool):
    x, amount = on(0), np.array([1], dtype=np.float32)
    graph = captured(lambda: add((1,), (1,), (x, amount[0])), pool)
    amount[0] = 100
    graph.launch()
    assert x.get()[0] == 2


@pytest.mark.parametrize("what", ["a kernel", "an array operation"])
def test_memory_that_was_freed_since_is_noticed(what, add, pool):
    arrays = [on(1, 2), on(3, 4)]
    works = {
        "a kernel": lambda: add((1,), (2,), (arrays[0], np.float32(1))),
        "an array operation": lambda: cp.copyto(*arrays),
    }
    graph = captured(works[what], pool)
    graph.launch()
    arrays.clear()
    gc.collect()
    with pytest.raises(ValueError, match="do not lie in an allocation"):
        graph.launch()


def test_another_stream_goes_on(add):
    x = on(1)
    add((1,), (1,), (x, np.float32(1)))
    with capturing():
        with cp.cuda.Stream():
            add((1,), (1,), (x, np.float32(1)))
        assert cp.cuda.get_current_stream().ptr in _card.WORK.captures
    assert cp.cuda.get_current_stream().ptr == 0
    assert x.get()[0] == 3


# What is refused

host = np.ones((2, 3), dtype=np.float32)
card, other = cp.asarray(host), cp.asarray(host)
event = cp.cuda.Event()
REFUSED = {  # and what cupy or CUDA says: an error of its class
    "a product by cuBLAS": (NotImplementedError, lambda: cp.matmul(card, card.T)),
    "a copy to the host": (RuntimeError, card.get),
    "a copy from the host": (RuntimeError, lambda: card.set(host)),
    "a new copy from the host": (RuntimeError, lambda: cp.asarray(host)),
    "new memory": (RuntimeError, lambda: cp.empty(3)),
    "new memory for a result": (RuntimeError, lambda: card + other),
    "waiting for an event": (RuntimeError, event.synchronize),
    "an event to wait for": (RuntimeError, event.record),
    "waiting for the stream": (RuntimeError, lambda: cp.cuda.get_current_stream().synchronize()),
    "a graph": (RuntimeError, cp.cuda.Graph().launch),
    "another capture": (RuntimeError, lambda: cp.cuda.get_current_stream().begin_capture()),
    "an array with gaps": (NotImplementedError, lambda: cp.copyto(card[:, :2], other[:, :2])),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_while_a_stream_captures(what):
    error, call = REFUSED[what]
    cp.copyto(card, other)  # so that it is loaded
    with capturing(), pytest.raises(error, match="captur"):
        call()


def test_a_kernel_that_never_ran_is_refused():
    never = cp.RawModule(code=ADD.replace("add", "never")).get_function("never")
    with capturing(), pytest.raises(RuntimeError, match=r"loading a kernel, .*never"):
        never((1,), (2,), (card, np.float32(1)))


def test_the_default_stream_and_another_than_the_current_one_do_not_capture():
    with pytest.raises(RuntimeError, match="cannot capture on the default"):
        cp.cuda.Stream(null=True).begin_capture()
    with pytest.raises(RuntimeError, match="only the current stream"):
        cp.cuda.Stream().begin_capture()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="CUDA error 401"):
        cp.cuda.Stream().end_capture()


# Pools


def test_a_pool_keeps_memory_for_arrays_of_the_same_size_on_the_same_stream(pool):
    streams = cp.cuda.Stream(), cp.cuda.Stream()
    with cp.cuda.using_allocator(pool.malloc):
        with streams[0]:
            first = cp.zeros(4, np.int64).data.ptr
            assert pool.free_bytes() == 32
            again = cp.empty(4, np.int64)
            assert again.data.ptr == first
            assert again.get()[0] > 2**40, "it holds garbage, not zeros"
            assert cp.empty(4, np.int64).data.ptr != first
            assert cp.empty(5, np.int64).data.ptr != first
            del again
        with streams[1]:
            assert cp.empty(4, np.int64).data.ptr != first
    assert cp.empty(4, np.int64).data.ptr != first
    gc.collect()
    used = _card.CARD.used
    pool.free_all_blocks()
    gc.collect()
    assert pool.free_bytes() == 0
    assert used - _card.CARD.used == 2 * 32 + 32 + 40


# cuBLAS


def handle_of(library: cublas.Library) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    assert library.cublasCreate_v2(ctypes.byref(handle)) == 0
    assert library.cublasSetStream_v2(handle, cp.cuda.get_current_stream().ptr) == 0
    return handle


ONE, ZERO = ctypes.c_float(1), ctypes.c_float(0)
HALF = np.dtype(np.float16)


def gemm(library, handle, ops, sizes, a, lda, b, ldb, c, ldc, kind=0, compute=68, alpha=ONE):
    alpha, beta = ctypes.byref(alpha), ctypes.byref(ZERO)
    matrices = (a.data.ptr, kind, lda, b.data.ptr, kind, ldb)
    return library.cublasGemmEx(
        handle, *ops, *sizes, alpha, *matrices, beta, c.data.ptr, kind, ldc, compute, -1
    )


@pytest.mark.parametrize("ops", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("kind, dtype", [(0, np.float32), (2, HALF), (14, ml_dtypes.bfloat16)])
def test_a_product_of_columns(ops, kind, dtype):
    """Of small integers, exactly: C (m, n) = op(A) op(B), with unused rows below each matrix."""
    m, n, k, spare = 4, 3, 5, 2
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, shape) for shape in ((m, k), (k, n)))
    stored = [x.T if op else x for x, op in zip((a, b), ops, strict=True)]
    padded = [np.pad(x, ((0, spare), (0, 0))) for x in stored]
    on_card = [cp.asarray(np.ascontiguousarray(x.T).astype(dtype)) for x in padded]
    out = cp.asarray(np.full((n, m + spare), 99).astype(dtype))
    library = cublas.Library()
    strides = [len(x) for x in padded]
    status = gemm(
        library, handle_of(library), ops, (m, n, k),
        on_card[0], strides[0], on_card[1], strides[1], out, m + spare, kind,
    )  # fmt: skip
    assert status == 0
    columns = out.get().astype(int)
    np.testing.assert_array_equal(columns[:, :m].T, a @ b)
    assert (columns[:, m:] == 99).all()


def test_wrong_arguments_have_a_status():
    library, (a, b, c) = cublas.Library(), (cp.zeros((4, 4), np.float32) for _ in range(3))
    sizes, strides = (4, 4, 4), (a, 4, b, 4, c, 4)
    assert gemm(library, ctypes.c_void_p(1), (1, 0), sizes, *strides) == cublas.NOT_INITIALIZED
    handle = handle_of(library)
    assert gemm(library, handle, (1, 0), sizes, *strides) == 0
    for ops, wrong, distances, rest in (
        ((2, 0), sizes, strides, {}),
        ((1, 0), (4, 0, 4), strides, {}),
        ((1, 0), sizes, (a, 3, b, 4, c, 4), {}),
        ((1, 0), sizes, (a, 4, b, 3, c, 4), {}),
        ((1, 0), sizes, (a, 4, b, 4, c, 3), {}),
        ((1, 0), sizes, strides, {"kind": 1}),  # float64
        ((1, 0), sizes, strides, {"compute": 64}),  # in float16
        ((1, 0), sizes, strides, {"alpha": ctypes.c_float(2)}),
    ):
        assert gemm(library, handle, ops, wrong, *distances, **rest) == cublas.INVALID_VALUE
    with cp.cuda.Stream():  # the handle is for another one
        assert gemm(library, handle, (1, 0), sizes, *strides) == cublas.INVALID_VALUE
    with pytest.raises(ValueError, match="do not lie in an allocation"):
        gemm(library, handle, (1, 0), (4, 4, 5), a, 5, b, 5, c, 4)


def test_a_captured_product_needs_a_workspace_set_after_the_stream():
    library, (a, b, c) = cublas.Library(), (on(2, 3), on(4, 5), on(0))
    handle, workspace = handle_of(library), cp.empty(1024)
    product = ((1, 0), (1, 1, 2), a, 2, b, 2, c, 1)
    assert gemm(library, handle, *product) == 0  # which loads it
    with capturing() as stream:
        library.cublasSetWorkspace_v2(handle, workspace.data.ptr, workspace.nbytes)
        library.cublasSetStream_v2(handle, stream.ptr)
        assert gemm(library, handle, *product) == cublas.ALLOC_FAILED
        library.cublasSetWorkspace_v2(handle, workspace.data.ptr, workspace.nbytes)
        assert gemm(library, handle, *product) == 0
        graph = stream.end_capture()
    b.set(np.array([6, 7], dtype=np.float32))
    assert c.get()[0] == 2 * 4 + 3 * 5
    graph.launch()
    assert c.get()[0] == 2 * 6 + 3 * 7
