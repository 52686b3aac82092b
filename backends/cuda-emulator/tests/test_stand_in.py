"""The stand-in for cupy refuses what cupy refuses, and hides nothing that a GPU would show."""

from __future__ import annotations

import gc
import operator

import ml_dtypes
import numpy as np
import pytest

from cuda_emulator import cupy_stand_in as cp
from cuda_emulator.compiler import Unavailable
from cuda_emulator.cupy_stand_in import _card, _raw
from cuda_emulator.cupy_stand_in._card import Overwritten

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(np.float32), np.dtype(np.float16), BFLOAT16]
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def on(*numbers, dtype=np.float32):
    return cp.asarray(np.array(numbers, dtype=dtype))


# Refusals: uses for which cupy raises TypeError or ValueError, or which fail silently in it

host = np.ones((2, 3), dtype=np.float32)
card = cp.asarray(host)
REFUSED = {
    "np.asarray": lambda: np.asarray(card),
    "a ufunc": lambda: np.exp(card),
    "numpy + card": lambda: host + card,
    "card + numpy": lambda: card + host,
    "card + number": lambda: card + 1,
    "number + card": lambda: 1 + card,
    "card + another dtype": lambda: card + cp.asarray(host.astype(np.float16)),
    "matmul with numpy": lambda: cp.matmul(card, host.T),
    "matmul of two dtypes": lambda: cp.matmul(card, cp.asarray(host.astype(np.float16)).T),
    "matmul of float64": lambda: cp.matmul(on([1], dtype=float), on([1], dtype=float)),
    "take with numpy": lambda: cp.take(card, np.array([0]), axis=0),
    "take with floats": lambda: cp.take(card, card, axis=0),
    "a list": lambda: cp.asarray([1, 2]),
    "asarray of the card's": lambda: cp.asarray(card),
    "ascontiguousarray of numpy": lambda: cp.ascontiguousarray(host),
    "float": lambda: float(card[0, 0]),
    "bool": lambda: bool(card),
    "a loop": lambda: list(card),
    "an advanced index": lambda: card[np.array([0])],
    "an assignment": lambda: operator.setitem(card, 0, 1),
    "set from a list": lambda: card.set([[1, 2, 3], [4, 5, 6]]),
    "set from another dtype": lambda: card.set(host.astype(np.float64)),
    "complex numbers": lambda: cp.zeros(3, dtype=complex),
}


@pytest.mark.parametrize("what", REFUSED)
def test_cupy_would_refuse_it(what):
    with pytest.raises(TypeError):
        REFUSED[what]()


def test_shapes_that_do_not_fit_are_refused():
    for wrong in (
        lambda: card.set(host[:1]),
        lambda: cp.matmul(card.reshape(1, 2, 3), card.T),  # cupy 14 makes float32 of float16 here
        lambda: cp.matmul(card, card),
        lambda: card.reshape(4, 2),
    ):
        with pytest.raises(ValueError):
            wrong()
    with pytest.raises(RuntimeError):  # as in cupy
        card.T[:2].set(host.T[:2])


def test_an_index_that_is_out_of_range_is_an_error_and_not_wrapped_around():
    with pytest.raises(IndexError):
        cp.take(card, on(2, dtype=np.int64), axis=0)


# Numbers


@every_float
def test_a_matrix_product_sums_in_float32_and_rounds_once(dtype):
    """A large number that the 16-bit dtype cannot add 1 to, and 8 ones."""
    large = 256 if dtype == BFLOAT16 else 2048
    row = np.ones((2, 9), dtype=dtype)
    row[0, 0] = large
    out = cp.matmul(cp.asarray(row), cp.asarray(np.ones((9, 2), dtype=dtype))).get()
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.astype(np.float64), [[large + 8] * 2, [9] * 2])


def test_the_last_rounding_is_to_nearest_even():
    ones = np.ones((4, 2), dtype=np.float16)
    row = np.array([[2048, 1, 1, 1], [2048, 1, 0, 0]], dtype=np.float16)
    out = cp.matmul(cp.asarray(row), cp.asarray(ones)).get()
    np.testing.assert_array_equal(out, [[2052, 2052], [2048, 2048]])  # of 2051 and 2049


def test_one_dot_product_alone_is_summed_in_its_dtype():
    """So does cupy: `_tensordot_core_mul_sum` of cupy/_core/_routines_linalg.pyx."""
    row = np.array([[2048, 1, 1, 1]], dtype=np.float16)
    one = cp.matmul(cp.asarray(row), cp.asarray(np.ones((4, 1), dtype=np.float16)))
    assert one.shape == (1, 1)
    assert one.get()[0, 0] == 2048


def test_a_product_over_nothing_is_zeros():
    out = cp.matmul(cp.zeros((1, 0), np.float16), cp.zeros((0, 1), np.float16))
    np.testing.assert_array_equal(out.get(), [[0]])


@every_float
def test_a_sum_is_rounded_once(dtype):
    out = cp.asarray(np.array([256, 1], dtype)) + cp.asarray(np.array([[1, 1], [2, 2]], dtype))
    expected = [[256 if dtype == BFLOAT16 else 257, 2], [258, 3]]
    np.testing.assert_array_equal(out.get().astype(np.float64), expected)


# Memory


def test_new_memory_holds_nan_also_where_zeros_were_before():
    zeros = cp.zeros((2, 3), np.float32)
    address = zeros.data.ptr
    del zeros
    new = cp.empty((2, 3), np.float32)
    assert new.data.ptr != address or np.isnan(new.get()).all()
    for dtype in FLOATS:
        assert np.isnan(cp.empty(5, dtype).get().astype(np.float64)).all()
    assert (cp.empty(5, np.int64).get() > 2**62).all()


def test_memory_is_counted_and_freed_with_the_last_pointer_into_it():
    gc.collect()
    used, allocations = _card.CARD.used, _card.CARD.allocations
    array = cp.empty((4, 8), np.float16)
    assert (_card.CARD.used, _card.CARD.allocations) == (used + 64, allocations + 1)
    view, pointer = array[1:].reshape(-1), array[2].data
    del array
    assert _card.CARD.used == used + 64
    del view
    assert _card.CARD.used == used + 64
    assert pointer.ptr  # of cupy too, a MemoryPointer keeps the memory
    del pointer
    assert (_card.CARD.used, _card.CARD.allocations) == (used, allocations + 1)


def test_asking_for_too_much_is_out_of_memory(monkeypatch):
    monkeypatch.setattr(_card.CARD, "total", _card.CARD.used + 1000)
    kept = cp.empty(100, float)
    assert cp.cuda.Device().mem_info == (200, _card.CARD.total)
    with pytest.raises(cp.cuda.memory.OutOfMemoryError, match="allocating 208 bytes") as caught:
        cp.zeros(26, float)
    assert isinstance(caught.value, MemoryError)
    assert kept.shape == (100,)
    cp.zeros(25, float)


def test_views_share_memory_and_copies_do_not():
    array = cp.zeros((2, 4), np.int64)
    for view in (array[1:], array[:, 2:], array.reshape(4, 2), array.T, array[0, None]):
        assert view.data.mem is array.data.mem
    gaps = array[:, 1:]
    assert not gaps.flags.c_contiguous
    for copy in (gaps.reshape(6), cp.ascontiguousarray(gaps), cp.take(array, array[0, :1], axis=0)):
        assert copy.data.mem is not array.data.mem
    assert cp.ascontiguousarray(array) is array
    array[1:].set(np.arange(4, dtype=np.int64)[None])
    np.testing.assert_array_equal(array.get(), [[0, 0, 0, 0], [0, 1, 2, 3]])
    fetched = array.get()
    fetched[...] = 7
    assert array.get()[1, 3] == 3


# Copies from pinned memory, which go on while the host does


def pinned(*numbers):
    out = np.frombuffer(cp.cuda.alloc_pinned_memory(8 * len(numbers)), np.int64, len(numbers))
    out[...] = numbers
    return out


WAYS_TO_GO_ON = {
    "an event": lambda event, array: event.synchronize(),
    "numbers": lambda event, array: array.get(),
    "other numbers": lambda event, array: cp.zeros(3).get(),
    "another copy": lambda event, array: array.set(np.zeros(3, np.int64)),
}


@pytest.mark.parametrize("way", WAYS_TO_GO_ON)
def test_pinned_memory_that_is_written_to_while_it_may_be_copied_is_an_error(way):
    array, host, event = cp.zeros(4, np.int64)[1:], pinned(1, 2, 3), cp.cuda.Event()
    array.set(host)
    host[1] = 5
    with pytest.raises(Overwritten):
        WAYS_TO_GO_ON[way](event, array)
    np.testing.assert_array_equal(array.get(), [1, 2, 3])  # the error is raised once


@pytest.mark.parametrize("way", ["an event", "numbers", "other numbers"])
def test_it_may_be_written_to_after_a_wait(way):
    array, host, event = cp.zeros(3, np.int64), pinned(1, 2, 3), cp.cuda.Event()
    for _ in range(2):
        array.set(host)
        event.record()
        WAYS_TO_GO_ON[way](event, array)
        host[...] += 1
    np.testing.assert_array_equal(array.get(), [2, 3, 4])


def test_an_event_waits_for_what_came_before_its_last_record():
    array, first, second = cp.zeros(3, np.int64), pinned(1, 2, 3), pinned(4, 5, 6)
    event = cp.cuda.Event(disable_timing=True)
    event.synchronize()
    array.set(first)
    event.record()
    array.set(second)
    event.synchronize()
    first[0] = 7
    event.synchronize()
    second[0] = 7
    with pytest.raises(Overwritten):
        event.synchronize()
    array.set(second)
    event.synchronize()  # of the first copy still
    second[0] = 8
    with pytest.raises(Overwritten):
        array.get()


def test_what_was_not_copied_or_is_not_pinned_may_be_written_to():
    array, host = cp.zeros(2, np.int64), pinned(1, 2, 3)
    array.set(host[:2])
    host[2] = 5
    ordinary = np.array([3, 4])
    array.set(ordinary)
    ordinary[0] = 5
    np.testing.assert_array_equal(array.get(), [3, 4])


# Kernels

PUT = """
extern "C" __global__ void put(long long* out, long long n, double x)
{ extern __shared__ double kept[]; kept[0] = x; out[0] = n; out[1] = kept[0] * 2; }
extern "C" __global__ void narrow(long long* out, int n, float x) { out[0] = n; out[1] = x; }
"""


@pytest.fixture(name="put")
def put_fixture():
    return cp.RawModule(code=PUT).get_function("put")


def test_python_numbers_are_8_bytes_wide_and_numpys_keep_their_width(put):
    out = cp.zeros(2, np.int64)
    put((1,), (1,), (out, 2**40 + 1, 1.5), shared_mem=8)
    np.testing.assert_array_equal(out.get(), [2**40 + 1, 3])
    narrow = cp.RawModule(code=PUT).get_function("narrow")
    narrow((1,), (1,), (out, np.int32(-5), np.float32(6)))
    np.testing.assert_array_equal(out.get(), [-5, 6])
    for arguments in ((out, 5, np.float32(6)), (out, np.int32(5), 6.0), (out, np.int32(5))):
        with pytest.raises((TypeError, ValueError)):
            narrow((1,), (1,), arguments)


def test_arguments_are_contiguous_arrays_pointers_and_numbers(put):
    out = cp.zeros((2, 2), np.int64)
    put((1,), (1,), (out[1].data, 4, 2.5), shared_mem=8)
    np.testing.assert_array_equal(out.get(), [[0, 0], [4, 5]])
    with pytest.raises(ValueError, match="argument 0 has gaps"):
        put((1,), (1,), (out.T, 4, 2.5), shared_mem=8)
    for wrong in (np.zeros(2, dtype=np.int64), [1, 2], "out"):
        with pytest.raises(TypeError, match="argument 0 is a"):
            put((1,), (1,), (wrong, 4, 2.5), shared_mem=8)


def test_a_kernel_may_access_its_array_alone_not_its_neighbours(put):
    out = cp.zeros((2, 2), np.int64)
    with pytest.raises(Exception, match="OutOfBounds"):
        put((1,), (1,), (out[1, 1:], 4, 2.5), shared_mem=8)
    with pytest.raises(Exception, match="OutOfBounds"):
        put((1,), (1,), (out[0, 1:], 4, 2.5), shared_mem=8)  # the next number is of the same block


def test_more_than_48_kib_of_shared_memory_needs_opting_in_and_a_card_that_has_it(monkeypatch):
    def launch(put, nbytes):
        put((1,), (1,), (cp.zeros(2, np.int64), 4, 2.5), shared_mem=nbytes)

    # 64 KiB and 227 KiB: the CUDA programming guide's table of compute capabilities
    for arch, most in (("sm_75", 65536), ("sm_90", 232448)):
        monkeypatch.setenv(_card.VARIABLE, arch)
        put = cp.RawModule(code=PUT).get_function("put")
        launch(put, 49152)
        with pytest.raises(ValueError, match="set max_dynamic_shared_size_bytes first"):
            launch(put, 49153)
        with pytest.raises(ValueError, match=f"{arch} has {most} a block"):
            put.max_dynamic_shared_size_bytes = most + 1
        put.max_dynamic_shared_size_bytes = most
        assert put.max_dynamic_shared_size_bytes == most
        launch(put, most)


def test_a_multiprocessor_has_the_shared_memory_that_the_table_says(monkeypatch):
    # The CUDA programming guide's table of compute capabilities, in KB
    for arch, most in (("sm_75", 64), ("sm_80", 164), ("sm_89", 100), ("sm_90", 228)):
        monkeypatch.setenv(_card.VARIABLE, arch)
        assert cp.cuda.Device().attributes["MaxSharedMemoryPerMultiprocessor"] == most * 1024


def test_a_carveout_is_a_part_of_100(put):
    assert put.preferred_shared_memory_carveout == -1
    put.preferred_shared_memory_carveout = 100
    assert put.preferred_shared_memory_carveout == 100
    with pytest.raises(ValueError, match="a carveout of 101; expected per cent, or -1"):
        put.preferred_shared_memory_carveout = 101


def test_grids_and_blocks_that_no_card_has_are_refused(put):
    arguments = (cp.zeros(2, np.int64), 4, 2.5)
    for grid, block in (((1, 65536), (1,)), ((1,), (1025,)), ((1,), (32, 33)), ((1,), (1, 1, 65))):
        with pytest.raises(ValueError, match="at most"):
            put(grid, block, arguments, shared_mem=8)
    for grid, block in ((1, (1,)), ((1,), 1)):
        with pytest.raises(TypeError):
            put(grid, block, arguments, shared_mem=8)
    with pytest.raises(TypeError, match="stream"):
        put((1,), (1,), arguments, stream=0)


def test_a_kernel_that_is_not_there_is_an_error_and_options_reach_the_compiler():
    with pytest.raises(ValueError, match="'get' is not there; expected one of put, narrow"):
        cp.RawModule(code=PUT).get_function("get")
    with pytest.raises(cp.cuda.compiler.CompileException, match="NUMBER"):
        cp.RawModule(code="#ifndef NUMBER\n#error NUMBER\n#endif").get_function("put")
    one = 'extern "C" __global__ void put(long long* out) { out[0] = NUMBER; }'
    out = cp.zeros(1, np.int64)
    cp.RawModule(code=one, options=("-DNUMBER=7",)).get_function("put")((1,), (1,), (out,))
    assert out.get()[0] == 7


def test_a_source_is_compiled_once(monkeypatch, put):
    monkeypatch.setattr(_raw, "compile_cuda", lambda *_: pytest.fail("compiled again"))
    cp.RawModule(code=PUT).get_function("narrow")


# The card


def test_the_environment_chooses_the_card(monkeypatch):
    monkeypatch.delenv(_card.VARIABLE, raising=False)
    assert cp.cuda.Device().compute_capability == "90"
    monkeypatch.setenv(_card.VARIABLE, "sm_120")
    assert cp.cuda.Device().compute_capability == "120"
    assert cp.cuda.runtime.getDeviceProperties(0)["name"] == b"CPU, emulating sm_120"
    for wrong in ("90", "sm_91", "sm_086", "sm_９０", "sm_", "H100"):
        monkeypatch.setenv(_card.VARIABLE, wrong)
        with pytest.raises(Unavailable, match=f"CUDA_EMULATOR_ARCH is '{wrong}'"):
            cp.cuda.runtime.getDeviceProperties(0)


def test_there_is_one_card():
    for device in (None, 0):
        cp.cuda.Device(device).use()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="CUDA error 101"):
        cp.cuda.Device(1)


def test_the_time_between_two_events(monkeypatch):
    clock = iter((2.0, 2.5))
    monkeypatch.setattr(cp.cuda.time, "perf_counter", lambda: next(clock))
    start, stop, untimed = cp.cuda.Event(), cp.cuda.Event(), cp.cuda.Event(disable_timing=True)
    for event in (start, stop, untimed):
        event.record()
    assert cp.cuda.get_elapsed_time(start, stop) == 500
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="CUDA error 400"):
        cp.cuda.get_elapsed_time(start, untimed)


def test_an_array_is_copied_to_one_like_it():
    to = on(0, 0)
    cp.copyto(to, on(1, 2))
    np.testing.assert_array_equal(to.get(), [1, 2])
    for other in (on(1, 2, 3), on(1, 2, dtype=np.float16)):
        with pytest.raises(ValueError, match="is not copied to float32"):
            cp.copyto(to, other)
    with pytest.raises(TypeError, match="Unsupported type"):
        cp.copyto(to, np.zeros(2, dtype=np.float32))
