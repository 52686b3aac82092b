"""Runs the suite as a third party does: installed, in a process and a folder of its own."""

import importlib.resources
import os
import re
import subprocess
from pathlib import Path

from hypothesis import settings

EXAMPLES = str(settings.get_profile("ci").max_examples)
SUITE = ("-m", "pytest", "--pyargs", "tinymistral.conformance", "--tinymistral-backend")
LIKE_CI = ("--tinymistral-examples", EXAMPLES, "--hypothesis-profile=ci", "-p", "no:cacheprovider")


def run(command: list[str], folder: Path, **variables: str) -> str:
    """Run a command that has to succeed, with no settings of this run of pytest -> its output."""
    ours = ("PYTEST_", "TINYMISTRAL_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        command,
        cwd=folder,
        env=env | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def laws() -> int:
    """Count the laws in the files of the suite."""
    folder = Path(str(importlib.resources.files("tinymistral.conformance")))
    files = [file.read_text("utf-8") for file in folder.glob("test_*.py")]
    return sum(len(re.findall(r"^def test_", text, re.MULTILINE)) for text in files)


def check_all_laws_ran(out: str, backend: str) -> None:
    """Check what the suite says at its end of a backend that is right."""
    assert f"\nbackend {backend} on CPU, in float32, float64" in out
    assert f"\n{laws()} of {laws()} laws ran, 0 failed\n" in out, out
