"""`tinymistral golden diagnose`: what it says of dumps with one mistake, and of others."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import V1, good, refused, run
from planted_programs import PLANTED, dumped

from tinymistral.golden.calls import inputs_of
from tinymistral.golden.compare.texts import compare_texts
from tinymistral.golden.diagnose.evidence import TextEvidence
from tinymistral.golden.diagnose.predictions import Predictions
from tinymistral.golden.diagnose.search import diagnose
from tinymistral.golden.files import write_arrays
from tinymistral.golden.models import read_model
from tinymistral.golden.run.tinymistral import run_case
from tinymistral.golden.suite import read_suite
from tinymistral.mistakes import FORWARD, SAMPLING, TEXTS
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.tokenizer import MistralTokenizer

SUITE = read_suite()
BY_NAME = {mistake.name: mistake for mistake in (*FORWARD, *SAMPLING, *TEXTS)}
SOME = ("rms-norm", "rope", "silu-mul", "plain", "raw-layout")


def dump(folder: Path, name: str, cases: tuple[str, ...] = SOME, last: str = "") -> Path:
    """Write the output of a program with this mistake: tensors whose names end in `last`."""
    predictions = Predictions(SUITE)
    for case in map(SUITE.case, cases):
        results = predictions.of(BY_NAME[name], case, "float32")
        assert results is not None
        results = {n: x.astype(np.float32) for n, x in results.items() if n.endswith(last)}
        if results:
            write_arrays(folder / f"{case.id}.safetensors", results)
    return folder


def truth(folder: Path, cases: tuple[str, ...] = SOME) -> Path:
    for case in map(SUITE.case, cases):
        expected = SUITE.read(case).expected
        arrays = {
            n: x.astype(np.float32) if x.dtype.kind == "f" else x for n, x in expected.items()
        }
        write_arrays(folder / f"{case.id}.safetensors", arrays)
    return folder


def diagnosed(*arguments: str) -> list[dict[str, Any]]:
    """The diagnoses that --json prints for a dump that differs: one object on one line."""
    code, out, err = run("golden", "diagnose", "--json", "v1", *arguments)
    assert (code, err) == (1, "")
    assert out.count("\n") == 1
    printed = json.loads(out, parse_constant=pytest.fail)
    assert (printed["suite"], printed["candidate"]) == ("v1", arguments[0])
    diagnoses: list[dict[str, Any]] = printed["diagnoses"]
    return diagnoses


def names(diagnosis: dict[str, Any], place: int = 0) -> list[str]:
    return [suspect["name"] for suspect in diagnosis["explanations"][place]["suspects"]]


def measured(diagnosis: dict[str, Any]) -> set[tuple[str, str]]:
    """The name of each finding, and its stages."""
    assert diagnosis["explanations"] == []
    return {(found["name"], ", ".join(found["stages"])) for found in diagnosis["findings"]}


def test_a_mistake_is_named_with_its_fix_and_where_it_first_shows(tmp_path: Path) -> None:
    dump(tmp_path, "rope-interleaved")
    code, out, err = run("golden", "diagnose", "v1", str(tmp_path))
    assert (code, err) == (1, "")
    says, fix = BY_NAME["rope-interleaved"].says, BY_NAME["rope-interleaved"].fix
    lines = [line.strip() for line in out.splitlines()]
    assert lines[:3] == [
        "forward: 3 of 5 cases differ",
        "",
        "Of each step by itself, from its input in your output:",
    ]
    assert lines[3] == (
        f"1. rope-interleaved, in rope, q_rotated, k_rotated: {says[:-1]} (9 of 9 wrong steps)."
    )
    assert lines[4].startswith("First in case rope, call 0: off by ")
    assert lines[5:] == [f"Fix: {fix}", ""]


def test_a_mistake_is_named_from_logits_alone(tmp_path: Path) -> None:
    dump(tmp_path, "sum-of-squares", last="logits")
    (diagnosis,) = diagnosed(str(tmp_path))
    assert names(diagnosis) == ["sum-of-squares"]
    assert set(diagnosis["cases"]) == set(diagnosis["differ"]) == {"plain", "raw-layout"}
    (found,) = diagnosis["explanations"]
    assert sorted(found["explains"]) == ["plain", "raw-layout"]
    assert (found["contradicts"], diagnosis["findings"]) == ([], [])
    assert 0.999 < found["share"] <= 1


@pytest.mark.slow
def test_a_parameter_is_found_from_logits_alone(tmp_path: Path) -> None:
    """theta 500,000 is in no list: the expected numbers are those of another program."""
    predictions = Predictions(SUITE)
    for each in dumped(predictions, PLANTED["theta-500000"], ("plain", "four-to-one"), "logits"):
        arrays = {name: x.astype(np.float32) for name, x in each.output.items()}
        write_arrays(tmp_path / f"{each.case.id}.safetensors", arrays)
    (diagnosis,) = diagnosed(str(tmp_path))
    (found,) = diagnosis["explanations"]
    says = "RoPE: angles are those of theta 500,000"
    assert found["suspects"] == [{"name": "", "says": says, "fix": ""}]
    assert (
        "It explains all of your output for 2 cases."
        in run("golden", "diagnose", "v1", str(tmp_path)).out
    )


def test_mistakes_with_the_same_output_are_named_together(tmp_path: Path) -> None:
    dump(tmp_path, "gate-and-up-swapped", last="logits")
    (diagnosis,) = diagnosed(str(tmp_path))
    assert set(names(diagnosis)) == {"gate-and-up-swapped", "gate-and-up-weights-swapped"}
    out = run("golden", "diagnose", "v1", str(tmp_path)).out
    assert "Your output does not distinguish it from\n" in out


def test_without_a_known_mistake_the_first_tensor_is_named(tmp_path: Path) -> None:
    truth(tmp_path)
    arrays = SUITE.read(SUITE.case("plain")).expected
    wrong, up = {n: x.astype(np.float32) for n, x in arrays.items()}, "calls.0.layers.1.up"
    noise = np.random.Generator(np.random.PCG64(1)).standard_normal(wrong[up].shape)
    wrong[up] = noise.astype(np.float32)
    write_arrays(tmp_path / "plain.safetensors", wrong)
    (diagnosis,) = diagnosed(str(tmp_path))
    assert diagnosis["explanations"] == []
    assert measured(diagnosis) == {("", "up"), ("", "silu_mul")}
    assert diagnosis["first"]["name"] == "calls.0.layers.1.up"
    out = run("golden", "diagnose", "v1", str(tmp_path)).out
    assert re.search(r"1\. up in .*: it is wrong, and nothing that was tried makes", out)
    assert "What differs first is calls.0.layers.1.up, in case plain: off by " in out
    assert "the last of them calls.0.layers.1.gate." in out


@pytest.mark.slow
def test_a_coarser_dtype_is_suggested_if_everything_agrees_in_it(tmp_path: Path) -> None:
    case = SUITE.case("plain")
    assert case.expected is not None
    arrays = SUITE.read(case).expected
    near = {n: x + 0.4 * case.expected[n].tolerance["bfloat16"] for n, x in arrays.items()}
    write_arrays(tmp_path / "plain.safetensors", {n: x.astype(np.float32) for n, x in near.items()})
    code, out, _ = run("golden", "diagnose", "v1", str(tmp_path))
    assert code == 1
    assert "With the tolerances of bfloat16 all of it agrees" in out
    assert "nothing differs" in good(
        "golden", "diagnose", "v1", str(tmp_path), "--dtype", "bfloat16"
    )


def test_if_nothing_differs_it_says_so(tmp_path: Path) -> None:
    truth(tmp_path)
    out = good("golden", "diagnose", "v1", str(tmp_path))
    assert out == "forward: nothing differs in 5 cases\n"


def test_only_the_named_cases_are_diagnosed(tmp_path: Path) -> None:
    dump(tmp_path, "norm-weight-plus-1")
    (diagnosis,) = diagnosed(str(tmp_path), "--case", "rms-norm")
    assert diagnosis["cases"] == ["rms-norm"]
    assert measured(diagnosis) == {("norm-weight-plus-1", "rms_norm")}
    assert "of case linear" in refused(
        "golden", "diagnose", "v1", str(tmp_path), "--case", "linear"
    )


def test_what_cannot_be_compared_is_reported(tmp_path: Path) -> None:
    short = {"calls.0.logits": np.zeros((2, 4, 37), dtype=np.float32)}
    write_arrays(tmp_path / "plain.safetensors", short)
    assert "nothing can be compared" in refused("golden", "diagnose", "v1", str(tmp_path))
    truth(tmp_path, ("rms-norm",))
    code, out, _ = run("golden", "diagnose", "v1", str(tmp_path))
    assert code == 2
    assert "not compared: plain: calls.0.logits: its shape is (2, 4, 37)" in out


# sampling, texts and conversations


@pytest.mark.parametrize("name", [mistake.name for mistake in SAMPLING])
def test_each_mistake_in_sampling_is_named(tmp_path: Path, name: str) -> None:
    cases = [case.id for case in SUITE.manifest.cases.values() if case.kind == "sampling"]
    with np.errstate(all="ignore"):
        dump(tmp_path, name, tuple(cases))
    (diagnosis,) = diagnosed(str(tmp_path))
    assert (diagnosis["about"], names(diagnosis)) == ("sampling", [name])


def written(folder: Path, case: str, change: Callable[[dict[str, Any]], Any], part: str) -> Path:
    """Write the document of a case with changed ids, without the entries whose ids are None."""
    entries = SUITE.document(SUITE.case(case))[part]
    asked = "messages" if part == "conversations" else "text"
    changed = [{asked: e[asked], "ids": change(e)} for e in entries]
    content = json.dumps({part: [entry for entry in changed if entry["ids"] is not None]})
    (folder / f"{case}.json").write_text(content, encoding="utf-8")
    return folder


def test_mistakes_with_control_tokens_are_found_from_ids_alone(tmp_path: Path) -> None:
    written(tmp_path, "tokenizer-v1", lambda entry: [1, *entry["ids"]], "strings")
    written(tmp_path, "chat-v1", lambda entry: [1, *entry["ids"]], "conversations")
    of_texts, of_conversations = diagnosed(str(tmp_path))
    assert (of_texts["about"], names(of_texts)) == ("tokenizer", ["bos-in-the-ids"])
    assert (of_conversations["about"], names(of_conversations)) == ("chat", ["bos-twice"])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("space-kept-in-decoding", lambda text: text and f" {text}"),
        ("decoding-stripped", str.strip),
    ],
)
def test_mistakes_in_decoding_are_named_without_the_vocabulary(
    tmp_path: Path, name: str, change: Callable[[str], str]
) -> None:
    entries = SUITE.document(SUITE.case("tokenizer-v1"))["strings"]
    changed = [{**entry, "decoded": change(entry["decoded"])} for entry in entries]
    (tmp_path / "tokenizer-v1.json").write_text(json.dumps({"strings": changed}), encoding="utf-8")
    (diagnosis,) = diagnosed(str(tmp_path))
    assert names(diagnosis) == [name]


def test_spaces_of_the_hub_are_named_with_the_vocabulary(tmp_path: Path) -> None:
    """Without it, the output asks for it."""
    tokenizer = MistralTokenizer(V1)

    def ids(entry: dict[str, Any]) -> list[int] | None:
        if entry["messages"][0]["role"] == "system":
            return None
        return tokenizer.apply_chat_template(entry["messages"], format="hf")

    written(tmp_path, "chat-v1", ids, "conversations")
    (diagnosis,) = diagnosed(str(tmp_path), "--vocabulary", str(V1))
    assert names(diagnosis) == ["hf-spaces"]
    code, out, _ = run("golden", "diagnose", "v1", str(tmp_path))
    assert code == 1
    assert out.endswith("--vocabulary FILE, the path of tokenizer.model.v1\n")


# results of a text of another length

BOS = 1


def computed(folder: Path, case_id: str, ids: np.ndarray, last: str = "") -> Path:
    """Write a right program's results for other ids than those of a case's only call."""
    case, model = SUITE.case(case_id), SUITE.case(case_id).model
    T = ids.shape[1]
    positions = np.broadcast_to(np.arange(T, dtype=np.int64), ids.shape)
    config, _ = read_model(SUITE, str(model))
    inputs = inputs_of(ids, positions, [T], config.sliding_window)
    results = run_case(SUITE, case, NumpyBackend("float32"), inputs=inputs)
    results = {n: x for n, x in results.items() if n.endswith(last)}
    write_arrays(folder / f"{case_id}.safetensors", results)
    return folder


@pytest.mark.parametrize("last", ["", "logits"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("begun-with-bos", lambda ids: np.insert(ids, 0, BOS, axis=1)),
        ("first-token-twice", lambda ids: np.concatenate([ids[:, :1], ids], axis=1)),
        ("first-token-missing", lambda ids: ids[:, 1:]),
        ("last-token-missing", lambda ids: ids[:, :-1]),
        ("ended-with-eos", lambda ids: np.insert(ids, ids.shape[1], 2, axis=1)),
    ],
)
@pytest.mark.slow
def test_a_token_too_many_or_too_few_is_named(
    tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray], last: str
) -> None:
    """Though nothing but the cache has the expected shape."""
    for case in ("plain", "window-at-once"):
        ids = SUITE.read(SUITE.case(case)).inputs["calls.0.input_ids"]
        computed(tmp_path, case, change(ids), last)
    (diagnosis,) = diagnosed(str(tmp_path))
    assert name in names(diagnosis)
    code, out, _ = run("golden", "check", "v1", str(tmp_path))
    assert code == (2 if last else 1)  # the cache has the expected shape
    assert f"it has a token too {'few' if 'missing' in name else 'many'}" in out


def test_an_added_token_in_the_middle_is_unknown(tmp_path: Path) -> None:
    ids = SUITE.read(SUITE.case("plain")).inputs["calls.0.input_ids"]
    computed(tmp_path, "plain", np.insert(ids, 3, 7, axis=1), "logits")
    (diagnosis,) = diagnosed(str(tmp_path))
    assert diagnosis["explanations"] == []
    out = run("golden", "diagnose", "v1", str(tmp_path)).out
    assert "What differs first is calls.0.logits, in case plain: it has a token too many." in out


VOCABULARIES = [V1, *V1.parent.glob("mistral_instruct_tokenizer_*.model.v[23]")]
TEXT_CASES = [case for case in SUITE.manifest.cases.values() if case.kind in ("tokenizer", "chat")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [mistake.name for mistake in TEXTS])
def test_each_mistake_about_texts_is_named(name: str) -> None:
    """In each case where it shows, which is at least one."""
    predictions, shown = Predictions(SUITE, VOCABULARIES), 0
    for case in TEXT_CASES:
        document = predictions.document(BY_NAME[name], case)
        if document is None:
            continue
        right = SUITE.document(case)
        evidence = TextEvidence.of(compare_texts(case, right, document), right)
        assert evidence is not None
        if evidence.differs:
            (found,) = diagnose([evidence], TEXTS, predictions).explanations
            assert [mistake.name for mistake in found.mistakes] == [name]
            shown += 1
    assert shown


def test_a_file_that_is_no_vocabulary_of_the_suite_is_refused(tmp_path: Path) -> None:
    truth(tmp_path, ("rms-norm",))
    other = tmp_path / "tokenizer.model"
    other.write_bytes(b"other")
    err = refused("golden", "diagnose", "v1", str(tmp_path), "--vocabulary", str(other))
    assert "is not what any case of the suite is made with" in err
