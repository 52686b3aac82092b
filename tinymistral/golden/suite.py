"""A suite of golden outputs, read from its folder; every file is compared with its sha256.

    manifest.json           models, cases and tolerances
    schema.json             what a manifest looks like, as a JSON Schema
    models/*.safetensors    weights
    cases/*.safetensors     `inputs.NAME` and `expected.NAME` of a case;  *.json: texts

Whatever is wrong with a suite is a ValueError in one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.demo import DEMO
from tinymistral.files import read_json
from tinymistral.files.safetensors import read_file
from tinymistral.golden.files import Arrays, sha256_of
from tinymistral.golden.manifest import (
    IN_PACKAGE,
    TEXT_KINDS,
    Case,
    Manifest,
    Model,
    parse_manifest,
)
from tinymistral.golden.schema import TOKENS, Check, a_string, an_object, fields, list_of
from tinymistral.golden.shapes import check_arrays
from tinymistral.text import did_you_mean

__all__ = ["V1", "Case", "CaseArrays", "Model", "Suite", "read_suite"]

V1 = Path(__file__).parent / "v1"
DOCUMENT_LIMIT = 4_000_000  # bytes of a tokenizer or chat document; those of v1 have 0.2 million

_STRING = fields({"text": a_string, "ids": TOKENS}, {"decoded": a_string, "group": a_string})
_DECODING = fields({"ids": TOKENS, "decoded": a_string})
_MESSAGE = fields({"role": a_string, "content": a_string})
_CONVERSATION = fields({"messages": list_of(_MESSAGE), "ids": TOKENS})
_ABOUT: dict[str, Check] = {"says": a_string, "vocabulary": an_object}
_DOCUMENTS = {
    "tokenizer": fields({"strings": list_of(_STRING)}, {"decodings": list_of(_DECODING), **_ABOUT}),
    "chat": fields({"conversations": list_of(_CONVERSATION)}, _ABOUT),
}


@dataclass(frozen=True)
class CaseArrays:
    """The arrays in the file of a case, by name; numbers in float64, integers in int64."""

    inputs: Arrays
    expected: Arrays


@dataclass(frozen=True)
class Suite:
    """A suite in a folder; its files are read, and verified, when they are used."""

    folder: Path
    manifest: Manifest
    checkpoint: Path | None = None  # of models whose weights are not in the suite: `models.py`

    def case(self, name: str) -> Case:
        """Return the case of this id; ValueError if there is none."""
        if name not in self.manifest.cases:
            cases = self.manifest.cases
            hint = did_you_mean(name, cases) or f"; its cases are {', '.join(cases)}"
            raise ValueError(
                f"there is no case {name!r:.100} in suite {self.manifest.suite!r:.60}{hint}"
            )
        return self.manifest.cases[name]

    def path(self, entry: Model | Case) -> Path:
        """Return the file of a model or case, after verifying its sha256."""
        if not entry.file:
            raise ValueError(
                f"the weights of model {entry.id!r:.60} are no part of suite "
                f"{self.manifest.suite!r:.60}; give the folder of the checkpoint with --model"
            )
        inside = self.folder / entry.file
        path = DEMO / "model.safetensors" if entry.file == IN_PACKAGE else inside
        found = sha256_of(path)
        if found != entry.sha256:
            raise ValueError(
                f"{path}: its sha256 is {found[:12]}..., the manifest says {entry.sha256[:12]}...; "
                "the suite is damaged or was changed, get it again"
            )
        return path

    def tensors(self, model: Model) -> Arrays:
        """Return the weights as they are stored: names, order and dtype of the file."""
        return read_file(self.path(model))

    def read(self, case: Case) -> CaseArrays:
        """Return the inputs and the expected numbers of a case whose file is not JSON."""
        if case.kind in TEXT_KINDS:
            raise ValueError(f"case {case.id}: a case of kind {case.kind!r} has no arrays")
        path = self.path(case)
        arrays = CaseArrays({}, {})
        for name, array in read_file(path).items():
            part, _, rest = name.partition(".")
            if part not in ("inputs", "expected") or array.dtype not in (np.float64, np.int64):
                raise ValueError(
                    f"{path}: expected inputs.NAME and expected.NAME in F64 or I64, "
                    f"found {name!r:.100} in {array.dtype}"
                )
            getattr(arrays, part)[rest] = np.array(array)  # a copy, which is aligned
        try:
            check_arrays(case, self.manifest.stages, arrays.inputs, arrays.expected)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return arrays

    def document(self, case: Case) -> dict[str, Any]:
        """Return the JSON object of a tokenizer or chat case."""
        path = self.path(case)
        document = read_json(path, DOCUMENT_LIMIT)
        try:
            _DOCUMENTS[case.kind](document)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return document


def read_suite(folder: str | Path = V1) -> Suite:
    """Read the manifest of a suite; ValueError in one line for anything else."""
    path = Path(folder) / "manifest.json"
    fields = read_json(path)
    try:
        return Suite(Path(folder), parse_manifest(fields))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
