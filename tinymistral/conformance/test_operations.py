"""Laws of the operations on single tokens, of `scatter`, and of the fused operations."""

from __future__ import annotations

import numpy as np

from tinymistral.backend import Backend
from tinymistral.conformance import oracle
from tinymistral.conformance.bounds import (
    UNIT,
    agree,
    linear_error,
    rms_norm_error,
    rope_error,
    silu_mul_error,
)
from tinymistral.conformance.cases import (
    Matrix,
    Writing,
    call,
    filled,
    matrices,
    on,
    writings,
)
from tinymistral.conformance.law import law
from tinymistral.numpy_backend import NUMPY_DTYPES

EPS = 1e-5


@law(matrices)
def test_embedding_is_rows_of_the_table(backend: Backend, case: Matrix) -> None:
    """A token's embedding is its row of the table, rounded to the activations' dtype."""
    out = call(backend, "embedding", case.weight, case.ids)
    assert out.dtype == NUMPY_DTYPES[backend.dtype]
    np.testing.assert_array_equal(out, oracle.embedding(case.weight, case.ids).astype(out.dtype))


@law(matrices)
def test_linear_is_dot_products(backend: Backend, case: Matrix) -> None:
    """Each output is the dot product of a row of x and a row of the weight, in any dtype."""
    x, weight = case.x(backend.dtype), case.weight
    out = call(backend, "linear", x, weight)
    agree(out, oracle.linear(x, weight), linear_error(x, weight, backend.dtype), backend.dtype)


@law(matrices)
def test_linear_of_slices_is_a_slice(backend: Backend, case: Matrix) -> None:
    """`linear` of a view, such as the last token of every row, is that of a copy."""
    x, weight = case.x(backend.dtype), case.weight
    out = backend.to_numpy(backend.linear(on(backend, x)[:, -1:], on(backend, weight)))
    x = x[:, -1:]
    agree(out, oracle.linear(x, weight), linear_error(x, weight, backend.dtype), backend.dtype)


@law(matrices)
def test_rms_norm_divides_by_the_root_mean_square(backend: Backend, case: Matrix) -> None:
    """It is x / sqrt(mean(x²) + eps) · weight, whether x is large or eps is."""
    x, weight = case.x(backend.dtype), case.weight[0]
    for eps in (EPS, 1e-6, 4.0):
        exact = oracle.rms_norm(x, weight, eps)
        agree(
            call(backend, "rms_norm", x, weight, eps),
            exact,
            rms_norm_error(exact, backend.dtype),
            backend.dtype,
        )


@law(matrices)
def test_silu_mul_is_gate_times_sigmoid_times_up(backend: Backend, case: Matrix) -> None:
    """It is gate / (1 + exp(-gate)) · up, also where exp overflows."""
    gate, up = case.x(backend.dtype), case.y(backend.dtype)
    exact = oracle.silu_mul(gate, up)
    error = silu_mul_error(gate, up, exact, backend.dtype)
    agree(call(backend, "silu_mul", gate, up), exact, error, backend.dtype)


@law(matrices)
def test_rows_of_a_batch_are_independent(backend: Backend, case: Matrix) -> None:
    """NaN in one row changes no number of another, in any operation on single tokens."""
    x, y, weight = case.x(backend.dtype), case.y(backend.dtype), case.weight
    other = np.array([False, True])
    for name, arguments in (
        ("linear", (weight,)),
        ("rms_norm", (weight[0], EPS)),
        ("silu_mul", (y,)),
        ("add_rms_norm", (y, weight[0], EPS)),
    ):
        whole = call(backend, name, x, *arguments)
        spoiled = call(backend, name, filled(x, other, np.nan), *arguments)
        for before, after in zip(
            *((r if isinstance(r, tuple) else (r,)) for r in (whole, spoiled)), strict=True
        ):
            np.testing.assert_array_equal(after[0], before[0])
            assert np.isnan(after[1].astype(np.float64)).any()


# The cache


@law(writings)
def test_scatter_writes_its_slots_and_nothing_else(backend: Backend, case: Writing) -> None:
    """New numbers go to their slots, slot -1 is nowhere, and all other slots stay as they were."""
    cache, new = case.caches(backend.dtype)[0], case.new(backend.dtype)[0]
    out = call(backend, "scatter", cache, case.slots, new)
    assert out.dtype == cache.dtype
    np.testing.assert_array_equal(out, oracle.scatter(cache, case.slots, new))


# The fused operations, against their default bodies and the oracle


@law(writings)
def test_store_is_rope_and_scatter(backend: Backend, case: Writing) -> None:
    """`store` writes the rotated keys and the values, as they are, to the slots alone."""
    k, v = case.new(backend.dtype)
    caches = case.caches(backend.dtype)
    table = backend.rope_table(case.positions, case.theta, case.d)
    given = (on(backend, k), on(backend, v), table)
    fused = backend.store(*given, tuple(on(backend, cache) for cache in caches), case.slots)
    default = Backend.store(
        backend, *given, tuple(on(backend, cache) for cache in caches), case.slots
    )
    turned = oracle.rope(k, case.positions, case.theta)
    error = rope_error(k, case.positions, case.theta, backend.dtype)
    exact = oracle.scatter(caches[0], case.slots, turned)
    bound = oracle.scatter(np.zeros(caches[0].shape), case.slots, error)
    for keys, values in (fused, default):
        keys, values = backend.to_numpy(keys), backend.to_numpy(values)
        agree(keys, exact, bound, backend.dtype)
        untouched = oracle.scatter(np.ones(caches[0].shape), case.slots, np.zeros(k.shape)) == 1
        np.testing.assert_array_equal(keys[untouched], caches[0][untouched])
        np.testing.assert_array_equal(values, oracle.scatter(caches[1], case.slots, v))


@law(matrices)
def test_add_rms_norm_is_a_sum_and_its_norm(backend: Backend, case: Matrix) -> None:
    """The sum is rounded once, and the norm is of the sum, rounded or not."""
    x, residual, weight = case.x(backend.dtype), case.y(backend.dtype), case.weight[0]
    a, b, w = (on(backend, array) for array in (x, residual, weight))
    for total, normed in (
        backend.add_rms_norm(a, b, w, EPS),
        Backend.add_rms_norm(backend, a, b, w, EPS),
    ):
        total, normed = backend.to_numpy(total), backend.to_numpy(normed)
        agree(total, x.astype(np.float64) + residual.astype(np.float64), 0, backend.dtype)
        exact = oracle.rms_norm(total, weight, EPS)
        # A sum that was not rounded: each number off by u of itself, the root mean square too.
        u = 2 * UNIT[backend.dtype] / (1 - 2 * UNIT[backend.dtype])
        error = rms_norm_error(exact, backend.dtype) * (1 + u) + u * np.abs(exact)
        agree(normed, exact, error, backend.dtype)
