"""`tinymistral explain`: its numbers are those of the oracle, plain loops in float64."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from cli_runner import DEMO, copy_of_demo, good, refused
from fake_plugins import GOOD, Plugins, plugins_fixture  # noqa: F401

from tinymistral import MistralForCausalLM
from tinymistral.commands import explain
from tinymistral.conformance import oracle
from tinymistral.tap import STAGES

REFERENCE = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))
TEXT = "Once upon a time there was a fox"


def sections(*arguments: str, stdin: bytes | None = None) -> dict[str, list[str]]:
    """Return the lines below each title; titles by the first word that tells them apart."""
    texts = good("explain", *arguments, stdin=stdin).removesuffix("\n").split("\n\n")
    words = ("tokens", "pass", "reads", "cache", "likeliest")
    for word, text in zip(words, texts, strict=True):
        assert word in text.partition("\n")[0]
    return {word: text.splitlines() for word, text in zip(words, texts, strict=True)}


@pytest.fixture(scope="module")
def stages() -> dict[str, np.ndarray]:
    """Return what the oracle computes for TEXT."""
    model = MistralForCausalLM.from_pretrained(DEMO)
    ids = np.array([[1, *REFERENCE.encode(TEXT)]])
    return oracle.forward(model.config, model.tensors, ids, np.arange(ids.size)[None])


def rows(lines: list[str]) -> list[tuple[int, str, float]]:
    """Return (number, piece, part of 1) of the lines with bars."""
    return [
        (int(number), piece, float(part))
        for number, piece, part in (line.split()[:3] for line in lines)
    ]


def largest(numbers: np.ndarray, count: int) -> list[int]:
    return sorted(range(len(numbers)), key=lambda n: -numbers[n])[:count]


def test_the_tokens_are_those_of_sentencepiece() -> None:
    ids = [1, *REFERENCE.encode(TEXT)]
    title, *lines = sections(TEXT)["tokens"]
    assert title == f"{len(ids)} tokens: position, id, piece"
    assert good("explain", "").startswith("1 token: position, id, piece\n")
    expected = [f"{n} {i} {REFERENCE.id_to_piece(i)}" for n, i in enumerate(ids)]
    assert " ".join(" ".join(lines).split()) == " ".join(expected)


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (2, 4), (4, 5)])
def test_a_head_reads_what_the_oracle_says(
    stages: dict[str, np.ndarray], layer: int, head: int
) -> None:
    options = ("--layer", str(layer), "--head", str(head), "--dtype", "float64")
    title, *lines = sections(TEXT, *options)["reads"]
    last = REFERENCE.id_to_piece(REFERENCE.encode(TEXT)[-1])
    assert title == f"In layer {layer}, head {head}, the last token, {last}, reads most"
    weights = stages[f"layers.{layer}.attention_weights"][0, head, -1]
    pieces = ["<s>", *map(REFERENCE.id_to_piece, REFERENCE.encode(TEXT))]
    most = largest(weights, explain.MOST_READ)
    assert rows(lines) == [(n, pieces[n], pytest.approx(weights[n], abs=6e-5)) for n in most]


def test_the_last_layer_and_the_first_head_are_the_default() -> None:
    assert sections(TEXT) == sections(TEXT, "--layer", "4", "--head", "0")


def test_the_next_tokens_are_the_oracles(stages: dict[str, np.ndarray]) -> None:
    logits = stages["logits"][0, -1]
    odds = np.exp(logits - logits.max())
    title, *lines = sections(TEXT, "--dtype", "float64")["likeliest"]
    assert title.endswith(f" {len(logits)}")
    most = largest(logits, 5)
    expected = [(n, REFERENCE.id_to_piece(n), odds[n] / odds.sum()) for n in most]
    assert rows(lines) == [(n, p, pytest.approx(part, abs=6e-5)) for n, p, part in expected]


def test_each_stage_has_its_shape(stages: dict[str, np.ndarray]) -> None:
    lines = sections(TEXT, "--layer", "3")["pass"][1:]
    assert len(lines) == len(STAGES)
    for line, (stage, letters) in zip(lines, STAGES.items(), strict=True):
        shape = "×".join(map(str, stages[stage.replace("layers.N", "layers.3")].shape))
        name = stage.rpartition(".")[2]
        assert line.split()[: 2 + len(letters.split())] == [name, *letters.split(), shape]
    assert explain.MEANINGS.keys() == {stage.rpartition(".")[2] for stage in STAGES}


def test_the_ring_is_filled_in_order_and_wraps(tmp_path: Path) -> None:
    """Of W + C - 1 = 66 slots, token n takes slot n % 66."""
    model = copy_of_demo(tmp_path / "model", sliding_window=64)
    text = "日" * 30  # of three bytes, a token each
    ids = [1, *REFERENCE.encode(text)]
    assert 66 < len(ids) < 132
    title, *lines = sections("--chunk", "3", "--model", model, "--", text)["cache"]
    assert title.endswith("64 + 3 - 1 = 66 slots, 66 used")
    last = len(ids) - 1
    assert [list(map(int, re.findall(r"\d+", line))) for line in lines] == [
        [0, last % 66, 66, last],
        [last % 66 + 1, 65, last - 65, 65],
        [last + 1, (last + 1) % 66, last - 62, last + 1],
    ]


def test_a_text_in_pieces_gives_the_same_as_at_once() -> None:
    whole = sections(TEXT, "--dtype", "float64")
    for chunk in ("1", "4", str(1 + len(REFERENCE.encode(TEXT)))):
        pieces = sections(TEXT, "--dtype", "float64", "--chunk", chunk)
        assert {name: pieces[name] for name in ("tokens", "reads", "likeliest")} == {
            name: whole[name] for name in ("tokens", "reads", "likeliest")
        }


def test_without_a_window_no_slot_is_given_up(tmp_path: Path) -> None:
    model = copy_of_demo(tmp_path / "model", sliding_window=None)
    title, *lines = sections("a b" * 60, "--model", model)["cache"]
    count = 1 + len(REFERENCE.encode("a b" * 60))
    assert f"{count} slots" in title
    assert lines[0].endswith(f"positions 0 to {count - 1}")
    assert lines[1].endswith(f"reads 0 to {count}")


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_lines_fit_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    found = sections(TEXT * 20)
    tables = [line for name in ("tokens", "pass", "reads", "likeliest") for line in found[name][1:]]
    assert max(map(len, tables)) <= width
    assert len(found["tokens"]) - 1 == -(-explain.SHOWN // (len(found["tokens"][1].split()) // 3))
    assert found["tokens"][0].endswith("tokens, the last 60: position, id, piece")
    words = " ".join(found["pass"]).split()
    for meaning in explain.MEANINGS.values():  # in a narrow terminal on two lines, and never cut
        assert f" {meaning} " in f" {' '.join(words)} "


@pytest.mark.parametrize("text", ["", " ", "\x1b[31m\x07\u202e\u2028", "日本語\t\n"])
def test_nothing_that_a_terminal_would_obey_is_printed(text: str) -> None:
    out = good("explain", "--", text)
    assert out == good("explain", stdin=text.encode() + b"\n")
    assert all(c.isprintable() or c == "\n" for c in out)


def test_a_piece_that_cannot_be_printed_is_escaped() -> None:
    assert explain.printable("▁a\x1b[1m\u202e日") == "▁a\\x1b[1m\\u202e日"
    assert explain.columns("日本e\u0301") == 5
    assert explain.columns("❤\ufe0f") == explain.columns("\u0e01\u0e31") == 1
    assert explain.columns("1\u20dd") == 1


def test_numbers_that_are_not_numbers_have_no_bar() -> None:
    (line,) = explain.bars([(3, "x", float("nan"))], 80)
    assert line.split() == ["3", "x", "nan"]


def test_next_tokens_of_no_numbers_are_an_error(tmp_path: Path) -> None:
    copy_of_demo(tmp_path / "model")
    model = MistralForCausalLM.from_pretrained(DEMO)
    norm = np.full_like(model.tensors["model.norm.weight"], np.nan)
    tensors = {**model.tensors, "model.norm.weight": norm}
    MistralForCausalLM(model.config, tensors=tensors).save_pretrained(tmp_path / "model")
    assert "logits are not finite" in refused("explain", "x", "--model", str(tmp_path / "model"))


def test_html_writes_a_page_that_begins_with_the_text(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    out = good("explain", "--html", str(path), "--model", str(DEMO), "--", "A fox </script>")
    size = f"{path.stat().st_size / 1e6:.1f}"
    assert out == f"{path}: {size} MB; open it in a browser\n"
    page = path.read_text("utf-8")
    about = re.search(r'id="about-model">(.*?)</script>', page)
    assert about is not None
    assert json.loads(about[1])["text"] == "A fox </script>"
    assert [path] == list(tmp_path.iterdir())
    nowhere = tmp_path / "none" / "x.html"
    says = f"error: {nowhere}: cannot be written: No such file or directory; give a file in"
    assert says in refused("explain", "x", "--html", str(nowhere))
    assert "is a folder, expected the name of a file" in refused("explain", "x", "--html", "")


@pytest.mark.parametrize("option", ["--layer=0", "--head=0", "--chunk=8", "--dtype=float64"])
def test_html_refuses_what_the_page_would_ignore(tmp_path: Path, option: str) -> None:
    path = tmp_path / "page.html"
    says = refused("explain", "x", "--html", str(path), option)
    assert f"error: {option.partition('=')[0]} is for the terminal" in says
    assert not path.exists()


def test_what_does_not_exist_is_refused(plugins: Plugins) -> None:
    assert "--layer: expected 0 to 4, got 5" in refused("explain", "x", "--layer", "5")
    assert "--head: expected 0 to 5, got -1" in refused("explain", "x", "--head", "-1")
    assert "chunk: expected 1 to" in refused("explain", "x", "--chunk", "0")
    assert "chunk: expected 1 to" in refused("explain", "x", "--chunk", str(10**30))
    source = GOOD + "\n    has_attention_weights = False\n"
    plugins.install("thing", source, "good = thing:Good")
    assert "'good' does not give attention weights" in refused("explain", "x", "--backend", "good")
