"""Tests of the backend beyond `tinymistral.conformance`.

Arrays as the model slices them, uploads that are reused, and sums that CuPy would make in 16 bits.
"""

from __future__ import annotations

import numpy as np
import pytest
from tiny import ids, tiny_model

from cuda_emulator.cupy_stand_in import _card
from tinymistral.conformance import oracle
from tinymistral.conformance.cases import normal
from tinymistral_cupy import EmulatedBackend
from tinymistral_cupy.uploads import Upload

# The error of float32 sums and one rounding to the dtype, for results of about 1.
TOLERANCE = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}


def close(backend, array, exact):
    assert array.dtype == backend._dtype
    tolerance = TOLERANCE[backend.dtype]
    np.testing.assert_allclose(
        backend.to_numpy(array).astype(np.float64), exact, rtol=tolerance, atol=tolerance
    )


def drawn(backend, *shape, seed=0):
    """Draw an array; return it on the backend, and on the host."""
    host = normal(np.random.default_rng(seed), backend.dtype, *shape)
    return backend.asarray(host), host


# Slices with gaps, as the model may give them


def test_operations_on_single_tokens_take_slices_with_gaps(backend):
    x, x_host = drawn(backend, 2, 5, 16, seed=1)
    y, y_host = drawn(backend, 2, 5, 16, seed=2)
    weight, weight_host = drawn(backend, 16, seed=3)
    matrix, matrix_host = drawn(backend, 3, 16, seed=4)
    last = np.s_[:, -2:]
    assert not x[last].flags.c_contiguous
    x, y, x_host, y_host = x[last], y[last], x_host[last], y_host[last]
    close(backend, backend.linear(x, matrix), oracle.linear(x_host, matrix_host))
    close(backend, backend.rms_norm(x, weight, 1e-5), oracle.rms_norm(x_host, weight_host, 1e-5))
    close(backend, backend.silu_mul(x, y), oracle.silu_mul(x_host, y_host))
    np.testing.assert_array_equal(backend.to_numpy(x), x_host)


def test_operations_on_heads_take_slices_with_gaps(backend):
    q, q_host = drawn(backend, 2, 5, 4, 8, seed=1)
    k, k_host = drawn(backend, 2, 5, 2, 8, seed=2)
    v, v_host = drawn(backend, 2, 5, 2, 16, seed=3)
    v, v_host = v[..., 4:12], v_host[..., 4:12]  # gaps between heads
    q, q_host = q[:, 1:3], q_host[:, 1:3]
    at, k_positions = np.array([[3, 4], [0, 1]]), np.array([[0, 1, 2, 3, 4], [0, 1, -1, -1, -1]])
    table = backend.rope_table(at, 1e4, 8)
    close(backend, backend.rope(q, table), oracle.rope(q_host, at, 1e4))
    where = (at, k_positions, 3)
    mix = backend.attention(q, k, v, *where)
    close(backend, mix, oracle.attention(q_host, k_host, v_host, *where))
    mix = backend.attention(q, k, k[:, :, ::-1], *where)  # a view of other strides
    close(backend, mix, oracle.attention(q_host, k_host, k_host[:, :, ::-1], *where))


@pytest.mark.parametrize("roomy", ["keys", "values"])
def test_keys_and_values_may_be_of_caches_with_other_numbers_of_slots(backend, roomy):
    (used, used_host), (whole, whole_host) = (drawn(backend, 2, S, 2, 8, seed=S) for S in (9, 5))
    q, q_host = drawn(backend, 2, 1, 4, 8)
    used, used_host = used[:, :5], used_host[:, :5]
    where = (np.array([[4], [2]]), np.tile(np.arange(5), (2, 1)), 3)
    arrays, hosts = (used, whole), (used_host, whole_host)
    step = 1 if roomy == "keys" else -1
    mix = backend.attention(q, *arrays[::step], *where)
    close(backend, mix, oracle.attention(q_host, *hosts[::step], *where))


def test_caches_with_gaps_are_written_to_and_returned(backend):
    slots = np.array([[1, 0], [-1, 2]])
    cache, before = (array[:, 1:] for array in drawn(backend, 2, 4, 2, 8, seed=1))
    new, new_host = (array[:, 1:] for array in drawn(backend, 2, 3, 2, 8, seed=2))
    written = backend.to_numpy(backend.scatter(cache, slots, new))
    np.testing.assert_array_equal(written, oracle.scatter(before, slots, new_host))


def test_keys_that_are_the_used_part_of_a_cache_are_not_copied(float16):
    (k, _), (v, _) = (drawn(float16, 2, 200, 2, 8, seed=n) for n in (1, 2))
    q, _ = drawn(float16, 2, 1, 4, 8)
    at, where = np.array([[6], [6]]), np.tile(np.arange(7), (2, 1))
    float16.attention(q, k[:, :7], v[:, :7], at, where, 4)
    before = _card.CARD.allocations
    out = float16.attention(q, k[:, :7], v[:, :7], at, where, 4)
    assert _card.CARD.allocations == before + 1
    assert out.shape == q.shape


# Sums


def test_one_dot_product_alone_is_summed_in_float32():
    """A classifier of one label, one text: in float16 CuPy would get 2048, as 2048 + 1 is."""
    float16 = EmulatedBackend("float16")
    x = np.ones((1, 1, 9), dtype=np.float16)
    x[..., 0] = 2048
    out = float16.linear(float16.asarray(x), float16.asarray(np.ones((1, 9), dtype=np.float16)))
    np.testing.assert_array_equal(float16.to_numpy(out), [[[2056]]])


def test_a_linear_of_no_tokens_is_empty(float16):
    weight, _ = drawn(float16, 3, 16)
    x = float16.zeros((2, 0, 16), "float16")
    assert float16.linear(x, weight).shape == (2, 0, 3)


def test_angles_are_float64_until_they_are_rounded(float16):
    """float32 cannot represent position 2^40 + 1."""
    at = np.array([[2**40 + 1, 5, -1]], dtype=np.int64)
    cos, sin = float16.rope_table(at, 1e4, 4)
    angles = at[..., None].astype(np.longdouble) * np.array([1, 1e-2], dtype=np.longdouble)
    assert cos.dtype == sin.dtype == np.float32
    real = at[0] >= 0
    np.testing.assert_allclose(cos.get()[0, real], np.cos(angles)[0, real], atol=2e-4)
    np.testing.assert_allclose(sin.get()[0, real], np.sin(angles)[0, real], atol=2e-4)
    assert np.isfinite(cos.get()).all()


# Pieces


@pytest.mark.parametrize(("rows", "tokens"), [(1, 4096), (2, 2048), (3, 1365), (5000, 1)])
def test_a_piece_has_at_most_4096_tokens_of_all_rows(float16, rows, tokens):
    cache = tiny_model(float16).new_cache(rows)
    assert cache.chunk == tokens
    assert cache.capacity == cache.window + tokens - 1


def test_a_short_prompt_is_one_piece(float16, launches):
    model = tiny_model(float16, num_hidden_layers=1)
    model(ids(1, 600), past_key_values=model.new_cache(1))
    assert [launch.kernel for launch in launches].count("scatter") == 2  # of keys, of values


# Uploads


class Counted:
    """An `Upload` whose copies to the card are counted."""

    def __init__(self, backend, monkeypatch):
        self.copies = 0
        self.upload = Upload(backend.module())
        kind = backend.module().ndarray
        copy = kind.set

        def counted(array, host):
            self.copies += 1
            return copy(array, host)

        monkeypatch.setattr(kind, "set", counted)

    def __call__(self, numbers):
        return self.upload(np.asarray(numbers, dtype=np.int64)).get()


def test_what_was_uploaded_last_is_not_uploaded_again(float16, monkeypatch):
    upload = Counted(float16, monkeypatch)
    for numbers, copies in (
        ([[1, 2], [3, 4]], 1),
        ([[1, 2], [3, 4]], 1),
        ([1, 2, 3, 4], 2),  # another shape
        ([1, 2, 3, 5], 3),
        ([1, 2], 4),  # fewer
        ([1, 2, 3, 5], 5),  # the same as before, but overwritten since
        (np.zeros((2, 0)), 6),
        (np.arange(1000), 7),  # more than there was room for
        (np.arange(1000), 7),
    ):
        np.testing.assert_array_equal(upload(numbers), numbers)
        assert upload.copies == copies


def test_numbers_that_changed_in_place_are_uploaded_again(float16, monkeypatch):
    upload, numbers = Counted(float16, monkeypatch), np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(upload(numbers), [[0, 1, 2], [3, 4, 5]])
    numbers[1, 2] = -1
    np.testing.assert_array_equal(upload(numbers), [[0, 1, 2], [3, 4, -1]])
    np.testing.assert_array_equal(upload(numbers[:, :2]), [[0, 1], [3, 4]])
    np.testing.assert_array_equal(upload(numbers[:, 1:]), [[1, 2], [4, -1]])


def test_an_upload_keeps_its_memory(float16):
    upload = Upload(float16.module())
    upload(np.arange(100))
    before = _card.CARD.allocations
    for n in (100, 1, 50, 99):
        upload(np.arange(n))
    assert _card.CARD.allocations == before


def test_an_upload_that_ran_out_of_memory_is_made_again(float16, monkeypatch):
    upload = Upload(float16.module())
    first = upload(np.arange(4)).get()
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(_card.CARD, "total", 0)
        upload(np.arange(1000))
    np.testing.assert_array_equal(upload(np.arange(4)).get(), first)
    np.testing.assert_array_equal(upload(np.arange(1000)).get(), np.arange(1000))


def test_an_upload_that_failed_is_made_again(float16, monkeypatch):
    upload = Upload(float16.module())
    upload(np.arange(4))

    def fail(array, host):
        raise RuntimeError("cudaErrorSomething")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(float16.module().ndarray, "set", fail)
        upload(np.arange(4) + 1)
    np.testing.assert_array_equal(upload(np.arange(4) + 1).get(), [1, 2, 3, 4])


def test_returned_arrays_do_not_change(backend):
    """Results of rope_table, take and embedding do not change when they are called again."""
    at = np.array([[1, 2, 3]])
    rows, rows_host = drawn(backend, 9, 8)
    table = backend.rope_table(at, 1e4, 8)
    taken, embedded = backend.take(rows, at[0], 0), backend.embedding(rows, at)
    backend.rope_table(at + 4, 1e4, 8)
    backend.take(rows, at[0] + 4, 0)
    backend.embedding(rows, at + 4)
    x, x_host = drawn(backend, 1, 3, 2, 8)
    close(backend, backend.rope(x, table), oracle.rope(x_host, at, 1e4))
    np.testing.assert_array_equal(backend.to_numpy(taken), rows_host[1:4])
    np.testing.assert_array_equal(backend.to_numpy(embedded), rows_host[None, 1:4])
