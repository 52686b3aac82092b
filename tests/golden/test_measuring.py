"""Each step is judged by itself, and what a wrong one did is said with its numbers.

The mistakes are planted in a program that shares no code with tinymistral, `plain_program.py`; run
as a script, `planted_programs.py` prints what is said of each.
"""

import numpy as np
import pytest
from planted_programs import HELD_OUT, PLANTED, Planted, dumped, judged, named

from tinymistral.golden.diagnose.formulas import TABLES
from tinymistral.golden.diagnose.guesses import parsed
from tinymistral.golden.diagnose.measure import measure
from tinymistral.golden.diagnose.predictions import Predictions
from tinymistral.golden.diagnose.report import sentence
from tinymistral.golden.diagnose.steps import all_steps
from tinymistral.golden.suite import read_suite
from tinymistral.mistakes import MISTAKES

CASES = ("window-at-once", "window-wrap-by-both", "no-window", "small-activations")
# One of each kind of step, and two at once in different steps and in one.
SOME = {
    "window-in-odd-layers": ["attention_weights in layer 0: the window is ignored: a query "],
    "theta-500000": ["q_rotated, k_rotated: angles are those of theta 500,000 "],
    "scale-half": ["attention_weights: the scale is 1/sqrt(d/2) "],
    "eps-1e-8": ["input_layernorm, post_attention_layernorm, norm: epsilon is 1e-08; "],
    "rope-on-v": ["attention_mix, cache.v: values are rotated like keys "],
    "heads-reversed": ["heads-in-reverse, in attention_weights, attention_mix: Query heads read "],
    "quick-gelu": ["silu_mul: the activation is x · sigmoid(1.702 x)"],
    "joined-transposed": ["attention_output: heads are joined in another order: transposed, "],
    "output-scaled": ["attention_residual: what is added to the residual is multiplied by 0.22 "],
    "logits-capped": ["logits: results are capped softly at 3: "],
    "window-halved and theta-500000": ["angles are those of theta 500,000 ", "a query sees 1/2 W "],
}


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    return Predictions(read_suite())


@pytest.mark.parametrize("name", SOME)
def test_what_a_step_did_is_measured(predictions: Predictions, name: str) -> None:
    found = measure(all_steps(dumped(predictions, PLANTED[name], CASES), predictions))
    said = [sentence(finding) for finding in found]
    assert len(said) == len(SOME[name]), said
    for wanted in SOME[name]:
        assert any(wanted in each for each in said), said
    assert named(PLANTED[name], found) == (True, True)


@pytest.mark.slow
@pytest.mark.parametrize("mistakes, least", [(PLANTED, 0.95), (HELD_OUT, 0.9)])
def test_the_wrong_step_is_found_and_mostly_described(
    predictions: Predictions, mistakes: dict[str, Planted], least: float
) -> None:
    """The rates that `planted_programs.py` prints, less a few for rounding on other machines."""
    found = [judged(predictions, mistakes[name], False) for name in mistakes]
    step, described = np.mean([each[0] for each in found if each is not None], axis=0)
    assert step >= 0.98
    assert described >= least


@pytest.mark.slow
def test_most_mistakes_are_found_from_logits_alone(predictions: Predictions) -> None:
    """Every sixth; in the first place, and in the first three."""
    found = [judged(predictions, PLANTED[name], True) for name in list(PLANTED)[::6]]
    first, in_three = np.mean([each[0] for each in found if each is not None], axis=0)
    assert in_three >= first >= 0.6


def test_a_right_program_has_no_wrong_step(predictions: Predictions) -> None:
    steps = all_steps(dumped(predictions, None, CASES), predictions)
    assert len(steps) > 300
    assert not [step for step in steps if step.wrong]


def test_a_step_is_unknown_if_nothing_makes_its_numbers(predictions: Predictions) -> None:
    """Noise of a fixed size: no rule, and no parameter."""
    noise = "np.random.Generator(np.random.PCG64(3 + t)).standard_normal(len(g))"
    wrong = Planted({"silu_mul"}, "", (("g / (1 + np.exp(-g)) * u", noise),))
    (found,) = measure(all_steps(dumped(predictions, wrong, CASES[:1]), predictions))
    assert (found.stages, found.says, found.name) == (("silu_mul",), "", "")


def test_every_name_is_of_the_catalogue() -> None:
    """Names are looked up for what to do; one that is misspelled would be none."""
    used = {name for table in TABLES.values() for name, *_ in parsed(table)} - {""}
    assert used - {mistake.name for mistake in MISTAKES} == set()
    assert len(used) > 5
