"""Laws of copying arrays to and from the backend, and of what the model does with them."""

from __future__ import annotations

import numpy as np

from tinymistral.backend import Backend
from tinymistral.conformance.cases import (
    Matrix,
    Rotation,
    call,
    matrices,
    normal,
    on,
    rotations,
)
from tinymistral.conformance.law import law
from tinymistral.operations import NUMPY_DTYPES


@law(matrices)
def test_arrays_come_and_go_as_they_are(backend: Backend, case: Matrix) -> None:
    """`asarray` keeps a weight's dtype, or rounds to the one given; `to_numpy` keeps the dtype."""
    weight = case.weight
    for dtype, expected in (
        (None, weight),
        (backend.dtype, weight.astype(NUMPY_DTYPES[backend.dtype])),
    ):
        back = backend.to_numpy(backend.asarray(weight, dtype))
        assert isinstance(back, np.ndarray)
        assert back.dtype == expected.dtype
        np.testing.assert_array_equal(back, expected)


@law(matrices)
def test_asarray_rounds_to_nearest(backend: Backend, case: Matrix) -> None:
    """`asarray` rounds float32 and float64 numbers to nearest, ties to even, as NumPy does."""
    for stored in ("float32", "float64"):
        numbers = normal(np.random.default_rng(case.seed), stored, case.m, case.n)
        back = backend.to_numpy(backend.asarray(numbers, backend.dtype))
        np.testing.assert_array_equal(back, numbers.astype(NUMPY_DTYPES[backend.dtype]))


@law(matrices)
def test_zeros_are_zeros(backend: Backend, case: Matrix) -> None:
    """`zeros` has the given shape and dtype; an axis may be empty."""
    for shape in ((case.m, case.n), (2, 0, case.m, case.n)):
        zeros = backend.to_numpy(backend.zeros(shape, backend.dtype))
        assert zeros.dtype == NUMPY_DTYPES[backend.dtype]
        np.testing.assert_array_equal(zeros, np.zeros(shape))


@law(matrices)
def test_take_gathers_slices_in_any_order(backend: Backend, case: Matrix) -> None:
    """`take` gathers slices along an axis, repeated ones too."""
    x, rng = case.x(backend.dtype), np.random.default_rng(case.seed)
    for axis, size in enumerate(x.shape[:2]):
        indices = rng.integers(0, size, size + 1)
        np.testing.assert_array_equal(
            call(backend, "take", x, indices, axis), np.take(x, indices, axis)
        )


@law(matrices)
def test_what_is_taken_is_a_copy(backend: Backend, case: Matrix) -> None:
    """The result of `take` does not change when its source is written to."""
    x, row = case.x(backend.dtype)[..., None], np.array([0, 1])
    array = on(backend, x)
    taken = backend.take(array, row, 0)
    slots = np.tile(np.arange(case.T), (2, 1))
    backend.scatter(array, slots, on(backend, x + x.dtype.type(1)))
    np.testing.assert_array_equal(backend.to_numpy(taken), x)


@law(rotations)
def test_results_share_no_memory_with_arguments(backend: Backend, case: Rotation) -> None:
    """Writing to a result changes no argument, even where the two hold the same numbers."""
    # Such as those of rows in order, the identity, position 0, and keys seen by one query each.
    heads = case.x(backend.dtype)
    B, T, H, d = heads.shape
    x, tokens = heads.reshape(B, T, H * d), np.arange(B * T, dtype=np.int64)
    at = np.tile(tokens[:T], (B, 1))
    row, table = np.ones_like(x[0, 0]), backend.rope_table(np.zeros_like(at), case.theta, d)
    for operation, *arguments in (
        (lambda table: backend.embedding(table, tokens.reshape(B, T)), x.reshape(B * T, H * d)),
        (backend.linear, x, np.diag(row)),
        (lambda x, weight: backend.rms_norm(x, weight, 0.0), np.ones_like(x), row),
        (backend.silu_mul, x, np.ones_like(x)),
        (lambda x: backend.rope(x, table), heads),
        (lambda q, k, v: backend.attention(q, k, v, at, at, 1), heads, heads, heads),
    ):
        given = [on(backend, array) for array in arguments]
        shape = (1, B * T, 1, H * d)
        result = operation(*given).reshape(*shape)
        backend.scatter(result, tokens[None], backend.zeros(shape, backend.dtype))
        for before, after in zip(arguments, given, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(after), before)


@law(matrices)
def test_arrays_add_reshape_and_slice_as_numpys_do(backend: Backend, case: Matrix) -> None:
    """`+` (of the same shape, or with a row), `.reshape`, `.shape` and basic slices."""
    x, y = case.x(backend.dtype), case.y(backend.dtype)
    a, b, T, n = on(backend, x), on(backend, y), case.T, case.n
    assert tuple(a.shape) == x.shape
    total = (x.astype(np.float64) + y.astype(np.float64)).astype(x.dtype)
    biased = (x.astype(np.float64) + y[0, 0].astype(np.float64)).astype(x.dtype)
    for array, expected in (
        (a + b, total),
        (a + on(backend, y[0, 0]), biased),
        (a.reshape(2, T, n, 1), x.reshape(2, T, n, 1)),
        (a.reshape(2 * T, n), x.reshape(2 * T, n)),
        (a[:, 1:], x[:, 1:]),
        (a[:, -1:], x[:, -1:]),
        (a[:, : T + 1], x),
        (a[:, :1].reshape(2, n), x[:, :1].reshape(2, n)),
    ):
        back = backend.to_numpy(array)
        assert back.dtype == x.dtype
        np.testing.assert_array_equal(back, expected)
