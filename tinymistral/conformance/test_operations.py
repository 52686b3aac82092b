"""Laws of the operations on single tokens and of `scatter`."""

from __future__ import annotations

import numpy as np

from tinymistral.backend import Backend
from tinymistral.conformance import oracle
from tinymistral.conformance.bounds import (
    agree,
    linear_error,
    rms_norm_error,
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
    ):
        whole = call(backend, name, x, *arguments)
        spoiled = call(backend, name, filled(x, other, np.nan), *arguments)
        np.testing.assert_array_equal(spoiled[0], whole[0])
        assert np.isnan(spoiled[1].astype(np.float64)).any()


@law(writings)
def test_scatter_writes_its_slots_and_nothing_else(backend: Backend, case: Writing) -> None:
    """New numbers go to their slots, slot -1 is nowhere, and all other slots stay as they were."""
    cache, new = case.cache(backend.dtype), case.new(backend.dtype)
    out = call(backend, "scatter", cache, case.slots, new)
    assert out.dtype == cache.dtype
    np.testing.assert_array_equal(out, oracle.scatter(cache, case.slots, new))
