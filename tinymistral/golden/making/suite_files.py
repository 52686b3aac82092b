"""Make the suite: `python -m tinymistral.golden.making OUT`.

The same versions on the same machine give the same bytes each time. What is written has been held
against itself: the oracle's numbers against those of the numpy backend in float64, which has a
cache, and every greedy choice against its runner-up.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

import tinymistral
from tinymistral.demo import DEMO
from tinymistral.files import make_folder
from tinymistral.files.safetensors import write_file
from tinymistral.golden.making import cases, tolerances
from tinymistral.golden.making.drafts import Draft, Vector
from tinymistral.golden.making.finishing import Finished, finish
from tinymistral.golden.making.models import MODELS, Tiny
from tinymistral.golden.making.operations import OPERATIONS
from tinymistral.golden.manifest import FORMAT, FORMAT_VERSION, IN_PACKAGE
from tinymistral.golden.suite import V1
from tinymistral.golden.vectors import cases as vectors
from tinymistral.golden.vectors.documents import as_text as document_text
from tinymistral.stages import STAGES

DRAFTS = [*OPERATIONS, *cases.CALLS, *cases.GREEDY]
HOW = (
    "Absolute, for each tensor and dtype: factor times the largest error that right programs make "
    "on it in the dtype, of which 24 are tried: sums in several orders, rotary angles in float64 "
    "and float32 (past position 2^24 in float64 alone), and what is rounded within an operation, "
    "from nothing to every step. At least eight unit roundoffs of the largest expected magnitude "
    "in float32, one in 16 bits. Of sampling: a bound for float32, and in 16 bits factor times the "
    "rounding of the result."
)


def make(folder: Path) -> None:
    """Write the suite into a folder, over what is there of an earlier one."""
    for part in ("models", "cases"):
        make_folder(folder / part)
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "suite": "v1",
        "generator": {"name": "tinymistral", "version": tinymistral.__version__},
        "tolerance": {"factor": tolerances.FACTOR, "says": HOW},
        "stages": STAGES,
        "models": [write_model(folder, name) for name in MODELS],
        "cases": [write_draft(folder, draft) for draft in DRAFTS]
        + [write_vector(folder, vector) for vector in vectors()],
    }
    (folder / "manifest.json").write_text(as_text(manifest) + "\n", encoding="utf-8")
    if folder.resolve() != V1:
        shutil.copyfile(V1 / "schema.json", folder / "schema.json")


def write_model(folder: Path, name: str) -> dict[str, Any]:
    """Write a model's weights; return what the manifest says of it."""
    model = MODELS[name]
    path = DEMO / "model.safetensors" if model.file == IN_PACKAGE else folder / model.file
    if isinstance(model, Tiny):
        write_file(path, model.stored_tensors())
    return {
        "id": model.id,
        "says": model.says,
        "config": model.fields(),
        "layout": model.layout,
        "dtype": model.stored,
        "file": model.file,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def write_draft(folder: Path, draft: Draft) -> dict[str, Any]:
    """Compute and write a case; return what the manifest says of it."""
    finished: Finished = finish(draft)
    entry: dict[str, Any] = {"id": draft.id, "kind": draft.kind}
    if draft.model is not None:
        entry["model"] = draft.model
    if draft.kind == "model":
        entry["calls"] = sum(name.endswith(".input_ids") for name in draft.inputs)
    else:
        entry["parameters"] = draft.parameters
    if draft.operation is not None:
        entry["operation"] = draft.operation
    entry |= {"says": draft.says, "catches": draft.catches, "expected": finished.how}
    arrays = {f"inputs.{name}": array for name, array in draft.inputs.items()}
    arrays |= {f"expected.{name}": array for name, array in finished.expected.items()}
    return write_vector(folder, Vector(entry, arrays=arrays))


def write_vector(folder: Path, vector: Vector) -> dict[str, Any]:
    """Write what a case holds; return what the manifest says of it."""
    entry = dict(vector.entry)
    if vector.arrays is not None:
        file = f"cases/{entry['id']}.safetensors"
        content = save({name: np.ascontiguousarray(x) for name, x in vector.arrays.items()})
    else:
        assert vector.document is not None
        file = f"cases/{entry['id']}.json"
        content = document_text(vector.document).encode("utf-8")
    (folder / file).write_bytes(content)
    expected = {"expected": entry.pop("expected")} if "expected" in entry else {}
    return {**entry, "file": file, "sha256": hashlib.sha256(content).hexdigest(), **expected}


def as_text(value: Any, indent: str = "") -> str:
    """Write JSON with what is short on one line, so that a change of one entry can be seen."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list | tuple) or len(indent + line) < 100:
        return line
    inner = indent + " "
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {as_text(part, inner)}" for name, part in value.items()]
    else:
        parts = [as_text(part, inner) for part in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return begin + "\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}{end}"
