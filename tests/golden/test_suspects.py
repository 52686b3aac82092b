"""The suspects: all mistakes of the catalogue are among them, or it is said why not.

That each shows in v1 is what `test_diagnosing.py` sees: there it is planted, and found.
"""

import pytest
from planted import as_evidence, cases_of

from tinymistral.conformance.mistakes import MISTAKES
from tinymistral.golden.diagnosing.predicting import Predictions
from tinymistral.golden.diagnosing.suspects import FORWARD, SAMPLING, TEXTS, Suspect
from tinymistral.golden.diagnosing.suspects.catalogue import LEFT_OUT
from tinymistral.golden.rounding import UNIT
from tinymistral.golden.suite import read_suite

NAMES = {suspect.name for suspect in FORWARD}

# What people get wrong, as users tell of it, and the suspect that is it.
TOLD_OF = {
    "inclusive window": "inclusive-window",
    "no window": "no-window",
    "window counted in slots": "window-by-slot",
    "window counted with padding": "window-in-columns",
    "a ring that evicts before attending": "evict-before-attend",
    "interleaved RoPE on HF weights": "rope-interleaved",
    "interleaved RoPE whatever the weights": "pairs-turned-always",
    "halves turned on raw weights": "raw-not-permuted",
    "permuted once more": "permuted-twice",
    "theta 1e4": "rope-theta-ignored",
    "theta 1e6": "theta-of-v0.2",
    "positions off by one from some point on": "decoding-one-behind",
    "positions not shifted by padding": "positions-of-columns",
    "RoPE applied again to cached keys": "keys-turned-again",
    "grouped heads tiled": "tiled-heads",
    "no 1/sqrt d": "scores-not-scaled",
    "epsilon 1e-6": "eps-of-another-model",
    "epsilon outside the root": "eps-outside-the-root",
    "norm weight + 1": "norm-weight-plus-1",
    "GELU for SiLU": "gelu-for-silu",
    "gate and up swapped": "gate-and-up-swapped",
    "missing final norm": "final-norm-missing",
    "causal mask off by one": "next-token-seen",
    "tied head forgotten": "tied-head-forgotten",
    "pad rows seen": "mask-ignored",
    "doubled BOS": "first-token-twice",
    "BOS missing": "first-token-missing",
    "BOS added to ids": "begun-with-bos",
    "EOS after a prompt": "ended-with-eos",
    "windows of 32 bits": "window-in-32-bits",
    "positions of 32 bits": "positions-in-32-bits",
    "positions in float32": "rope-positions-in-float32",
    "NaN in empty slots": "zero-times-nan",
    "weights in 16 bits though all else is in float32": "weights-rounded-to-bfloat16",
}


def test_each_mistake_of_the_catalogue_is_a_suspect_or_left_out_for_a_reason() -> None:
    mistakes = {mistake.name for mistake in MISTAKES}
    assert set(LEFT_OUT) <= mistakes
    assert mistakes - NAMES == set(LEFT_OUT)


def test_suspects_have_names_of_their_own_and_say_what_is_wrong_and_right() -> None:
    everyone = [*FORWARD, *SAMPLING, *TEXTS]
    assert len({suspect.name for suspect in everyone}) == len(everyone)
    for suspect in everyone:
        assert suspect.says.endswith("."), suspect.name
        assert suspect.fix.endswith("."), suspect.name
        assert " and " not in suspect.name


@pytest.mark.parametrize("name", TOLD_OF.values(), ids=TOLD_OF)
def test_what_people_get_wrong_is_a_suspect(name: str) -> None:
    assert name in NAMES


def test_two_suspects_make_both_mistakes() -> None:
    by_name = {suspect.name: suspect for suspect in FORWARD}
    both = by_name["no-window"] & by_name["norms-swapped"] & by_name["keys-turned-again"]
    assert both.backends == by_name["no-window"].backends
    assert both.checkpoints == by_name["norms-swapped"].checkpoints
    assert both.caches == by_name["keys-turned-again"].caches
    assert both.pair


@pytest.mark.slow
def test_what_is_left_out_shows_nowhere() -> None:
    """Or else it should be a suspect."""
    predictions = Predictions(read_suite())
    for mistake in MISTAKES:
        if mistake.name not in LEFT_OUT:
            continue
        caches = (mistake.cache,)
        alone = Suspect(mistake.name, "", "", backends=(mistake.backend,), caches=caches)
        for dtype in set(UNIT) & set(mistake.dtypes):
            for case in cases_of(predictions):
                results = predictions.of(alone, case, dtype)
                assert results is not None
                evidence = as_evidence(predictions, case, results, dtype)
                assert evidence is not None
                assert not evidence.differs, (mistake.name, dtype, case.id)
        predictions.forget(alone)
