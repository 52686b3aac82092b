"""The logits processors against those of transformers, and drawing against its probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from goldens import FIXTURES, read_json
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tinymistral import sampling
from tinymistral.sampling import GenerationConfig

SETTINGS = read_json("sampling.json")
TENSORS = load_file(FIXTURES / "sampling.safetensors")
PROCESSORS = read_json("processors.json")
PROCESSED = load_file(FIXTURES / "processors.safetensors")


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_processed_scores_are_those_of_transformers(name):
    logits, ids = TENSORS["logits"], TENSORS["input_ids"].tolist()
    scores = GenerationConfig(do_sample=True, **SETTINGS[name]).process(logits, ids)
    assert scores.dtype == np.float32
    # A quotient or product of the same float32 numbers may differ in its last bit.
    np.testing.assert_allclose(scores, TENSORS[name], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(PROCESSORS))
def test_tokens_are_forbidden_as_by_transformers(name):
    logits, ids = PROCESSED["logits"], PROCESSED["input_ids"].tolist()
    scores = GenerationConfig(eos_token_id=[3, 6], **PROCESSORS[name]).process(logits, ids, new=2)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, PROCESSED[name], rtol=1e-6)  # as above
    np.testing.assert_array_equal(PROCESSED["input_ids"], ids)


def test_a_row_shorter_than_a_word_or_an_n_gram_forbids_nothing():
    scores = np.zeros((2, 4), dtype=np.float32)
    for forbidden in (
        sampling.forbid_repeated_ngrams(scores, [[], [1]], 3),
        sampling.forbid_words(scores, [[], [2]], [[1, 2, 3], [1, 2]]),
    ):
        np.testing.assert_array_equal(forbidden, scores)


def test_forbidding_every_token_is_an_error():
    config = GenerationConfig(suppress_tokens=[0, 1], no_repeat_ngram_size=1)
    scores = np.zeros((2, 3), dtype=np.float32)
    assert np.isfinite(config.process(scores, [[0], [1]])).sum() == 2
    with pytest.raises(ValueError, match="no token is left to choose"):
        config.process(scores, [[0], [2]])


@pytest.mark.parametrize("p, kept", [(0.25, 1), (0.5, 2), (0.75, 3), (0.76, 4), (1e-9, 1)])
def test_top_p_keeps_no_more_than_it_needs(p, kept):
    # Four equal tokens have exactly a quarter each; transformers removes the likeliest last,
    # `cumulative_probs <= (1 - top_p)` from below.
    scores = sampling.keep_top_p(np.zeros((1, 4), dtype=np.float32), p)
    assert np.isfinite(scores).sum() == kept


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 4),
    vocab=st.integers(1, 40),
    filtered=st.booleans(),
)
def test_only_tokens_with_a_finite_score_are_drawn(seed, rows, vocab, filtered):
    random = np.random.default_rng(seed)
    scores = random.normal(size=(rows, vocab)).astype(np.float32) * 10
    if filtered:
        scores[:, random.permutation(vocab)[: vocab // 2]] = -np.inf
    streams = [np.random.default_rng([seed, row]) for row in range(rows)]
    drawn = sampling.draw(scores, streams)
    assert np.isfinite(scores[np.arange(rows), drawn]).all()


class Constant:
    """A stand-in for a random stream that returns the number given."""

    def __init__(self, number):
        self.number = number

    def random(self):
        return self.number


@pytest.mark.parametrize(
    "number, token", [(0.0, 1), (0.19, 1), (0.21, 3), (0.69, 3), (0.71, 4), (1 - 2**-53, 4)]
)
def test_a_draw_inverts_the_cumulated_probabilities(number, token):
    probabilities = np.array([[0.0, 0.2, 0.0, 0.5, 0.3, 0.0]])
    with np.errstate(divide="ignore"):
        scores = np.log(probabilities)
    assert sampling.draw(scores, [Constant(number)]) == [token]


def test_drawn_tokens_have_the_frequencies_of_the_softmax():
    scores = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], dtype=np.float32))
    stream = [np.random.default_rng(5)]
    counts = np.bincount([int(sampling.draw(scores, stream)[0]) for _ in range(4000)], minlength=4)
    # Pearson's statistic: with 3 degrees of freedom above 16.3 once in a thousand seeds
    expected = 4000 * np.array([0.5, 0.3, 0.15, 0.05])
    assert ((counts - expected) ** 2 / expected).sum() < 16.3
