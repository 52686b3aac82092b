"""Comparing: what differs is found; what is right passes, in any dtype.

The suite is made by hand: every number says where it is, tolerances are 0.25, 0.5 and 2.
"""

import math

import ml_dtypes
import numpy as np
import pytest
from handmade_suite import changed, compared, expected, part, suite_fixture  # noqa: F401

from tinymistral.golden.compare.candidate import CaseDump
from tinymistral.golden.compare.cases import compare_case
from tinymistral.golden.compare.verdicts import exit_code, verdict_of_all
from tinymistral.golden.suite import CaseArrays, Suite

DTYPES = ["float64", "float32", "float16", "bfloat16"]


# What is right


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["rope", "once", "twice", "greedy", "draw"])
def test_the_expected_numbers_agree_in_any_dtype(suite: Suite, case: str, dtype: str) -> None:
    given = {
        name: x if x.dtype.kind == "i" else x.astype(getattr(ml_dtypes, dtype, dtype))
        for name, x in expected(case).items()
    }
    result = compared(suite, case, given)
    assert (result.verdict, result.worst, result.first) == ("agrees", 0, None)
    assert len(result.parts) == len(given) == len(result.names)
    assert exit_code([result]) == 0


@pytest.mark.parametrize("kind", ["u1", "i2", ">i4", "u8"])
def test_ids_may_be_any_integers(suite: Suite, kind: str) -> None:
    given = {"sequences": expected("greedy")["sequences"].astype(kind)}
    assert compared(suite, "greedy", given).verdict == "agrees"


def test_missing_tensors_are_not_errors(suite: Suite) -> None:
    result = compared(suite, "twice", {"calls.1.norm": expected("twice")["calls.1.norm"]})
    assert result.verdict == "agrees"
    assert [part.name for part in result.parts] == ["calls.1.norm"]
    assert compared(suite, "twice", {}).verdict == "absent"


# Tolerances


@pytest.mark.parametrize(
    ("given_in", "dtype", "error", "verdict"),
    [
        ("float32", None, 0.25, "agrees"),  # the tolerance is still within it
        ("float32", None, 0.375, "differs"),
        ("float64", None, 0.375, "differs"),
        ("float16", None, 0.5, "agrees"),
        ("float16", None, 0.75, "differs"),
        ("bfloat16", None, 2.0, "agrees"),
        ("bfloat16", None, 4.0, "differs"),
        ("float32", "bfloat16", 2.0, "agrees"),
        ("float32", "bfloat16", 4.0, "differs"),
        ("bfloat16", "float32", 0.5, "differs"),
        ("float32", "float64", 0.25, "agrees"),  # float64 has float32's
        ("float32", "float64", 0.375, "differs"),
    ],
)
def test_the_tolerance_is_that_of_the_dtype(
    suite: Suite, given_in: str, dtype: str | None, error: float, verdict: str
) -> None:
    arrays = changed("rope", "out", (0, 1, 0, 2), error)
    given = {"out": arrays["out"].astype(getattr(ml_dtypes, given_in, given_in))}
    result = compared(suite, "rope", given, dtype)
    assert result.verdict == verdict
    tolerance = {"bfloat16": 2.0, "float16": 0.5}.get(dtype or given_in, 0.25)
    assert result.worst == error / tolerance
    assert result.parts[0].error == error


def test_which_dtypes_it_would_agree_in(suite: Suite) -> None:
    given = changed("once", "calls.0.norm", (0, 0, 0), 0.3)
    result = compared(suite, "once", given)
    assert part(result, "calls.0.norm").fits == ("float16", "bfloat16")
    assert result.fits == ("float16", "bfloat16")
    given["calls.0.embedding"] += np.float32(1)
    assert compared(suite, "once", given).fits == ("bfloat16",)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_have_an_infinite_error(suite: Suite, value: float) -> None:
    result = compared(suite, "rope", changed("rope", "out", (0, 1, 0, 3), value), "bfloat16")
    assert result.verdict == "differs"
    assert (result.parts[0].error, result.worst, result.fits) == (math.inf, math.inf, ())
    assert result.parts[0].index == (0, 1, 0, 3)


# What cannot be compared


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((1, 1, 2, 4), np.float32), "its axes are in another order"),
        (np.zeros((1, 2, 4), np.float32), "reshape it"),
        (np.zeros((2, 4, 1, 4), np.float32), "expected (1, 2, 1, 4), which is B T H d"),
        (np.zeros((1, 2, 1, 4), np.int64), "it holds int64, expected floating point"),
    ],
)
def test_another_shape_or_kind_of_number(suite: Suite, array: np.ndarray, says: str) -> None:
    result = compared(suite, "rope", {"out": array})
    assert result.verdict == "incomparable"
    assert says in result.parts[0].says
    assert exit_code([result]) == 2


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("sequences", (2, 3), "it holds only what is new: put the prompt before it"),
        ("sequences", (2, 7), "it has a token too many"),
        ("sequences", (2, 5), "it has a token too few"),
        ("sequences", (2, 9), "(C being the tokens of the prompt, padding too, then the new ones)"),
        ("logprobs", (2, 4), "it is 1 new token too many"),
        ("logprobs", (2, 1), "(N being the new tokens); it is 2 new tokens too few"),
    ],
)
def test_continuations_of_another_length(suite: Suite, name: str, shape: tuple, says: str) -> None:
    given = {name: np.zeros(shape, np.int64 if name == "sequences" else np.float32)}
    result = compared(suite, "greedy", given)
    assert result.verdict == "incomparable"
    assert says in result.parts[0].says


def test_padding_alone_is_nothing_to_compare(suite: Suite) -> None:
    inputs = {n: x.copy() for n, x in suite.read(suite.case("rope")).inputs.items()}
    inputs["positions"][:] = -1
    arrays = CaseArrays(inputs, suite.read(suite.case("rope")).expected)
    result = compare_case(suite, suite.case("rope"), expected("rope"), None, arrays)
    assert (result.verdict, exit_code([result])) == ("incomparable", 2)
    assert result.problem == "what is given has no numbers, or padding alone"


@pytest.mark.parametrize("document", [{}, {"strings": []}, {"strings": [{"text": "a  b"}]}])
def test_texts_without_an_answer_are_nothing_to_compare(suite: Suite, document: dict) -> None:
    result = compared(suite, "words", CaseDump(document=document))
    assert (result.verdict, exit_code([result])) == ("incomparable", 2)
    assert result.problem == "words.json: there is no answer in it to any of the strings"


def test_nothing_compared_is_no_success(suite: Suite) -> None:
    assert exit_code([]) == exit_code([compared(suite, "rope", {})]) == 2
    agrees = compared(suite, "rope", expected("rope"))
    absent = compared(suite, "once", {})
    bad = compared(suite, "rope", {"out": np.zeros(3, np.float32)})
    assert (exit_code([agrees, absent]), exit_code([agrees, absent], complete=True)) == (0, 1)
    assert verdict_of_all([agrees, absent, bad], complete=True) == "incomplete"


def test_a_difference_outweighs_an_incomparable_case(suite: Suite) -> None:
    given = changed("once", "calls.0.norm", (0, 0, 0), 9.0)
    given["calls.0.embedding"] = np.zeros(3, np.float32)
    result = compared(suite, "once", given)
    assert result.verdict == "differs"
    assert part(result, "calls.0.embedding").verdict == "incomparable"
    bad = compared(suite, "rope", {"out": np.zeros(3, np.float32)})
    assert exit_code([result, bad]) == 1


# What is generated


def test_the_first_other_id_is_reported(suite: Suite) -> None:
    given = {"sequences": expected("greedy")["sequences"].copy()}
    given["sequences"][0, 5] = 7
    given["sequences"][1, 4] = 8  # a step earlier
    first = compared(suite, "greedy", given).first
    assert first is not None
    assert (first.where, first.index, first.expected, first.got) == ("row 1, step 1", (1, 4), 31, 8)
    assert (first.wrong, first.worst) == (2, math.inf)


def test_an_id_that_64_bits_with_a_sign_do_not_hold(suite: Suite) -> None:
    given = {"sequences": expected("greedy")["sequences"].astype(np.uint64)}
    given["sequences"][0, 3] = 2**64 - 1
    first = compared(suite, "greedy", given).first
    assert first is not None
    assert first.got == 2**64 - 1


def test_a_prompt_is_compared_and_its_padding_is_not(suite: Suite) -> None:
    given = {"sequences": expected("greedy")["sequences"].copy()}
    given["sequences"][0, 0] = 77
    assert compared(suite, "greedy", given).verdict == "agrees"
    given["sequences"][1, 0] = 77
    first = compared(suite, "greedy", given).first
    assert first is not None
    assert first.where == "row 1, column 0"


def test_other_ids_are_no_proof_where_rounding_may_choose_them(suite: Suite) -> None:
    given = expected("greedy")
    given["sequences"] = given["sequences"].copy()
    given["sequences"][1, 4] = 8
    given["logprobs"][1, 1:] = 50  # of another text
    result = compared(suite, "greedy", given, "bfloat16")
    assert [part.verdict for part in result.parts] == ["unproven", "agrees"]
    assert result.verdict == "agrees"
    assert compared(suite, "greedy", given, "float16").verdict == "differs"
    given["logprobs"][0, 2] = 50  # of the same
    assert compared(suite, "greedy", given, "bfloat16").first is not None
    given["logprobs"] = given["logprobs"].astype(ml_dtypes.bfloat16)  # says what it computes in
    assert compared(suite, "greedy", given).parts[0].verdict == "unproven"
