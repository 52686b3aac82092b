"""The operations of both NumPy backends, and of the oracle: numbers worked out by hand.

The laws that any backend must keep are in `tinymistral.conformance`.
"""

import math

import numpy as np
import pytest

from tinymistral.conformance import oracle
from tinymistral.conformance.bounds import agree, rope_error
from tinymistral.conformance.cases import filled, normal
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.operations import NUMPY_DTYPES, PlainBackend

BACKENDS = {
    f"{kind.name}-{dtype}": kind(dtype)
    for kind in (PlainBackend, NumpyBackend)
    for dtype in NUMPY_DTYPES
}
EXACT = [name for name in BACKENDS if name.endswith("float64")]


# Examples, for the oracle and the backend alike


class Oracle:
    """The oracle with the backend's signatures."""

    def __getattr__(self, name):
        return getattr(oracle, name)

    def asarray(self, array):
        return array

    def rope_table(self, positions, theta, d):
        return positions, theta

    def rope(self, x, table):
        return oracle.rope(x, *table)


class Rounded:
    """A backend that is given what the oracle is given: arrays are rounded on the way in."""

    def __init__(self, backend):
        self.backend = backend

    def asarray(self, array):
        return self.backend.asarray(array, self.backend.dtype)

    def __getattr__(self, name):
        return getattr(self.backend, name)


@pytest.fixture(params=["oracle", *BACKENDS])
def ops(request):
    return Oracle() if request.param == "oracle" else Rounded(BACKENDS[request.param])


@pytest.fixture(params=["oracle", *EXACT])
def exact_ops(request):
    return Oracle() if request.param == "oracle" else BACKENDS[request.param]


def array(ops, numbers):
    return ops.asarray(np.array(numbers, dtype=np.float64))


def positions(*rows):
    return np.array(rows, dtype=np.int64)


def test_embedding_gives_rows(ops):
    table = array(ops, [[1, 2], [3, 4], [5, 6]])
    np.testing.assert_array_equal(
        ops.embedding(table, positions([2, 0, 2])), [[[5, 6], [1, 2], [5, 6]]]
    )


def test_linear_is_dot_products_with_rows(ops):
    out = ops.linear(array(ops, [[[1, 2]]]), array(ops, [[3, 4], [5, 6], [0, -1]]))
    np.testing.assert_array_equal(out, [[[11, 17, -2]]])


def test_rms_norm_has_eps_under_the_root(ops):
    # mean square 12.5, so the root is that of 16
    out = ops.rms_norm(array(ops, [[[3, 4]]]), array(ops, [1, 2]), 3.5)
    np.testing.assert_array_equal(out, [[[0.75, 2]]])


def test_rope_rotates_halves(exact_ops):
    # d = 4, theta = 10000: pair 0 turns by 1 a token, pair 1 by 0.01. cos 1, sin 1: any table.
    cos, sin = 0.5403023058681398, 0.8414709848078965
    for position, pair in ((1, 0), (100, 1)):
        x = np.zeros((1, 1, 1, 4), dtype=np.float64)
        x[..., pair] = 1
        table = exact_ops.rope_table(positions([position]), 10_000.0, 4)
        out = exact_ops.rope(x, table)[0, 0, 0]
        assert out[[pair, pair + 2]] == pytest.approx([cos, sin], rel=1e-14)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=list(BACKENDS))
def test_rope_is_right_at_position_32767(backend):
    # cos and sin of 32767 · 10000^(-2m/128), by mpmath with 50 digits. In float32 the angle is off
    # by 0.0017 at m = 1.
    known = {
        0: (0.9822633517692823, 0.18750655394138942),
        1: (0.9823545027617725, 0.18702842271609604),
        12: (-0.72053031422273808, 0.69342343938324029),
        63: (-0.8007311847073214, -0.59902384746953902),
    }
    dtype = backend.dtype
    x = np.zeros((1, 1, len(known), 128), dtype=NUMPY_DTYPES[dtype])
    for head, m in enumerate(known):
        x[..., head, m] = 1
    at = positions([32767])
    out = backend.rope(x, backend.rope_table(at, 10_000.0, 128))
    error = rope_error(x, at, 10_000.0, dtype)
    for head, (m, pair) in enumerate(known.items()):
        agree(out[0, 0, head, [m, m + 64]], np.array(pair), error[0, 0, head, [m, m + 64]], dtype)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (None, [[1, 0, 0, 0], [1 / 2, 1 / 2, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [1 / 4] * 4]),
        (3, [[1, 0, 0, 0], [1 / 2, 1 / 2, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [0] + [1 / 3] * 3]),
        (2, [[1, 0, 0, 0], [1 / 2, 1 / 2, 0, 0], [0, 1 / 2, 1 / 2, 0], [0, 0, 1 / 2, 1 / 2]]),
        (1, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
)
def test_a_window_counts_the_own_key(ops, window, expected):
    # All scores are equal, and value j is the unit vector j: the mix shows who is visible.
    zeros, at = array(ops, np.zeros((1, 4, 1, 4))), positions([0, 1, 2, 3])
    unit = array(ops, np.eye(4)[None, :, None])
    weights = ops.attention_weights(zeros, zeros, at, at, window)
    expected = array(ops, expected)
    np.testing.assert_array_equal(weights[0, 0], expected)
    np.testing.assert_array_equal(
        ops.attention(zeros, zeros, unit, at, at, window)[0, :, 0], expected
    )


def test_visibility_depends_on_positions_not_on_slots(ops):
    # Slots: 6 (future), empty, 3 (too old), 5, 4. The second query is padding, the third alone.
    zeros = array(ops, np.zeros((1, 5, 1, 2)))
    at, slots = positions([5, -1, 9]), positions([6, -1, 3, 5, 4])
    weights = ops.attention_weights(zeros[:, :3], zeros, at, slots, 2)
    np.testing.assert_array_equal(weights[0, 0], [[0, 0, 0, 0.5, 0.5], [0] * 5, [0] * 5])


def test_scores_are_scaled_by_the_root_of_d(exact_ops):
    # q·k = 2 ln 3 and 0, d = 4: exp gives 3 and 1, the weights 3/4 and 1/4, the mix 3/4 · 1 + 5/4.
    q, k, v = np.zeros((1, 1, 1, 4)), np.zeros((1, 2, 1, 4)), np.zeros((1, 2, 1, 4))
    q[..., 0], k[0, 0, 0, 0], v[0, :, 0, 0] = 2 * math.log(3), 1, [1, 5]
    at, slots = positions([1]), positions([0, 1])
    weights = exact_ops.attention_weights(q, k, at, slots, None)
    assert weights[0, 0, 0] == pytest.approx([0.75, 0.25], rel=1e-14)
    mix = exact_ops.attention(q, k, v, at, slots, None)
    assert mix[0, 0, 0] == pytest.approx([2, 0, 0, 0], rel=1e-14)


def test_consecutive_query_heads_share_a_key_value_head(ops):
    q, k = array(ops, np.zeros((1, 1, 4, 2))), array(ops, np.zeros((1, 1, 2, 2)))
    v = array(ops, [[[[1, 1], [2, 2]]]])
    out = ops.attention(q, k, v, positions([0]), positions([0]), None)
    np.testing.assert_array_equal(out[0, 0, :, 0], [1, 1, 2, 2])


def test_large_scores_do_not_overflow(ops):
    # Scores 200² / sqrt(2) twice and minus that: exp overflows above 710, even in float64.
    q = array(ops, [[[[200, 200]]]])
    k = array(ops, [[[[200, 0]], [[0, 200]], [[-200, 0]]]])
    v = array(ops, [[[[1, 0]], [[3, 0]], [[5, 0]]]])
    at, slots = positions([2]), positions([0, 1, 2])
    np.testing.assert_array_equal(ops.attention_weights(q, k, at, slots, None), [[[[0.5, 0.5, 0]]]])
    np.testing.assert_array_equal(ops.attention(q, k, v, at, slots, None), [[[[2, 0]]]])


def test_silu_of_large_gates_is_the_gate_or_zero(ops):
    out = ops.silu_mul(array(ops, [0, 1000, -1000, 1000]), array(ops, [3, 2, 2, -0.5]))
    np.testing.assert_array_equal(out, [0, 2000, 0, -500])


def test_silu_is_of_the_gate(exact_ops):
    # sigmoid(ln 3) = 3/4
    out = exact_ops.silu_mul(np.array([math.log(3)]), np.array([4.0]))
    assert out == pytest.approx([3 * math.log(3)], rel=1e-14)


def test_scatter_leaves_out_slot_minus_1(ops):
    cache = array(ops, [[[[1]], [[2]], [[3]]], [[[4]], [[5]], [[6]]]])
    new = array(ops, [[[[10]], [[20]]], [[[30]], [[40]]]])
    out = ops.scatter(cache, positions([2, 0], [-1, 1]), new)
    np.testing.assert_array_equal(out[..., 0, 0], [[20, 2, 10], [4, 40, 6]])


# float64


class Spied(np.ndarray):
    """An array that notes the dtype of every array that is made of it."""

    noted: set[np.dtype]

    def __array_finalize__(self, _):
        Spied.noted.add(self.dtype)


@pytest.mark.parametrize("kind", [PlainBackend, NumpyBackend])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_nothing_is_float64_unless_asked_for(kind, dtype, stored):
    rng, backend, Spied.noted = np.random.default_rng(0), kind(dtype), set()
    x, y = (normal(rng, dtype, 2, 3, 8).view(Spied) for _ in range(2))
    q = normal(rng, dtype, 2, 3, 4, 8).view(Spied)
    k, v, cache = (normal(rng, dtype, 2, n, 2, 8).view(Spied) for n in (3, 3, 5))
    weight = normal(rng, stored, 8, 8).view(Spied)
    ids = np.array([[0, 1, 2], [-1, 0, 1]], dtype=np.int64)
    table = backend.rope_table(ids, 10_000.0, 8)
    assert {array.dtype for array in table} == {np.dtype(np.float32)}
    table = tuple(array.view(Spied) for array in table)
    results = [
        backend.embedding(weight, abs(ids)),
        backend.linear(x, weight),
        backend.rms_norm(x, weight[0], 1e-5),
        backend.rope(q, table),
        backend.scatter(cache, ids, backend.rope(k, table)),
        backend.attention(q, k, filled(v, ids < 0, np.nan), ids, ids, 2),
        backend.attention_weights(q, k, ids, ids, 2),
        backend.silu_mul(x, y),
    ]
    assert {array.dtype for array in results} == {NUMPY_DTYPES[dtype]}
    assert np.dtype(np.float32) in Spied.noted
    assert np.dtype(np.float64) not in Spied.noted
