"""The oracle itself, against transformers in float64."""

from __future__ import annotations

import json

import numpy as np
import pytest
from goldens import CASES, FIXTURES, goldens

from tinymistral import MistralConfig
from tinymistral.checkpoint import read_tensors
from tinymistral.conformance import oracle


def positions_of(case):
    mask = case["attention_mask"] == 1
    counted = np.where(mask, np.cumsum(mask, axis=1) - 1, -1)
    return case.get("position_ids", counted)


@pytest.mark.parametrize("name, case", CASES)
def test_the_oracle_is_transformers_in_float64(name, case):
    golden = goldens(f"{name}.float64", case)
    if "input_ids" not in golden:
        pytest.skip("the oracle begins with ids")
    folder = FIXTURES / "models" / name
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = MistralConfig.from_dict(fields)
    tensors = read_tensors(folder)
    stages = oracle.forward(config, tensors, golden["input_ids"], positions_of(golden))
    real = golden["attention_mask"] == 1
    np.testing.assert_allclose(stages["logits"][real], golden["logits"][real], atol=1e-12, rtol=0)
    np.testing.assert_allclose(
        stages["norm"][real], golden["hidden_states"][-1][real], atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("spoiled", ["q", "k", "v"])
def test_nan_reaches_only_the_queries_that_it_is_visible_to(spoiled):
    arrays = {name: np.ones((1, 3, 1, 2)) for name in "qkv"}
    arrays[spoiled][0, 1] = np.nan  # of the second token
    at = np.array([[0, 1, 2]])
    mix = oracle.attention(**arrays, q_positions=at, k_positions=at, window=2)
    assert np.isnan(mix[0, :, 0, 0]).tolist() == [False, True, spoiled != "q"]
    at = np.array([[0, -1, 1]])
    mix = oracle.attention(**arrays, q_positions=at, k_positions=at, window=2)
    np.testing.assert_array_equal(mix[0, :, 0, 0], [1, 0, 1])
