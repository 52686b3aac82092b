"""Any other program: a command that is run for each case, in ten lines of its own language.

`tinymistral golden run --command "python mine.py {case} {out}" -o dump` writes a folder for each
case, runs the command with the two paths in place of {case} and {out}, and reads what it wrote:

    {case}/case.json            the case's entry of the manifest: id, kind, parameters, ...
    {case}/inputs.safetensors   its inputs, by name; ids and positions I64, numbers F64
    {case}/inputs.json          of tokenizer and chat cases instead: texts without the ids
    {case}/model/               of kinds model and generate, a checkpoint: config.json (or
                                params.json) and the weights
    {out}/NAME.npy              some or all of the tensors named in `expected`
    {out}/results.safetensors   or all of them in one file
    {out}/results.json          of tokenizer and chat cases

A program that writes nothing does not support the case; where it fails, the last line of its error
output is reported, and its standard output is never looked at. The time for a case is limited, and
so is what is written to error output; then, and when the command ends, whatever it has started ends
too. Ten lines for a model with the interface of transformers:

    import json, pathlib, sys
    import numpy as np
    from safetensors.numpy import load_file
    case, out = map(pathlib.Path, sys.argv[1:])
    about = json.loads((case / "case.json").read_text())
    if about["kind"] == "model" and about["calls"] == 1:
        from my_mistral import MyMistral
        inputs, model = load_file(case / "inputs.safetensors"), MyMistral(case / "model")
        logits = model(inputs["calls.0.input_ids"], inputs["calls.0.positions"])
        np.save(out / "logits.npy", logits)
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.files import read_json
from tinymistral.files.consolidated import PARAMS_FILE, SAFETENSORS_FILE
from tinymistral.files.hub import find_checkpoint
from tinymistral.files.safetensors import SINGLE_FILE, read_file
from tinymistral.golden.compare.candidate import full_name
from tinymistral.golden.compare.texts import ASKED
from tinymistral.golden.files import read_npy, write_arrays
from tinymistral.golden.manifest import TEXT_KINDS
from tinymistral.golden.run import Adapter, CannotRun, Results, Settings
from tinymistral.golden.suite import Case, Suite
from tinymistral.text import one_line

MOST_SAID = 100_000_000  # bytes of error output
LAST_SAID = 10_000  # bytes that the last line is looked for in


def open_peer(suite: Suite, settings: Settings) -> Adapter:
    """Return what computes a case by the command of the settings."""
    try:
        words = shlex.split(settings.command or "")
    except ValueError as error:
        raise ValueError(f"--command: {error}") from None
    if not words or not any("{case}" in word for word in words):
        raise ValueError(
            "--command: expected a program and what it takes, with {case} and {out} where the two "
            "folders go, such as: --command 'python mine.py {case} {out}'"
        )
    if shutil.which(words[0]) is None:
        raise ValueError(f"--command: there is no program {words[0]!r:.100} here")

    def run(case: Case) -> Results:
        with tempfile.TemporaryDirectory(prefix="golden-", ignore_cleanup_errors=True) as scratch:
            inputs, out = Path(scratch) / "case", Path(scratch) / "out"
            inputs.mkdir()
            out.mkdir()
            write_case(suite, case, inputs)
            command = [
                word.replace("{case}", str(inputs)).replace("{out}", str(out)) for word in words
            ]
            run_command(command, Path(scratch) / "said", settings.timeout)
            return read_results(case, out)

    return run


def run_command(command: Sequence[str], said: Path, timeout: float) -> None:
    """Run a command for at most `timeout` seconds; its error output goes to the file `said`.

    A file rather than a pipe, which a process that outlives the command could hold open. Raises
    ValueError if the command fails or exceeds a limit.
    """
    deadline = time.monotonic() + timeout
    with (
        said.open("wb") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        ) as process,
    ):
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise ValueError(f"the command was ended after {timeout:g} s, see --timeout")
                if said.stat().st_size > MOST_SAID:
                    raise ValueError(
                        f"the command was ended after {MOST_SAID} bytes of error output"
                    )
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
        finally:
            end_group(process)
    if process.returncode:
        with said.open("rb") as file:
            file.seek(max(0, said.stat().st_size - LAST_SAID))
            lines = file.read(LAST_SAID).decode("utf-8", "replace").strip().splitlines()
        how = f"ended with exit code {process.returncode}"
        if process.returncode < 0:  # POSIX
            number = -process.returncode
            how = f"was ended by signal {number} ({signal.strsignal(number)})"
        raise ValueError(f"the command {how}: {lines[-1] if lines else 'it said nothing'}")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that began a session, and those of its session's group that still run."""
    with suppress(OSError):  # none is left
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def write_case(suite: Suite, case: Case, folder: Path) -> None:
    """Write the folder {case} of a case."""
    (folder / "case.json").write_text(json.dumps(asdict(case)), encoding="utf-8")
    if case.kind in TEXT_KINDS:
        entries = suite.document(case)
        document = {
            kind: [{asked: entry[asked]} for entry in entries.get(kind, [])]
            for kind, asked in ASKED.items()
        }
        (folder / "inputs.json").write_text(json.dumps(document), encoding="utf-8")
        return
    write_arrays(folder / "inputs.safetensors", suite.read(case).inputs)
    if case.model is not None:
        write_model(suite, case.model, folder / "model")


def write_model(suite: Suite, name: str, folder: Path) -> None:
    """Write a model as a checkpoint, or a link to the checkpoint that the suite only refers to."""
    model = suite.manifest.models[name]
    if model.weights is not None:
        folder.symlink_to(find_checkpoint(suite.checkpoint or "").resolve())
        return
    folder.mkdir()
    raw = model.layout == "raw"
    fields = json.dumps(dict(model.config))
    (folder / (PARAMS_FILE if raw else "config.json")).write_text(fields, encoding="utf-8")
    shutil.copyfile(suite.path(model), folder / (SAFETENSORS_FILE if raw else SINGLE_FILE))


def read_results(case: Case, out: Path) -> Results:
    """Read what a program wrote; CannotRun if it wrote nothing."""
    if case.kind in TEXT_KINDS:
        path = out / "results.json"
        if not path.exists():
            raise CannotRun("the command wrote no results.json")
        return read_json(path)
    found: dict[str, Any] = {}
    if (out / "results.safetensors").exists():
        found |= {n: np.array(x) for n, x in read_file(out / "results.safetensors").items()}
    for path in sorted(out.glob("*.npy")):
        found[path.name.removesuffix(".npy")] = _read_array(path)
    if not found:
        raise CannotRun("the command wrote no results.safetensors and no .npy files")
    return {full_name(case, name, case.expected or ()): x for name, x in found.items()}


def _read_array(path: Path) -> np.ndarray:
    try:
        return read_npy(path)
    except ValueError as error:
        raise ValueError(f"{path.name}: {one_line(error, 300)}") from None
