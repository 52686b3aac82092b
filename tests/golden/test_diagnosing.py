"""Every mistake is found when it is planted: from all stages, and from logits alone if it shows.

The candidates round at other places than the predictions, see `planted.py`. Mistakes with equal
results are listed here, with the reason; a diagnosis may name no others beside the planted one.
"""

from itertools import chain

import numpy as np
import pytest
from planted import as_evidence, candidate, cases_of

from tinymistral.golden.diagnose.evidence import Evidence
from tinymistral.golden.diagnose.predictions import Predictions
from tinymistral.golden.diagnose.search import Diagnosis, diagnose
from tinymistral.golden.models import open_model, read_model
from tinymistral.golden.rounding import UNIT
from tinymistral.golden.run.tinymistral import run_case
from tinymistral.golden.suite import read_suite
from tinymistral.mistakes import FORWARD
from tinymistral.numpy_backend import NumpyBackend

BY_NAME = {mistake.name: mistake for mistake in FORWARD}
HALVES = ("float16", "bfloat16")

# Mistakes with equal results: names, in which dtypes, whether in all stages or only logits, why.
ALIKE = [
    (
        {"padding-written-to-the-last-slot", "padding-stored"},
        ("float32", *HALVES),
        True,
        "the same is written to the cache: by `scatter`, or by the cache without it",
    ),
    (
        {"gate-and-up-swapped", "gate-and-up-weights-swapped"},
        ("float32", *HALVES),
        False,
        "gate(x) and up(x) change places, and only the stages `gate` and `up` say which is which",
    ),
    (
        {"permuted-twice", "pairs-turned-always"},
        ("float32", *HALVES),
        False,
        "a head's numbers in another order, and other pairs rotated: the scores are the same",
    ),
    (
        {"eps-outside-the-root", "eps-forgotten"},
        ("bfloat16",),
        True,
        "bfloat16 rounds 1e-5 away beside a root of 1e-3",
    ),
    (
        {"eps-outside-the-root", "eps-forgotten"},
        ("float16",),
        False,
        "as in bfloat16: in float16 only numbers smaller than a model's distinguish them",
    ),
    (
        {"rope-angles-in-float32", "rope-positions-in-float32"},
        ("float32", *HALVES),
        True,
        "both show only past 2^24, where the case's frequencies are powers of 2: it is the same "
        "to round a position or its product with one",
    ),
    (
        {"gelu-for-silu", "exact-gelu-for-silu"},
        HALVES,
        True,
        "the two formulas of GELU differ by less than 5e-4",
    ),
]

# Mistakes that do not show in the logits of v1's models, and why.
_OPERATIONS = "its case is an operation by itself"
HIDDEN_IN_LOGITS = {
    "window-by-default": _OPERATIONS,
    "masked-by-adding": _OPERATIONS,
    "nan-for-who-sees-nothing": _OPERATIONS,
    "window-in-32-bits": _OPERATIONS,
    "positions-in-32-bits": _OPERATIONS,
    "zero-times-nan": _OPERATIONS,
    "nan-swallowed": _OPERATIONS,
    "softmax-summed-in-16-bits": _OPERATIONS,
    "weights-without-the-window": "only `attention_weights` is wrong, which the logits do not use",
    "rope-in-place": "rotated numbers are right, only the stages q and k are not",
    "strides-ignored": "it shows only if logits are computed for just the last token of each row",
    "rope-counts-from-1": "logits depend only on distances between positions",
}
# The share of mistakes found from logits alone. float16 is not tested, since it takes long.
RATE = {"float32": 0.92, "bfloat16": 0.91}


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    """The results of each mistake, computed once for all tests."""
    return Predictions(read_suite())


def alike(name: str, dtype: str, logits: bool) -> set[str]:
    """The names that a diagnosis of a mistake may list."""
    groups = [
        names
        for names, dtypes, all_stages, _ in ALIKE
        if name in names and dtype in dtypes and (all_stages or logits)
    ]
    return set(chain({name}, *groups))


def first_names(diagnosis: Diagnosis) -> set[str]:
    return {s.name for s in diagnosis.explanations[0].mistakes} if diagnosis.explanations else set()


def found_by(evidence: list[Evidence], predictions: Predictions) -> Diagnosis:
    return diagnose(evidence, FORWARD, predictions)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_mistake_is_found(predictions: Predictions, dtype: str) -> None:
    hidden = set(HIDDEN_IN_LOGITS)
    planted = [mistake for mistake in FORWARD if dtype in mistake.shows_in]
    wrong, from_logits = {}, 0
    for mistake in planted:
        for logits in (False, True):
            evidence = candidate(predictions, mistake, dtype, logits)
            found = first_names(found_by(evidence, predictions))
            allowed = alike(mistake.name, dtype, logits)
            if logits and mistake.name in hidden:
                allowed = set()
            if not found <= allowed or (mistake.name in found) != bool(allowed):
                wrong[mistake.name, "logits" if logits else "all stages"] = found
            from_logits += logits and bool(found)
    assert not wrong
    assert from_logits == len(planted) - len(hidden & {mistake.name for mistake in planted})
    assert from_logits >= RATE[dtype] * len(planted)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", UNIT)
def test_nothing_is_found_where_nothing_is_wrong(predictions: Predictions, dtype: str) -> None:
    for case in cases_of(predictions):
        results = run_case(predictions.suite, case, NumpyBackend(dtype))
        evidence = as_evidence(predictions, case, results, dtype)
        assert evidence is not None
        diagnosis = found_by([evidence], predictions)
        assert not diagnosis.differing, case.id
        assert (diagnosis.explanations, diagnosis.partial, diagnosis.tried) == ((), (), 0)


PAIRS = [
    ("rope-interleaved", "no-window"),
    ("tiled-heads", "eps-of-another-model"),
    ("scores-not-scaled", "gate-and-up-swapped"),
    ("inclusive-window", "rope-theta-ignored"),
    ("final-norm-missing", "gelu-for-silu"),
    ("mask-ignored", "theta-of-v0.2"),
    ("raw-not-permuted", "tied-though-it-is-not"),
    ("decoding-one-behind", "inclusive-window"),
    ("keys-turned-again", "norms-swapped"),
    ("norm-weight-plus-1", "rope-begins-anew"),
    ("evict-before-attend", "padding-seen"),
    ("heads-joined-across-tokens", "eps-outside-the-root"),
    ("positions-of-columns", "window-in-columns"),
    # One of each is not common, but explains a part.
    ("rope-backwards", "up-forgotten"),
    ("one-head-for-all", "layers-in-reverse"),
    ("mean-subtracted", "tied-head-forgotten"),
]


@pytest.mark.slow
@pytest.mark.parametrize("names", PAIRS, ids=" and ".join)
def test_two_mistakes_at_once_are_found(predictions: Predictions, names: tuple[str, str]) -> None:
    one, other = (BY_NAME[name] for name in names)
    diagnosis = found_by(candidate(predictions, one & other, "float32"), predictions)
    best = diagnosis.explanations[0].mistakes[0]
    assert set(best.name.split(" and ")) == set(names)
    assert best.pair


COMMON_PAIRS = [p for p in PAIRS if all(BY_NAME[name].common for name in p)]


@pytest.mark.slow
@pytest.mark.parametrize("names", COMMON_PAIRS, ids=" and ".join)
def test_common_pairs_are_found_from_logits_alone(
    predictions: Predictions, names: tuple[str, str]
) -> None:
    one, other = (BY_NAME[name] for name in names)
    diagnosis = found_by(candidate(predictions, one & other, "float32", True), predictions)
    assert set(diagnosis.explanations[0].mistakes[0].name.split(" and ")) == set(names)


UNKNOWN = [  # end of a weight's name, factor of one of its numbers, dtype, from logits alone
    ("layers.0.self_attn.q_proj.weight", 1.5, "float32", False),
    ("layers.1.self_attn.k_proj.weight", -1.0, "float32", True),
    ("lm_head.weight", 2.0, "bfloat16", False),
    ("model.norm.weight", 0.9, "bfloat16", True),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, factor, dtype, logits", UNKNOWN)
def test_an_unknown_mistake_has_no_full_explanation(
    predictions: Predictions, name: str, factor: float, dtype: str, logits: bool
) -> None:
    evidence = []
    for case in cases_of(predictions):
        if case.model is None:
            continue
        backend = NumpyBackend(dtype)
        config, tensors = read_model(predictions.suite, case.model)
        for n in [n for n in tensors if n.endswith(name)]:
            tensors[n] = np.array(tensors[n])
            tensors[n].reshape(-1)[3] *= factor
        model = open_model(predictions.suite, case.model, backend, config, tensors)
        results = run_case(predictions.suite, case, backend, model)
        results = {n: x for n, x in results.items() if not logits or n.endswith("logits")}
        each = as_evidence(predictions, case, results, dtype)
        evidence += [] if each is None else [each]
    diagnosis = found_by(evidence, predictions)
    assert diagnosis.explanations == ()
    for explanation in diagnosis.partial:
        assert len(explanation.explained) < len(diagnosis.differing)


def test_what_explains_no_case_is_not_reported(predictions: Predictions) -> None:
    """One of two mistakes explains the first stages, but no case, if the other is not tried."""
    interleaved = BY_NAME["rope-interleaved"]
    planted = interleaved & BY_NAME["final-norm-missing"]
    given = [e for e in candidate(predictions, planted, "float32") if e.case.id == "plain"]
    diagnosis = diagnose(given, [interleaved], predictions)
    assert (len(diagnosis.differing), diagnosis.explanations, diagnosis.partial) == (1, (), ())
