"""The golden vectors of sampling: tinymistral passes them, and mistakes that people make do not.

The probabilities follow from a definition, which is compared here with numbers worked out by hand,
and with transformers' results.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from golden_maker import definition
from golden_maker.sampling import bounds, tolerance
from goldens import FIXTURES, read_json
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tinymistral import mistakes, sampling
from tinymistral.golden.run.tinymistral import run_sampling, run_vectors
from tinymistral.golden.suite import Case, read_suite

SUITE = read_suite()
SAMPLING = [case for case in SUITE.manifest.cases.values() if case.kind == "sampling"]

every_case = pytest.mark.parametrize("case", SAMPLING, ids=lambda case: case.id)


def of(case: Case) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """Return the inputs, the probabilities, and the tolerance of float32."""
    arrays = SUITE.read(case)
    assert case.expected is not None
    tolerance = case.expected["probabilities"].tolerance["float32"]
    return arrays.inputs, arrays.expected["probabilities"], tolerance


# ---- tinymistral passes


@every_case
def test_the_probabilities_of_tinymistral_are_within_the_tolerances(case: Case) -> None:
    _, expected, tolerance = of(case)
    found = run_vectors(SUITE, case)["probabilities"]
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= tolerance
    assert not found[expected == 0].any()
    assert found[expected > 1e-30].all()


@every_case
def test_rows_are_distributions_and_inputs_are_exact_in_16_bits(case: Case) -> None:
    inputs, expected, _ = of(case)
    np.testing.assert_allclose(expected.sum(axis=-1), 1, rtol=1e-14)
    assert np.array_equal(inputs["logits"].astype(np.float16), inputs["logits"])
    bits = inputs["logits"].astype(np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()  # bfloat16: the upper half


def test_there_are_cases_for_each_parameter_alone_and_for_all_at_once() -> None:
    assert len(SAMPLING) >= 20
    of_cases = [frozenset(case.parameters or {}) for case in SAMPLING]
    names = {"repetition_penalty", "temperature", "top_k", "top_p", "min_p"}
    assert {frozenset({name}) for name in names} <= set(of_cases)
    assert frozenset(names) in of_cases
    assert frozenset() in of_cases


# ---- tolerances


def test_a_tolerance_worked_out_by_hand() -> None:
    """Of two equal logits each probability is 1/2 · (8 + 8 + 4) roundoffs off at most."""
    inputs = {"logits": np.zeros((1, 2)), "previous_ids": np.array([[0]])}
    found = tolerance(inputs, {}, np.array([[0.5, 0.5]]))
    assert found == {"float32": 6e-7, "float16": 0.00025, "bfloat16": 0.002}  # 10 · 2^-24; 2^-12
    # A temperature is rounded, and divides: 2 · (1 + 1) more where a score of 1 is the largest.
    inputs = {"logits": np.ones((1, 2)), "previous_ids": np.array([[0]])}
    bound = bounds(inputs, {"temperature": 1.0}, np.array([[0.5, 0.5]]))
    np.testing.assert_allclose(bound, [[14 * 2.0**-24] * 2], rtol=1e-12)


ONE_AFTER_THE_OTHER = "one after the other"


@given(
    case=st.sampled_from(SAMPLING),
    seed=st.integers(0, 10**6),
    base=st.sampled_from([np.e, 2]),
    sums=st.sampled_from(["pairs", ONE_AFTER_THE_OTHER]),
    reciprocal=st.booleans(),
)
def test_correct_programs_in_float32_are_within_the_tolerances(
    case, seed, base, sums, reciprocal
) -> None:
    """Scores kept by the definition, then a softmax in another order and by other formulas."""
    inputs, expected, near = of(case)
    how, one = case.parameters, np.float32(1)
    for b, row in enumerate(inputs["logits"]):
        kept = np.flatnonzero(expected[b])
        kept = np.random.default_rng(seed).permutation(kept)
        scores = row[kept].astype(np.float32)
        seen = np.isin(kept, inputs["previous_ids"][b])
        penalty = np.float32(how.get("repetition_penalty", 1))
        scores = np.where(seen, np.where(scores < 0, scores * penalty, scores / penalty), scores)
        temperature = np.float32(how.get("temperature", 1))
        scores = scores * (one / temperature) if reciprocal else scores / temperature
        scores -= scores.max()
        exps = np.exp(scores) if base != 2 else np.exp2(scores * np.float32(np.log2(np.e)))
        assert exps.dtype == np.float32
        total = np.cumsum(exps)[-1] if sums == ONE_AFTER_THE_OTHER else exps.sum()
        found = exps * (one / total) if reciprocal else exps / total
        assert np.abs(found - expected[b, kept]).max() <= near


# ---- mistakes


@pytest.mark.parametrize("mistake", mistakes.SAMPLING, ids=lambda mistake: mistake.name)
def test_every_mistake_is_caught_where_the_manifest_says_so(mistake) -> None:
    caught = set()
    for case in SAMPLING:
        inputs, expected, tolerance = of(case)
        with np.errstate(all="ignore"):
            (probabilities,) = mistake.replacing("sampling")
            wrong = probabilities(
                inputs["logits"].astype(np.float32), inputs["previous_ids"], case.parameters
            )
        if not np.abs(wrong - expected).max() <= tolerance:
            caught.add(case.id)
    assert caught == {case.id for case in SAMPLING if mistake.name in case.catches} != set()


# ---- the definition

HALVES = np.log([[0.5, 0.25, 0.125, 0.125]])
NONE = np.zeros((1, 0), dtype=np.int64)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [1 / 2, 1 / 4, 1 / 8, 1 / 8]),
        ({"temperature": 0.5}, [16 / 22, 4 / 22, 1 / 22, 1 / 22]),  # squared
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_k": 0}, [1 / 2, 1 / 4, 1 / 8, 1 / 8]),
        ({"top_k": 5}, [1 / 2, 1 / 4, 1 / 8, 1 / 8]),
        ({"top_p": 0.0}, [1, 0, 0, 0]),
        ({"top_p": 0.49}, [1, 0, 0, 0]),
        ({"top_p": 0.51}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.74}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 1.0}, [1 / 2, 1 / 4, 1 / 8, 1 / 8]),
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),  # 2/3 of what top_k leaves
        ({"min_p": 0.2}, [1 / 2, 1 / 4, 1 / 8, 1 / 8]),
        ({"min_p": 0.3}, [2 / 3, 1 / 3, 0, 0]),
        ({"temperature": 0.5, "min_p": 0.2}, [4 / 5, 1 / 5, 0, 0]),
    ],
)
def test_probabilities_worked_out_by_hand(parameters, expected) -> None:
    found = definition.probabilities(HALVES, NONE, parameters)
    np.testing.assert_allclose(found, [expected], rtol=1e-14)


@pytest.mark.parametrize("ids", [[0, 1, 3], [3, 1, 0, 0, 1, 1]])
def test_a_penalty_divides_and_multiplies_once(ids) -> None:
    logits = np.array([[3.0, -1.5, 2.0, 0.0]])
    found = definition.probabilities(logits, np.array([ids]), {"repetition_penalty": 2.0})
    exps = np.exp([1.5, -3.0, 2.0, 0.0])
    np.testing.assert_allclose(found, [exps / exps.sum()], rtol=1e-14)


@pytest.mark.parametrize("parameters", [{"top_k": 3}, {"top_p": 0.8}, {"min_p": 1.0}])
def test_equal_logits_at_a_boundary_are_refused(parameters) -> None:
    logits = HALVES if "min_p" not in parameters else np.zeros((1, 4))
    with pytest.raises(ValueError, match="choose other logits"):
        definition.probabilities(logits, NONE, parameters)


@pytest.mark.parametrize("name", sorted(read_json("sampling.json")))
def test_the_definition_agrees_with_transformers(name: str) -> None:
    tensors = load_file(FIXTURES / "sampling.safetensors")
    parameters = {"top_k": 50} | read_json("sampling.json")[name]
    scores = tensors[name].astype(np.float64)
    # Their scores are float32: one that is off by so much has a probability off by that part.
    rounding = 2.0**-22 * np.abs(scores[np.isfinite(scores)]).max()
    rows = 0
    for logits, ids, row in zip(
        tensors["logits"], tensors["input_ids"], sampling.softmax(scores), strict=True
    ):
        try:
            found = definition.probabilities(logits[None].astype(float), ids[None], parameters)
        except ValueError:  # equal scores at a boundary
            continue
        np.testing.assert_array_equal(found[0] == 0, row == 0)
        np.testing.assert_allclose(found[0], row, rtol=max(rounding, 1e-6))
        rows += 1
    assert rows >= 5


def test_what_is_no_parameter_is_switched_off() -> None:
    inputs = {"logits": np.zeros((1, 100)), "previous_ids": np.array([[1, 1]])}
    np.testing.assert_allclose(run_sampling(inputs, {})["probabilities"], 0.01, rtol=1e-6)


def test_other_inputs_can_be_given() -> None:
    case = dataclasses.replace(SAMPLING[0], parameters={"top_k": 1})
    inputs = {"logits": np.arange(4.0)[None], "previous_ids": np.array([[1]])}
    found = run_vectors(SUITE, case, inputs=inputs)["probabilities"]
    np.testing.assert_array_equal(found, [[0, 0, 0, 1]])
