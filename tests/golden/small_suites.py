"""Suites of one case of v1, to be damaged in one place."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinymistral.golden.suite import V1

Manifest = dict[str, Any]


def small_suite(folder: Path, case: str = "rms-norm") -> Path:
    """Copy a case of v1, and its model if it has one, into a folder."""
    manifest = json.loads((V1 / "manifest.json").read_text(encoding="utf-8"))
    cases = [entry for entry in manifest["cases"] if entry["id"] == case]
    models = [entry for entry in manifest["models"] if entry["id"] == cases[0].get("model")]
    for part in ("models", "cases"):
        (folder / part).mkdir()
    for entry in [*cases, *models]:
        shutil.copyfile(V1 / entry["file"], folder / entry["file"])
    manifest |= {"cases": cases, "models": models}
    write(folder, manifest)
    return folder


def change(folder: Path, edit: Callable[[Manifest], Any]) -> None:
    """Edit the manifest of a suite."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    edit(manifest)
    write(folder, manifest)


def rewrite(folder: Path, part: str, content: bytes) -> None:
    """Replace the file of the only entry of `part`, with a sha256 that is right for it."""

    def edit(manifest: Manifest) -> None:
        entry = manifest[part][0]
        (folder / entry["file"]).write_bytes(content)
        entry["sha256"] = hashlib.sha256(content).hexdigest()

    change(folder, edit)


def write(folder: Path, manifest: Manifest) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
