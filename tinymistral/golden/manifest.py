"""The manifest of a suite: its models and cases, checked field by field."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

FORMAT, FORMAT_VERSION = "tinymistral-golden", 1
KINDS = ("model", "operation", "generate", "sampling", "tokenizer", "chat")
TEXT_KINDS = ("tokenizer", "chat")  # the file of these kinds is JSON
LAYOUTS = ("hf", "raw")
# The demo model is part of the package, and not copied into the suite.
IN_PACKAGE = "tinymistral/demo/model.safetensors"

MOST_CALLS = 10_000
MOST_NEW_TOKENS = 100_000

OPERATIONS = {  # method of `Backend`: its arrays, and its other arguments
    "embedding": ("table ids", ""),
    "linear": ("x weight", ""),
    "rms_norm": ("x weight", "eps"),
    "rope": ("x positions", "theta"),
    "attention": ("q k v q_positions k_positions", "window"),
    "silu_mul": ("gate up", ""),
}
CALL_INPUTS = ("input_ids", "positions", "key_positions", "cache_positions")
KIND_INPUTS = {"generate": "input_ids attention_mask", "sampling": "logits previous_ids"}

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")
_FILE = re.compile(r"(models|cases)/[a-z0-9][a-z0-9_.-]{0,99}\.(safetensors|json)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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


def parse_manifest(fields: Mapping[str, Any]) -> Manifest:
    """Check the fields of a manifest.json; a ValueError names the one that is wrong."""
    if fields.get("format") != FORMAT:
        raise ValueError(f"format: expected {FORMAT!r}, got {fields.get('format')!r:.60}")
    version = _field(fields, "format_version", int)
    if version != FORMAT_VERSION:
        raise ValueError(
            f"format_version: {version} is not supported, expected {FORMAT_VERSION}; "
            "another version of tinymistral reads it"
        )
    models = _by_id("models", fields, _model)
    cases = _by_id("cases", fields, _case)
    for case in cases.values():
        if case.model is not None and case.model not in models:
            raise ValueError(f"cases: {case.id}: model: {case.model!r:.60} is not among the models")
    return Manifest(
        _field(fields, "suite", str),
        _field(fields, "generator", dict),
        _field(fields, "tolerance", dict),
        _field(fields, "stages", dict),
        models,
        cases,
    )


def _by_id(what: str, fields: Mapping[str, Any], parse: Any) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for entry in _field(fields, what, list):
        name = entry.get("id") if isinstance(entry, dict) else entry
        if not isinstance(entry, dict) or not isinstance(name, str) or not _ID.fullmatch(name):
            raise ValueError(
                f"{what}: expected objects with an id like 'rms-norm', got {name!r:.60}"
            )
        if name in entries:
            raise ValueError(f"{what}: {name!r} is there twice")
        try:
            entries[name] = parse(entry)
        except ValueError as error:
            raise ValueError(f"{what}: {name}: {error}") from None
    return entries


def _model(entry: Mapping[str, Any]) -> Model:
    weights = _field(entry, "weights", dict) if "weights" in entry else None
    return Model(
        entry["id"],
        _field(entry, "says", str),
        _field(entry, "config", dict),
        _one_of(LAYOUTS, entry, "layout"),
        _field(entry, "dtype", str),
        *(_file(entry, "models", "safetensors") if weights is None else ("", "")),
        weights,
    )


def _case(entry: Mapping[str, Any]) -> Case:
    kind = _one_of(KINDS, entry, "kind")
    of_kind: dict[str, Any] = {}
    if kind in ("model", "generate"):
        of_kind["model"] = _field(entry, "model", str)
    if kind == "model":
        of_kind["calls"] = _field(entry, "calls", int)
    if kind == "operation":
        of_kind["operation"] = _field(entry, "operation", str)
    if kind in ("operation", "generate", "sampling"):
        of_kind["parameters"] = _field(entry, "parameters", dict)
    if kind in TEXT_KINDS:
        of_kind["vocabulary"] = _field(entry, "vocabulary", dict)
    else:
        expected = _field(entry, "expected", dict)
        of_kind["expected"] = {name: _expected(name, how) for name, how in expected.items()}
    check_fields(kind, of_kind)
    return Case(
        entry["id"],
        kind,
        _field(entry, "says", str),
        tuple(map(str, _field(entry, "catches", list))),
        *_file(entry, "cases", "json" if kind in TEXT_KINDS else "safetensors"),
        **of_kind,
    )


def _expected(name: str, how: Any) -> Expected:
    if isinstance(how, dict) and how.get("exact") is True:
        return Expected({}, True, tuple(map(str, _field(how, "dtypes", list))))
    tolerance = how.get("tolerance") if isinstance(how, dict) else None
    if not isinstance(tolerance, dict) or not tolerance:
        raise ValueError(f"expected: {name:.100}: expected a tolerance or exact, got {how!r:.60}")
    for dtype, number in tolerance.items():
        if not isinstance(number, int | float) or not 0 < number < 1e300:
            raise ValueError(
                f"expected: {name:.100}: tolerance: {dtype:.60}: expected a positive number, "
                f"got {number!r:.60}"
            )
    return Expected({dtype: float(number) for dtype, number in tolerance.items()})


def _file(entry: Mapping[str, Any], folder: str, suffix: str) -> tuple[str, str]:
    """Return the name of an entry's file, which lies inside the suite, and its sha256."""
    file, sha256 = _field(entry, "file", str), _field(entry, "sha256", str)
    match = _FILE.fullmatch(file)
    in_package = folder == "models" and file == IN_PACKAGE
    if not in_package and (match is None or match.groups() != (folder, suffix)):
        raise ValueError(f"file: expected a name like '{folder}/a-1.{suffix}', got {file!r:.100}")
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"sha256: expected 64 hexadecimal digits, got {sha256!r:.80}")
    return file, sha256


def _one_of(choices: tuple[str, ...], entry: Mapping[str, Any], name: str) -> str:
    value = _field(entry, name, str)
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r:.60}")
    return str(value)


_JSON_TYPES = {str: "a text", dict: "an object", list: "a list", int: "an integer"}


def _field(entry: Mapping[str, Any], name: str, kind: type) -> Any:
    value = entry.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "none" if name not in entry else f"{value!r:.60}"
        raise ValueError(f"{name}: expected {_JSON_TYPES[kind]}, got {found}")
    return value


def check_fields(kind: str, fields: Mapping[str, Any]) -> None:
    """Check calls, operation and parameters of a case; ValueError if it could not be run."""
    parameters = fields.get("parameters", {})
    if kind == "model" and not 1 <= fields["calls"] <= MOST_CALLS:
        raise ValueError(f"calls: expected 1 to {MOST_CALLS}, got {fields['calls']}")
    if kind == "generate":
        new = parameters.get("max_new_tokens")
        if not isinstance(new, int) or not 1 <= new <= MOST_NEW_TOKENS:
            raise ValueError(
                f"parameters: max_new_tokens: expected 1 to {MOST_NEW_TOKENS}, got {new!r:.60}"
            )
    if kind == "operation":
        name = fields["operation"]
        if name not in OPERATIONS:
            raise ValueError(
                f"operation: expected one of {', '.join(OPERATIONS)}, got {name!r:.60}"
            )
        _same("parameters", parameters, OPERATIONS[name][1].split())


def check_inputs(kind: str, calls: int, operation: str | None, inputs: Collection[str]) -> None:
    """Check that a case has the inputs of its kind; ValueError if not."""
    if kind == "model":
        names = [f"calls.{n}.{name}" for n in range(calls) for name in CALL_INPUTS]
    elif operation is not None:
        names = OPERATIONS[operation][0].split()
    else:
        names = KIND_INPUTS[kind].split()
    _same("inputs", inputs, names)


def _same(what: str, found: Collection[str], expected: Collection[str]) -> None:
    if different := set(found) ^ set(expected):
        first = min(different)
        wrong = "is missing" if first in expected else "is one too many"
        raise ValueError(f"{what}: {first!r:.100} {wrong}")
