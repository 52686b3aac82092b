"""Published numbers of Mistral-7B-v0.1, and comparing a model with such: here the demo model.

What is "published" of the demo model was made by the oracle, in plain loops.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_runner import good, refused, run

from tinymistral import DEMO, MistralConfig, MistralTokenizer
from tinymistral.checkpoint import read_tensors
from tinymistral.conformance import oracle
from tinymistral.golden.published_numbers import read_published

PROMPT = "The King said"
NEW = 4
Publish = Callable[[dict], list[str]]


def logits_of(ids: list[int]) -> np.ndarray:
    config, tensors = MistralConfig.from_pretrained(DEMO), read_tensors(DEMO)
    tensors = {n if n.startswith("model.") else f"model.{n}": x for n, x in tensors.items()}
    positions = np.arange(len(ids), dtype=np.int64)[None]
    return oracle.forward(config, tensors, np.array([ids]), positions)["logits"]


@pytest.fixture(scope="module")
def numbers() -> dict:
    tokenizer = MistralTokenizer.from_pretrained(DEMO)
    ids = tokenizer.encode(PROMPT)
    logits = logits_of(ids)
    row = [*ids, int(logits[0, -1].argmax())]
    while len(row) < len(ids) + NEW:
        row.append(int(logits_of(row)[0, -1].argmax()))
    return {
        "model": "the demo",
        "config": {"vocab_size": 2048, "rope_theta": 10000},
        "logits": {
            "ids": ids,
            "tolerance": 1e-4,
            "mean": logits[0].mean(axis=1).tolist(),
            "first": logits[0, 0, :30].tolist(),
        },
        "greedy": [
            {
                "id": "king",
                "prompt": [["The King", 1], [" said", 1]],
                "ids": [[ids, 1]],
                "new": NEW,
                "text": tokenizer.decode(row, skip_special_tokens=True)[len(PROMPT) :],
            },
            {"id": "ids", "long": True, "ids": [[ids, 1]], "new": NEW, "end": row[-2:]},
        ],
    }


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Return a function that puts other numbers in the place of the published ones."""

    def publish(numbers: dict) -> list[str]:
        path = tmp_path / "numbers.json"
        path.write_text(json.dumps(numbers), encoding="utf-8")
        monkeypatch.setattr("tinymistral.golden.published_numbers.MISTRAL_7B", path)
        return ["golden", "published"]

    return publish


def verdicts(text: str) -> dict[str, str]:
    return {line[:16].strip(): line[17:].split()[0] for line in text.splitlines()}


def test_a_model_that_agrees(published: Publish, numbers: dict) -> None:
    command = published(numbers)
    found = verdicts(good(*command, "--model", str(DEMO)))
    assert found == {"mean logits": "OK", "first logits": "OK", "king": "OK"}
    found = verdicts(good(*command, "--model", str(DEMO), "--long"))
    assert found == {"mean logits": "OK", "first logits": "OK", "king": "OK", "ids": "OK"}


def changed(numbers: dict, path: tuple, wrong: object) -> dict:
    """Return a copy of the numbers with another value at the path."""
    copied = at = json.loads(json.dumps(numbers))
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = wrong
    return copied


@pytest.mark.parametrize(
    ("path", "wrong", "name"),
    [
        (("logits", "mean", 2), 0.5, "mean logits"),
        (("logits", "first", 29), 1e6, "first logits"),
        (("greedy", 0, "text"), " something else", "king"),
        (("greedy", 0, "ids", 0, 0, 1), 7, "king"),
        (("greedy", 1, "end"), [1], "ids"),
    ],
)
def test_a_difference_is_reported(
    published: Publish, numbers: dict, path: tuple, wrong: object, name: str
) -> None:
    command = published(changed(numbers, path, wrong))
    code, out, _ = run(*command, "--model", str(DEMO), "--long")
    assert code == 1
    assert {n for n, verdict in verdicts(out).items() if verdict == "DIFFERS"} == {name}


@pytest.mark.parametrize("shape", [(1, -1, 2048), (-1, 2048)])
def test_logits_of_another_program(
    tmp_path: Path, published: Publish, numbers: dict, shape: tuple[int, ...]
) -> None:
    logits = logits_of(numbers["logits"]["ids"]).reshape(shape).astype(np.float32)
    np.save(tmp_path / "logits.npy", logits)
    command = [*published(numbers), "--logits", str(tmp_path / "logits.npy")]
    assert verdicts(good(*command)) == {"mean logits": "OK", "first logits": "OK"}
    np.save(tmp_path / "logits.npy", logits + np.float32(0.01))
    code, out, _ = run(*command)
    assert code == 1
    assert verdicts(out) == {"mean logits": "DIFFERS", "first logits": "DIFFERS"}


def test_the_numbers_of_the_7b_are_complete() -> None:
    """As they stand in transformers' integration tests."""
    numbers = read_published()
    logits = numbers["logits"]
    assert logits["ids"] == [1, 306, 4658, 278, 6593, 310, 2834, 338]
    assert (len(logits["mean"]), len(logits["first"]), logits["tolerance"]) == (8, 30, 0.01)
    mean = "-2.5548 -2.5737 -3.0600 -2.5906 -2.8478 -2.8118 -2.9325 -2.7694"
    assert " ".join(f"{number:.4f}" for number in logits["mean"]) == mean
    assert logits["first"][:4] == [-5.8781, -5.8616, -0.1052, -4.7200]
    assert logits["first"][-4:] == [-5.8776, -5.8780, -5.8779, -5.8781]
    by_id = {text["id"]: text for text in numbers["greedy"]}
    ids = [token for part, times in by_id["past-the-window"]["ids"] for token in part * times]
    assert (len(ids), ids[:3], ids[-1]) == (4097, [1, 306, 338], 338)


def test_prompts_of_the_7b_are_encoded_as_published() -> None:
    from cli_runner import V1

    tokenizer = MistralTokenizer(V1)
    for text in read_published()["greedy"]:
        prompt = "".join(part * times for part, times in text.get("prompt", []))
        if "ids" in text and prompt:
            assert [[tokenizer.encode(prompt), 1]] == text["ids"]
        if text["id"] == "scenery":
            assert 4096 < len(tokenizer.encode(prompt)) < 4200


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--logits, a .npy file with the logits of ids 1 306 4658"),
        (["--model", str(DEMO), "--logits", "x"], "expected either --model"),
        (["--model", str(DEMO)], "this is not Mistral-7B-v0.1: its vocab_size is 2048, expected"),
        (["--logits", __file__], "not an array as np.save writes it"),
        (["--logits", "nowhere.npy"], "there is no such file"),
    ],
)
def test_mistakes(arguments: list[str], says: str) -> None:
    assert says in refused("golden", "published", *arguments)


def test_another_model_is_recognized_by_its_configuration(
    published: Publish, numbers: dict
) -> None:
    command = published(changed(numbers, ("config", "rope_theta"), 1000000))
    error = refused(*command, "--model", str(DEMO))
    assert "this is not the demo: its rope_theta is 10000.0, expected 1000000" in error


def test_the_configuration_of_the_7b_is_that_of_its_paper() -> None:
    """Table 1 of Jiang et al. 2023: dim, n_layers, hidden_dim, n_heads, n_kv_heads, vocab_size."""
    config = read_published()["config"]
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
    assert [config[name] for name in names] == [4096, 32, 14336, 32]
    assert (config["num_key_value_heads"], config["vocab_size"]) == (8, 32000)


def test_the_help_lists_each_exit_code() -> None:
    text = good("golden", "published", "--help")
    assert all(f"{code} if" in text for code in (0, 1, 2))


def test_logits_of_another_text_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "logits.npy", np.zeros((1, 7, 32000), dtype=np.float32))
    error = refused("golden", "published", "--logits", str(tmp_path / "logits.npy"))
    assert "expected (8, V)" in error
