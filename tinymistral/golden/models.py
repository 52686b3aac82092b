"""The models of a suite, opened on a backend: in either layout, or with something changed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinymistral.backend import Backend
from tinymistral.checkpoint import find_checkpoint, is_raw, load_checkpoint
from tinymistral.checkpoint.tensors import check_tensors, layer_count, raw_name, rotate_halves
from tinymistral.config import MistralConfig
from tinymistral.files import read_json
from tinymistral.files.consolidated import PARAMS_FILE, PTH_FILE, SAFETENSORS_FILE
from tinymistral.files.safetensors import INDEX_FILE, SINGLE_FILE
from tinymistral.golden.files import sha256_of
from tinymistral.golden.suite import Suite
from tinymistral.heads import MistralForCausalLM

if TYPE_CHECKING:
    from tinymistral.golden.suite import Model, Suite


Tensors = dict[str, np.ndarray]


def read_model(suite: Suite, name: str) -> tuple[MistralConfig, Tensors]:
    """Return a model's configuration, and its weights by the names of Hugging Face's layout.

    Those of a raw one get their names, and queries and keys their order, as in any raw checkpoint.
    """
    model = suite.manifest.models[name]
    if model.weights is not None:
        return open_external(suite, model)
    tensors = suite.tensors(model)
    where = f"{suite.folder / model.file}: model {name}"
    try:
        if model.layout == "raw":
            tied = "output.weight" not in tensors
            config = MistralConfig.from_params(model.config)
            config = dataclasses.replace(config, tie_word_embeddings=tied)
        else:
            config = MistralConfig.from_dict(model.config)
        # Before the expected names are listed: a configuration may claim any number of layers.
        if layer_count(tensors) != config.num_hidden_layers:
            raise ValueError(
                f"the config says {config.num_hidden_layers} layers, the file has "
                f"{layer_count(tensors)}; the two do not belong together"
            )
        shapes = MistralForCausalLM.parameter_shapes(config)
        stored = {raw_name(n) if model.layout == "raw" else n: n for n in shapes}
        check_tensors(tensors, {there: shapes[n] for there, n in stored.items()})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    named = {n: tensors[there] for there, n in stored.items()}
    if model.layout == "raw":
        for n in named:
            if n.endswith(("q_proj.weight", "k_proj.weight")):
                named[n] = rotate_halves(named[n], config.head_dim)
    return config, named


def open_model(
    suite: Suite,
    name: str,
    backend: Backend,
    config: MistralConfig | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> MistralForCausalLM:
    """Make a model of a suite on a backend; with another configuration, or other weights, if given.

    Weights are named as in Hugging Face's layout, and must be those that the configuration calls
    for.
    """
    own_config, own_tensors = read_model(suite, name)
    return MistralForCausalLM(
        own_config if config is None else config,
        backend=backend,
        tensors=own_tensors if tensors is None else tensors,
    )


SAMPLES, SAMPLE = 16, 256  # of each tensor, bytes


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
