"""The optimizer against plain loops, published properties, and torch's AdamW."""

import math

import numpy as np
import pytest
from goldens import FIXTURES
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from strategies import seeds

from tinymistral.training import optimizer
from tinymistral.training.optimizer import AdamW, clip, learning_rate

SHAPES = {"model.layers.0.mlp.up_proj.weight": (3, 5), "model.norm.weight": (5,)}


def arrays(seed, dtype="float64"):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


# AdamW


def explicit_adamw(weight, gradients, rates, beta1, beta2, eps, decay):
    """One number's path: algorithm 2 of Loshchilov & Hutter 2019, line by line."""
    m = v = 0.0
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient * gradient
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        weight = weight - rate * (m_hat / (math.sqrt(v_hat) + eps) + decay * weight)
    return weight


@given(seeds, st.integers(1, 6), st.sampled_from([1, 4, 1 << 17]))
def test_adamw_is_the_plain_loop_over_each_number(seed, steps, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer, "BLOCK", block)
        weights, before = arrays(seed), arrays(seed)
        gradients = [arrays([seed, n]) for n in range(steps)]
        rates = [0.1 / (n + 1) for n in range(steps)]
        adamw = AdamW(weights, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3)
        for gradient, rate in zip(gradients, rates, strict=True):
            adamw.step(gradient, rate)
    for name, weight in weights.items():
        decay = 0.0 if "norm" in name else 0.3
        for at in np.ndindex(weight.shape):
            path = [gradient[name][at] for gradient in gradients]
            start = before[name][at]
            expected = explicit_adamw(start, path, rates, 0.8, 0.95, 1e-3, decay)
            assert weight[at] == pytest.approx(expected, rel=1e-12)


def test_adamw_is_that_of_torch():
    fixture = load_file(FIXTURES / "gradients.safetensors")
    expected = {n.removeprefix("adamw."): fixture[n] for n in fixture if n.startswith("adamw.")}
    weights = {"matrix": expected["matrix.0"].copy(), "norm": expected["norm.0"].copy()}
    adamw = AdamW(weights, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for n, rate in enumerate(expected["rates"], start=1):
        gradients = {name: expected[f"{name}.gradient.{n}"] for name in weights}
        adamw.step(gradients, float(rate))
        for name, weight in weights.items():
            np.testing.assert_allclose(weight, expected[f"{name}.{n}"], rtol=1e-12)


def test_the_first_step_moves_each_number_by_the_learning_rate():
    # m̂ = g and v̂ = g², whatever the betas: without their correction it would be 0.3 times that.
    weights = {"model.norm.weight": np.zeros(3)}
    AdamW(weights, eps=0.0).step({"model.norm.weight": np.array([1e-3, -5.0, 100.0])}, 0.25)
    np.testing.assert_allclose(weights["model.norm.weight"], [-0.25, 0.25, -0.25], rtol=1e-12)


def test_matrices_decay_and_norms_do_not():
    weights = {name: np.ones(shape) for name, shape in SHAPES.items()}
    zeros = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    adamw = AdamW(weights, weight_decay=0.5)
    for _ in range(2):
        adamw.step(zeros, 0.1)
    matrix, norm = weights.values()
    np.testing.assert_allclose(matrix, 0.95**2)
    assert (norm == 1).all()


def test_float32_stays_float32_and_in_place():
    weights = arrays(0, "float32")
    same = dict(weights)
    adamw = AdamW(weights)
    adamw.step(arrays(1, "float32"), 0.1)
    assert all(weights[name] is same[name] for name in weights)
    dtypes = {array.dtype for name, array in adamw.state().items() if name != "steps"}
    assert dtypes | {array.dtype for array in weights.values()} == {np.dtype(np.float32)}


@given(seeds, st.integers(0, 4))
def test_a_saved_state_goes_on_to_the_same_bits(seed, steps):
    weights = arrays(seed, "float32")
    adamw = AdamW(weights)
    for n in range(steps):
        adamw.step(arrays([seed, n], "float32"), 0.1)
    copied = {name: weight.copy() for name, weight in weights.items()}
    resumed = AdamW(copied)
    resumed.load({name: array.copy() for name, array in adamw.state().items()})
    for one in (adamw, resumed):
        one.step(arrays([seed, 99], "float32"), 0.1)
    for name, array in (weights | adamw.state()).items():
        np.testing.assert_array_equal(array, (copied | resumed.state())[name])


# The learning rate


def test_the_learning_rate_by_its_formula():
    rates = [learning_rate(step, 4, 12, 1.0, 0.1) for step in range(14)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    # Half a cosine over the eight steps from 4 to 12: at its quarter cos(π/4), at its half 0.
    assert rates[6] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert rates[8] == pytest.approx(0.55)
    assert rates[10] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2)
    assert rates[12:] == [0.1, 0.1]


@given(st.integers(0, 20), st.integers(1, 60))
def test_the_learning_rate_rises_then_falls(warm_up, total):
    rates = [learning_rate(step, warm_up, total, 3e-3, 1e-4) for step in range(total + 5)]
    assert max(rates) <= 3e-3
    assert min(rates[warm_up:], default=1e-4) >= 1e-4
    assert rates[:warm_up] == sorted(rates[:warm_up])
    assert rates[warm_up:] == sorted(rates[warm_up:], reverse=True)


# Clipping


def test_the_norm_is_that_of_all_gradients_as_one_vector():
    gradients = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0], [12.0]])}
    assert clip(gradients, 20.0) == 13.0
    assert gradients["a"].tolist() == [3.0, 0.0]
    assert clip(gradients, 6.5) == 13.0
    assert gradients["a"].tolist() == [1.5, 0.0]
    assert gradients["b"].tolist() == [[2.0], [6.0]]


def test_clipping_float32_stays_float32():
    gradients = {"a": np.full(3, 10, np.float32)}
    assert clip(gradients, 1.0) == pytest.approx(math.sqrt(300), rel=1e-6)
    assert gradients["a"].dtype == np.float32
    assert clip({"a": np.zeros(2, np.float32)}, 1.0) == 0.0
