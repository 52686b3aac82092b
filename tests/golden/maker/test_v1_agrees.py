"""No false alarm: what right programs compute agrees with v1; what wrong ones do is found.

The programs are tinymistral in each dtype, with its sums in other orders, and rounding elsewhere.
"""

import dataclasses

import numpy as np
import pytest
from golden_maker import truth
from golden_maker.drafts import Draft
from golden_maker.suite_files import DRAFTS
from golden_maker.tolerances import Way, operation, ways_of, whole_text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinymistral.golden.compare.cases import compare_case
from tinymistral.golden.models import open_model, read_model
from tinymistral.golden.rounding import CHOICES
from tinymistral.golden.run.tinymistral import run_case
from tinymistral.golden.suite import read_suite
from tinymistral.numpy_backend import NumpyBackend

SUITE = read_suite()
CASES = SUITE.manifest.cases
OF_A_BACKEND = [case for case in CASES.values() if case.kind in ("model", "operation", "generate")]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_tinymistral_agrees(dtype: str) -> None:
    for case in OF_A_BACKEND:
        result = compare_case(SUITE, case, run_case(SUITE, case, NumpyBackend(dtype)), dtype)
        assert result.verdict == "agrees", (case.id, result.first)
        assert len(result.parts) == len(result.names)
        assert result.worst < 0.5, case.id


ROOM = 0.9  # of a tolerance: the largest error of correct programs that were not measured
WAYS = {
    "seed": st.integers(100, 10**6),  # making v1 took 0 to 22
    "angles": st.sampled_from(["float32", "float64"]),
    "width": st.integers(0, 5),
    "choices": st.sets(st.sampled_from(CHOICES)).map(sorted).map(tuple),
}
BUDGET = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


def held(draft: Draft, results: dict[str, np.ndarray], dtype: str) -> None:
    result = compare_case(SUITE, CASES[draft.id], results, dtype)
    assert result.verdict == "agrees", (result.first, result.worst)
    assert result.worst <= ROOM


@pytest.mark.slow
@BUDGET
@given(
    draft=st.sampled_from([draft for draft in DRAFTS if draft.kind == "model"]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    way=st.builds(Way, **WAYS),
)
def test_any_order_of_sums_and_any_places_of_rounding_agree(
    draft: Draft, dtype: str, way: Way
) -> None:
    config, tensors = read_model(SUITE, str(draft.model))
    (way,) = ways_of(draft, [way])
    whole = whole_text(config, tensors, draft.inputs, dtype, way)
    held(draft, truth.cut(whole, draft.inputs), dtype)


@pytest.mark.slow
@BUDGET
@given(
    draft=st.sampled_from([draft for draft in DRAFTS if draft.kind == "operation"]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    way=st.builds(Way, **WAYS),
)
def test_any_order_and_rounding_agree_in_an_operation(draft: Draft, dtype: str, way: Way) -> None:
    (way,) = ways_of(draft, [way])
    held(draft, operation(draft, dtype, way), dtype)


def test_another_theta_shows_in_the_first_rotated_queries() -> None:
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
        """The key at distance W is visible, as in Mistral's paper."""

        def attention_weights(self, q, k, q_positions, k_positions, window):  # type: ignore
            return super().attention_weights(q, k, q_positions, k_positions, window + 1)

    case = SUITE.case("window-wrap-by-decode")  # 3 tokens, then one at a time; a window of 5
    first = compare_case(SUITE, case, run_case(SUITE, case, Inclusive("float32"))).first
    assert first is not None
    assert first.name == "calls.3.layers.0.attention_weights"  # of position 5, which sees 0 too
    assert "(position 5), key 0 (position 0)" in first.where
    assert (first.expected, np.sign(first.got)) == (0, 1)
