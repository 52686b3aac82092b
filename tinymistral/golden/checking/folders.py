"""The folder of a dump: which of its files are of which case."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

REMEDY = "give yourself the right to read it, or have it written anew"


def files_by_case(path: Path, cases: Iterable[str]) -> dict[str, list[Path]]:
    """Find the files of each case, and what else looks as if it were of one."""
    files: dict[str, list[Path]] = {}
    for file in _listed(path):
        if file.suffix in (".safetensors", ".json"):
            files.setdefault(file.stem, []).append(file)
        elif is_folder(file) and (file.name in cases or _has_npy(file)):
            files.setdefault(file.name, []).append(file)  # a case's even if it is empty
    return files


def _has_npy(folder: Path) -> bool:
    try:
        return bool(npy_files(folder))
    except ValueError:  # who knows
        return True


def is_folder(path: Path) -> bool:
    """Tell whether it is a folder; ValueError if one may not look."""
    try:
        return path.is_dir()
    except OSError as error:
        raise ValueError(f"{path}: it cannot be read: {error.strerror}; {REMEDY}") from None


def npy_files(folder: Path) -> list[Path]:
    """Return the arrays in a folder; ValueError if it cannot be read."""
    return [file for file in _listed(folder) if file.suffix == ".npy"]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(
            f"{folder}: this folder cannot be read: {error.strerror}; {REMEDY}"
        ) from None
