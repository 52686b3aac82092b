"""A suite made by hand, with simple numbers and tolerances, for tests of what reads it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tinymistral.golden.compare.candidate import CaseDump
from tinymistral.golden.compare.cases import compare_case
from tinymistral.golden.compare.verdicts import Compared, Part
from tinymistral.golden.suite import Suite, read_suite

TOLERANCE = {"float32": 0.25, "float16": 0.5, "bfloat16": 2.0}
STAGES = {
    "embedding": "B T D",
    "layers.N.q": "B T H d",
    "layers.N.k": "B T K d",
    "layers.N.k_rotated": "B T K d",
    "layers.N.attention_weights": "B H T S",
    "layers.N.output": "B T D",
    "norm": "B T D",
}
# Two layers, D = 3, H = 2, K = 1, d = 4. In `twice` row 0 has padding on its left.
POSITIONS = [[[-1, 0], [0, 1]], [[1, -1], [2, 3]]]
KEYS = [[[0, -1], [0, 1]], [[0, 1, -1, -1], [0, 1, 2, 3]]]
CACHED = [[[-1, 0], [0, 1]], [[0, 1], [2, 3]]]
STRINGS = [
    {"group": "spaces", "text": "a  b", "ids": [5, 6, 7], "decoded": "a  b"},
    {"group": "spaces", "text": "", "ids": [], "decoded": ""},
    {"group": "bytes", "text": "\x00<é>", "ids": [8, 9], "decoded": "\x00<é>"},
]
TALK = [
    {"messages": [{"role": "user", "content": "a"}], "ids": [1, 5]},
    {"messages": [{"role": "user", "content": "b"}], "ids": [1, 6]},
]


def counting(*shape: int) -> np.ndarray:
    """0, 1, 2, ... in float64: of each number one knows where it is."""
    return np.arange(np.prod(shape), dtype=np.float64).reshape(shape)


def stages(call: int, tokens: int, keys: int) -> dict[str, np.ndarray]:
    """The expected stages of a call with two rows."""
    arrays = {"embedding": counting(2, tokens, 3), "norm": counting(2, tokens, 3)}
    for layer in (0, 1):
        arrays |= {
            f"layers.{layer}.q": counting(2, tokens, 2, 4),
            f"layers.{layer}.k": counting(2, tokens, 1, 4),
            f"layers.{layer}.k_rotated": counting(2, tokens, 1, 4),
            f"cache.layers.{layer}.k": counting(2, 2, 1, 4),
            f"cache.layers.{layer}.v": counting(2, 2, 1, 4),
            f"layers.{layer}.attention_weights": counting(2, 2, tokens, keys),
            f"layers.{layer}.output": counting(2, tokens, 3),
        }
    return {f"calls.{call}.{name}": array for name, array in arrays.items()}


def calls(positions: list, keys: list, cached: list) -> dict[str, np.ndarray]:
    """The inputs of calls that follow each other."""
    inputs = {}
    for n, lists in enumerate(zip(positions, keys, cached, strict=True)):
        for name, rows in zip(
            ("positions", "key_positions", "cache_positions"), lists, strict=True
        ):
            inputs[f"calls.{n}.{name}"] = np.array(rows, dtype=np.int64)
        inputs[f"calls.{n}.input_ids"] = np.zeros_like(inputs[f"calls.{n}.positions"])
    return inputs


ONCE = calls([[[0, 1], [0, 1]]], [[[0, 1], [0, 1]]], [[[0, 1], [0, 1]]])
TWICE = calls(POSITIONS, KEYS, CACHED)
GENERATE = {
    "input_ids": np.array([[9, 4, 5], [3, 4, 5]], dtype=np.int64),
    "attention_mask": np.array([[0, 1, 1], [1, 1, 1]], dtype=np.int64),
}
SEQUENCES = np.array([[9, 4, 5, 20, 21, 22], [3, 4, 5, 30, 31, 32]], dtype=np.int64)
ROPE = {"x": counting(1, 2, 1, 4), "positions": np.array([[0, 7]], dtype=np.int64)}

# id: (kind, fields of the kind, inputs, expected)
CASES: dict[str, tuple[str, dict, dict, dict]] = {
    "rope": (
        "operation",
        {"operation": "rope", "parameters": {"theta": 1e4}},
        ROPE,
        {"out": ROPE["x"]},
    ),
    "once": ("model", {"model": "tiny", "calls": 1}, ONCE, stages(0, 2, 2)),
    "twice": ("model", {"model": "tiny", "calls": 2}, TWICE, stages(0, 2, 2) | stages(1, 2, 4)),
    "greedy": (
        "generate",
        {"model": "tiny", "parameters": {"max_new_tokens": 3}},
        GENERATE,
        {"logprobs": -counting(2, 3), "sequences": SEQUENCES},
    ),
    "draw": (
        "sampling",
        {"parameters": {"top_k": 2}},
        {"logits": counting(1, 4), "previous_ids": np.zeros((1, 1), dtype=np.int64)},
        {"probabilities": counting(1, 4)},
    ),
}
TEXTS = {"words": ("tokenizer", {"strings": STRINGS}), "talk": ("chat", {"conversations": TALK})}


def expected(case: str) -> dict[str, np.ndarray]:
    """Copies of what is expected of a case, in float32: a dump without a mistake."""
    arrays = CASES[case][3]
    return {n: x.astype(np.float32) if x.dtype == np.float64 else x for n, x in arrays.items()}


def write_suite(folder: Path) -> Suite:
    """Write it and read it."""
    (folder / "cases").mkdir(parents=True)
    entries = []
    for name, (kind, fields, inputs, outputs) in CASES.items():
        arrays = {f"inputs.{n}": x for n, x in inputs.items()}
        arrays |= {f"expected.{n}": x for n, x in outputs.items()}
        how = {
            n: {"tolerance": TOLERANCE}
            if x.dtype == np.float64
            else {"exact": True, "dtypes": ["float32", "float16"]}
            for n, x in reversed(outputs.items())  # readers find the order of computation
        }
        content = {"expected": how} | write(folder, f"cases/{name}.safetensors", save(arrays))
        entries.append({"id": name, "kind": kind, "catches": ["that"], **fields, **content})
    for name, (kind, document) in TEXTS.items():
        content = write(folder, f"cases/{name}.json", json.dumps(document).encode())
        vocabulary = {"name": "none", "sha256": "0" * 64}
        entries.append(
            {"id": name, "kind": kind, "catches": [], "vocabulary": vocabulary, **content}
        )
    manifest = {
        "format": "tinymistral-golden",
        "format_version": 1,
        "suite": "handmade",
        "generator": {"name": "by hand", "version": "1"},
        "tolerance": {"factor": 1, "says": "simple numbers"},
        "stages": STAGES,
        "models": [
            {"id": "tiny", "says": "nothing", "config": {}, "layout": "hf", "dtype": "float32"}
            | write(folder, "models/none.safetensors", None)
        ],
        "cases": [{"says": f"what {entry['id']} is about", **entry} for entry in entries],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return read_suite(folder)


def write(folder: Path, file: str, content: bytes | None) -> dict[str, str]:
    """Write a file, if there is one, and return its fields in the manifest."""
    if content is not None:
        (folder / file).write_bytes(content)
    return {"file": file, "sha256": hashlib.sha256(content or b"").hexdigest()}


@pytest.fixture(name="suite", scope="module")
def suite_fixture(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Write it and return it."""
    return write_suite(tmp_path_factory.mktemp("suite") / "handmade")


def compared(suite: Suite, case: str, given: dict | CaseDump, dtype: str | None = None) -> Compared:
    """How what is given of a case compares."""
    return compare_case(suite, suite.case(case), given, dtype)


def changed(case: str, name: str, index: tuple, by: float) -> dict[str, np.ndarray]:
    """What is expected of a case, with some numbers of a tensor changed."""
    arrays = expected(case)
    arrays[name] = arrays[name].copy()
    arrays[name][index] += by
    return arrays


def part(result: Compared, name: str) -> Part:
    """How a tensor of a case compares."""
    return next(part for part in result.parts if part.name == name)
