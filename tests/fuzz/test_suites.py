"""Suites, dumps and published numbers with a few changes, and checksums that fit them.

Whatever is changed, a command ends with a result or with one line that says what is wrong. With
`--hypothesis-profile=thorough` this takes minutes, and is different each time.
"""

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import good, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from safetensors.numpy import load, save

from tinymistral.golden.suite import V1

CASES = (
    *("rope", "attention-padding", "linear", "window-1", "greedy-left-padding"),
    *("sampling-everything", "tokenizer-demo", "chat-demo"),
)
VALIDATOR = Draft202012Validator(json.loads((V1 / "schema.json").read_text("utf-8")))
DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]
NUMBERS = [0, 1, -1, 2, 2**31, 2**62, 2**63 - 1, -(2**63)]
VALUES = [
    *(*NUMBERS, 2**64, 10**400, 0.5, 1e308, float("inf"), float("nan"), True, False, None),
    *("", "a", "\n", "\x1b[2J", "\ud800", "../x", "calls.9.logits", "x" * 5000, [], {}, [[]], DEEP),
]
# What Python and NumPy say of a mistake that nobody looked for.
ACCIDENT = re.compile(
    r"Traceback|(Key|Type|Index|Attribute|Assertion|Recursion|Overflow|ZeroDivision)Error|broadcast"
    r"|unpack|invalid literal|could not convert|cannot reshape|out of bounds|ufunc|ambiguous"
    r"|unhashable"
)

no_reset = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def changed_tree(draw: st.DrawFn, tree: Any) -> Any:
    """Return a JSON value in which one to three values or names are other ones, or missing."""
    whole = {"": copy.deepcopy(tree)}
    for _ in range(draw(st.integers(1, 3))):
        at: Any = whole
        key: Any = ""
        while isinstance(at[key], dict | list) and at[key] and draw(st.integers(0, 5)):
            at = at[key]
            key = draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        how = draw(st.sampled_from("value value remove copy rename".split()))
        if at is whole or how == "value":
            at[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif how == "remove":
            del at[key]
        elif isinstance(at, list):
            at.append(copy.deepcopy(at[key]))
        else:
            value = at[key] if how == "copy" else at.pop(key)
            at[draw(st.sampled_from([*at, "x", "", "calls.9.logits"]))] = value
    return whole[""]


@st.composite
def changed_arrays(draw: st.DrawFn, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays of which one or two have another dtype, shape, number or name."""
    arrays = dict(arrays)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(arrays)))
        x = arrays.pop(name)
        how = draw(st.sampled_from("number number dtype cut grow axis flat rename none".split()))
        axis = draw(st.integers(0, max(0, x.ndim - 1)))
        if how == "number" and x.size:
            x = x.copy()
            value = draw(
                st.sampled_from([*NUMBERS, np.nan, np.inf] if x.dtype.kind == "f" else NUMBERS)
            )
            x.flat[draw(st.integers(0, x.size - 1))] = value
        elif how == "dtype":
            with np.errstate(invalid="ignore", over="ignore"):
                x = x.astype(draw(st.sampled_from(["f2", "f4", "f8", "i4", "i8", "u8"])))
        elif how == "cut" and x.ndim:
            x = np.take(x, range(draw(st.integers(0, x.shape[axis]))), axis)
        elif how == "grow" and x.ndim:
            x = np.concatenate([x, x], axis)
        elif how == "axis":
            x = x[None]
        elif how == "flat":
            x = x.reshape(-1)
        elif how == "rename":
            name = draw(st.sampled_from([*arrays, f"{name}x", name.replace("0", "1"), "x", ""]))
        if how != "none":
            arrays[name] = np.ascontiguousarray(x)
    return arrays


def whole_suite() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a manifest of some cases of v1, and what is in its files; few texts of each kind."""
    manifest = json.loads((V1 / "manifest.json").read_text("utf-8"))
    manifest["cases"] = [case for case in manifest["cases"] if case["id"] in CASES]
    models = {case.get("model") for case in manifest["cases"]}
    manifest["models"] = [model for model in manifest["models"] if model["id"] in models]
    files: dict[str, Any] = {}
    for entry in [*manifest["cases"], *manifest["models"]]:
        content = (V1 / entry["file"]).read_bytes()
        if entry["file"].endswith(".json"):
            document = json.loads(content)
            files[entry["file"]] = {
                name: x[:3] if isinstance(x, list) else x for name, x in document.items()
            }
        else:
            files[entry["file"]] = content if "layout" in entry else load(content)
    return manifest, files


MANIFEST, FILES = whole_suite()


def write(folder: Path, manifest: Any, files: dict[str, Any]) -> str:
    """Write a suite, with the checksums of its files where the manifest has a place for them."""
    contents = {name: as_bytes(x) for name, x in files.items()}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for part in ("cases", "models"):
        entries = manifest.get(part) if isinstance(manifest, dict) else None
        for entry in entries if isinstance(entries, list) else ():
            file = entry.get("file") if isinstance(entry, dict) else None
            if isinstance(file, str) and file in contents and "sha256" in entry:
                entry["sha256"] = hashlib.sha256(contents[file]).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return str(folder)


def as_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    arrays = isinstance(value, dict) and all(isinstance(x, np.ndarray) for x in value.values())
    return save(value) if arrays else json.dumps(value).encode()


def ends(*command: str) -> tuple[int, str]:
    """Run a command, which must not fail by accident -> its exit code and what it wrote."""
    code, out, err = run("golden", *command)
    assert code in (0, 1, 2)
    assert not ACCIDENT.search(out + err), out + err
    assert err.count("\n") <= 1
    assert out or re.fullmatch(r"tinymistral: error: [^\n]+\n", err), err
    return code, out


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tinymistral computes of the suite."""
    folder = tmp_path_factory.mktemp("dump")
    suite = write(folder / "suite", copy.deepcopy(MANIFEST), FILES)
    good("golden", "run", "tinymistral", "--suite", suite, "-o", str(folder / "dump"))
    assert f"{len(CASES)} OK, 0 differ" in good("golden", "check", suite, str(folder / "dump"))
    return folder / "dump"


@pytest.fixture(scope="module")
def suite(dump: Path) -> str:
    return str(dump.parent / "suite")


def is_used(suite: str, dump: Path, *case: str) -> None:
    """Let commands read a suite, or one case of it."""
    ends("check", suite, str(dump), *case, "--complete", "--junit", f"{suite}/report.xml")
    ends("check", suite, str(dump), *case, "--json")
    ends("run", "tinymistral", "--suite", suite, *case, "-o", f"{suite}/dump")


@no_reset
@given(manifest=changed_tree(MANIFEST))
def test_a_changed_manifest(
    tmp_path_factory: pytest.TempPathFactory, dump: Path, manifest: Any
) -> None:
    folder = tmp_path_factory.mktemp("suite")
    suite = write(folder, manifest, FILES)
    if ends("list", suite)[0] == 0:
        wrong = [e for e in VALIDATOR.iter_errors(manifest) if e.validator != "uniqueItems"]
        assert all("config" in error.json_path for error in wrong), wrong
        ends("list", suite, "--json")
        is_used(suite, dump)


@no_reset
@given(data=st.data())
def test_a_changed_file_of_a_case(
    tmp_path_factory: pytest.TempPathFactory, dump: Path, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("suite")
    case = data.draw(st.sampled_from(MANIFEST["cases"]))
    file = case["file"]
    change = changed_tree if file.endswith(".json") else changed_arrays
    files = FILES | {file: data.draw(change(FILES[file]))}
    is_used(write(folder, copy.deepcopy(MANIFEST), files), dump, "--case", case["id"])


@no_reset
@given(data=st.data())
def test_a_changed_dump(
    tmp_path_factory: pytest.TempPathFactory, suite: str, dump: Path, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("dump")
    source = data.draw(st.sampled_from(sorted(dump.iterdir())))
    content = source.read_bytes()
    if source.suffix == ".json":
        changed = json.dumps(data.draw(changed_tree(json.loads(content)))).encode()
        (folder / source.name).write_bytes(changed)
    else:
        arrays = data.draw(changed_arrays(load(content)))
        (folder / source.stem).mkdir()
        for name, x in arrays.items():
            np.save(folder / source.stem / f"{name}.npy", x)
        if data.draw(st.booleans()):
            (folder / source.stem).rename(folder / "elsewhere")
            (folder / source.name).write_bytes(save(arrays))
    ends("check", suite, str(folder), "--json", "--dtype", "bfloat16")
    ends("check", suite, str(folder), "--verbose", "--layout", "raw")
