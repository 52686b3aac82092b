"""Mistakes of the catalogue are named when they are planted, and those that show are all tried.

The candidates round at other places than the reference, see `planted.py`. Mistakes that nobody
listed here are planted in `test_measuring.py`.
"""

import numpy as np
import pytest
from planted import as_evidence, candidate, cases_of

from tinymistral.golden.diagnose.predictions import Predictions
from tinymistral.golden.diagnose.search import Diagnosis, diagnose
from tinymistral.golden.rounding import UNIT
from tinymistral.golden.suite import read_suite
from tinymistral.mistakes import FORWARD, MISTAKES

BY_NAME = {mistake.name: mistake for mistake in FORWARD}


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    return Predictions(read_suite())


def names(diagnosis: Diagnosis) -> set[str]:
    told = {mistake.name for each in diagnosis.explanations for mistake in each.mistakes}
    return told | {finding.name for finding in diagnosis.findings}


@pytest.mark.slow
@pytest.mark.parametrize("dtype, step", [("float32", 4), ("bfloat16", 8)])
def test_mistakes_are_found_from_all_stages(
    predictions: Predictions, dtype: str, step: int
) -> None:
    """They are named, or all wrong steps are described: what is measured needs no name."""
    lost = []
    for mistake in FORWARD[::step]:
        if dtype in mistake.shows_in:
            diagnosis = diagnose(candidate(predictions, mistake, dtype), FORWARD, predictions)
            described = bool(diagnosis.findings) and all(f.says for f in diagnosis.findings)
            if diagnosis.differing and not described and mistake.name not in names(diagnosis):
                lost.append(mistake.name)
            assert diagnosis.differing, mistake.name
    assert not lost


@pytest.mark.slow
@pytest.mark.parametrize("dtype, most_lost", [("float32", 2), ("bfloat16", 4)])
def test_mistakes_are_found_from_logits_alone(
    predictions: Predictions, dtype: str, most_lost: int
) -> None:
    """Every eighth of those that show."""
    lost, shown = [], 0
    for mistake in FORWARD[::8]:
        evidence = candidate(predictions, mistake, dtype, True) if dtype in mistake.shows_in else []
        if any(each.differs for each in evidence):
            shown += 1
            if mistake.name not in names(diagnose(evidence, FORWARD, predictions)):
                lost.append(mistake.name)
    assert shown >= 8
    assert len(lost) <= most_lost, lost


@pytest.mark.slow
def test_mistakes_that_are_not_tried_show_in_no_case(predictions: Predictions) -> None:
    """A mistake that shows should be tried."""
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


NAMED = (
    ("tiled-heads", "attention_weights"),
    ("rope-interleaved", "k_rotated"),
    ("sum-of-squares", "norm"),
    ("gelu-for-silu", "silu_mul"),
    ("norm-weight-forgotten", "norm"),
    ("gate-and-up-weights-swapped", "gate"),
    ("scores-not-scaled", "attention_weights"),
    ("inclusive-window", "attention_weights"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name, stage", NAMED)
def test_mistakes_of_the_catalogue_are_measured(
    predictions: Predictions, name: str, stage: str
) -> None:
    every = candidate(predictions, BY_NAME[name], "float32")
    evidence = [e for e in every if e.case.id in ("one-to-one", "four-to-one", "window-at-once")]
    diagnosis = diagnose(evidence, FORWARD, predictions)
    assert {finding.name for finding in diagnosis.findings} == {name}
    assert stage in diagnosis.findings[0].stages
    assert diagnosis.explanations == ()


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_noise_is_unknown(predictions: Predictions, share: float) -> None:
    """Logits of another model, or partly of another one: a mistake would be an accusation."""
    case = predictions.suite.case("plain")
    arrays = predictions.arrays(case)
    logits = arrays.expected["calls.0.logits"]
    noise = np.random.Generator(np.random.PCG64(5)).standard_normal(logits.shape)
    given = {"calls.0.logits": (1 - share) * logits + share * noise}
    evidence = as_evidence(predictions, case, given, "float32")
    assert evidence is not None
    told = diagnose([evidence], FORWARD, predictions).explanations
    assert all(each.share < 0.9 for each in told)
    assert not any(each.complete for each in told)
