"""The manifest of a suite: its models and cases, checked field by field."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tinymistral.golden.schema import (
    ID,
    LINE,
    SHA256,
    Check,
    an_object,
    fields,
    inside,
    integer,
    list_of,
    map_of,
    number,
    one_of,
    positive,
    text,
)
from tinymistral.tap import STAGES

FORMAT, FORMAT_VERSION = "tinymistral-golden", 1
KINDS = ("model", "operation", "generate", "sampling", "tokenizer", "chat")
TEXT_KINDS = ("tokenizer", "chat")  # the file of these kinds is JSON
LAYOUTS = ("hf", "raw")
# The demo model is part of the package, and not copied into the suite.
IN_PACKAGE = "tinymistral/demo/model.safetensors"

MOST_NEW_TOKENS = 100_000
DTYPES = ("float32", "float16", "bfloat16")

OPERATIONS: dict[str, tuple[dict[str, str], dict[str, str], dict[str, Check]]] = {
    # method of `Backend`: the shapes of its arrays, those of its results, its other arguments
    "embedding": ({"table": "V D", "ids": "B T"}, {"out": "B T D"}, {}),
    "linear": ({"x": "B T D", "weight": "F D"}, {"out": "B T F"}, {}),
    "rms_norm": ({"x": "B T D", "weight": "D"}, {"out": "B T D"}, {"eps": positive}),
    "rope": ({"x": "B T H d", "positions": "B T"}, {"out": "B T H d"}, {"theta": number(1, 1e300)}),
    "attention": (
        {
            "q": "B T H d",
            "k": "B S K d",
            "v": "B S K d",
            "q_positions": "B T",
            "k_positions": "B S",
        },
        {"out": "B T H d", "weights": "B H T S"},
        {"window": lambda x: None if x is None else integer(1)(x)},
    ),
    "silu_mul": ({"gate": "B T F", "up": "B T F"}, {"out": "B T F"}, {}),
}

# What a manifest has to look like: the same as schema.json says.

_NEAR = fields({"tolerance": map_of(one_of(*DTYPES), positive)})
_EXACT = fields({"exact": one_of(True), "dtypes": list_of(one_of(*DTYPES))})
_MANIFEST = fields(
    {
        "format": one_of(FORMAT),
        "format_version": integer(1),
        "suite": ID,
        "generator": fields({"name": LINE, "version": LINE}),
        "tolerance": fields({"factor": number(1, 1e300), "says": LINE}),
        "stages": map_of(
            text(r"(layers\.N\.)?[a-z_]+", "a stage like layers.N.q"),
            text("[A-Za-z]( [A-Za-z])*", "a shape like 'B T D'"),
        ),
        "models": list_of(an_object),
        "cases": list_of(an_object),
    }
)
_MODEL: dict[str, Check] = {
    "id": ID,
    "says": LINE,
    "config": an_object,
    "layout": one_of(*LAYOUTS),
    "dtype": one_of(*DTYPES),
}
_IN_SUITE: dict[str, Check] = {  # weights that are
    "file": text(
        rf"models/[a-z0-9][a-z0-9_.-]{{0,99}}\.safetensors|{re.escape(IN_PACKAGE)}",
        "a name like 'models/a-1.safetensors'",
    ),
    "sha256": SHA256,
}
_OUTSIDE: dict[str, Check] = {  # and that are not
    "weights": fields(
        {
            "fingerprint": SHA256,
            "parameters": integer(1),
            "files": list_of(fields({"name": LINE, "size": integer(0)}, {"sha256": SHA256}), 1),
        }
    )
}
_CASE: dict[str, Check] = {
    "id": ID,
    "kind": one_of(*KINDS),
    "says": LINE,
    "catches": list_of(ID),
    "file": text(
        r"cases/[a-z0-9][a-z0-9_.-]{0,99}\.safetensors", "a name like 'cases/a-1.safetensors'"
    ),
    "sha256": SHA256,
}
_TEXTS = {
    "vocabulary": fields({"name": LINE, "sha256": SHA256}, {"where": LINE}),
    "file": text(r"cases/[a-z0-9][a-z0-9_.-]{0,99}\.json", "a name like 'cases/a-1.json'"),
}
_OF_KIND: dict[str, dict[str, Check]] = {
    "model": {
        "model": ID,
        "calls": integer(1, 10_000),
        "expected": map_of(
            text(
                r"calls\.\d+\.(cache\.layers\.\d+\.[kv]|(layers\.\d+\.)?[a-z_]+)",
                "names like calls.0.layers.1.q",
            ),
            _NEAR,
        ),
    },
    "operation": {
        "operation": one_of(*OPERATIONS),
        "parameters": an_object,
        "expected": fields({"out": _NEAR}, {"weights": _NEAR}),
    },
    "generate": {
        "model": ID,
        "parameters": fields({"max_new_tokens": integer(1, MOST_NEW_TOKENS)}),
        "expected": fields({"sequences": _EXACT, "logprobs": _NEAR}),
    },
    "sampling": {
        "parameters": fields(
            {},
            {
                "temperature": positive,
                "top_k": integer(0),
                "top_p": number(0, 1),
                "min_p": number(0, 1),
                "repetition_penalty": positive,
            },
        ),
        "expected": fields({"probabilities": _NEAR}),
    },
    "tokenizer": _TEXTS,
    "chat": _TEXTS,
}

_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class Expected:
    """How close a tensor has to be: absolute tolerances by dtype, or exactly equal.

    `dtypes` belongs to exact tensors: those dtypes in which rounding does not change them. In
    another dtype a difference need not be a mistake.
    """

    tolerance: Mapping[str, float]
    exact: bool = False
    dtypes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A checkpoint; `config` has the fields of config.json, those of params.json in layout raw."""

    id: str
    says: str
    config: Mapping[str, Any]
    layout: str  # of LAYOUTS
    dtype: str  # of the weights in the file
    file: str
    sha256: str
    weights: Mapping[str, Any] | None = None  # identifies weights that are not in the suite


@dataclass(frozen=True)
class Case:
    """One thing to compute; its file holds inputs and expected numbers, see `Suite.read`."""

    id: str
    kind: str  # of KINDS
    says: str
    catches: tuple[str, ...]  # names of mistakes that it detects
    file: str
    sha256: str
    model: str | None = None  # the id; of kinds model and generate
    calls: int = 0  # of kind model: how many, in sequence with one cache
    operation: str | None = None  # of kind operation: the method of `Backend`
    parameters: Mapping[str, Any] | None = None
    vocabulary: Mapping[str, Any] | None = None  # of kinds tokenizer and chat
    expected: Mapping[str, Expected] | None = None  # None where the file is JSON


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest; models and cases by id, in the order of the file."""

    suite: str
    generator: Mapping[str, Any]
    tolerance: Mapping[str, Any]
    stages: Mapping[str, str]
    models: Mapping[str, Model]
    cases: Mapping[str, Case]


def parse_manifest(value: dict[str, Any]) -> Manifest:
    """Check a manifest.json field by field; a ValueError names the one that is wrong."""
    inside("format", one_of(FORMAT), value.get("format"))
    version = value.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"format_version: {version!r:.60} is not supported, expected {FORMAT_VERSION}; "
            "another version of tinymistral reads it"
        )
    _MANIFEST(value)
    for stage, shape in value["stages"].items():
        inside(f"stages: {stage}", one_of(STAGES.get(stage, shape)), shape)
    models = _by_id("models", value["models"], _model)
    cases = _by_id("cases", value["cases"], _case)
    for case in cases.values():
        if case.model is not None and case.model not in models:
            raise ValueError(f"cases: {case.id}: model: {case.model!r} is not among the models")
    return Manifest(
        value["suite"], value["generator"], value["tolerance"], value["stages"], models, cases
    )


def _by_id(
    what: str, entries: list[dict[str, Any]], parse: Callable[[dict[str, Any]], _Entry]
) -> dict[str, _Entry]:
    found: dict[str, _Entry] = {}
    for entry in entries:
        name = entry.get("id")
        inside(f"{what}: id", ID, name)
        if name in found:
            raise ValueError(f"{what}: {name!r} is there twice")
        try:
            found[str(name)] = parse(entry)
        except ValueError as error:
            raise ValueError(f"{what}: {name}: {error}") from None
    return found


def _model(entry: dict[str, Any]) -> Model:
    fields(_MODEL | (_OUTSIDE if "weights" in entry else _IN_SUITE))(entry)
    return Model(**({"file": "", "sha256": ""} | entry))


def _case(entry: dict[str, Any]) -> Case:
    inside("kind", _CASE["kind"], entry.get("kind"))
    checks = _CASE | _OF_KIND[entry["kind"]]
    if entry["kind"] == "operation":
        inside("operation", checks["operation"], entry.get("operation"))
        checks["parameters"] = fields(OPERATIONS[entry["operation"]][2])
    fields(checks)(entry)
    read: dict[str, Any] = {"catches": tuple(entry["catches"])}
    if "expected" in entry:
        read["expected"] = {name: _expected(how) for name, how in entry["expected"].items()}
    return Case(**(entry | read))


def _expected(how: dict[str, Any]) -> Expected:
    if "exact" in how:
        return Expected({}, True, tuple(how["dtypes"]))
    return Expected({dtype: float(number) for dtype, number in how["tolerance"].items()})
