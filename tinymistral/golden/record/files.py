"""The files of a recording: the suite, to which finished cases are added, and unfinished cases.

OUT/.recording/CASE holds what has been computed of an unfinished case:

    job.json             what is being recorded; only the same job may continue
    tokens.safetensors   of a continuation: the tokens so far
    0007.safetensors     of step 7: the expected numbers, and the errors of the variants
    state.safetensors    how many steps are done, and the hidden states of all variants then

Files appear whole or not at all, and the state last: the steps that it counts are complete. Any
other file was interrupted, and is written again. Each file of arrays has its own checksum, of its
name and the job too: a damaged one, or one of another job, is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import tinymistral
from tinymistral.files import UNFINISHED_NAME, make_folder, read_json
from tinymistral.files.safetensors import read_file
from tinymistral.golden.files import Arrays, manifest_text, sha256_of, write_arrays, write_text
from tinymistral.golden.manifest import FORMAT, FORMAT_VERSION, parse_manifest
from tinymistral.golden.record.steps import FACTOR, Step, Walk
from tinymistral.golden.rounding import UNIT
from tinymistral.golden.suite import V1, read_suite
from tinymistral.tap import STAGES

UNFINISHED = ".recording"  # the folder of unfinished cases
CHECKSUM = "sha256"
START_AGAIN = "delete that folder, and record the case again"
_WRITTEN = re.compile(rf"job\.json|(tokens|state|\d{{4,}})\.safetensors|{UNFINISHED_NAME.pattern}")


class RecordedSuite:
    """A suite in a folder, whose models' weights are not part of it."""

    def __init__(self, folder: Path, says: str):
        """Open or begin it.

        ValueError if its tolerances were made in another way than `says`, or if what is there is no
        recorded suite, whose files could be replaced.
        """
        self.folder = folder
        make_folder(folder / "cases")
        self._path = folder / "manifest.json"
        if not self._path.exists():
            if any((folder / "cases").iterdir()):  # a recording writes its manifest first
                raise ValueError(
                    f"{folder}: has cases, but no manifest.json, so no recording wrote them; "
                    "record into another folder"
                )
            name = slug(folder.resolve().name)
            self.fields: dict[str, Any] = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "suite": name,
                "generator": {"name": "tinymistral", "version": tinymistral.__version__},
                "tolerance": {"factor": FACTOR, "says": says},
                "stages": STAGES,
                "models": [],
                "cases": [],
            }
            return
        self.fields = read_json(self._path)
        try:
            parse_manifest(self.fields)
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}; record into another folder") from None
        if self.fields["tolerance"] != {"factor": FACTOR, "says": says}:
            raise ValueError(
                f"{folder}: its tolerances were made in another way; give the same --dtype and "
                "--ways, or record into another folder"
            )

    def add_model(self, entry: dict[str, Any]) -> None:
        """Add a model, or check that the suite has the same one."""
        known = next((m for m in self.fields["models"] if m["id"] == entry["id"]), None)
        if known is None:
            self.fields["models"].append(entry)
            self.write()
        elif known.get("weights", {}).get("fingerprint") != entry["weights"]["fingerprint"]:
            raise ValueError(
                f"{self.folder}: model {entry['id']!r} there was recorded from another checkpoint; "
                "record into another folder"
            )
        elif known["config"] != entry["config"]:
            raise ValueError(
                f"{self.folder}: model {entry['id']!r} there has another configuration; record "
                "into another folder"
            )

    def has(
        self, entry: Mapping[str, Any], inputs: Mapping[str, np.ndarray], expected: set[str]
    ) -> bool:
        """Return whether the suite has this case; ValueError if another one has its id."""
        case = entry["id"]
        known = next((c for c in self.fields["cases"] if c["id"] == case), None)
        if known is None:
            return False
        suite = read_suite(self.folder)
        there = suite.read(suite.case(case))
        same = set(there.expected) == expected and set(there.inputs) == set(inputs)
        same = same and all(np.array_equal(there.inputs[n], x) for n, x in inputs.items())
        if not same or any(known.get(name) != entry[name] for name in entry if name != "says"):
            raise ValueError(
                f"{self.folder}: case {case!r} is there already, of another text or with other "
                "stages; give another --case"
            )
        return True

    def add_case(
        self,
        entry: Mapping[str, Any],
        inputs: Mapping[str, np.ndarray],
        expected: Mapping[str, np.ndarray],
        how: Mapping[str, Any],
    ) -> None:
        """Write the file of a case, then add it to the manifest."""
        file = f"cases/{entry['id']}.safetensors"
        arrays = {f"inputs.{name}": x for name, x in inputs.items()}
        arrays |= {f"expected.{name}": x for name, x in expected.items()}
        write_arrays(self.folder / file, arrays)
        sha256 = sha256_of(self.folder / file)
        self.fields["cases"].append({**entry, "file": file, "sha256": sha256, "expected": how})
        self.write()

    def write(self) -> None:
        """Write the manifest, whole or not at all."""
        parse_manifest(self.fields)
        if not (self.folder / "schema.json").exists():
            schema = (V1 / "schema.json").read_text(encoding="utf-8")
            write_text(self.folder / "schema.json", schema)
        write_text(self._path, manifest_text(self.fields) + "\n")


def slug(name: str) -> str:
    """Turn a name into an id: "mistralai/Mistral-7B-v0.1" -> "mistralai-mistral-7b-v0-1"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:100].strip("-") or "recorded"


class UnfinishedCase:
    """The folder of a case that is being computed."""

    def __init__(self, out: Path, case: str):
        self.folder = out / UNFINISHED / case
        self._job = ""

    def begin(self, job: Mapping[str, Any]) -> None:
        """Make the folder, or continue with it; ValueError if it is of another job."""
        make_folder(self.folder)
        path, self._job = self.folder / "job.json", json.dumps(job)
        if path.exists() and read_json(path) != json.loads(self._job):
            raise ValueError(
                f"{self.folder}: an interrupted recording of this case has other arguments or "
                "another checkpoint; go on with its own, or delete the folder"
            )
        write_text(path, self._job)

    def tokens(self) -> list[int]:
        """Return the tokens of a continuation so far."""
        kept = self._read("tokens")
        return [] if kept is None else kept["tokens"].tolist()

    def keep_tokens(self, tokens: list[int]) -> None:
        """Write the tokens of a continuation so far."""
        self._write("tokens", {"tokens": np.array(tokens, dtype=np.int64)})

    def resume(self, walk: Walk) -> int:
        """Restore the hidden states of all variants; return how many steps are done."""
        state = self._read("state")
        if state is None:
            return 0
        for n, variant in enumerate(walk.variants):
            variant.hidden = np.array(state[f"hidden.{n}"])
        return int(state["done"][0])

    def keep(self, number: int, step: Step, walk: Walk) -> None:
        """Write the results of a step."""
        results = {f"expected.{name}": x for name, x in step.expected.items()}
        for name, errors in step.errors.items():
            results[f"errors.{name}"] = np.array([errors[dtype] for dtype in UNIT])
        self._write(f"{number:04}", results)
        state = {f"hidden.{n}": variant.hidden for n, variant in enumerate(walk.variants)}
        state["done"] = np.array([number + 1], dtype=np.int64)
        self._write("state", state)

    def restart(self) -> None:
        """Start again at step 0."""
        (self.folder / "state.safetensors").unlink(missing_ok=True)

    def collect(self, steps: int) -> Step:
        """Return the results of all steps."""
        whole = Step({}, {})
        for number in range(steps):
            results = self._read(f"{number:04}")
            if results is None:
                raise ValueError(f"{self.folder}: step {number} is not there; {START_AGAIN}")
            for full, x in results.items():
                part, _, name = full.partition(".")
                if part == "expected":
                    whole.expected[name] = x
                else:
                    whole.errors[name] = dict(zip(UNIT, x.tolist(), strict=True))
        return whole

    def remove(self) -> None:
        """Remove the folder, and the one above it if no other case is unfinished."""
        with suppress(OSError):
            for path in self.folder.iterdir():
                if _WRITTEN.fullmatch(path.name):
                    path.unlink()
            self.folder.rmdir()
        with suppress(OSError):
            self.folder.parent.rmdir()

    def _write(self, name: str, arrays: Arrays) -> None:
        checksum = {CHECKSUM: self._checksum(name, arrays)}
        write_arrays(self.folder / f"{name}.safetensors", arrays | checksum)

    def _read(self, name: str) -> Arrays | None:
        """Map arrays; None if there is no such file, ValueError if it is damaged."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return None
        arrays = read_file(path)
        found = arrays.pop(CHECKSUM, np.empty(0))
        if not np.array_equal(found, self._checksum(name, arrays)):
            raise ValueError(f"{path}: it is damaged, or of another recording; {START_AGAIN}")
        return arrays

    def _checksum(self, name: str, arrays: Arrays) -> np.ndarray:
        digest = hashlib.sha256(f"{self._job}\n{name}\n".encode())
        for of, x in sorted(arrays.items()):
            digest.update(f"{of} {x.dtype.name} {x.shape}\n".encode())
            digest.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
        return np.frombuffer(digest.digest(), dtype=np.int64)
