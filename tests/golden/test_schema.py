"""schema.json: v1 is as it says, it lets pass nothing else, and readers refuse what it refuses."""

import copy
import json

import pytest
from jsonschema import Draft202012Validator

from tinymistral.golden.manifest import parse_manifest
from tinymistral.golden.suite import V1
from tinymistral.tap import STAGES

SCHEMA = json.loads((V1 / "schema.json").read_text(encoding="utf-8"))
MANIFEST = json.loads((V1 / "manifest.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)


def without(schema, names):
    """Return a schema without some keywords."""
    if isinstance(schema, dict):
        return {name: without(x, names) for name, x in schema.items() if name not in names}
    return [without(x, names) for x in schema] if isinstance(schema, list) else schema


# What reading a manifest checks: a configuration is checked when its model is opened, and a mistake
# that is named twice does no harm.
LOOSER = Draft202012Validator(without(SCHEMA, {"if", "then", "else", "uniqueItems"}))


def test_the_schema_is_valid():
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_v1_is_valid():
    assert [f"{e.json_path}: {e.message[:200]}" for e in VALIDATOR.iter_errors(MANIFEST)] == []


def test_v1_names_the_stages_in_their_order():
    assert list(MANIFEST["stages"].items()) == list(STAGES.items())


def entry(manifest, part, **fields):
    return next(e for e in manifest[part] if all(e.get(n) == x for n, x in fields.items()))


def case(manifest, kind):
    return entry(manifest, "cases", kind=kind)


KINDS = ["model", "operation", "generate", "sampling", "tokenizer", "chat"]
CASES = [case(MANIFEST, kind) for kind in KINDS]
MODELS = dict.fromkeys(["window", "raw", *(c["model"] for c in CASES if "model" in c)])
FEW = MANIFEST | {
    "models": [entry(MANIFEST, "models", id=name) for name in MODELS],
    "cases": CASES,
}


def valid(edit):
    manifest = copy.deepcopy(FEW)
    edit(manifest)
    assert is_read(manifest) == LOOSER.is_valid(manifest)
    return VALIDATOR.is_valid(manifest)


def is_read(manifest):
    try:
        parse_manifest(manifest)
    except ValueError:
        return False
    return True


def test_an_unedited_manifest_is_valid():
    assert valid(lambda m: None)
    assert valid(lambda m: m.update(cases=[]))
    assert valid(lambda m: case(m, "model").update(catches=["some-mistake"]))


@pytest.mark.parametrize("name", list(MANIFEST))
def test_no_field_can_be_left_out(name):
    assert not valid(lambda m: m.pop(name))


@pytest.mark.parametrize("kind", KINDS)
def test_no_field_of_a_case_can_be_left_out_or_added(kind):
    for name in case(MANIFEST, kind):
        assert not valid(lambda m, name=name: case(m, kind).pop(name)), name
    assert not valid(lambda m: case(m, kind).update(comment="more"))
    if kind != "model":
        assert not valid(lambda m: case(m, kind).update(calls=1))
    if kind != "operation":
        assert not valid(lambda m: case(m, kind).update(operation="rope"))
    if kind not in ("tokenizer", "chat"):
        assert not valid(lambda m: case(m, kind).update(vocabulary={}))


@pytest.mark.parametrize("name", ["id", "says", "config", "layout", "dtype", "file"])
def test_no_field_of_a_model_can_be_left_out(name):
    assert not valid(lambda m: m["models"][0].pop(name))


def expected(manifest, kind):
    return case(manifest, kind)["expected"]


def first(manifest, kind):
    return next(iter(expected(manifest, kind).values()))


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.update(format="golden"),
        lambda m: m.update(format_version=2),
        lambda m: m.update(suite="v 1"),
        lambda m: m.update(more=1),
        lambda m: m["tolerance"].update(factor=0),
        lambda m: m["stages"].update({"layers.0.q": "B T H d"}),
        lambda m: m["stages"].update(embedding="(B, T, D)"),
        lambda m: m["models"][0].update(id="../x"),
        lambda m: m["models"][0].update(layout="gguf"),
        lambda m: m["models"][0].update(dtype="float64"),
        lambda m: m["models"][0].update(file="../x.safetensors"),
        lambda m: m["models"][0].update(file="models/../x.safetensors"),
        lambda m: m["models"][0].update(file="cases/x.safetensors"),
        lambda m: m["models"][0].update(sha256="0" * 63),
        lambda m: m["models"][0].update(says="two\nlines"),
        lambda m: m["models"][0]["config"].pop("head_dim"),
        lambda m: entry(m, "models", layout="raw")["config"].pop("n_heads"),
        lambda m: case(m, "model").update(id="UPPER"),
        lambda m: case(m, "model").update(kind="generate"),
        lambda m: case(m, "model").update(kind="magic"),
        lambda m: case(m, "model").update(calls=0),
        lambda m: case(m, "model").update(calls=1.5),
        lambda m: case(m, "model").update(file="cases/x.json"),
        lambda m: case(m, "model").update(catches=["a", "a"]),
        lambda m: case(m, "model").update(catches="a"),
        lambda m: case(m, "model").update(expected={}),
        lambda m: expected(m, "model").update(logits={"tolerance": {"float32": 1.0}}),
        lambda m: expected(m, "model").update({"calls.0.x": {"tolerance": {}}}),
        lambda m: expected(m, "model").update({"calls.0.x": {"exact": True, "dtypes": []}}),
        lambda m: first(m, "model")["tolerance"].update(float32=0),
        lambda m: first(m, "model")["tolerance"].update(float64=1.0),
        lambda m: first(m, "model").update(exact=False),
        lambda m: case(m, "operation").update(operation="to_numpy"),
        lambda m: case(m, "operation").update(parameters={"epsilon": 1e-5}),
        lambda m: expected(m, "operation").update(result=first(m, "operation")),
        lambda m: case(m, "generate").update(parameters={"max_new_tokens": 0}),
        lambda m: expected(m, "generate")["sequences"].update(exact=1),
        lambda m: expected(m, "generate")["sequences"].update(dtypes=["float64"]),
        lambda m: case(m, "sampling").update(parameters={"top_p": 1.5}),
        lambda m: case(m, "sampling").update(parameters={"typical_p": 0.5}),
        lambda m: case(m, "tokenizer").update(file="cases/x.safetensors"),
        lambda m: case(m, "chat")["vocabulary"].pop("sha256"),
    ],
)
def test_a_wrong_manifest_is_not_valid(edit):
    assert not valid(edit)
