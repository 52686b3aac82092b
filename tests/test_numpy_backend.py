"""The NumPy backend against the oracle, operation by operation, in every dtype.

Expected values are numbers worked out by hand, which the oracle has to reach too, or the oracle's.
Where floats differ they may differ by what follows from the length of the sums and the dtype's
unit roundoff, derived beside each bound; no tolerance is typed in. Data are drawn by seed.
"""

import math
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymistral import numpy_backend
from tinymistral.conformance import oracle
from tinymistral.numpy_backend import NUMPY_DTYPES, NumpyBackend

BACKENDS = {dtype: NumpyBackend(dtype) for dtype in NUMPY_DTYPES}
EVERY_DTYPE = pytest.mark.parametrize("dtype", list(BACKENDS))
dtypes = st.sampled_from(list(BACKENDS))
generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)
thetas = st.sampled_from([10_000.0, 1e6])


def sizes(most: int) -> st.SearchStrategy[int]:
    return st.integers(1, most)


def data(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    """Normal numbers, the small ones 0: nothing is subnormal, not in 16 bits either."""
    x = rng.standard_normal(shape)
    return np.where(np.abs(x) < 2.0**-8, 0.0, x).astype(NUMPY_DTYPES[dtype])


# Bounds. N. J. Higham, Accuracy and Stability of Numerical Algorithms (2002), chapters 2 and 3:
# rounding to p bits multiplies by 1 + δ, |δ| <= u = 2^-p; n such factors make 1 + θ, |θ| <=
# gamma(n) = nu / (1 - nu); a dot product of n terms, summed in any order, errs by at most
# gamma(n) Σ|x||y|.

UNIT = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}
EXP = 8  # roundings that make up for exp: NumPy promises 4 units in the last place, one is 2u


def gamma(n: int, dtype: str) -> float:
    """Of what is computed inside an operation, in float32 at least; and again by the oracle."""
    u = UNIT["float64"] + (UNIT["float64"] if dtype == "float64" else UNIT["float32"])
    return n * u / (1 - n * u)


def agree(actual: np.ndarray, exact: np.ndarray, error: np.ndarray | float, dtype: str) -> None:
    """Check that `actual` is within `error` of `exact` and one rounding to the dtype further.

    The rounding adds u of what is rounded, or half the smallest subnormal if that is more.
    """
    assert actual.dtype == NUMPY_DTYPES[dtype]
    assert actual.shape == exact.shape
    bound = error + UNIT[dtype] * (np.abs(exact) + error)
    bound = bound + float(ml_dtypes.finfo(NUMPY_DTYPES[dtype]).smallest_subnormal)
    difference = np.abs(actual.astype(np.float64) - exact)
    assert (difference <= bound).all(), f"off by up to {np.max(difference / bound):.3g} × the bound"


def rope_error(x: np.ndarray, positions: np.ndarray, theta: float, dtype: str) -> np.ndarray:
    """Bound rope: per output two products, each with its cosine: 4 roundings.

    The angle: i · theta^e, e rounded (relative error u, |e| <= 1, so ln(theta) u of the power),
    the power itself 2u, the product u; all in float64, by the oracle too. Cosines err by no more
    than their angle does.
    """
    angle = 2 * (math.log(theta) + 3) * UNIT["float64"] * np.abs(positions[..., None, None])
    x = np.abs(x.astype(np.float64))
    return (gamma(4, dtype) + angle) * (x + np.roll(x, x.shape[-1] // 2, axis=-1))


def softmax_error(q: np.ndarray, k: np.ndarray, weights: np.ndarray, dtype: str) -> float:
    """Bound the relative error of softmax times a sum, of all rows together.

    A score, a sum of d products times d^-0.5, errs by gamma(d + 2) |q|·|k| d^-0.5; taking off the
    largest, which as such cancels, rounds what is at most twice as large: δ = gamma(d + 4) |q|·|k|
    d^-0.5 in the exponent. exp makes a factor e^δ of it. That stands above and below the line,
    with exp's own error and a sum of S terms each; then one division.
    """
    d, S = q.shape[-1], k.shape[1]
    k = np.repeat(k, q.shape[2] // k.shape[2], axis=2)
    size = np.einsum("bthd,bshd->bhts", *(np.abs(x.astype(np.float64)) for x in (q, k)))
    exponent = gamma(d + 4, dtype) * np.max(size * (weights > 0)) * d**-0.5
    return math.exp(2 * exponent) * (1 + gamma(2 * (S + EXP), dtype)) - 1


def attention_error(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, weights: np.ndarray, dtype: str
) -> np.ndarray:
    """Bound attention: the relative error of the weights, times Σ weights |v|."""
    v = np.repeat(np.abs(v.astype(np.float64)), q.shape[2] // v.shape[2], axis=2)
    return softmax_error(q, k, weights, dtype) * np.einsum("bhts,bshd->bthd", weights, v)


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


@pytest.fixture(params=["oracle", "float64"])
def exact_ops(request):
    return Oracle() if request.param == "oracle" else BACKENDS["float64"]


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


def test_rope_turns_halves(exact_ops):
    # d = 4, theta = 10000: pair 0 turns by 1 a token, pair 1 by 0.01. cos 1, sin 1: any table.
    cos, sin = 0.5403023058681398, 0.8414709848078965
    for position, pair in ((1, 0), (100, 1)):
        x = np.zeros((1, 1, 1, 4), dtype=np.float64)
        x[..., pair] = 1
        table = exact_ops.rope_table(positions([position]), 10_000.0, 4)
        out = exact_ops.rope(x, table)[0, 0, 0]
        assert out[[pair, pair + 2]] == pytest.approx([cos, sin], rel=1e-14)


@EVERY_DTYPE
def test_rope_is_right_at_position_32767(dtype):
    # cos and sin of 32767 · 10000^(-2m/128), by mpmath with 50 digits. In float32 the angle is off
    # by 0.0017 at m = 1.
    known = {
        0: (0.9822633517692823, 0.18750655394138942),
        1: (0.9823545027617725, 0.18702842271609604),
        12: (-0.72053031422273808, 0.69342343938324029),
        63: (-0.8007311847073214, -0.59902384746953902),
    }
    x = np.zeros((1, 1, len(known), 128), dtype=NUMPY_DTYPES[dtype])
    for head, m in enumerate(known):
        x[..., head, m] = 1
    backend = BACKENDS[dtype]
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


def test_a_query_sees_by_position_not_by_slot(ops):
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


# Laws: the backend against the oracle


@EVERY_DTYPE
@given(rng=generators, stored=dtypes)
def test_embedding_rounds_rows_of_the_table(dtype, rng, stored):
    table = data(rng, stored, 7, 3)
    ids = rng.integers(0, 7, (2, 4))
    out = BACKENDS[dtype].embedding(table, ids)
    assert out.dtype == NUMPY_DTYPES[dtype]
    np.testing.assert_array_equal(out, oracle.embedding(table, ids).astype(out.dtype))


def stored_as(dtype: str) -> st.SearchStrategy[str]:
    """What weights are stored as: as wide as they are computed with, or narrower."""
    return st.sampled_from(
        [other for other in BACKENDS if dtype == "float64" or other != "float64"]
    )


def unaligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts on an odd address, as data in a file may."""
    raw = np.empty(array.nbytes + 1, dtype=np.uint8)
    raw[1:] = np.frombuffer(array.tobytes(), dtype=np.uint8)
    return raw[1:].view(array.dtype).reshape(array.shape)


@EVERY_DTYPE
@given(st.data(), generators, sizes(9), sizes(9), sizes(70), st.booleans())
def test_linear_is_the_oracles(dtype, draw, rng, T, m, n, odd):
    x, weight = data(rng, dtype, 2, T, n), data(rng, draw.draw(stored_as(dtype)), m, n)
    given_weight = unaligned(weight) if odd else weight
    with patch.object(
        numpy_backend, "WEIGHTS_A_BLOCK", draw.draw(st.sampled_from([1, 100, 2**20]))
    ):
        out = BACKENDS[dtype].linear(x, given_weight)
    size = oracle.linear(np.abs(x), np.abs(weight))
    agree(out, oracle.linear(x, weight), gamma(n, dtype) * size, dtype)


@EVERY_DTYPE
@given(st.data(), generators, sizes(70), st.sampled_from([2.0**-7, 1, 2.0**8]))
def test_rms_norm_is_the_oracles(dtype, draw, rng, D, scale):
    # Squares D, their sum's terms, / D, eps and its sum, root, quotient, product: D + 6 roundings.
    x = data(rng, dtype, 2, 3, D) * np.asarray(scale, dtype=NUMPY_DTYPES[dtype])
    weight = unaligned(data(rng, draw.draw(stored_as(dtype)), D))
    exact = oracle.rms_norm(x, weight, 1e-5)
    out = BACKENDS[dtype].rms_norm(x, weight, 1e-5)
    agree(out, exact, gamma(D + 6, dtype) * np.abs(exact), dtype)


@EVERY_DTYPE
@given(generators, sizes(3), sizes(16), thetas)
def test_rope_is_the_oracles(dtype, rng, H, pairs, theta):
    x, at = data(rng, dtype, 2, 4, H, 2 * pairs), rng.integers(-1, 32768, (2, 4))
    backend = BACKENDS[dtype]
    out = backend.rope(x, backend.rope_table(at, theta, 2 * pairs))
    agree(out, oracle.rope(x, at, theta), rope_error(x, at, theta, dtype), dtype)


@EVERY_DTYPE
@given(generators, st.sampled_from([0.1, 1, 20, 1000]))
def test_silu_mul_is_the_oracles(dtype, rng, scale):
    # exp, sum, quotient, product. Where exp(-gate) overflows the quotient is 0: it was < 1 / max.
    gate, up = (data(rng, dtype, 2, 5) for _ in range(2))
    gate = gate * np.asarray(scale, dtype=gate.dtype)
    exact = oracle.silu_mul(gate, up)
    wide = np.float64 if dtype == "float64" else np.float32
    lost = np.abs(gate.astype(np.float64) * up.astype(np.float64)) / np.finfo(wide).max
    out = BACKENDS[dtype].silu_mul(gate, up)
    agree(out, exact, gamma(EXP + 3, dtype) * np.abs(exact) + lost, dtype)


@st.composite
def attention_cases(draw):
    """Queries over slots in any order: (dtype, q, k, v, q_positions, k_positions, window).

    A row has S consecutive positions, each in a random slot and one in five missing, and queries
    at T consecutive positions, padding among them, from before the first key to past the last.
    """
    rng, dtype = draw(generators), draw(dtypes)
    B, K, group = draw(sizes(2)), draw(sizes(3)), draw(sizes(4))
    T, S, d = draw(sizes(5)), draw(sizes(12)), draw(st.sampled_from([2, 6, 16]))
    window = draw(st.sampled_from([1, 2, max(1, S - 1), S, S + 1, 2**40, None]))
    first = draw(st.sampled_from([0, 5, 32760]))
    k_positions = np.stack([rng.permutation(S) + first for _ in range(B)])
    k_positions[rng.random((B, S)) < 0.2] = -1
    q_positions = rng.integers(-T, S + 2, (B, 1)) + first + np.arange(T)
    q_positions[rng.random((B, T)) < 0.2] = -1
    q_positions = np.maximum(q_positions, -1)
    q, k = data(rng, dtype, B, T, K * group, d), data(rng, dtype, B, S, K, d)
    return dtype, q, k, data(rng, dtype, B, S, K, d), q_positions, k_positions, window


tiles = st.sampled_from([1, 50, 2**18]).map(
    lambda scores: patch.object(numpy_backend, "SCORES_A_TILE", scores)
)


@given(attention_cases(), tiles)
def test_attention_is_the_oracles(case, tile):
    dtype, q, k, v, *where = case
    with tile:
        out = BACKENDS[dtype].attention(q, k, v, *where)
    weights = oracle.attention_weights(q, k, *where)
    error = attention_error(q, k, v, weights, dtype)
    agree(out, oracle.attention(q, k, v, *where), error, dtype)


@given(attention_cases())
def test_attention_weights_are_the_oracles(case):
    dtype, q, k, _, *where = case
    exact = oracle.attention_weights(q, k, *where)
    out = BACKENDS[dtype].attention_weights(q, k, *where)
    agree(out, exact, softmax_error(q, k, exact, dtype) * exact, dtype)
    np.testing.assert_array_equal(out[exact == 0], 0)


# Laws of RoPE


@EVERY_DTYPE
@given(generators, sizes(16), thetas)
def test_rope_keeps_norms(dtype, rng, pairs, theta):
    # The bound is of the vector of errors; a norm differs by no more than that vector's norm.
    x, at = data(rng, dtype, 1, 4, 2, 2 * pairs), rng.integers(0, 32768, (1, 4))
    backend = BACKENDS[dtype]
    out = backend.rope(x, backend.rope_table(at, theta, 2 * pairs)).astype(np.float64)
    error = rope_error(x, at, theta, dtype)
    error = error + UNIT[dtype] * (np.abs(out) + error) / (1 - UNIT[dtype])
    x = x.astype(np.float64)
    difference = np.linalg.norm(out, axis=-1) - np.linalg.norm(x, axis=-1)
    slack = np.linalg.norm(error, axis=-1) + gamma(2 * pairs + 2, "float64") * np.linalg.norm(x)
    assert (np.abs(difference) <= slack).all()


@given(generators, sizes(16), thetas, st.integers(0, 5000), st.integers(0, 27767))
def test_rope_scores_depend_on_distance_only(rng, pairs, theta, distance, start):
    # float64, the dtype in which the angles can tell. Two products of turned vectors, each
    # factor with the error of rope and its own rounding, and the sums.
    d, backend = 2 * pairs, BACKENDS["float64"]
    q, k = (data(rng, "float64", 1, 1, 1, d) for _ in range(2))
    scores, error = [], 0.0
    for i in (distance, start + distance):
        at = positions([i, i - distance])
        both = np.concatenate([q, k], axis=1)
        turned = backend.rope(both, backend.rope_table(at, theta, d))[0, :, 0]
        scores.append(turned[0] @ turned[1])
        wrong = rope_error(both, at, theta, "float64")[0, :, 0]
        large = np.abs(turned) + wrong
        error += wrong[0] @ large[1] + large[0] @ wrong[1]
        error += gamma(d, "float64") * (large[0] @ large[1])
    assert abs(scores[0] - scores[1]) <= error


@EVERY_DTYPE
@given(generators, sizes(16), thetas)
def test_rope_at_position_0_is_the_identity(dtype, rng, pairs, theta):
    x, backend = data(rng, dtype, 2, 1, 3, 2 * pairs), BACKENDS[dtype]
    at = np.zeros((2, 1), dtype=np.int64)
    np.testing.assert_array_equal(backend.rope(x, backend.rope_table(at, theta, 2 * pairs)), x)


# Laws of attention

NOTHING = {"NaN": np.nan, "inf": np.inf, "-inf": -np.inf, "the largest number": None}


def filled(array: np.ndarray, where: np.ndarray, value: float | None) -> np.ndarray:
    """A copy of array with a value, or the dtype's largest number, where the mask (B, n) says."""
    array = array.copy()
    array[where] = float(ml_dtypes.finfo(array.dtype).max) if value is None else value
    return array


def visible(q_positions: np.ndarray, k_positions: np.ndarray, window: int | None) -> np.ndarray:
    """Who sees whom (B, T, S), as the oracle has it."""
    (B, T), S = q_positions.shape, k_positions.shape[1]
    out = np.zeros((B, T, S), dtype=bool)
    for b, t, s in np.ndindex(B, T, S):
        out[b, t, s] = oracle.sees(q_positions[b, t], k_positions[b, s], window)
    return out


@pytest.mark.parametrize("value", NOTHING.values(), ids=NOTHING)
@given(case=attention_cases(), tile=tiles, in_k=st.booleans(), in_v=st.booleans())
def test_what_a_query_does_not_see_has_no_influence(value, case, tile, in_k, in_v):
    # Empty slots, future keys, keys past the window, another row's, other queries: bit for bit.
    dtype, q, k, v, *where = case
    attend, seen = BACKENDS[dtype].attention, visible(*where)
    q_positions, k_positions, _ = where
    with tile:
        expected = attend(q, k, v, *where)
        for b, t in np.ndindex(seen.shape[:2]):
            hidden = np.ones(k_positions.shape, dtype=bool)
            hidden[b] = ~seen[b, t]
            others = np.ones(q_positions.shape, dtype=bool)
            others[b, t] = False
            out = attend(
                filled(q, others, np.nan),  # silences what those others would make of `value`
                filled(k, hidden, value) if in_k else k,
                filled(v, hidden, value) if in_v else v,
                *where,
            )
            np.testing.assert_array_equal(out[b, t], expected[b, t])


@given(attention_cases(), tiles)
def test_each_key_that_a_query_sees_has_influence(case, tile):
    # The oldest, at i - W + 1, too. Small queries make about equal weights, at least 1/100 each.
    dtype, q, k, v, *where = case
    q = q * np.asarray(1 / 16, dtype=q.dtype)
    seen = visible(*where)
    with tile:
        before = BACKENDS[dtype].attention(q, k, v, *where)
        for b, t, s in np.argwhere(seen):
            louder = v.copy()
            louder[b, s] = 800
            after = BACKENDS[dtype].attention(q, k, louder, *where)
            assert (after[b, t] > before[b, t] + 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@given(case=attention_cases(), tile=tiles)
def test_what_is_not_finite_reaches_whoever_sees_it(value, case, tile):
    dtype, q, k, v, *where = case
    seen = visible(*where)
    for b, s in np.ndindex(seen.shape[0], seen.shape[2]):
        one = np.zeros(k.shape[:2], dtype=bool)
        one[b, s] = True
        with tile:
            out = BACKENDS[dtype].attention(q, k, filled(v, one, value), *where)
        np.testing.assert_array_equal(out[b, seen[b, :, s]].astype(np.float64), value)


@given(attention_cases())
def test_who_sees_nothing_gets_zeros(case):
    dtype, q, k, v, *where = case
    nothing = ~visible(*where).any(axis=-1)
    out = BACKENDS[dtype].attention(q, k, v, *where)
    np.testing.assert_array_equal(out[nothing], 0)
    no_slots = [array[:, :0] for array in (k, v)]
    out = BACKENDS[dtype].attention(q, *no_slots, where[0], where[1][:, :0], where[2])
    assert out.dtype == q.dtype
    np.testing.assert_array_equal(out, np.zeros(q.shape, dtype=q.dtype))


@given(attention_cases(), generators)
def test_slots_may_be_shuffled_and_heads_repeated(case, rng):
    dtype, q, k, v, q_positions, k_positions, window = case
    exact = oracle.attention(q, k, v, q_positions, k_positions, window)
    weights = oracle.attention_weights(q, k, q_positions, k_positions, window)
    error = attention_error(q, k, v, weights, dtype)
    order, group = rng.permutation(k.shape[1]), q.shape[2] // k.shape[2]
    k, v = (np.repeat(array[:, order], group, axis=2) for array in (k, v))
    out = BACKENDS[dtype].attention(q, k, v, q_positions, k_positions[:, order], window)
    agree(out, exact, error, dtype)


@given(attention_cases())
def test_weights_sum_to_1_or_0_and_mix_the_values(case):
    # A weight errs by its rounding, a sum by theirs.
    dtype, q, k, v, *where = case
    u, S = UNIT[dtype], k.shape[1]
    weights = BACKENDS[dtype].attention_weights(q, k, *where).astype(np.float64)
    sums = np.where(visible(*where).any(axis=-1), 1.0, 0.0)[:, None]
    assert (np.abs(weights.sum(axis=-1) - sums) <= gamma(2 * (S + EXP), dtype) + 2 * u).all()
    values = np.repeat(v.astype(np.float64), q.shape[2] // v.shape[2], axis=2)
    mix = np.einsum("bhts,bshd->bthd", weights, values)
    error = attention_error(q, k, v, weights, dtype)
    error = 2 * error + 2 * u * np.einsum("bhts,bshd->bthd", weights, np.abs(values))
    agree(BACKENDS[dtype].attention(q, k, v, *where), mix, error, dtype)


@given(generators, dtypes, sizes(20), sizes(6), st.sampled_from([1, 2, 3, 7, 20, None]))
def test_pieces_through_a_ring_are_the_whole(rng, dtype, T, C, window):
    # Write, then attend: S = W + C - 1 slots, NaN in the empty ones, the second row left-padded.
    backend, S = BACKENDS[dtype], (window or T) + C - 1
    q, k, v = (data(rng, dtype, 2, T, heads, 6) for heads in (4, 2, 2))
    at = np.stack([np.arange(T), np.maximum(np.arange(T) - rng.integers(0, T + 1), -1)])
    k_ring, v_ring = (np.full((2, S, 2, 6), np.nan, dtype=k.dtype) for _ in range(2))
    slot_positions = np.full((2, S), -1, dtype=np.int64)
    out = []
    for start in range(0, T, C):
        piece = np.s_[:, start : start + C]
        slots = np.where(at[piece] >= 0, at[piece] % S, -1)
        k_ring, v_ring = (
            backend.scatter(ring, slots, new[piece]) for ring, new in ((k_ring, k), (v_ring, v))
        )
        b, t = np.nonzero(slots >= 0)
        slot_positions[b, slots[b, t]] = at[piece][b, t]
        out.append(backend.attention(q[piece], k_ring, v_ring, at[piece], slot_positions, window))
    weights = oracle.attention_weights(q, k, at, at, window)
    error = attention_error(q, k, v, weights, dtype)
    agree(np.concatenate(out, axis=1), oracle.attention(q, k, v, at, at, window), error, dtype)


# Laws of the rest


@EVERY_DTYPE
def test_rows_are_independent(dtype):
    # Row 1 is filled with NaN: row 0 stays as it was, bit for bit. (Attention: see above.)
    rng, backend = np.random.default_rng(0), BACKENDS[dtype]
    x, y = (data(rng, dtype, 2, 5, 2, 8) for _ in range(2))
    weight = data(rng, dtype, 8, 8)
    table = backend.rope_table(np.arange(10, dtype=np.int64).reshape(2, 5), 1e4, 8)
    for operation in (
        lambda x: backend.linear(x, weight),
        lambda x: backend.rms_norm(x, weight[0], 1e-5),
        lambda x: backend.rope(x, table),
        lambda x: backend.silu_mul(x, y),
        lambda x: backend.silu_mul(y, x),
    ):
        spoiled = operation(filled(x, np.array([False, True]), np.nan))
        np.testing.assert_array_equal(spoiled[0], operation(x)[0])


@given(generators, dtypes, sizes(6), sizes(6))
def test_scatter_writes_its_slots_and_nothing_else(rng, dtype, T, S):
    slots = np.stack([rng.permutation(max(S, T))[:T] for _ in range(3)])
    slots[slots >= S] = -1
    cache, new = data(rng, dtype, 3, S, 2, 4), data(rng, dtype, 3, T, 2, 4)
    expected = oracle.scatter(cache, slots, new)
    out = BACKENDS[dtype].scatter(cache, slots, new)
    assert out.dtype == NUMPY_DTYPES[dtype]
    np.testing.assert_array_equal(out, expected)


@given(generators, dtypes)
def test_store_is_rope_then_scatter(rng, dtype):
    backend = BACKENDS[dtype]
    k, v, k_cache, v_cache = (data(rng, dtype, 2, n, 2, 6) for n in (3, 3, 5, 5))
    at, slots = rng.integers(0, 99, (2, 3)), positions([4, -1, 0], [-1, 2, 3])
    rotated = oracle.scatter(k_cache, slots, oracle.rope(k, at, 1e4))
    error = oracle.scatter(np.zeros(k_cache.shape), slots, rope_error(k, at, 1e4, dtype))
    values = oracle.scatter(v_cache, slots, v)
    out = backend.store(k, v, backend.rope_table(at, 1e4, 6), (k_cache, v_cache), slots)
    agree(out[0], rotated, error, dtype)
    agree(out[1], values, 0, dtype)


@given(generators, dtypes)
def test_add_rms_norm_is_the_sum_and_its_norm(rng, dtype):
    x, residual, weight = data(rng, dtype, 2, 3, 7), data(rng, dtype, 2, 3, 7), data(rng, dtype, 7)
    total, normed = BACKENDS[dtype].add_rms_norm(x, residual, weight, 1e-5)
    agree(total, x.astype(np.float64) + residual.astype(np.float64), 0, dtype)
    exact = oracle.rms_norm(total, weight, 1e-5)
    agree(normed, exact, gamma(7 + 6, dtype) * np.abs(exact), dtype)


@EVERY_DTYPE
def test_arrays_come_go_and_are_gathered(dtype):
    backend = BACKENDS[dtype]
    here = backend.asarray(np.array([[0, 1], [2, 3.14159]], dtype=np.float32), dtype)
    expected = np.array([[0, 1], [2, 3.14159]], dtype=np.float32).astype(NUMPY_DTYPES[dtype])
    for array in (backend.to_numpy(here), backend.asarray(expected)):
        assert array.dtype == NUMPY_DTYPES[dtype]
        np.testing.assert_array_equal(array, expected)
    for axis in (0, 1):
        taken = backend.take(here, np.array([1, 1, 0]), axis)
        np.testing.assert_array_equal(taken, np.take(expected, [1, 1, 0], axis))
        assert not np.shares_memory(taken, here)
    zeros = backend.zeros((2, 3), dtype)
    assert zeros.dtype == NUMPY_DTYPES[dtype]
    np.testing.assert_array_equal(zeros, np.zeros((2, 3)))


class Spied(np.ndarray):
    """An array that notes the dtype of every array that is made of it."""

    noted: set[np.dtype]

    def __array_finalize__(self, _):
        Spied.noted.add(self.dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_nothing_is_float64_unless_asked_for(dtype, stored):
    rng, backend, Spied.noted = np.random.default_rng(0), BACKENDS[dtype], set()
    x, y = (data(rng, dtype, 2, 3, 8).view(Spied) for _ in range(2))
    q = data(rng, dtype, 2, 3, 4, 8).view(Spied)
    k, v, cache = (data(rng, dtype, 2, n, 2, 8).view(Spied) for n in (3, 3, 5))
    weight = data(rng, stored, 8, 8).view(Spied)
    ids = np.array([[0, 1, 2], [-1, 0, 1]], dtype=np.int64)
    table = backend.rope_table(ids, 10_000.0, 8)
    assert {array.dtype for array in table} == {np.dtype(np.float32)}
    table = tuple(array.view(Spied) for array in table)
    results = [
        backend.embedding(weight, abs(ids)),
        backend.linear(x, weight),
        backend.rms_norm(x, weight[0], 1e-5),
        *backend.add_rms_norm(x, y, weight[0], 1e-5),
        backend.rope(q, table),
        *backend.store(k, v, table, (cache, cache.copy()), ids),
        backend.attention(q, k, filled(v, ids < 0, np.nan), ids, ids, 2),
        backend.attention_weights(q, k, ids, ids, 2),
        backend.silu_mul(x, y),
    ]
    assert {array.dtype for array in results} == {NUMPY_DTYPES[dtype]}
    assert np.dtype(np.float32) in Spied.noted
    assert np.dtype(np.float64) not in Spied.noted
