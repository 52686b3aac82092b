"""The losses: small cases by hand, and the laws that their formulas have.

`test_heads.py` compares them with those of transformers.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymistral.losses import (
    causal_lm_loss,
    cross_entropy,
    multi_label_loss,
    regression_loss,
    span_loss,
)

close = pytest.approx


def test_equal_logits_cost_the_logarithm_of_their_number():
    assert cross_entropy(np.zeros((3, 5)), np.array([0, 4, 2])) == close(math.log(5))
    assert multi_label_loss(np.zeros((2, 3)), np.array([[0.0, 1.0, 0.25]] * 2)) == close(
        math.log(2)
    )


def test_cross_entropy_by_hand():
    # softmax of [log 1, log 2, log 5] is [1, 2, 5] / 8
    logits = np.log([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0], [3.0, 3.0, 2.0]])
    assert cross_entropy(logits[:1], np.array([1])) == close(math.log(4))
    assert cross_entropy(logits, np.array([0, 2, -100])) == close(math.log(8 * 8 / 5) / 2)


def test_a_column_predicts_the_next_one():
    sure = 50.0 * np.eye(4)[[[1, 2, 3, 0]]]  # column t is sure of (t + 1) % 4
    assert causal_lm_loss(sure, np.array([[3, 1, 2, 3]])) == close(0, abs=1e-15)
    assert causal_lm_loss(sure, np.array([[3, 1, -100, 0]])) == close(25)


def test_regression_by_hand():
    assert regression_loss(np.array([[1.0], [2.0]]), np.array([[3.0], [1.5]])) == 4.25 / 2
    assert regression_loss(np.array([[1.0, 2.0]]), np.array([[3, 2]])) == 2.0


def test_multi_label_by_hand():
    # σ(log 3) = 3/4
    x = np.array([[math.log(3), -math.log(3)]])
    assert multi_label_loss(x, np.array([[1.0, 1.0]])) == close(math.log(16 / 3) / 2)
    assert multi_label_loss(x, np.array([[0.5, 0.0]])) == close(
        (math.log(16 / 3) / 2 + math.log(4 / 3)) / 2
    )


def test_spans_are_clipped_to_the_sequence_and_those_outside_do_not_count():
    logits = np.log([[1.0, 3.0], [3.0, 1.0]])
    ends = np.array([1, 1])
    inside = span_loss(logits, logits, np.array([1, 1]), ends)
    assert inside == close((math.log(4 / 3) + math.log(4)) / 2)
    for outside in (2, 3, 10**9):
        loss = span_loss(logits, logits, np.array([1, outside]), ends)
        assert loss == close((math.log(4 / 3) + inside) / 2)
    assert span_loss(logits, logits, np.array([-7, 0]), ends) == close(inside)


def test_a_mean_over_nothing_is_nan_without_a_warning():
    assert math.isnan(cross_entropy(np.zeros((2, 3)), np.full(2, -100)))
    assert math.isnan(causal_lm_loss(np.zeros((2, 1, 3)), np.zeros((2, 1), dtype=np.int64)))
    zeros = np.zeros((1, 3))
    assert math.isnan(span_loss(zeros, zeros, np.array([3]), np.array([0])))


@pytest.mark.parametrize(
    "dtype, loss_dtype",
    [
        (np.float64, np.float64),
        (np.float32, np.float32),
        (np.float16, np.float32),
        (ml_dtypes.bfloat16, np.float32),
    ],
)
def test_losses_are_computed_in_float32_at_least(dtype, loss_dtype):
    # In 16 bits exp(12) overflows or 1 + exp(-9) is 1; the exact loss is log(1 + exp(-9)).
    logits, tiny = np.array([[12.0, 3.0]], dtype=dtype), math.log1p(math.exp(-9))
    loss = cross_entropy(logits, np.array([0]))
    assert (loss.dtype, loss) == (loss_dtype, close(tiny, rel=1e-3))
    loss = multi_label_loss(logits[:, :1] - logits[:, 1:], np.ones((1, 1)))
    assert (loss.dtype, loss) == (loss_dtype, close(tiny, rel=1e-3))
    loss = regression_loss(logits, np.array([[12.001, 3.0]]))
    assert (loss.dtype, loss) == (loss_dtype, close(5e-7, rel=1e-2))
    assert cross_entropy(logits[:0], np.array([], dtype=np.int64)).dtype == loss_dtype


def test_large_logits_neither_overflow_nor_warn():
    logits = np.array([[1e4, -1e4, 0.0]], dtype=np.float32)
    assert cross_entropy(logits, np.array([0])) == 0
    assert cross_entropy(logits, np.array([1])) == 2e4
    assert multi_label_loss(logits, np.array([[1.0, 0.0, 0.0]])) == close(math.log(2) / 3)
    assert multi_label_loss(logits, np.array([[0.0, 1.0, 0.0]])) == close((2e4 + math.log(2)) / 3)


shapes = st.tuples(st.integers(1, 6), st.integers(2, 7))
seeds = st.integers(0, 2**32 - 1)


def drawn(shape, seed):
    random = np.random.default_rng(seed)
    return 3 * random.standard_normal(shape), random.integers(0, shape[1], shape[0]), random


@given(shape=shapes, seed=seeds)
def test_cross_entropy_is_minus_the_mean_log_probability(shape, seed):
    logits, labels, _ = drawn(shape, seed)
    rows = [list(map(math.exp, row)) for row in logits]
    logprobs = [math.log(row[i] / sum(row)) for row, i in zip(rows, labels, strict=True)]
    assert cross_entropy(logits, labels) == close(-sum(logprobs) / len(logprobs), rel=1e-12)


@given(shape=shapes, seed=seeds)
def test_ignored_rows_are_as_good_as_absent(shape, seed):
    logits, labels, random = drawn(shape, seed)
    counts = random.random(len(labels)) < 0.6
    expected = cross_entropy(logits[counts], labels[counts])
    logits[~counts] = np.nan
    loss = cross_entropy(logits, np.where(counts, labels, -100))
    np.testing.assert_array_equal(loss, expected)  # nan is nan


@given(shape=shapes, seed=seeds)
def test_two_classes_are_one_label_of_their_difference(shape, seed):
    logits, _, random = drawn((shape[0], 2), seed)
    labels = random.integers(0, 2, shape[0])
    one = multi_label_loss(logits[:, 1] - logits[:, 0], labels.astype(np.float64))
    assert cross_entropy(logits, labels) == close(one, rel=1e-12)
