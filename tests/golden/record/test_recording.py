"""`golden record`: what it writes of a checkpoint is what transformers computes of it.

The checkpoints are those of tests/fixtures, whose numbers transformers made in float64.
"""

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from cli_runner import good, refused, run
from goldens import FIXTURES, goldens
from jsonschema import Draft202012Validator
from safetensors.numpy import load_file

from tinymistral.golden.compare.cases import compare_case
from tinymistral.golden.models import open_model
from tinymistral.golden.record import stages as selecting
from tinymistral.golden.record.files import UnfinishedCase
from tinymistral.golden.record.recorder import HOW, Recorder
from tinymistral.golden.run.tinymistral import run_case
from tinymistral.golden.suite import V1, read_suite
from tinymistral.numpy_backend import NumpyBackend

GQA = FIXTURES / "models" / "gqa"  # three layers, a window of 5
WHOLE = goldens("gqa.float64", "whole")
IDS = WHOLE["input_ids"][0].tolist()  # 24 tokens
GREEDY = goldens("gqa.float64", "greedy")
PROMPT = GREEDY["input_ids"][0].tolist()


def record(out: Path, *arguments: object, ids: list[int] = IDS) -> str:
    return good(
        *("golden", "record", "--model", str(GQA), "-o", str(out)),
        *("--ids", *map(str, ids), *map(str, arguments)),
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, and a prompt that goes on for 64 tokens."""
    out = tmp_path_factory.mktemp("golden") / "recorded"
    record(out, "--case", "text")
    record(out, "--case", "story", "--new", 64, "--stages", "logits", ids=PROMPT)
    return out


def expected(out: Path, case: str = "text") -> dict[str, np.ndarray]:
    """What a case expects, without the call's name."""
    arrays = read_suite(out).read(read_suite(out).case(case)).expected
    return {name.removeprefix("calls.0."): array for name, array in arrays.items()}


# what is recorded


def test_the_numbers_are_those_of_transformers(recorded: Path) -> None:
    found = expected(recorded)
    np.testing.assert_allclose(found["logits"][0], WHOLE["logits"][0], rtol=0, atol=1e-11)
    states = [found["embedding"], *(found[f"layers.{n}.output"] for n in (0, 1)), found["norm"]]
    for ours, theirs in zip(states, WHOLE["hidden_states"], strict=True):
        np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-11)
    for n, theirs in enumerate(WHOLE["attentions"]):
        weights = found[f"layers.{n}.attention_weights"]
        np.testing.assert_allclose(weights[0], theirs[0], rtol=0, atol=1e-12)


def test_a_continuation_is_that_of_transformers(recorded: Path) -> None:
    found = expected(recorded, "story-greedy")
    np.testing.assert_array_equal(found["sequences"], GREEDY["sequences"])
    np.testing.assert_allclose(found["logprobs"], GREEDY["logprobs"], rtol=0, atol=1e-11)
    how = read_suite(recorded).case("story-greedy").expected or {}
    assert "float32" in how["sequences"].dtypes


def test_all_stages_of_a_small_model_are_recorded(recorded: Path) -> None:
    stages = json.loads((V1 / "manifest.json").read_text("utf-8"))["stages"]
    names = {name.replace("N", str(n)) for name in stages for n in range(3)}
    names |= {f"cache.layers.{n}.{x}" for n in range(3) for x in "kv"}
    assert expected(recorded).keys() == names


def test_a_cache_holds_the_last_positions_of_the_window(recorded: Path) -> None:
    found = expected(recorded)
    for n in range(3):
        keys = found[f"layers.{n}.k_rotated"]
        np.testing.assert_array_equal(found[f"cache.layers.{n}.k"], keys[:, 20:])
        np.testing.assert_array_equal(found[f"cache.layers.{n}.v"], found[f"layers.{n}.v"][:, 20:])


def test_the_manifest_is_one_of_the_schema(recorded: Path) -> None:
    schema = json.loads((V1 / "schema.json").read_text("utf-8"))
    manifest = json.loads((recorded / "manifest.json").read_text("utf-8"))
    Draft202012Validator(schema).validate(manifest)
    assert manifest["tolerance"]["says"] == HOW.format(ways=20, dtype="float64")
    assert manifest["models"][0]["id"] == "gqa"
    assert (recorded / "schema.json").read_bytes() == (V1 / "schema.json").read_bytes()


def test_no_other_file_is_left(recorded: Path) -> None:
    names = {path.relative_to(recorded).as_posix() for path in recorded.rglob("*")}
    cases = {f"cases/{name}.safetensors" for name in ("text", "story", "story-greedy")}
    assert names == {"manifest.json", "schema.json", "cases", *cases}


# tolerances


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_correct_programs_agree(recorded: Path, dtype: str) -> None:
    """The numpy backend, with its cache and without the order of layers that a recording has."""
    code, out, _ = run(
        *("golden", "run", "tinymistral", "--suite", str(recorded), "--model", str(GQA)),
        *("--dtype", dtype, "-o", str(recorded.with_name(dtype))),
    )
    assert (code, "3 of 3 cases written" in out) == (0, True)
    table = good("golden", "check", str(recorded), str(recorded.with_name(dtype)))
    assert "3 of 3 cases given: 3 OK, 0 differ" in table, table


def test_transformers_agrees(recorded: Path) -> None:
    suite = read_suite(recorded)
    plain = goldens("gqa.float32", "whole")
    given = {"calls.0.logits": plain["logits"][:1], "calls.0.norm": plain["hidden_states"][-1, :1]}
    result = compare_case(suite, suite.case("text"), given)
    assert (result.verdict, result.worst < 1) == ("agrees", True)


def test_another_theta_differs(recorded: Path) -> None:
    suite = dataclasses.replace(read_suite(recorded), checkpoint=GQA)
    backend = NumpyBackend("float32")
    right = open_model(suite, "gqa", backend)
    wrong = open_model(
        suite, "gqa", backend, config=dataclasses.replace(right.config, rope_theta=1e6)
    )
    result = compare_case(
        suite, suite.case("text"), run_case(suite, suite.case("text"), backend, wrong)
    )
    assert result.first is not None
    assert result.first.name == "calls.0.layers.0.q_rotated"


# what one asks for


def test_only_some_stages(tmp_path: Path) -> None:
    record(tmp_path, "--stages", "logits", "layers.*.output", "--layers", 0, 2)
    assert list(expected(tmp_path, "prompt")) == ["layers.0.output", "layers.2.output", "logits"]


def test_some_layers_mean_all_their_stages(tmp_path: Path) -> None:
    record(tmp_path, "--layers", 1)
    found = expected(tmp_path, "prompt")
    assert {name.split(".")[1] for name in found if name.startswith("layers.")} == {"1"}
    assert len(found) == 3 + 16 + 2


def test_a_large_recording_has_fewer_stages_of_most_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selecting, "ALL_AT_MOST", 100_000)
    record(tmp_path)
    found = expected(tmp_path, "prompt")
    assert {name for name in found if "layers.0." not in name} == (
        {"embedding", "layers.1.output", "layers.2.output", "norm", "logits"}
    )
    assert sum("layers.0." in name for name in found) == 16


def test_fewer_ways_and_float32(tmp_path: Path) -> None:
    record(tmp_path, "--ways", 1, "--dtype", "float32", "--stages", "logits")
    logits = expected(tmp_path, "prompt")["logits"]
    np.testing.assert_array_equal(logits, logits.astype(np.float32))
    np.testing.assert_allclose(logits[0], WHOLE["logits"][0], rtol=0, atol=5e-5)


def test_a_prompt_is_encoded_with_its_beginning(tmp_path: Path) -> None:
    good("golden", "record", "--prompt", "Once", "--stages", "norm", "-o", str(tmp_path))
    ids = load_file(tmp_path / "cases" / "prompt.safetensors")["inputs.calls.0.input_ids"]
    assert ids[0].tolist() == json.loads(good("tokenize", "--json", "Once"))["ids"]
    assert ids[0, 0] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--stages logit", "'logit' matches no stage"),
        ("--layers 3", "there is no layer 3; the model has layers 0 to 2"),
        ("--ways 1001", "--ways: expected 1 to 1000, got 1001"),
        ("--ways 0", "--ways: expected 1 to 1000, got 0"),
        ("--new -1", "--new"),
        ("--case 'My case'", "expected a name like 'my-case'"),
        ("--ids 67", "token 67 is not in the vocabulary of 67"),
        ("--ids -1", "token -1"),
        ("--dtype float16", "--dtype"),
        ("--prompt x", "not allowed with"),
    ],
)
def test_wrong_arguments_are_reported_and_nothing_is_written(
    tmp_path: Path, arguments: str, says: str
) -> None:
    out = tmp_path / "out"
    ids = [] if "--ids" in arguments else ["--ids", "1"]
    error = refused(
        *("golden", "record", "--model", str(GQA), "-o", str(out), *ids, *shlex.split(arguments))
    )
    assert says in error
    assert not list(out.rglob("*.safetensors"))


# suites that grow


def test_an_existing_case_is_not_computed_again(recorded: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in recorded.rglob("*.safetensors")}
    assert "text" in record(recorded, "--case", "text")
    record(recorded, "--case", "story", "--new", 64, "--stages", "logits", ids=PROMPT)
    for path, (time, content) in before.items():
        assert (path.stat().st_mtime_ns, path.read_bytes()) == (time, content)


@pytest.mark.parametrize(
    ("arguments", "ids", "says"),
    [
        ("--case text", PROMPT, "case 'text' is there already"),
        ("--case text --stages logits", IDS, "case 'text' is there already"),
        ("--case story --stages logits --new 3", PROMPT, "'story-greedy' is there already"),
        ("--case other --ways 2", IDS, "tolerances were made in another way"),
    ],
)
def test_another_checkpoint_or_other_arguments_are_refused(
    recorded: Path, arguments: str, ids: list[int], says: str
) -> None:
    error = refused(
        *("golden", "record", "--model", str(GQA), "-o", str(recorded), *arguments.split()),
        *("--ids", *map(str, ids)),
    )
    assert says in error


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("cases/text.safetensors", "no recording wrote them; record into another folder"),
        ("manifest.json", "expected 'tinymistral-golden'"),
    ],
)
def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path, file: str, says: str) -> None:
    (tmp_path / "cases").mkdir()
    (tmp_path / file).write_text("{}", "utf-8")
    error = refused(
        *("golden", "record", "--model", str(GQA), "-o", str(tmp_path)),
        *("--case", "text", "--ids", "1", "2"),
    )
    assert says in error
    assert str(tmp_path) in error
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / file]
    assert (tmp_path / file).read_text("utf-8") == "{}"


def test_wrongly_drafted_tokens_are_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Path
) -> None:
    """The third token is drafted wrongly, until a first walk through all layers."""
    draft, restart, seen = Recorder._draft, UnfinishedCase.restart, []

    def careless(self: Recorder, parts: UnfinishedCase) -> list[int]:
        tokens = draft(self, parts)
        return tokens if seen else [*tokens[:2], (tokens[2] + 1) % 67, *tokens[3:]]

    def again(parts: UnfinishedCase) -> None:
        seen.append(parts)
        restart(parts)

    monkeypatch.setattr(Recorder, "_draft", careless)
    monkeypatch.setattr(UnfinishedCase, "restart", again)
    out = tmp_path / "recorded"
    record(out, "--case", "text")
    record(out, "--case", "story", "--new", 64, "--stages", "logits", ids=PROMPT)
    assert len(seen) == 1
    for path in recorded.rglob("*.*"):
        assert (out / path.relative_to(recorded)).read_bytes() == path.read_bytes(), path
