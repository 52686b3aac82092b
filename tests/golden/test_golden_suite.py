"""Reading a suite: v1 is whole, and whatever is wrong with another one is said in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save
from small_suites import change, rewrite, small_suite

from tinymistral.golden.models import read_model
from tinymistral.golden.suite import V1, read_suite

V1_SUITE = read_suite()
ARRAYS = [case for case in V1_SUITE.manifest.cases.values() if case.expected is not None]


# v1


def test_every_case_of_v1_can_be_read():
    for case in ARRAYS:
        arrays = V1_SUITE.read(case)
        assert arrays.expected.keys() == case.expected.keys(), case.id
        finite = all(np.isfinite(x).all() for x in arrays.expected.values())
        assert finite == (case.id != "attention-visible-nan"), case.id
    for case in V1_SUITE.manifest.cases.values():
        if case.expected is None:
            assert V1_SUITE.document(case), case.id


def test_every_model_of_v1_can_be_read():
    for name in V1_SUITE.manifest.models:
        config, tensors = read_model(V1_SUITE, name)
        embedding = tensors["model.embed_tokens.weight"]
        assert embedding.shape == (config.vocab_size, config.hidden_size), name
        assert str(embedding.dtype) == V1_SUITE.manifest.models[name].dtype, name


def test_v1_has_no_file_that_its_manifest_does_not_name():
    there = {p.relative_to(V1).as_posix() for p in V1.rglob("*") if p.is_file()}
    entries = [*V1_SUITE.manifest.models.values(), *V1_SUITE.manifest.cases.values()]
    named = {entry.file for entry in entries} - {"tinymistral/demo/model.safetensors"}
    assert there == named | {"manifest.json", "schema.json"}


def test_v1_is_small():
    sizes = [path.stat().st_size for path in V1.rglob("*") if path.is_file()]
    assert max(sizes) < 1_000_000
    assert sum(sizes) < 5_000_000


def test_all_kinds_of_cases_are_there():
    kinds = {case.kind for case in V1_SUITE.manifest.cases.values()}
    assert kinds >= {"model", "operation", "generate"}


def test_a_case_is_found_by_its_name_and_others_are_listed():
    assert V1_SUITE.case("rms-norm").operation == "rms_norm"
    message = refused(lambda: V1_SUITE.case("rms_norm"))
    assert message == "there is no case 'rms_norm' in suite 'v1'; did you mean rms-norm?"
    assert "its cases are embedding, linear, " in refused(lambda: V1_SUITE.case("?"))


# Damaged ones


def refused(read):
    with pytest.raises(ValueError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 2000
    return message


def read_all(folder: Path):
    suite = read_suite(folder)
    for name in suite.manifest.models:
        read_model(suite, name)
    return [suite.read(case) for case in suite.manifest.cases.values()]


@pytest.fixture
def folder(tmp_path):
    return small_suite(tmp_path)


@pytest.fixture
def with_model(tmp_path):
    return small_suite(tmp_path, "window-1")


def test_a_suite_of_one_case_is_read(folder):
    (arrays,) = read_all(folder)
    assert arrays.inputs["x"].shape == (2, 3, 20)


def test_no_folder(tmp_path):
    assert "manifest.json: cannot be read" in refused(lambda: read_suite(tmp_path / "none"))


def test_no_json(folder):
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    assert "not valid JSON" in refused(lambda: read_suite(folder))


def test_a_missing_file(folder):
    (folder / "cases" / "rms-norm.safetensors").unlink()
    assert "rms-norm.safetensors: cannot be read: there is no such file" in refused(
        lambda: read_all(folder)
    )


@pytest.mark.parametrize("part, name", [("cases", "cases/window-1"), ("models", "models/window-1")])
def test_a_changed_file(with_model, part, name):
    path = with_model / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    message = refused(lambda: read_all(with_model))
    assert path.name in message
    assert "sha256" in message


def test_a_truncated_file(folder):
    content = (folder / "cases" / "rms-norm.safetensors").read_bytes()
    (folder / "cases" / "rms-norm.safetensors").write_bytes(content[:-8])
    assert "sha256" in refused(lambda: read_all(folder))
    rewrite(folder, "cases", content[:-8])
    assert "damaged" in refused(lambda: read_all(folder))
    rewrite(folder, "cases", b"")
    assert "cannot read" in refused(lambda: read_all(folder))


@pytest.mark.parametrize("claim", [10**7 + 1, 2**63 - 1])
def test_a_header_that_claims_to_be_huge(folder, claim):
    rewrite(folder, "cases", claim.to_bytes(8, "little") + b"{}")
    assert "claims" in refused(lambda: read_all(folder))


@pytest.mark.parametrize("shape", [[10**12], [2**32, 2**32], [2**63, 2]])
def test_a_tensor_that_claims_to_be_huge(folder, shape):
    header = {"inputs.x": {"dtype": "F64", "shape": shape, "data_offsets": [0, 8 * shape[0]]}}
    text = json.dumps(header).encode()
    rewrite(folder, "cases", len(text).to_bytes(8, "little") + text + bytes(64))
    assert "damaged" in refused(lambda: read_all(folder))


def test_a_document_that_is_too_large(tmp_path, monkeypatch):
    suite = read_suite(small_suite(tmp_path, "tokenizer-demo"))
    monkeypatch.setattr("tinymistral.golden.suite.DOCUMENT_LIMIT", 1000)
    message = refused(lambda: suite.document(suite.case("tokenizer-demo")))
    assert "expected 1000 at most" in message


def tensors(folder: Path, case: str) -> dict[str, np.ndarray]:
    return load((folder / "cases" / f"{case}.safetensors").read_bytes())


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda x: x | {"expected.out": x["expected.out"].astype(np.float32)}, "in float32"),
        (lambda x: x | {"out": x["expected.out"]}, "found 'out'"),
        (lambda x: x | {"expected.more": x["expected.out"]}, "'more'"),
        (lambda x: {n: a for n, a in x.items() if n != "expected.out"}, "'out'"),
        (lambda x: {n: a for n, a in x.items() if n != "inputs.weight"}, "'weight' is missing"),
        (lambda x: x | {"inputs.k": x["inputs.x"]}, "'k' is not expected"),
    ],
)
def test_other_tensors_than_the_case_has(folder, wrong, says):
    rewrite(folder, "cases", save(wrong(tensors(folder, "rms-norm"))))
    assert says in refused(lambda: read_all(folder))


def put(**arrays):
    return lambda x: x | {n.replace("__", "."): np.array(a) for n, a in arrays.items()}


def drop_columns(name):
    return lambda x: x | {name: x[name][:, :-1].copy()}


@pytest.mark.parametrize(
    "case, wrong, says",
    [
        ("rms-norm", put(inputs__x=[7]), "x: expected numbers in float64, found int64"),
        ("rms-norm", put(inputs__x=[0.5]), "x: its shape is (1,), expected B T D: 1 T D"),
        ("rms-norm", put(inputs__weight=[0.5]), "weight: its shape is (1,), expected D: 20"),
        (
            "rope",
            drop_columns("inputs.positions"),
            "positions: its shape is (2, 5), expected B T: 2 6",
        ),
        ("rope", put(inputs__positions=[[-2] * 6] * 2), "positions: expected -1 to 4611686018427"),
        ("embedding", put(inputs__ids=[[0, 1, 29]] * 2), "ids: expected 0 to 28, found 0 to 29"),
        ("attention-window-1", drop_columns("expected.weights"), "weights: its shape is"),
        ("window-1", drop_columns("expected.calls.0.logits"), "calls.0.logits: its shape is"),
        ("window-1", drop_columns("inputs.calls.1.positions"), "calls.1.positions: its shape is"),
        ("greedy-no-window", drop_columns("expected.sequences"), "sequences has 32 columns and"),
        (
            "greedy-no-window",
            put(inputs__attention_mask=[[2] * 5]),
            "attention_mask: expected 0 to",
        ),
        ("sampling-top-p", put(inputs__previous_ids=[[64]] * 4), "previous_ids: expected 0 to 63"),
    ],
)
def test_arrays_that_do_not_fit_together(tmp_path, case, wrong, says):
    folder = small_suite(tmp_path, case)
    rewrite(folder, "cases", save(wrong(tensors(folder, case))))
    message = refused(lambda: read_all(folder))
    assert f"{case}.safetensors: " in message
    assert says in message


@pytest.mark.parametrize("name", ["calls.4.logits", "calls.00.logits", "calls.0.layers.0.x"])
def test_an_expected_tensor_of_no_call_or_stage(with_model, name):
    rewrite(with_model, "cases", save(tensors(with_model, "window-1") | {f"expected.{name}": ONE}))
    change(with_model, lambda m: m["cases"][0]["expected"].update({name: NEAR}))
    assert f"there is no call or stage of the name '{name}'" in refused(
        lambda: read_all(with_model)
    )


ONE, NEAR = np.ones((1, 1, 1)), {"tolerance": {"float32": 1.0}}


@pytest.mark.parametrize(
    "case, document, says",
    [
        ("tokenizer-demo", {}, "'strings' is missing"),
        ("tokenizer-demo", {"strings": {}}, "strings: expected a list, got {}"),
        ("tokenizer-demo", {"strings": [7]}, "strings: 0: expected an object, got 7"),
        ("tokenizer-demo", {"strings": [{"text": "a"}]}, "strings: 0: 'ids' is missing"),
        (
            "tokenizer-demo",
            {"strings": [{"text": 1, "ids": []}]},
            "0: text: expected a text, got 1",
        ),
        ("tokenizer-demo", {"strings": [], "more": []}, "'more' is not expected"),
        ("tokenizer-demo", {"strings": [], "decodings": [{"ids": [-1], "decoded": ""}]}, "ids: 0:"),
        (
            "chat-demo",
            {"conversations": [{"messages": "a", "ids": []}]},
            "messages: expected a list",
        ),
        ("chat-demo", {"conversations": [{"messages": [{}], "ids": []}]}, "0: 'role' is missing"),
        (
            "chat-demo",
            {"conversations": [{"messages": [], "ids": ["a"]}]},
            "ids: 0: expected an int",
        ),
    ],
)
def test_a_document_with_other_contents(tmp_path, case, document, says):
    folder = small_suite(tmp_path, case)
    rewrite(folder, "cases", json.dumps(document).encode())
    suite = read_suite(folder)
    message = refused(lambda: suite.document(suite.case(case)))
    assert f"{case}.json: " in message
    assert says in message


def test_inputs_of_fewer_calls_than_the_manifest_says(with_model):
    change(with_model, lambda m: m["cases"][0].update(calls=4))
    assert "inputs: 'calls.3.cache_positions' is missing" in refused(lambda: read_all(with_model))


def of_case(**fields):
    return lambda m: m["cases"][0].update(fields)


def near(**tolerance):
    return of_case(expected={"out": {"tolerance": tolerance}})


@pytest.mark.parametrize(
    "edit, says",
    [
        (
            lambda m: m.update(format="golden"),
            "format: expected 'tinymistral-golden', got 'golden'",
        ),
        (lambda m: m.update(format_version=2), "format_version: 2 is not supported, expected 1"),
        (lambda m: m.update(format_version="1"), "format_version: '1' is not supported"),
        (lambda m: m.update(format_version=True), "format_version: expected an integer from 1"),
        (lambda m: m.pop("format_version"), "format_version: None is not supported"),
        (lambda m: m.update(cases={}), "cases: expected a list"),
        (lambda m: m.update(cases=[7]), "cases: 0: expected an object, got 7"),
        (lambda m: m.update(more=1), "'more' is not expected"),
        (lambda m: m.update(suite=7), "suite: expected an id like 'rms-norm', got 7"),
        (lambda m: m.pop("generator"), "'generator' is missing"),
        (
            lambda m: m["tolerance"].update(factor="4"),
            "tolerance: factor: expected a number from 1",
        ),
        (lambda m: m["stages"].update(q=7), "stages: q: expected a shape like 'B T D', got 7"),
        (lambda m: m["stages"].update(norm="B T"), "stages: norm: expected 'B T D', got 'B T'"),
        (lambda m: m["cases"].append(m["cases"][0]), "cases: 'rms-norm' is there twice"),
        (of_case(id="../x"), "cases: id: expected an id like 'rms-norm', got '../x'"),
        (of_case(id="a\nb"), "cases: id: expected an id"),
        (of_case(id=["a"]), "cases: id: expected an id"),
        (of_case(kind="magic"), "cases: rms-norm: kind: expected one of model, operation"),
        (of_case(kind=["model"]), "cases: rms-norm: kind: expected one of model, operation"),
        (of_case(kind="model"), "cases: rms-norm: 'model' is missing"),
        (of_case(calls=1), "cases: rms-norm: 'calls' is not expected"),
        (of_case(catches=[7]), "catches: 0: expected an id like 'rms-norm', got 7"),
        (of_case(operation="to_numpy"), "operation: expected one of embedding, linear"),
        (of_case(operation=["linear"]), "operation: expected one of embedding, linear"),
        (of_case(parameters=[]), "parameters: expected an object, got []"),
        (of_case(parameters={"eps": "x"}), "parameters: eps: expected a positive number, got 'x'"),
        (of_case(parameters={"eps": 10**4000}), "parameters: eps: expected a positive number"),
        (of_case(parameters={}), "parameters: 'eps' is missing"),
        (of_case(parameters={"eps": 1e-5, "x": 1}), "parameters: 'x' is not expected"),
        (of_case(says=7), "says: expected a text of one line, got 7"),
        (of_case(file="../x.safetensors"), "file: expected a name like"),
        (of_case(file="cases/../../x.safetensors"), "file: expected a name like"),
        (of_case(file="/etc/passwd"), "file: expected a name like"),
        (of_case(file="cases\\x.safetensors"), "file: expected a name like"),
        (of_case(file="models/x.safetensors"), "file: expected a name like 'cases/"),
        (of_case(file="cases/x.safetensors\n"), "file: expected a name like"),
        (of_case(file="tinymistral/demo/model.safetensors"), "file: expected a name like"),
        (of_case(sha256="0"), "sha256: expected 64 hexadecimal digits, got '0'"),
        (of_case(expected={}), "expected: 'out' is missing"),
        (of_case(expected={"out": {}}), "expected: out: 'tolerance' is missing"),
        (of_case(expected={"out": {"tolerance": {}}}), "expected at least one field, got {}"),
        (near(int8=1), "out: tolerance: expected one of float32, float16, bfloat16, got 'int8'"),
        (near(float32=0), "float32: expected a positive number, got 0"),
        (near(float32=-1.0), "float32: expected a positive number, got -1.0"),
        (near(float32="1"), "float32: expected a positive number, got '1'"),
        (near(float32=float("nan")), "float32: expected a positive number, got nan"),
        (near(float32=float("inf")), "float32: expected a positive number, got inf"),
    ],
)
def test_a_wrong_manifest(folder, edit, says):
    change(folder, edit)
    assert says in refused(lambda: read_suite(folder))


@pytest.mark.parametrize(
    "case, fields, says",
    [
        ("window-1", {"model": "absent"}, "cases: window-1: model: 'absent' is not among"),
        ("window-1", {"calls": 10**9}, "calls: expected an integer from 1 to 10000, got 10000000"),
        ("window-1", {"calls": 0}, "calls: expected an integer from 1 to 10000, got 0"),
        ("window-1", {"calls": 1.5}, "calls: expected an integer from 1 to 10000, got 1.5"),
        ("window-1", {"expected": {"logits": {}}}, "expected names like calls.0.layers.1.q"),
        ("greedy-no-window", {"parameters": {}}, "parameters: 'max_new_tokens' is missing"),
        ("greedy-no-window", {"parameters": {"max_new_tokens": True}}, "an integer from 1"),
        ("greedy-no-window", {"expected": {"logprobs": {}}}, "expected: 'sequences' is missing"),
        ("sampling-top-p", {"parameters": {"top_p": 2}}, "top_p: expected a number from 0 to 1"),
        ("sampling-top-p", {"parameters": {"typical_p": 0.5}}, "'typical_p' is not expected"),
        ("tokenizer-demo", {"vocabulary": {}}, "vocabulary: 'name' is missing"),
        ("tokenizer-demo", {"file": "cases/a.safetensors"}, "a name like 'cases/a-1.json'"),
    ],
)
def test_a_wrong_field_of_a_kind_of_case(tmp_path, case, fields, says):
    folder = small_suite(tmp_path, case)
    change(folder, of_case(**fields))
    assert says in refused(lambda: read_suite(folder))


def of_model(**fields):
    return lambda m: m["models"][0].update(fields)


def in_config(**fields):
    return lambda m: m["models"][0]["config"].update(fields)


@pytest.mark.parametrize(
    "edit, says",
    [
        (of_model(layout="gguf"), "layout: expected one of hf, raw, got 'gguf'"),
        (of_model(layout="raw"), "model_type: 'mistral' is not supported"),
        (of_model(config=[]), "config: expected an object"),
        (of_model(dtype="int8"), "dtype: expected one of float32, float16, bfloat16, got 'int8'"),
        (of_model(weights={}), "models: window-1: 'file' is not expected"),
        (of_model(file="cases/window-1.safetensors"), "file: expected a name like 'models/"),
        (in_config(num_hidden_layers=10**9), "the config says 1000000000 layers, the file has 2"),
        (in_config(hidden_size=15), "wrong shape"),
        (in_config(model_type="llama"), "model_type"),
    ],
)
def test_a_wrong_model(with_model, edit, says):
    change(with_model, edit)
    message = refused(lambda: read_all(with_model))
    assert "window-1" in message
    assert says in message


def test_text_cases_have_no_arrays_and_others_no_document(tmp_path):
    case = V1_SUITE.case("rms-norm")
    assert "not valid JSON" in refused(lambda: V1_SUITE.document(case))
    suite = read_suite(small_suite(tmp_path, "tokenizer-demo"))
    message = refused(lambda: suite.read(suite.case("tokenizer-demo")))
    assert "a case of kind 'tokenizer' has no arrays" in message
