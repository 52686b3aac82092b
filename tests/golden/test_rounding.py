"""Right programs that round at other places: by hand, and all of them beside an oracle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from golden_maker.tolerances import drawn
from goldens import FIXTURES, goldens
from hypothesis import given
from hypothesis import strategies as st

from tinymistral import MistralForCausalLM
from tinymistral.conformance import oracle
from tinymistral.golden.rounding import (
    CHOICES,
    FORMULAS,
    PLACES,
    TRANSFORMERS,
    AnglesBackend,
    RoundingBackend,
)
from tinymistral.numpy_backend import NumpyBackend

TWO = np.array([[0, 1]], dtype=np.int64)


def bf16(backend: NumpyBackend, *shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=backend.activation_dtype)


def made(*choices: str) -> RoundingBackend:
    return RoundingBackend("bfloat16", choices=choices)


# Each place, where rounding there shows


def test_halves_of_a_sum_are_rounded() -> None:
    """bfloat16 has 1 + n · 2^-7. The sum is 1 + 1.5 · 2^-7, a tie that goes to the even n, 2.

    Of its halves the first, 1 + 2^-8, is a tie too, and goes to 1; 1 + 2^-7 is a number.
    """
    x = np.array([[[1.0, 2.0**-8, 2.0**-7, 0]]])
    weight = np.ones((1, 4))
    found = []
    for backend in (made(), made("halves")):
        arrays = (array.astype(backend.activation_dtype) for array in (x, weight))
        found.append(float(backend.linear(*arrays)[0, 0, 0]))
    assert found == [1 + 2 * 2.0**-7, 1 + 2.0**-7]


def test_what_is_normed_is_rounded_before_its_weight() -> None:
    """1 / 2.5^0.5 is 0.632456, and in bfloat16 0.6328125; times 1.1328125, 0.716454 or 0.716858.

    Between them lies 0.716797, the middle of 0.71484375 and 0.71875, which bfloat16 has.
    """
    x, weight = np.array([[[1.0, 2.0]]]), np.array([1.1328125, 1.1328125])
    found = []
    for backend in (made(), made("normed")):
        arrays = (array.astype(backend.activation_dtype) for array in (x, weight))
        found.append(float(backend.rms_norm(*arrays, 0.0)[0, 0, 0]))
    assert found == [0.71484375, 0.71875]


def test_exponentials_are_rounded_and_their_sum_is_not() -> None:
    """Scores 0 and -1: exp(-1) = 0.36788 is 0.3671875 in bfloat16; the sum stays 1.36788."""
    q, k, v = (bf16(made(), 1, n, 1, 4) for n in (1, 2, 2))
    q[..., 0], k[0, 0, 0, 0], v[0, 0, 0, 0] = 2, -1, 1
    at = np.array([[1]], dtype=np.int64)
    backend = RoundingBackend("bfloat16", choices=("exps",))
    weights, total = backend._exp_scores(q[0], k[0], np.ones((1, 2), dtype=bool))
    assert weights.ravel().tolist() == [0.3671875, 1]
    assert float(total.ravel()[0]) == pytest.approx(1 + np.exp(-1), abs=1e-6)
    assert float(backend.attention(q, k, v, at, TWO, None)[0, 0, 0, 0]) == 0.267578125  # 0.26844


def test_sums_in_a_row_are_of_one_number_after_the_other() -> None:
    """In float32 2^24 + 1 is 2^24: of ones in a row after it nothing is left."""
    x = np.array([[[2.0**24, *[1.0] * 7]]], dtype=np.float32)
    weight = np.ones((1, 8), dtype=np.float32)
    assert RoundingBackend("float32", choices=("in-a-row",)).linear(x, weight)[0, 0, 0] == 2.0**24


# All of them are right


@given(
    choices=st.sets(st.sampled_from(CHOICES)),
    keys=st.integers(1, 9),
    window=st.none() | st.integers(1, 9),
    seed=st.integers(0, 10**6),
)
def test_attention_agrees_with_the_oracle_for_any_choices(choices, keys, window, seed) -> None:
    random = np.random.default_rng(seed)
    q_at = np.sort(random.integers(-1, 9, (2, 3)))
    k_at = random.permuted(np.array([np.arange(9)] * 2), axis=1)[:, :keys] - 1
    q = random.normal(0, 20, (2, 3, 4, 6))
    k, v = (random.normal(0, 1, (2, keys, 2, 6)) for _ in "kv")
    k[k_at < 0], v[k_at < 0] = np.nan, np.nan
    found = RoundingBackend("float64", choices=choices).attention(q, k, v, q_at, k_at, window)
    expected = oracle.attention(q, k, v, q_at, k_at, window)
    seen = q_at >= 0
    np.testing.assert_allclose(found[seen], expected[seen], rtol=0, atol=1e-11)


@given(choices=st.sets(st.sampled_from(CHOICES)), seed=st.integers(0, 10**6))
def test_other_operations_agree_with_the_oracle_for_any_choices(choices, seed) -> None:
    random = np.random.default_rng(seed)
    backend = RoundingBackend("float64", choices=choices)
    x, weight = random.normal(0, 1, (2, 3, 7)), random.normal(0, 1, (5, 7))
    near = {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(backend.linear(x, weight), oracle.linear(x, weight), **near)
    norm = (x, weight[0], 1e-5)
    np.testing.assert_allclose(backend.rms_norm(*norm), oracle.rms_norm(*norm), **near)
    gate = 100 * x
    np.testing.assert_allclose(
        backend.silu_mul(gate, x), oracle.silu_mul(gate, x), rtol=1e-12, atol=1e-12
    )
    heads, at = random.normal(0, 1, (2, 3, 2, 8)), random.integers(0, 100, (2, 3))
    rotated = backend.rope(heads, backend.rope_table(at, 1e4, 8))
    np.testing.assert_allclose(rotated, oracle.rope(heads, at, 1e4), **near)


def test_with_no_choice_it_is_the_numpy_backend() -> None:
    random = np.random.default_rng(3)
    q, k, v = (random.normal(0, 1, (1, 2, 2, 6)).astype(np.float16) for _ in "qkv")
    one, other = RoundingBackend("float16"), NumpyBackend("float16")
    np.testing.assert_array_equal(
        one.attention(q, k, v, TWO, TWO, 2), other.attention(q, k, v, TWO, TWO, 2)
    )


def test_choices_are_drawn_at_random() -> None:
    sets = [drawn(seed) for seed in range(100)]
    assert {name for one in sets for name in one} == set(CHOICES) == {*PLACES, *FORMULAS}
    assert len(set(sets)) > 90
    assert drawn(7) == drawn(7)


# Operations that round each step, as transformers does: by hand, and beside it

AT = np.array([[0, 1]], dtype=np.int64)


def like_transformers(dtype: str) -> RoundingBackend:
    return RoundingBackend(dtype, choices=TRANSFORMERS)


def attend(make: Callable[[str], AnglesBackend], dtype: str) -> np.ndarray:
    """One head of width 4: the query at position 1 scores 200.625 / 2 and 198.75 / 2."""
    backend = make(dtype)
    q, k, v = (np.zeros((1, 2, 1, 4), dtype=backend.activation_dtype) for _ in range(3))
    q[0, :, 0, 0] = 15
    k[0, :, 0, 0] = 13.375, 13.25
    v[0, 0, 0, 0] = 1
    return backend.attention(q, k, v, AT, AT, None)[0, 1, 0]


def test_scores_and_weights_are_rounded() -> None:
    """In bfloat16: 201 and 199, halved 100.5 and 99.5; the softmax of one apart, 0.7310586."""
    assert float(attend(like_transformers, "bfloat16")[0]) == 0.73046875
    assert float(attend(AnglesBackend, "bfloat16")[0]) == 0.71875  # of 0.9375 apart: 0.7185942


def test_in_float32_it_is_the_same() -> None:
    found, expected = (attend(make, "float32") for make in (like_transformers, AnglesBackend))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "dtype"), [("half", "float16"), ("tied", "bfloat16")])
def test_it_is_nearer_to_transformers(name: str, dtype: str) -> None:
    """The logits of transformers in 16 bits, which are its own rounding of each operation."""
    theirs = goldens(f"{name}.{dtype}", "whole")
    errors = []
    for make in (like_transformers, AnglesBackend):
        model = MistralForCausalLM.from_pretrained(FIXTURES / "models" / name, backend=make(dtype))
        found = model(theirs["input_ids"]).logits.astype(np.float64)
        errors.append(np.square(found - theirs["logits"]).mean())
    assert errors[0] < 0.8 * errors[1]
