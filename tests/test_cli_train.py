"""`tinymistral train`: its options, what it writes, Ctrl-C, and fine-tuning."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from cli_runner import DEMO, refused, run
from test_cli_process import MAIN, WITH_CTRL_C, finish, posix, read_terminal, start

from tinymistral import MistralForCausalLM, MistralTokenizer
from tinymistral.checkpoint import read_tensors
from tinymistral.files.safetensors import read_file, write_file
from tinymistral.training import run as runs

TEXTS = [f"{a} saw a {b} ball.\nIt was {b}." for a in ("Mia", "Tom") for b in ("red", "blue")]
FAST = ("--batch-tokens", "40", "--length", "32", "--vocabulary", "290")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n<|endoftext|>\n".join(TEXTS), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def trained(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps."""
    out = tmp_path_factory.mktemp("trained") / "out"
    code, _, err = run("train", str(out), "--corpus", corpus, "--steps", "3", *FAST)
    assert code == 0, err
    return out


def train(out: Path, *options: str) -> None:
    code, said, _ = run("train", str(out), *options)
    assert (code, said[:5]) == (0, "wrote")


def state(folder: Path) -> bytes:
    return (folder / "training" / "state.safetensors").read_bytes()


def test_it_writes_a_checkpoint_that_opens(trained: Path) -> None:
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.model"]
    assert sorted(path.name for path in trained.iterdir()) == [*names, "training"]
    model = MistralForCausalLM.from_pretrained(trained)
    assert model.config.dtype == "bfloat16"
    assert model.config.vocab_size == MistralTokenizer.from_pretrained(trained).vocab_size == 290
    assert model.config.sliding_window == 256
    assert {array.dtype.name for array in read_tensors(trained).values()} == {"bfloat16"}
    generation = json.loads((trained / "generation_config.json").read_text("utf-8"))
    assert generation == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 40,
        "max_new_tokens": 1000,
    }
    curve = json.loads((trained / "training" / "loss.json").read_text("utf-8"))
    assert len(curve["loss"]) == 3


def test_what_it_says(corpus: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said, log = run("train", str(out), "--corpus", corpus, "--steps", "1", *FAST)
    assert code == 0
    # 290·192 of the embedding, and in each of five layers 2·192·192 + 2·64·192 of attention,
    # 3·192·512 of the feed-forward and 2·192 of norms; 192 of the last norm.
    assert said == f"wrote {out}: 2,023,872 parameters, bfloat16\n"
    pattern = r"step 1 of 1, loss \d\.\d{3}, [\d,]+ tokens/s, 0 s left\n"
    assert re.fullmatch(pattern, log), log


def test_stopping_and_resuming_change_no_bit(trained: Path, corpus: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--corpus", corpus, "--steps", "3", *FAST, "--threads", "2", "--stop-after", "2")
    code, said, log = run("train", str(out), *options)
    assert (code, said) == (0, "")
    assert log == (
        f"stopped after step 2 of 3 and saved; to go on: tinymistral train {out} --resume\n"
    )
    assert state(out) != state(trained)
    train(out, "--resume")
    assert state(out) == state(trained)
    for name in ("model.safetensors", "tokenizer.model", "training/loss.json"):
        assert (out / name).read_bytes() == (trained / name).read_bytes()


def test_it_does_not_stop_after_a_step_that_is_done(trained: Path) -> None:
    assert "3 steps are done" in refused("train", str(trained), "--resume", "--stop-after", "3")


def test_a_finished_run_can_be_drawn(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    before = state(trained)
    train(trained, "--resume", "--plot", str(tmp_path / "curve.svg"))
    assert (tmp_path / "curve.svg").read_bytes().startswith(b"<?xml")
    assert state(trained) == before


def test_fine_tuning_goes_on_from_a_checkpoint(corpus: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--steps", "12", "--batch-tokens", "60", "--dtype", "float32", "--window", "32")
    train(out, "--from", str(DEMO), "--corpus", corpus, *options)
    assert (out / "tokenizer.model").read_bytes() == (DEMO / "tokenizer.model").read_bytes()
    config = MistralForCausalLM.from_pretrained(out).config
    assert (config.sliding_window, config.dtype) == (32, "float32")
    loss = json.loads((out / "training" / "loss.json").read_text("utf-8"))["loss"]
    ids = MistralTokenizer.from_pretrained(DEMO)(TEXTS).input_ids
    model = MistralForCausalLM.from_pretrained(DEMO)
    first = model(ids, labels=ids).loss
    assert loss[0] == pytest.approx(first, abs=0.5)  # other texts of the same form, and </s>
    assert loss[-1] < 0.7 * loss[0]
    changed = [n for n, x in read_tensors(out).items() if (x != model.tensors[n]).any()]
    assert len(changed) == len(model.tensors)


def test_an_empty_folder_is_written_to(corpus: str, tmp_path: Path) -> None:
    train(tmp_path, "--corpus", corpus, "--steps", "1", *FAST)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("", "OUT"),
        ("OTHER", "is there already; give another folder\n"),
        ("OTHER/file", "is a file"),
        ("OTHER/file/out --corpus CORPUS --vocabulary 290", "cannot be made"),
        ("OTHER --resume", "no training run to resume"),
        ("OUT --resume", "no training run to resume"),
        ("OUT --resume --steps 5", "--steps is for a new run"),
        ("OUT --resume --from DEMO", "--from is for a new run"),
        ("OUT --from DEMO --vocabulary 300", "--vocabulary is for a new tokenizer"),
        ("OUT --from OTHER", "holds no checkpoint"),
        ("OUT --from missing", "is no folder"),
        ("OUT --steps 0", "--steps: expected 1 to 2147483647, got 0"),
        ("OUT --steps many", "--steps: expected an integer"),
        ("OUT --threads 0", "--threads: expected 1 to 2147483647, got 0"),
        (f"OUT --steps 1{'0' * 400}", "--steps: expected 1 to 2147483647, got 1000"),
        ("OUT --length 1", "--length: expected 2 to"),
        ("OUT --vocabulary 1", "--vocabulary: expected 260 to"),
        ("OUT --vocabulary 4294967296", "--vocabulary: expected 260 to"),
        ("OUT --seed -1", "--seed: expected 0 to"),
        ("OUT --learning-rate 1", "--learning-rate: expected 0 to 1"),
        ("OUT --dtype float64", "--dtype"),
        ("OUT --corpus OTHER/nothing", "there is no such file"),
        ("OUT --corpus CORPUS", "a vocabulary of 2048 does not fit this text; expected"),
        ("OUT --plot OTHER/curve.jpg", "ends with .svg or .png"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    corpus: str, tmp_path: Path, command: str, says: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("x", "utf-8")
    names = {"OUT": str(tmp_path / "out"), "OTHER": str(other), "CORPUS": corpus, "DEMO": str(DEMO)}
    words = re.sub("|".join(names), lambda match: names[match[0]], command).split()
    assert says in refused("train", *words)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in other.iterdir()] == ["file"]


@posix
def test_two_processes_in_one_folder(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one trains, neither a new run nor the same one begins there."""
    out, said = tmp_path / "out", []
    new = ("train", str(out), "--corpus", corpus, "--steps", "1", *FAST)
    save = runs.save

    def save_beside_others(training: runs.Run, folder: Path) -> None:
        said.append(refused(*new))
        with monkeypatch.context() as patch:
            patch.setattr("tinymistral.commands.train.check", lambda options: None)
            said.append(refused(*new))  # as if both had begun at once
        said.append(refused("train", str(out), "--resume"))
        save(training, folder)

    monkeypatch.setattr(runs, "save", save_beside_others)
    assert run(*new).code == 0
    busy = f"{out / 'training'}: another process is writing to it; wait until that has ended\n"
    assert [text.partition("error: ")[2] for text in said] == [
        *(f"{out}: is there already; give another folder\n", busy, busy),  # before the first save
        *(f"{out}: is there already; give another folder, or --resume\n", busy, busy),
    ]


def test_a_folder_that_was_filled_meanwhile_is_left_as_it_is(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinymistral.commands.train.check", lambda options: None)
    (tmp_path / "thesis").touch()
    says = refused("train", str(tmp_path), "--corpus", corpus, "--steps", "1", *FAST)
    assert says.endswith("is there already; give another folder\n")
    assert not (tmp_path / "config.json").exists()


def test_a_corpus_that_has_changed_is_not_gone_on_with(
    trained: Path, corpus: str, tmp_path: Path
) -> None:
    out, text = tmp_path / "out", tmp_path / "corpus.txt"
    shutil.copytree(trained, out)
    text.write_text("Other text.", "utf-8")
    path = out / "training" / "recipe.json"
    recipe = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(recipe | {"corpus": str(text)}), "utf-8")
    assert "has changed since this run began" in refused("train", str(out), "--resume")
    path.write_text(json.dumps(recipe | {"more": 1}), "utf-8")
    assert "not of this version" in refused("train", str(out), "--resume")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"steps": "3"}, "steps is '3' (str), expected such as 12000"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"seed": None}, "seed is None"),
        ({"corpus": 3}, "corpus is 3"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"steps": 2}, "its step is 3 of 2"),
    ],
)
def test_a_changed_recipe_is_refused(trained: Path, tmp_path: Path, fields, says: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    path = out / "training" / "recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), "utf-8")
    assert says in refused("train", str(out), "--resume")
    assert state(out) == state(trained)


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("step", None, "its step are missing"),
        ("step", np.array(3), "its step are missing, not expected"),
        ("step", np.array([2]), "its step is 2 of 3, with 3 losses and 3 updates"),
        ("step", np.array([-1]), "its step is -1 of 3"),
        ("optimizer.steps", np.array(4), "with 3 losses and 4 updates"),
        ("loss", np.ones(2), "with 2 losses"),
        ("weights.model.norm.weight", None, "its weights.model.norm.weight are"),
        ("weights.model.norm.weight", np.ones(192, np.float16), "its weights.model.norm.weight"),
        ("optimizer.first.model.norm.weight", np.ones(3, np.float32), "of another shape"),
        ("more", np.ones(3), "its more are"),
    ],
)
def test_another_state_is_refused(trained: Path, tmp_path: Path, name, array, says: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    path = out / "training" / "state.safetensors"
    arrays = {n: a.copy() for n, a in read_file(path).items() if n != name}
    write_file(path, arrays | ({} if array is None else {name: array}))
    error = refused("train", str(out), "--resume")
    assert f"{path} is not the state of this run: " in error
    assert says in error


def test_a_first_save_that_was_interrupted_is_no_run(trained: Path, tmp_path: Path) -> None:
    """The recipe is written after the state, so that one without the other cannot be."""
    training = trained / "training"
    written = [
        (training / name).stat().st_mtime_ns for name in ("state.safetensors", "recipe.json")
    ]
    assert written == sorted(written)


@posix
@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(corpus: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--corpus", corpus, "--steps", "20000", *FAST)
    process = start("train", str(out), *options, code=WITH_CTRL_C + MAIN)
    first = process.stderr.readline()  # after 50 steps
    process.send_signal(signal.SIGINT)
    code, said, log = finish(process)
    assert (code, said) == (130, b"")
    assert first.startswith(b"step 50 of 20000")
    done = re.search(rb"stopped after step (\d+) of 20000 and saved; to go on: .*\n$", log)
    assert done, log
    curve = json.loads((out / "training" / "loss.json").read_text("utf-8"))
    assert len(curve["loss"]) == int(done[1]) >= 50
    assert np.isfinite(curve["loss"]).all()


def test_linear_algebra_has_one_thread(corpus: str, tmp_path: Path) -> None:
    code = """
import os
from tinymistral.cli import main
from tinymistral.threads import VARIABLES, threads
main()
print(*(os.environ[name] for name in VARIABLES))
"""
    options = ("--corpus", corpus, "--steps", "1", *FAST, "--threads", "2")
    process = start("train", str(tmp_path), *options, code=code, env={"OMP_NUM_THREADS": "2"})
    assert finish(process)[1].splitlines()[-1] == b"1 1 1 1 1"


@posix
@pytest.mark.parametrize("width", [24, 200])
def test_progress_stays_on_one_line_of_a_terminal(corpus: str, tmp_path: Path, width: int) -> None:
    """What is cleared at the end is all that was shown, however long it was."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    options = ("--corpus", corpus, "--steps", "3", *FAST)
    process = start("train", str(tmp_path / "out"), *options, stderr=theirs)
    os.close(theirs)
    *shown, blank, last = read_terminal(ours).decode().split("\r")
    assert finish(process)[0] == 0
    lines = [line.strip() for line in shown if line.strip()]
    expected = [
        "preparing the tokenizer",
        *(f"step {n} of 3, loss" for n in (1, 2, 3)),
    ]
    for line, beginning in zip(lines, expected, strict=True):
        assert line.startswith(beginning[: width - 1].strip())
    assert max(map(len, shown)) < width
    assert (blank.strip(), last) == ("", "")
    assert len(blank) >= len(shown[-1]) > 20
