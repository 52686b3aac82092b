"""`tinymistral grade`: its tables and its JSON agree with what `grade` returns, and its errors.

What the figures mean is tested in `training/test_grading.py`.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
from cli_runner import DEMO, good, refused

from tinymistral import MistralConfig, MistralForCausalLM, MistralTokenizer
from tinymistral.commands.grade import as_text
from tinymistral.training.documents import graded_stories
from tinymistral.training.grading import AS_IT_IS, Grades, grade


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that is faster than the demo model, with random weights."""
    path = tmp_path_factory.mktemp("checkpoint")
    tokenizer = MistralTokenizer.from_pretrained(DEMO)
    tokenizer.save_pretrained(path)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = MistralConfig(
        vocab_size=len(tokenizer), num_hidden_layers=2, num_key_value_heads=1, sliding_window=64,
        **sizes,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def grades(folder: str) -> Grades:
    model = MistralForCausalLM.from_pretrained(folder)
    tokenizer = MistralTokenizer.from_pretrained(folder)
    return grade(model, tokenizer, graded_stories(3), continuations=1, with_variants=True)


@pytest.fixture
def graded(grades: Grades) -> Iterator[Mock]:
    """Let the command print these grades, and record what it asks for."""
    with patch("tinymistral.training.grading.grade", return_value=grades) as mock:
        yield mock


def printed(*arguments: str) -> dict:
    """What --json prints: one object on one line, in the JSON of the standard."""
    out = good("grade", "--json", *arguments)
    assert out.count("\n") == 1
    return json.loads(out, parse_constant=pytest.fail)


def test_it_computes_what_python_does(folder: str, grades: Grades) -> None:
    fields = printed("--model", folder, "--stories", "3", "--continuations", "1")
    assert (fields["stories"], fields["tokens"]) == (3, grades.tokens)
    assert [row["name"] for row in fields["kinds"]] == [row.name for row in grades.by_kind()]
    assert [row["right"] for row in fields["distances"]] == [
        {AS_IT_IS: row.right[AS_IT_IS]} for row in grades.by_distance()
    ]
    perplexity = fields["readings"][AS_IT_IS]["perplexity"]
    assert perplexity == pytest.approx(grades.readings[AS_IT_IS].perplexity)
    assert fields["greedy"] == dataclasses.asdict(grades.greedy)
    assert fields["sampled"] == dataclasses.asdict(grades.sampled)  # the seed is the same


def test_options_are_passed_on(graded: Mock) -> None:
    good("grade")
    good("grade", "--variants", "--seed", "3", "--stories", "2", "--continuations", "7")
    (_, _, many), default = graded.call_args_list[0]
    (_, _, few), given = graded.call_args_list[1]
    assert (many, few) == (graded_stories(200), graded_stories(2))
    del default["progress"], given["progress"]
    assert default == {"continuations": 50, "with_variants": False, "seed": 0}
    assert given == {"continuations": 7, "with_variants": True, "seed": 3}


@pytest.mark.usefixtures("graded")
def test_json_has_all_variants(grades: Grades) -> None:
    fields = printed("--variants")
    names = list(grades.readings)
    assert len(names) == 4
    assert list(fields["readings"]) == names
    for row in (*fields["kinds"], *fields["distances"]):
        assert list(row["right"]) == names
        assert max(row["right"].values()) <= row["places"]
        assert 0 <= row["chance"] < 1
    assert (fields["window"], fields["layers"]) == (grades.window, grades.layers)


@pytest.mark.usefixtures("graded")
def test_the_tables_have_a_column_for_each_variant(grades: Grades) -> None:
    tables = good("grade", "--variants").split("\n\n")
    assert tables[0].startswith(f"3 stories, {grades.tokens} tokens")
    kinds, distances, perplexity, continuations = (table.splitlines() for table in tables[1:])
    assert kinds[0].split("  ")[0] == "recall by kind of fact"
    for name in grades.readings:
        assert all(f"  {name}" in table[0] for table in (kinds, distances, perplexity))
    assert [line.split("  ")[0] for line in kinds[1:]] == [row.name for row in grades.by_kind()]
    total = next(row for row in grades.by_kind() if row.name == "all, inside")
    line = next(line for line in kinds if line.startswith("all, inside"))
    shares = [f"{total.recall(name):.3f}" for name in grades.readings]
    assert line.split()[2:] == [str(total.places), f"{total.chance:.2f}", *shares]
    assert perplexity[1].split()[3:] == [f"{r.perplexity:.3f}" for r in grades.readings.values()]
    assert continuations[0].split() == ["1", "continuations", "greedy", "sampled"]
    assert len({len(line) for line in kinds}) == 1


def test_answers_that_are_said_are_not_those_that_are_chosen(grades: Grades) -> None:
    readings = {n: dataclasses.replace(r, said=~r.right) for n, r in grades.readings.items()}
    text = as_text(dataclasses.replace(grades, readings=readings))
    total = next(row for row in grades.by_kind() if row.name == "all, inside")
    says = next(line for line in text.splitlines() if line.startswith("says the answer, inside"))
    assert says.split()[4:] == [f"{1 - total.recall(name):.3f}" for name in readings]


@pytest.mark.usefixtures("graded")
def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "recall.svg"
    good("grade", "--plot", str(file))
    assert b"<svg" in file.read_bytes()


def test_mistakes_are_reported_before_anything_is_computed(tmp_path: Path, graded: Mock) -> None:
    assert "--stories: expected 1 to 100000, got 0" in refused("grade", "--stories", "0")
    assert "--continuations: expected 1 to 100000" in refused("grade", "--continuations", "-1")
    assert "expected an integer" in refused("grade", "--stories", "many")
    assert "neither an existing folder" in refused("grade", "--model", str(tmp_path / "none"))
    assert "--stories: expected 1 to 100000" in refused("grade", "--stories", "1000000000")
    assert "--seed: expected 0 to" in refused("grade", "--seed", "-1")
    assert "--seed: expected 0 to" in refused("grade", "--seed", str(2**63))
    nowhere = str(tmp_path / "none" / "recall.svg")
    assert "cannot be written: No such" in refused("grade", "--plot", nowhere)
    graded.assert_not_called()
