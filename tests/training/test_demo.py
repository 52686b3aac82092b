"""The embedded model is what the command in its card makes: the first steps are made again."""

import json
import os

import numpy as np
import pytest
from hypothesis import settings

from tinymistral import DEMO, MistralConfig, MistralTokenizer
from tinymistral.training.run import GENERATION, Recipe, new_run
from tinymistral.training.train import train

RECIPE = Recipe.of(seed=1)  # of `train my-model --seed 1`
THOROUGH = settings.get_profile("thorough").max_examples


def recorded() -> dict[str, list[float]]:
    return json.loads((DEMO / "loss.json").read_text("utf-8"))


def test_the_record_is_of_the_whole_run() -> None:
    curve = recorded()
    assert len(curve["loss"]) == RECIPE.steps
    assert curve["held_out_steps"][-1] == RECIPE.steps
    # It knew nothing: logits of variance D · 0.07² add half of that to ln V.
    assert curve["loss"][0] == pytest.approx(np.log(2048) + 192 * 0.07**2 / 2, abs=0.2)
    assert curve["held_out_loss"][-1] < 0.6
    card = (DEMO / "MODEL_CARD.md").read_text("utf-8")
    assert f"{curve['held_out_loss'][-1]:.3f}" in card
    assert f"{RECIPE.steps:,} steps" in card


@pytest.mark.slow
def test_the_first_steps_have_the_recorded_losses() -> None:
    """On another machine to 1e-3: float32, with sums in another order."""
    steps = 200 if settings.default.max_examples >= THOROUGH else 2
    run = new_run(RECIPE)
    assert run.config == MistralConfig.from_pretrained(DEMO)
    demo = MistralTokenizer.from_pretrained(DEMO)
    pieces = [t.convert_ids_to_tokens(list(range(len(t)))) for t in (run.tokenizer, demo)]
    assert pieces[0] == pieces[1]
    entries = json.loads((DEMO / "generation_config.json").read_text("utf-8"))
    assert {name: entries[name] for name in GENERATION} == GENERATION
    train(run, threads=os.cpu_count() or 1, stop=lambda: run.step == steps)
    curve = recorded()
    np.testing.assert_allclose(run.curve.loss, curve["loss"][:steps], rtol=0, atol=1e-3)
    measured = run.curve.held_out_loss
    np.testing.assert_allclose(measured, curve["held_out_loss"][: len(measured)], rtol=0, atol=1e-3)
