"""The mistakes that `golden diagnose` tries: all of the catalogue but those with a reason not to.

`test_diagnosing.py` tests that each is found in v1 when it is planted.
"""

import pytest
from planted import as_evidence, cases_of

from tinymistral.golden.diagnose.predictions import Predictions
from tinymistral.golden.rounding import UNIT
from tinymistral.golden.suite import read_suite
from tinymistral.mistakes import FORWARD, MISTAKES, SAMPLING, TEXTS

BY_NAME = {mistake.name: mistake for mistake in FORWARD}

# What users report, and the mistake's name.
REPORTED = {
    "inclusive window": "inclusive-window",
    "no window": "no-window",
    "window counted in slots": "window-by-slot",
    "a ring that evicts before attending": "evict-before-attend",
    "interleaved RoPE on HF weights": "rope-interleaved",
    "halves rotated with raw weights": "raw-not-permuted",
    "permuted once more": "permuted-twice",
    "theta 1e4": "rope-theta-ignored",
    "grouped heads tiled": "tiled-heads",
    "no 1/sqrt d": "scores-not-scaled",
    "epsilon 1e-6": "eps-of-another-model",
    "epsilon outside the root": "eps-outside-the-root",
    "norm weight + 1": "norm-weight-plus-1",
    "GELU for SiLU": "gelu-for-silu",
    "gate and up swapped": "gate-and-up-swapped",
    "tied head forgotten": "tied-head-forgotten",
    "padding visible": "mask-ignored",
    "doubled BOS": "first-token-twice",
    "BOS missing": "first-token-missing",
    "BOS added to ids": "begun-with-bos",
    "EOS after a prompt": "ended-with-eos",
    "window in 32 bits": "window-in-32-bits",
    "positions in float32": "rope-positions-in-float32",
    "NaN in empty slots": "zero-times-nan",
    "weights in 16 bits though all else is in float32": "weights-rounded-to-bfloat16",
}


def test_each_mistake_of_the_catalogue_is_tried_or_left_out_for_a_reason() -> None:
    tried = [*FORWARD, *SAMPLING, *TEXTS]
    assert len(tried) == len({mistake.name for mistake in tried})
    for mistake in MISTAKES:
        assert (mistake in tried) != bool(mistake.not_diagnosed), mistake.name


@pytest.mark.parametrize("name", REPORTED.values(), ids=REPORTED)
def test_what_users_report_is_tried(name: str) -> None:
    assert name in BY_NAME


@pytest.mark.slow
def test_mistakes_that_are_not_tried_show_in_no_case() -> None:
    """A mistake that shows should be tried."""
    predictions = Predictions(read_suite())
    for mistake in MISTAKES:
        if not mistake.not_diagnosed:
            continue
        for dtype in set(UNIT) & set(mistake.dtypes):
            for case in cases_of(predictions):
                results = predictions.of(mistake, case, dtype)
                assert results is not None
                evidence = as_evidence(predictions, case, results, dtype)
                assert evidence is not None
                assert not evidence.differs, (mistake.name, dtype, case.id)
        predictions.drop(mistake)
