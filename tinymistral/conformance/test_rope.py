"""Laws of rotary embeddings."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tinymistral.backend import Backend
from tinymistral.conformance import oracle
from tinymistral.conformance.bounds import agree, gamma, rope_error, rounded, within
from tinymistral.conformance.cases import Rotation, rope, rotations
from tinymistral.conformance.law import law


@law(rotations)
def test_rope_turns_the_pairs_of_halves(backend: Backend, case: Rotation) -> None:
    """Numbers m and m + d/2 are rotated by i · theta^(-2m/d), an angle computed in float64."""
    x, at = case.x(backend.dtype), case.positions
    error = rope_error(x, at, case.theta, backend.dtype)
    out, exact = rope(backend, x, at, case.theta), oracle.rope(x, at, case.theta)
    real = at >= 0
    agree(out[real], exact[real], error[real], backend.dtype)


@law(rotations)
def test_rope_at_position_0_is_the_identity(backend: Backend, case: Rotation) -> None:
    """At position 0 nothing is rotated."""
    x = case.x(backend.dtype)
    out = rope(backend, x, np.zeros_like(case.positions), case.theta)
    np.testing.assert_array_equal(out, x)


@law(rotations)
def test_rope_is_finite_where_there_is_nothing(backend: Backend, case: Rotation) -> None:
    """At position -1 the result does not matter, but it is finite."""
    out = rope(backend, case.x(backend.dtype), np.full_like(case.positions, -1), case.theta)
    assert np.isfinite(out.astype(np.float64)).all()


@law(rotations)
def test_rope_keeps_norms(backend: Backend, case: Rotation) -> None:
    """A head keeps its norm, up to the norm of the vector of errors."""
    x, at, dtype = case.x(backend.dtype), np.maximum(case.positions, 0), backend.dtype
    out = rope(backend, x, at, case.theta).astype(np.float64)
    error = rounded(oracle.rope(x, at, case.theta), rope_error(x, at, case.theta, dtype), dtype)
    x = x.astype(np.float64)
    difference = np.linalg.norm(out, axis=-1) - np.linalg.norm(x, axis=-1)
    slack = gamma(case.d + 2, "float64") * np.linalg.norm(x, axis=-1)
    within(difference, np.zeros(difference.shape), np.linalg.norm(error, axis=-1) + slack)


def up_to(most: int) -> st.SearchStrategy[int]:
    """Draw from 0 to `most`, evenly."""
    return st.sampled_from(range(most + 1))


@law(lambda backend: st.tuples(rotations(backend), up_to(5000), up_to(27_767)))
def test_rope_scores_depend_on_distance_only(
    backend: Backend, case: tuple[Rotation, int, int]
) -> None:
    """The dot product of a rotated query and key depends only on their distance."""
    # Each factor has the error of rope and one rounding; then comes the sum in float64.
    rotation, distance, start = case
    x = rotation.x(backend.dtype)[:1, :1]
    both = np.concatenate([x, x[..., ::-1]], axis=1)
    scores, error = np.zeros((2, rotation.H)), np.zeros(rotation.H)
    for n, i in enumerate((distance, start + distance)):
        at = np.array([[i, i - distance]], dtype=np.int64)
        q, k = rope(backend, both, at, rotation.theta)[0].astype(np.float64)
        scores[n] = (q * k).sum(axis=-1)
        exact = oracle.rope(both, at, rotation.theta)
        wrong = rope_error(both, at, rotation.theta, backend.dtype)
        eq, ek = rounded(exact, wrong, backend.dtype)[0]
        error += (eq * (np.abs(k) + ek) + (np.abs(q) + eq) * ek).sum(axis=-1)
        error += gamma(rotation.d, "float64") * (np.abs(q) * np.abs(k)).sum(axis=-1)
    within(scores[0], scores[1], error)
