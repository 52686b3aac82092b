"""No false alarm: what right programs compute agrees with v1; what wrong ones do is found.

The programs are tinymistral in each dtype, with its sums in other orders.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinymistral.golden.checking.candidate import Given
from tinymistral.golden.checking.comparing import compare_case
from tinymistral.golden.making.permuting import Angles, Permuted
from tinymistral.golden.running import run_case
from tinymistral.golden.suite import read_suite
from tinymistral.golden.vectors import run_vectors
from tinymistral.golden.weights import open_model, read_model
from tinymistral.model import MistralForCausalLM
from tinymistral.numpy_backend import NumpyBackend

SUITE = read_suite()
CASES = SUITE.manifest.cases
OF_A_BACKEND = [case for case in CASES.values() if case.kind in ("model", "operation", "generate")]
CALLS = [case.id for case in OF_A_BACKEND if case.kind == "model"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_tinymistral_agrees(dtype: str) -> None:
    for case in OF_A_BACKEND:
        result = compare_case(SUITE, case, run_case(SUITE, case, NumpyBackend(dtype)), dtype)
        assert result.verdict == "agrees", (case.id, result.first)
        assert len(result.parts) == len(result.names)
        assert result.worst < 0.5, case.id


@pytest.mark.parametrize(
    "case", [c for c in CASES if CASES[c].kind == "sampling"] + ["tokenizer-demo"]
)
def test_tinymistral_agrees_on_what_needs_no_model(case: str) -> None:
    found = run_vectors(SUITE, SUITE.case(case))
    given = Given(document=found) if case == "tokenizer-demo" else Given(found)
    result = compare_case(SUITE, SUITE.case(case), given)
    assert result.verdict == "agrees", result.first
    assert len(result.parts) == len(result.names)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(CALLS),
    seed=st.integers(5, 10**6),  # making v1 took 0 to 4
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    angles=st.sampled_from(["float32", "float64"]),
)
def test_sums_in_any_order_agree(name: str, seed: int, dtype: str, angles: str) -> None:
    case = CASES[name]
    assert case.model is not None
    config, tensors = read_model(SUITE, case.model)
    permuted = Permuted(config, seed)
    backend = Angles(dtype, angles, permuted.pairs)
    model = MistralForCausalLM(config, backend=backend, tensors=permuted.tensors(tensors))
    results = permuted.undo(run_case(SUITE, case, backend, model))
    result = compare_case(SUITE, case, results, dtype)
    assert result.verdict == "agrees", (result.first, result.worst)


def test_another_theta_shows_in_the_first_turned_queries() -> None:
    case, backend = SUITE.case("plain"), NumpyBackend("float32")
    config, _ = read_model(SUITE, "plain")
    other = dataclasses.replace(config, rope_theta=config.rope_theta * 1.01)
    model = open_model(SUITE, "plain", backend, config=other)
    first = compare_case(SUITE, case, run_case(SUITE, case, backend, model)).first
    assert first is not None
    assert first.name == "calls.0.layers.0.q_rotated"
    assert "token 0" not in first.where  # at position 0 no theta matters
    assert first.extent.startswith("token 1-")


def test_a_key_too_many_shows_once_the_window_is_full() -> None:
    class Inclusive(NumpyBackend):
        """Sees the key at distance W, as in Mistral's paper."""

        def attention_weights(self, q, k, q_positions, k_positions, window):  # type: ignore
            return super().attention_weights(q, k, q_positions, k_positions, window + 1)

    case = SUITE.case("window-wrap-by-decode")  # 3 tokens, then one at a time; a window of 5
    first = compare_case(SUITE, case, run_case(SUITE, case, Inclusive("float32"))).first
    assert first is not None
    assert first.name == "calls.3.layers.0.attention_weights"  # of position 5, which sees 0 too
    assert "(position 5), key 0 (position 0)" in first.where
    assert (first.expected, np.sign(first.got)) == (0, 1)
