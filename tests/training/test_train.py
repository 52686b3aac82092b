"""The training loop on a tiny model: its gradients, its bits, and that it learns."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from kills import kills

from tinymistral import DEMO, MistralConfig, MistralForCausalLM, MistralTokenizer
from tinymistral.checkpoint import load_checkpoint, read_tensors
from tinymistral.training import run as runs
from tinymistral.training.documents import Corpus, train_tokenizer
from tinymistral.training.gradients import loss_and_gradients
from tinymistral.training.packing import pack
from tinymistral.training.run import Recipe, Run, random_weights, resume, save
from tinymistral.training.train import StepDone, batch_gradients, rate, train

CONFIG = MistralConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=8,
    tie_word_embeddings=True,
    dtype="float32",
)
NAMES = "Mia Tom Ben Ada Lou Kim Max Eva Ida Jon".split()
TEXTS = [f"{name} saw a {c} ball.\nIt was {c}." for name in NAMES for c in ("red", "blue", "old")]
TOKENIZER = train_tokenizer(TEXTS, 300)
RECIPE = Recipe(
    steps=8, batch_tokens=100, length=50, learning_rate=1e-2, warm_up=2, dtype="float32"
)


def new_run(recipe: Recipe = RECIPE, texts: list[str] = TEXTS) -> Run:
    weights = random_weights(CONFIG, recipe.seed)
    return Run(recipe, CONFIG, {}, TOKENIZER, Corpus(texts, recipe.seed), weights)


def bits(run: Run) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in runs.state(run).items()}


def stop_after(run: Run, step: int) -> None:
    train(run, stop=lambda: run.step == step)


@pytest.fixture(scope="module")
def uninterrupted() -> Run:
    run = new_run()
    train(run)
    return run


def test_packed_gradients_are_those_of_each_document_alone() -> None:
    """The mean over all targets, of documents that go through one by one, in float64."""
    random = np.random.default_rng(0)
    documents = [random.integers(3, 300, n) for n in (30, 5, 12, 20, 9)]
    weights = {n: x.astype(np.float64) for n, x in random_weights(CONFIG, 0).items()}
    with ThreadPoolExecutor(2) as pool:
        loss, gradients = batch_gradients(weights, pack(documents, 48, 8), CONFIG, pool)
    total, expected = 0.0, dict.fromkeys(weights, 0.0)
    for ids in documents:
        targets, positions = np.append(ids[1:], -100), np.arange(len(ids))
        one, _, of_one = loss_and_gradients(weights, ids, targets, positions, CONFIG)
        total += one
        expected = {name: expected[name] + of_one[name] for name in weights}
    count = sum(len(ids) - 1 for ids in documents)
    assert loss == pytest.approx(total / count, rel=1e-12)
    for name in weights:
        np.testing.assert_allclose(gradients[name], expected[name] / count, rtol=1e-9, atol=1e-12)


def test_the_number_of_threads_changes_no_bit(uninterrupted: Run) -> None:
    for threads in (2, 5):
        run = new_run()
        train(run, threads=threads)
        assert bits(run) == bits(uninterrupted)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_resuming_changes_no_bit(uninterrupted: Run, tmp_path: Path, after: int) -> None:
    run = new_run()
    if after:
        stop_after(run, after)
    assert run.step == after
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n<|endoftext|>\n".join(TEXTS), "utf-8")
    run.recipe = replace(run.recipe, corpus=str(corpus))
    save(run, str(tmp_path / "run"))
    del run
    again = resume(str(tmp_path / "run"))
    assert again.step == after
    train(again, threads=2)
    assert bits(again) == bits(uninterrupted)


def test_another_seed_has_other_weights_and_another_order(uninterrupted: Run) -> None:
    run = new_run(replace(RECIPE, seed=1))
    assert (
        bits(run)["weights.model.embed_tokens.weight"]
        != bits(new_run())["weights.model.embed_tokens.weight"]
    )
    assert [run.documents[n] for n in range(20)] != [new_run().documents[n] for n in range(20)]


def test_a_run_that_is_saved_while_it_goes_on_is_as_it_was_then(tmp_path: Path) -> None:
    run, steps = new_run(), []

    def save_and_note() -> None:
        save(run, tmp_path)
        steps.append(run.step)

    train(run, save=save_and_note, save_every=3)
    assert steps == [3, 6, 8]
    assert read_tensors(tmp_path)["model.norm.weight"].tolist() == (
        run.weights["model.norm.weight"].tolist()
    )


def test_a_save_that_fails_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run()
    save(run, tmp_path)
    before = bits(run)
    train(run)

    def broken(path: Path, tensors: dict) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "write_file", broken)
    with pytest.raises(OSError, match="No space left"):
        save(run, tmp_path)
    monkeypatch.setattr(runs, "open_documents", lambda recipe: (run.documents, recipe))
    assert bits(resume(tmp_path)) == before
    assert not [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("first", [True, False])
def test_a_killed_save_leaves_the_run_of_then_or_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """Both the run to resume and the checkpoint; a killed first save may leave neither."""
    out, old, new = tmp_path / "out", new_run(), new_run()
    stop_after(new, 1)
    monkeypatch.setattr(runs, "open_documents", lambda recipe: (new.documents, recipe))

    def restore() -> None:
        shutil.rmtree(out, ignore_errors=True)
        if not first:
            save(old, out)

    def found(read: Callable[[Path], object]) -> object:
        try:
            return read(out)
        except ValueError:
            return None

    before = (None, None) if first else (bits(old), old.weights["model.norm.weight"].tolist())
    after = (bits(new), new.weights["model.norm.weight"].tolist())
    for _ in kills(out, restore, lambda: save(new, out)):
        assert found(lambda folder: bits(resume(folder))) in (before[0], after[0])
        norm = found(lambda folder: load_checkpoint(folder)[1]["model.norm.weight"].tolist())
        assert norm in (before[1], after[1])
        save(new, out)
        assert not list(out.rglob(".*"))


def test_the_loss_falls_and_is_measured_on_held_out_documents() -> None:
    reports: list[StepDone] = []
    texts = TEXTS + [f"{name} saw a green ball.\nIt was green." for name in NAMES]
    run = new_run(replace(RECIPE, steps=200), texts)
    train(run, report=reports.append)
    assert [done.step for done in reports] == list(range(1, 201))
    assert all(done.tokens >= 100 for done in reports)
    assert run.curve.loss == [done.loss for done in reports]
    assert run.curve.loss[0] == pytest.approx(np.log(300), abs=0.2)  # all tokens equally likely
    assert run.curve.held_out_steps == [100, 200]
    assert run.curve.held_out_loss == [r.held_out_loss for r in reports if r.held_out_loss]
    assert run.curve.loss[-1] < 1
    assert run.curve.held_out_loss[1] < run.curve.held_out_loss[0] < 2


def test_the_held_out_loss_is_the_mean_over_their_tokens(uninterrupted: Run) -> None:
    """By the other forward pass, that of training."""
    assert uninterrupted.curve.held_out_steps == [8]
    total, count = 0.0, 0
    for text in TEXTS[19::20]:
        ids = np.array([*TOKENIZER.encode(text), 2])
        targets, positions = np.append(ids[1:], -100), np.arange(len(ids))
        loss, targets_of_it, _ = loss_and_gradients(
            uninterrupted.weights, ids, targets, positions, CONFIG
        )
        total, count = total + loss, count + targets_of_it
    assert uninterrupted.curve.held_out_loss == [pytest.approx(total / count, rel=1e-5)]


def test_gradients_are_clipped() -> None:
    """After one step the first moment is a tenth of the gradient, whose norm is the limit."""
    run = new_run(replace(RECIPE, clip=0.01))
    stop_after(run, 1)
    norm = np.sqrt(sum(np.square(array).sum() for array in run.optimizer.first.values()))
    assert norm == pytest.approx(0.1 * 0.01, rel=1e-5)


def test_it_learns_a_text_by_heart_and_where_it_ends(tmp_path: Path) -> None:
    text = "Mia saw a red ball.\nIt was not red, it was blue: Tom had the red one."
    run = new_run(replace(RECIPE, steps=120, length=100), [text])
    train(run)
    save(run, tmp_path)
    model = MistralForCausalLM.from_pretrained(tmp_path)
    tokenizer = MistralTokenizer.from_pretrained(tmp_path)
    ids = model.generate([tokenizer.encode("Mia")], max_new_tokens=100)[0]
    assert tokenizer.decode(ids) == f"<s>{text}</s>".replace("<s>Mia", "<s> Mia")
    assert run.curve.held_out_loss == []


def test_a_model_that_does_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, gradients and two moments in float32: 16 bytes for each of 2,361,408 parameters."""
    monkeypatch.setattr("os.sysconf", lambda name: 37_782_527 if name == "SC_PAGE_SIZE" else 1)
    with pytest.raises(ValueError, match=r"of this model would take 0\.0 GB"):
        runs.fine_tuning(RECIPE, DEMO)
    monkeypatch.setattr("os.sysconf", lambda name: 37_782_528 if name == "SC_PAGE_SIZE" else 1)
    runs.fine_tuning(replace(RECIPE, corpus=__file__), DEMO)


def test_a_gradient_that_is_not_finite_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could be so although the loss is finite, and would make each weight NaN."""
    run = new_run()
    before = {name: array.copy() for name, array in run.weights.items()}
    huge = {name: np.full_like(array, 1e30) for name, array in before.items()}  # squares overflow
    monkeypatch.setattr("tinymistral.training.train.batch_gradients", lambda *_: (1.0, huge))
    saved = Mock()
    with (
        np.errstate(all="ignore"),
        pytest.raises(ValueError, match="the gradient of step 1 is not finite"),
    ):
        train(run, save=saved, save_every=1)
    saved.assert_not_called()
    assert all((run.weights[name] == before[name]).all() for name in before)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    run = new_run()
    run.weights["model.norm.weight"][:] = np.nan
    with (
        pytest.raises(ValueError, match="the loss of step 1 is not finite"),
        np.errstate(all="ignore"),
    ):
        train(run)
    assert run.step == 0


def test_the_learning_rate_rises_and_falls() -> None:
    run = new_run(Recipe.of(steps=2000, learning_rate=2e-3))
    rates = []
    for run.step in (0, 49, 99, 100, 1050, 1999):
        rates.append(rate(run))
    assert rates[:4] == pytest.approx([2e-5, 1e-3, 2e-3, 2e-3])
    assert rates[4:] == pytest.approx([1.1e-3, 2e-4], rel=1e-2)
    assert Recipe.of(steps=50).warm_up == 5


def test_random_weights() -> None:
    """0.02, and where a layer writes to the residual stream 0.02 / sqrt(2 · 2 layers) = 0.01."""
    weights = random_weights(CONFIG, seed=0)
    for name, array in weights.items():
        assert array.dtype == np.float32
        if array.ndim == 1:
            assert (array == 1).all()
        else:
            expected = 0.01 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            assert array.std() == pytest.approx(expected, rel=0.1)
    more = random_weights(replace(CONFIG, num_hidden_layers=3, tie_word_embeddings=False), seed=0)
    same = [n for n, x in weights.items() if (more[n] == x).all()]  # by name, not by order
    assert "model.layers.1.mlp.up_proj.weight" in same
    flat = np.concatenate([x.ravel()[:500] for x in weights.values() if x.ndim > 1])
    assert len(np.unique(flat)) > 0.99 * len(flat)  # no tensor repeats another


def test_a_bfloat16_checkpoint_is_the_rounded_weights(tmp_path: Path) -> None:
    run = new_run(replace(RECIPE, dtype="bfloat16"))
    save(run, tmp_path)
    for name, array in read_tensors(tmp_path).items():
        assert array.dtype.name == "bfloat16"
        np.testing.assert_allclose(array.astype(np.float32), run.weights[name], rtol=2**-8)
