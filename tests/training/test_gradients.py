"""The backward pass against finite differences, torch's autograd, the oracle and laws of its own.

What torch computed is in `fixtures/gradients.safetensors`; `fixtures/make_gradients.py` says how.
"""

import math
from unittest.mock import patch

import numpy as np
import pytest
from goldens import FIXTURES
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from strategies import config, random_ids, seeds, tiny_configs, tiny_model

from tinymistral import MistralForCausalLM
from tinymistral.conformance import oracle
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.training import gradients
from tinymistral.training.gradients import loss_and_gradients

FINITE_DIFFERENCES = 1e-6  # relative
FLOAT64 = 1e-9  # relative: two float64 computations that differ by the order of sums alone
FLOAT32 = 1e-4  # relative to the largest gradient

windows = st.sampled_from([None, 1, 2, 3, 5, 100])
tiles = st.sampled_from([1, 2, 3, 7, 48])  # queries in a tile of attention


# Helpers


def check_gradient(f, x, gradient):
    """Compare a gradient of f at x with the slope of f along a random direction, in float64.

    The slope is the central difference of fourth order: what it leaves out is of the order of h⁴.
    """
    assert gradient.shape == x.shape
    assert gradient.dtype == x.dtype == np.float64
    direction, h = np.random.default_rng(x.size).standard_normal(x.shape), 1e-4
    inner = f(x + h * direction) - f(x - h * direction)
    outer = f(x + 2 * h * direction) - f(x - 2 * h * direction)
    slope = (8 * inner - outer) / (12 * h)
    tolerance = FINITE_DIFFERENCES * np.linalg.norm(gradient) + 1e-10
    assert abs(slope - np.vdot(gradient, direction)) <= tolerance


def check_gradients(operation, inputs, given_gradients, dy):
    """Check the gradient of sum(dy · operation(*inputs)) with respect to each input."""
    for n, gradient in enumerate(given_gradients):

        def f(x, n=n):
            return np.vdot(dy, operation(*inputs[:n], x, *inputs[n + 1 :]))

        check_gradient(f, inputs[n], gradient)


def normal(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def small_weights(config, seed, dtype="float64"):
    """Weights of a tiny model, of float32 precision, so that a model can be made of them too."""
    tensors = tiny_model(config, seed).tensors
    names = MistralForCausalLM.parameter_shapes(config)
    return {name: np.asarray(tensors[name]).astype(dtype) for name in names}


@st.composite
def rows_of_positions(draw, window):
    """Positions (T,) of texts packed into a row, W or more apart, with padding anywhere."""
    gap = 1 if window is None else window
    positions, start = [], draw(st.integers(0, 3))
    for length in draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)):
        positions += range(start, start + length)
        start += length - 1 + gap + draw(st.integers(0, 2))
    for at in draw(st.lists(st.integers(0, 20), max_size=3)):
        positions.insert(at, -1)
    return np.array(positions, dtype=np.int64)


@st.composite
def calls(draw):
    """A configuration, and ids, targets and positions of a row of it; -100 is among targets."""
    config, seed = draw(tiny_configs(windows)), draw(seeds)
    positions = draw(rows_of_positions(config.sliding_window))
    ids, targets = random_ids(config, seed, 2, len(positions))
    targets[np.random.default_rng(seed).random(len(targets)) < 0.2] = -100
    targets[positions < 0] = -100
    return config, seed, (ids, targets, positions)


def packed(lengths, window):
    """Positions of texts of these lengths: each W further from the one before."""
    starts = np.cumsum([0, *lengths[:-1]]) + np.arange(len(lengths)) * window
    return np.concatenate([np.arange(n) + start for n, start in zip(lengths, starts, strict=True)])


# Each operation against finite differences


@given(seeds, st.integers(1, 9), st.integers(1, 5))
def test_embedding(seed, T, D):
    ids = np.random.default_rng(seed).integers(0, 6, T)  # most of them more than once
    table, dx, before = normal(seed, (6, D), (T, D), (6, D))
    d_table = before.copy()
    gradients.embedding_backward(dx, ids, d_table)
    check_gradients(lambda table: table[ids], [table], [d_table - before], dx)


@given(seeds, st.integers(1, 9), st.integers(1, 5), st.integers(1, 5))
def test_linear(seed, T, m, n):
    x, weight, dy = normal(seed, (T, n), (m, n), (T, m))
    found = gradients.linear_backward(dy, x, weight)
    check_gradients(gradients.linear, [x, weight], found, dy)


@given(seeds, st.integers(1, 9), st.integers(1, 5), st.sampled_from([1e-2, 1.0]))
def test_rms_norm(seed, T, D, eps):
    x, weight, dy = normal(seed, (T, D), D, (T, D))
    _, kept = gradients.rms_norm(x, weight, eps)
    found = gradients.rms_norm_backward(dy, kept, weight)
    check_gradients(lambda *inputs: gradients.rms_norm(*inputs, eps)[0], [x, weight], found, dy)


@given(seeds, st.integers(1, 9), st.integers(1, 5))
def test_silu_mul(seed, T, F):
    gate, up, dy = normal(seed, (T, F), (T, F), (T, F))
    _, kept = gradients.silu_mul(3 * gate, up)
    found = gradients.silu_mul_backward(dy, kept)
    check_gradients(lambda *inputs: gradients.silu_mul(*inputs)[0], [3 * gate, up], found, dy)


@given(seeds, st.integers(1, 9), st.integers(1, 3), st.sampled_from([2, 4, 6]))
def test_rope(seed, T, H, d):
    x, dy = normal(seed, (T, H, d), (T, H, d))
    table = NumpyBackend("float64").rope_table(np.arange(T) + seed % 100, 10.0, d)
    found = gradients.rope_backward(dy, table)
    check_gradients(lambda x: gradients.rope(x, table), [x], [found], dy)


@given(
    windows.flatmap(lambda W: st.tuples(st.just(W), rows_of_positions(W))),
    seeds,
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([2, 4, 6]),
    tiles,
)
def test_attention(row, seed, K, G, d, queries):
    window, positions = row
    T = len(positions)
    q, k, v, dy = normal(seed, (K, T, G, d), (K, T, d), (K, T, d), (K, T, G, d))
    with patch.object(gradients, "QUERIES_PER_TILE", queries):
        cut = gradients.attention_tiles(positions, window, q.dtype)
    y, kept = gradients.attention(q, k, v, cut)
    found = gradients.attention_backward(dy, kept, cut)
    check_gradients(lambda *inputs: gradients.attention(*inputs, cut)[0], [q, k, v], found, dy)

    # The forward pass is checked here too, as no backend computes it.
    by_head = (y.transpose(1, 0, 2, 3), q.transpose(1, 0, 2, 3), k.swapaxes(0, 1), v.swapaxes(0, 1))
    y, q, k, v = (array.reshape(1, T, -1, d) for array in by_head)
    expected = oracle.attention(q, k, v, positions[None], positions[None], window)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


@given(seeds, st.integers(0, 9), st.integers(1, 9))
def test_cross_entropy(seed, N, V):
    (logits,) = normal(seed, (N, V))
    logits, targets = 3 * logits, np.random.default_rng(seed).integers(0, V, N)
    loss, found = gradients.cross_entropy(logits.copy(), targets)
    assert loss == pytest.approx(explicit_loss(logits, targets), rel=1e-12, abs=1e-12)
    check_gradient(lambda x: gradients.cross_entropy(x, targets)[0], logits, found)


def explicit_loss(logits, targets):
    """The sum of -log softmax(logits)[target], over the rows that have a target."""
    return math.fsum(
        math.log(math.fsum(math.exp(logit) for logit in row)) - row[target]
        for row, target in zip(logits, targets, strict=True)
        if target != -100
    )


def test_large_numbers_do_not_overflow():
    loss, found = gradients.cross_entropy(np.array([[1e4, 0.0, -1e4]]), np.array([1]))
    assert loss == 1e4
    assert found.tolist() == [[1.0, -1.0, 0.0]]
    y, kept = gradients.silu_mul(np.array([[-1e4, 1e4]]), np.array([[2.0, 2.0]]))
    assert y.tolist() == [[0.0, 2e4]]
    d_gate, d_up = gradients.silu_mul_backward(np.ones((1, 2)), kept)
    assert (d_gate.tolist(), d_up.tolist()) == ([[0.0, 2.0]], [[0.0, 1e4]])


# The whole


@pytest.mark.slow
@settings(max_examples=20)
@given(calls(), tiles)
def test_the_whole_is_the_oracle_with_the_slopes_of_finite_differences(call, queries):
    config, seed, (ids, targets, positions) = call
    weights = small_weights(config, seed)
    with patch.object(gradients, "QUERIES_PER_TILE", queries):
        loss, count, found = loss_and_gradients(weights, ids, targets, positions, config)
        stages = oracle.forward(config, weights, ids[None], positions[None])
        assert loss == pytest.approx(explicit_loss(stages["logits"][0], targets), rel=1e-10)
        assert count == np.count_nonzero(targets != -100)
        assert found.keys() == weights.keys()
        for name, gradient in found.items():

            def f(x, name=name):
                changed = weights | {name: x}
                return loss_and_gradients(changed, ids, targets, positions, config)[0]

            check_gradient(f, weights[name], gradient)


@pytest.mark.parametrize("name", ["gqa", "tied"])
def test_loss_and_gradients_are_those_of_torch(name):
    # Torch read each text alone, from position 0; here they are one row, with padding at its ends.
    fixture = load_file(FIXTURES / "gradients.safetensors")
    expected = {n.removeprefix(f"{name}."): fixture[n] for n in fixture if n.startswith(name)}
    model = MistralForCausalLM.from_pretrained(FIXTURES / "models" / name, dtype="float64")
    shapes = MistralForCausalLM.parameter_shapes(model.config)
    weights = {n: np.asarray(model.tensors[n]).astype("float64") for n in shapes}
    positions = packed(expected["lengths"], model.config.sliding_window)
    row = (expected["ids"], expected["targets"], positions)
    ids, targets, positions = (
        np.concatenate([[filling] * 3, array, [filling]])
        for array, filling in zip(row, (1, -100, -1), strict=True)
    )
    loss, count, found = loss_and_gradients(weights, ids, targets, positions, model.config)
    assert count == np.count_nonzero(expected["targets"] != -100)
    assert loss == pytest.approx(float(expected["loss"]), rel=FLOAT64)
    assert {f"gradients.{n}" for n in found} == {n for n in expected if n.startswith("gradients")}
    for n, gradient in found.items():
        truth = expected[f"gradients.{n}"]
        atol = FLOAT64 * np.abs(truth).max()
        np.testing.assert_allclose(gradient, truth, rtol=0, atol=atol, err_msg=n)


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_is_that_of_the_model(tied):
    tiny = config(tie_word_embeddings=tied)
    model, ids = tiny_model(tiny, 1), random_ids(tiny, 1, 20)
    targets = np.append(ids[1:], -100)
    weights = small_weights(tiny, 1)
    loss, count, _ = loss_and_gradients(weights, ids, targets, np.arange(20), tiny)
    assert count == 19
    assert loss / count == pytest.approx(float(model(ids[None], labels=ids[None]).loss), rel=1e-12)


@given(calls())
def test_texts_packed_into_a_row_have_the_gradients_of_each_alone(call):
    config, seed, (ids, _, _) = call
    window = config.sliding_window or 100
    lengths = [max(1, len(ids) // 3), len(ids), len(ids) // 2 + 1]
    positions, weights = packed(lengths, window), small_weights(config, seed)
    config = type(config)(**vars(config) | {"sliding_window": window})
    ids, targets = random_ids(config, seed, 2, len(positions))
    loss, count, found = loss_and_gradients(weights, ids, targets, positions, config)
    end, alone = 0, []
    for n in lengths:
        text, end = slice(end, end + n), end + n
        row = (ids[text], targets[text], np.arange(n))
        alone.append(loss_and_gradients(weights, *row, config))
    assert loss == pytest.approx(sum(one[0] for one in alone), rel=1e-12)
    assert count == sum(one[1] for one in alone)
    for name, gradient in found.items():
        total = sum(one[2][name] for one in alone)
        np.testing.assert_allclose(gradient, total, rtol=0, atol=1e-10)


def test_a_row_without_targets_has_no_loss_and_no_gradient():
    tiny = config()
    none = np.full(4, -100)
    for positions in (np.arange(4), np.full(4, -1)):
        loss, count, found = loss_and_gradients(
            small_weights(tiny, 0), np.zeros(4, np.int64), none, positions, tiny
        )
        assert (loss, count) == (0.0, 0)
        assert not any(gradient.any() for gradient in found.values())


# float32


class Traced(np.ndarray):
    """An array that fails when a ufunc makes float64 of it, or reads that; results are traced."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        plain = [np.asarray(x) if isinstance(x, Traced) else x for x in inputs]
        if out:
            kwargs["out"] = tuple(np.asarray(x) for x in out)
        result = getattr(ufunc, method)(*plain, **kwargs)
        dtypes = {x.dtype for x in (*plain, result) if isinstance(x, np.ndarray | np.generic)}
        assert np.dtype(np.float64) not in dtypes, f"float64 in {ufunc.__name__}"
        if out:
            return out[0]
        return np.asarray(result).view(Traced)


@pytest.mark.parametrize("tied", [True, False])
def test_float32_stays_float32(tied):
    tiny = config(tie_word_embeddings=tied)
    weights = {n: array.view(Traced) for n, array in small_weights(tiny, 0, "float32").items()}
    ids, targets = random_ids(tiny, 0, 2, 9)
    _, _, found = loss_and_gradients(weights, ids, targets, np.arange(9), tiny)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}


def test_float32_stays_float32_in_attention():
    # Apart from the model, where the rotated queries and keys are no longer traced.
    q, k, v, dy = (
        array.astype(np.float32).view(Traced)
        for array in normal(0, (2, 9, 3, 4), (2, 9, 4), (2, 9, 4), (2, 9, 3, 4))
    )
    cut = gradients.attention_tiles(np.arange(9), 3, q.dtype)
    y, kept = gradients.attention(q, k, v, cut)
    found = gradients.attention_backward(dy, kept, cut)
    assert {array.dtype for array in (y, *found)} == {np.dtype(np.float32)}
    assert all(isinstance(array, Traced) for array in (y, *found))


def test_the_trace_finds_float64():
    x = np.ones(2, np.float32).view(Traced)
    with pytest.raises(AssertionError, match="float64 in multiply"):
        (x + 1) * np.ones(2)
    with pytest.raises(AssertionError, match="float64 in add"):
        x += np.ones(2)


@settings(max_examples=20)
@given(calls())
def test_float32_is_near_float64(call):
    config, seed, row = call
    loss, _, found = loss_and_gradients(small_weights(config, seed, "float32"), *row, config)
    exact_loss, _, exact = loss_and_gradients(small_weights(config, seed), *row, config)
    assert loss == pytest.approx(exact_loss, rel=FLOAT32)
    atol = FLOAT32 * max(np.abs(gradient).max() for gradient in exact.values())
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, exact[name], rtol=0, atol=atol, err_msg=name)
