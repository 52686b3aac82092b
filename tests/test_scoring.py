"""Scores against the log-probabilities that follow from transformers' logits."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from goldens import DEMO, FIXTURES, MODELS, goldens

from tinymistral import MistralForCausalLM
from tinymistral.scoring import Score, score


def logprobs_of(logits, ids):
    """Log-softmax as its formula, one token at a time."""
    return [
        float(row[token]) - math.log(math.fsum(math.exp(float(x)) for x in row))
        for row, token in zip(logits, ids, strict=True)
    ]


@pytest.mark.parametrize("columns", [1, 5, 64])
@pytest.mark.parametrize("name", MODELS)
def test_a_score_is_what_transformers_logits_say(name, columns, monkeypatch):
    monkeypatch.setattr("tinymistral.scoring.COLUMNS_AT_ONCE", columns)
    golden = goldens(f"{name}.float64", "whole")
    model = MistralForCausalLM.from_pretrained(FIXTURES / "models" / name, dtype="float64")
    monkeypatch.setattr(model.backend, "chunk", 7, raising=False)
    for ids, logits in zip(golden["input_ids"], golden["logits"], strict=True):
        expected = logprobs_of(logits[:-1], ids[1:])
        result = score(model, [ids.tolist()])
        np.testing.assert_allclose(result.logprobs, expected, atol=1e-9, rtol=0)
        assert math.isclose(result.total, sum(expected), rel_tol=1e-9)
        assert math.isclose(result.perplexity, math.exp(-sum(expected) / len(expected)))


@pytest.mark.slow
def test_a_text_of_many_windows_is_scored_as_it_was_generated():
    model = MistralForCausalLM.from_pretrained(DEMO)
    model.config = dataclasses.replace(model.config, sliding_window=64)
    output = model.generate(
        [[1]],
        max_new_tokens=20 * model.config.sliding_window,
        eos_token_id=[],
        seed=3,
        return_dict_in_generate=True,
    )
    scored = score(model, output.sequences)
    # float32: logits of about 20 by sums of 192 products in another order
    np.testing.assert_allclose(scored.logprobs, output.logprobs[0], atol=2e-4, rtol=0)


def test_a_uniform_model_wavers_between_all_its_tokens():
    result = Score(np.full(10, -math.log(50)))
    assert math.isclose(result.perplexity, 50)
    assert Score(np.full(3, -1e6)).perplexity == math.inf


@pytest.mark.parametrize("ids", [[[1]], [[1, 2], [1, 2]]])
def test_what_cannot_be_scored_is_an_error(ids):
    with pytest.raises(ValueError, match="at least 2 tokens"):
        score(MistralForCausalLM.from_pretrained(DEMO), ids)
