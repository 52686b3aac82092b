"""Unfinished recordings: OUT/.recording/CASE holds what has been computed of a case so far.

    job.json                  what is being recorded: only the same may go on
    tokens.json               of a continuation: the tokens so far
    0007.safetensors, .json   of step 7, the expected numbers and the errors of the other ways
    state.safetensors         how many steps are done, and the hidden states of all ways after them

Files appear whole or not at all, and the state last: what it counts is there. Whatever else lies
here was interrupted and is made again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.files import make_folder, read_json, whole_file
from tinymistral.files.safetensors import read_file
from tinymistral.golden.recording.walking import Errors, Step, Walk
from tinymistral.golden.tensor_files import write_arrays

FOLDER = ".recording"


class Parts:
    """The folder of one unfinished case."""

    def __init__(self, out: Path, case: str):
        self.folder = out / FOLDER / case

    def begin(self, job: Mapping[str, Any]) -> None:
        """Make the folder, or go on with what is there; ValueError if that is another job."""
        make_folder(self.folder)
        path, wanted = self.folder / "job.json", json.loads(json.dumps(job))
        if path.exists() and read_json(path) != wanted:
            raise ValueError(
                f"{self.folder}: an interrupted recording of this case has other arguments or "
                "another checkpoint; go on with its own, or delete the folder"
            )
        write_text(path, json.dumps(wanted))

    def tokens(self) -> list[int]:
        """Return the tokens of a continuation so far."""
        path = self.folder / "tokens.json"
        return [int(token) for token in read_json(path)["tokens"]] if path.exists() else []

    def keep_tokens(self, tokens: list[int]) -> None:
        """Write the tokens of a continuation so far."""
        write_text(self.folder / "tokens.json", json.dumps({"tokens": tokens}))

    def resume(self, walk: Walk) -> int:
        """Give all ways their hidden states; return how many steps are done."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return 0
        state = read_file(path)
        for n, way in enumerate(walk.ways):
            way.hidden = np.array(state[f"hidden.{n}"])
        return int(state["done"][0])

    def keep(self, number: int, step: Step, walk: Walk) -> None:
        """Write what came of a step."""
        write_arrays(self._part(number, ".safetensors"), step.expected)
        write_text(self._part(number, ".json"), json.dumps(step.errors))  # inf as Python has it
        state = {f"hidden.{n}": way.hidden for n, way in enumerate(walk.ways)}
        state["done"] = np.array([number + 1], dtype=np.int64)
        write_arrays(self.folder / "state.safetensors", state)

    def restart(self) -> None:
        """Forget all steps."""
        (self.folder / "state.safetensors").unlink(missing_ok=True)

    def collect(self, steps: int) -> Step:
        """Return what came of all steps; the numbers are mapped, not read."""
        whole = Step({}, {})
        for number in range(steps):
            whole.expected |= read_file(self._part(number, ".safetensors"))
            errors: Errors = read_json(self._part(number, ".json"))
            whole.errors |= errors
        return whole

    def remove(self) -> None:
        """Remove the folder, if it is there, and that of all unfinished cases if it is empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()

    def _part(self, number: int, suffix: str) -> Path:
        return self.folder / f"{number:04}{suffix}"


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
