"""Weights that are no part of a suite: a checkpoint that stays where it is.

A manifest says by what one knows it:

    "weights": {"fingerprint": "3f...", "parameters": 7241732096,
                "files": [{"name": "model.safetensors", "size": 14483498224}, ...]}

The fingerprint is the sha256 of every tensor's name, dtype and shape, by name as in Hugging Face's
layout, each followed by 16 samples of 256 bytes, from its beginning to its end. So it takes no
longer for 14 GB than for one, and is the same for one file, shards or a raw checkpoint. A file's
own sha256 is there where it was asked for; it is for people, and not looked at here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinymistral.checkpoint import find_checkpoint, is_raw, load_checkpoint
from tinymistral.config import MistralConfig
from tinymistral.files import read_json
from tinymistral.files.consolidated import PARAMS_FILE, PTH_FILE, SAFETENSORS_FILE
from tinymistral.files.safetensors import INDEX_FILE, SINGLE_FILE
from tinymistral.golden.hashing import sha256_of

if TYPE_CHECKING:
    from tinymistral.golden.suite import Model, Suite

SAMPLES, SAMPLE = 16, 256  # of each tensor, bytes

Tensors = Mapping[str, np.ndarray]


def fingerprint(tensors: Tensors) -> str:
    """Return what tells these tensors from others, having looked at a little of each."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = "x".join(map(str, tensor.shape))
        found.update(f"{name} {tensor.dtype.name} {shape}\n".encode())
        stored = tensor.astype(tensor.dtype.newbyteorder("<"), order="C", copy=False)
        flat = stored.reshape(-1).view(np.uint8)
        for start in np.linspace(0, max(0, flat.size - SAMPLE), SAMPLES).astype(np.int64):
            found.update(flat[start : start + SAMPLE].tobytes())
    return found.hexdigest()


def describe(
    folder: Path, tensors: Tensors, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Return what a manifest says of a checkpoint's weights.

    With `progress(done, total)`, which is told of bytes, every file is read and hashed.
    """
    paths = [folder / name for name in files_of(folder)]
    files: list[dict[str, Any]] = [{"name": p.name, "size": p.stat().st_size} for p in paths]
    if progress is not None:
        total, done = sum(entry["size"] for entry in files), 0

        def tell(size: int) -> None:
            nonlocal done
            done += size
            progress(done, total)

        for entry, path in zip(files, paths, strict=True):
            entry["sha256"] = sha256_of(path, tell)
    return {
        "fingerprint": fingerprint(tensors),
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "files": files,
    }


def files_of(folder: Path) -> list[str]:
    """Name the files that a checkpoint's configuration and weights are read from."""
    if is_raw(folder):
        both = (folder / SAFETENSORS_FILE).exists()
        return [PARAMS_FILE, SAFETENSORS_FILE if both else PTH_FILE]
    if (folder / SINGLE_FILE).exists():
        return ["config.json", SINGLE_FILE]
    shards = read_json(folder / INDEX_FILE)["weight_map"]
    return ["config.json", INDEX_FILE, *sorted(set(shards.values()))]


def open_external(suite: Suite, model: Model) -> tuple[MistralConfig, dict[str, np.ndarray]]:
    """Open the checkpoint that a suite was given; ValueError if it is not the model's."""
    if suite.checkpoint is None:
        suite.path(model)  # raises, and says what to do
    folder = find_checkpoint(suite.checkpoint or "")
    _, tensors = load_checkpoint(folder)
    found, wanted = fingerprint(tensors), (model.weights or {}).get("fingerprint")
    if found != wanted:
        raise ValueError(
            f"{folder}: not the checkpoint that model {model.id!r:.60} of suite "
            f"{suite.manifest.suite!r:.60} was recorded from: its fingerprint is {found[:12]}..., "
            f"the manifest says {str(wanted)[:12]}...; give another folder"
        )
    return MistralConfig.from_dict(model.config), tensors
