"""The models of a suite, opened in either layout; and checkpoints that a suite only refers to.

A manifest identifies weights that are not in the suite:

    "weights": {"fingerprint": "3f...", "parameters": 7241732096,
                "files": [{"name": "model.safetensors", "size": 14483498224}, ...]}

The fingerprint is the sha256 of every tensor's name, dtype and shape, sorted by name in Hugging
Face's layout, each followed by 16 samples of 256 bytes. So it takes no longer for 14 GB than for
one, and is the same for one file, shards or a raw checkpoint. A file's entry may have a sha256,
for people; it is not verified here.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.backend import Backend
from tinymistral.checkpoint import find_checkpoint, is_raw, load_checkpoint
from tinymistral.checkpoint.tensors import check_tensors, layer_count, raw_name, rotate_halves
from tinymistral.config import MistralConfig
from tinymistral.files import read_json
from tinymistral.files.consolidated import PARAMS_FILE, PTH_FILE, SAFETENSORS_FILE
from tinymistral.files.safetensors import INDEX_FILE, SINGLE_FILE
from tinymistral.golden.files import Arrays
from tinymistral.golden.suite import Model, Suite
from tinymistral.heads import MistralForCausalLM

SAMPLES, SAMPLE = 16, 256  # of each tensor; bytes


def open_model(
    suite: Suite,
    name: str,
    backend: Backend,
    config: MistralConfig | None = None,
    tensors: Arrays | None = None,
) -> MistralForCausalLM:
    """Make a model of a suite on a backend, optionally with another configuration or weights.

    Weights are named as in Hugging Face's layout, and must fit the configuration.
    """
    own_config, own_tensors = read_model(suite, name)
    return MistralForCausalLM(
        own_config if config is None else config,
        backend=backend,
        tensors=own_tensors if tensors is None else tensors,
    )


def read_model(suite: Suite, name: str) -> tuple[MistralConfig, Arrays]:
    """Return a model's configuration and its weights, always in Hugging Face's layout."""
    model = suite.manifest.models[name]
    if model.weights is not None:
        return open_external(suite, model)
    tensors, raw = suite.tensors(model), model.layout == "raw"
    try:
        if raw:
            config = MistralConfig.from_params(model.config)
            tied = "output.weight" not in tensors
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
        stored = {n: raw_name(n) if raw else n for n in shapes}
        check_tensors(tensors, {stored[n]: shape for n, shape in shapes.items()})
    except ValueError as error:
        raise ValueError(f"{suite.folder / model.file}: model {name}: {error}") from None
    named = {n: tensors[stored[n]] for n in shapes}
    for n in named if raw else ():
        if n.endswith(("q_proj.weight", "k_proj.weight")):
            named[n] = rotate_halves(named[n], config.head_dim)
    return config, named


def open_external(suite: Suite, model: Model) -> tuple[MistralConfig, Arrays]:
    """Open the checkpoint given with a suite; ValueError if it is not the model's."""
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


def fingerprint(tensors: Arrays) -> str:
    """Return a hash that identifies these tensors, from samples of each."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = "x".join(map(str, tensor.shape))
        digest.update(f"{name} {tensor.dtype.name} {shape}\n".encode())
        stored = tensor.astype(tensor.dtype.newbyteorder("<"), order="C", copy=False)
        flat = stored.reshape(-1).view(np.uint8)
        for start in np.linspace(0, max(0, flat.size - SAMPLE), SAMPLES).astype(np.int64):
            digest.update(flat[start : start + SAMPLE].tobytes())
    return digest.hexdigest()


def describe(folder: Path, tensors: Arrays) -> dict[str, Any]:
    """Return a manifest's entry for a checkpoint's weights."""
    return {
        "fingerprint": fingerprint(tensors),
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "files": [{"name": n, "size": (folder / n).stat().st_size} for n in files_of(folder)],
    }


def files_of(folder: Path) -> list[str]:
    """Return the names of the files that a checkpoint's configuration and weights are read from."""
    if is_raw(folder):
        both = (folder / SAFETENSORS_FILE).exists()
        return [PARAMS_FILE, SAFETENSORS_FILE if both else PTH_FILE]
    if (folder / SINGLE_FILE).exists():
        return ["config.json", SINGLE_FILE]
    shards = read_json(folder / INDEX_FILE)["weight_map"]
    return ["config.json", INDEX_FILE, *sorted(set(shards.values()))]


def unavailable_models(suite: Suite, cases: Iterable[str]) -> dict[str, str]:
    """Return the models that cannot be opened from the checkpoint that was given, and why.

    Raises ValueError, once and not for each case, if that is all of them.
    """
    names = sorted({suite.case(case).model or "" for case in cases} - {""})
    models = [suite.manifest.models[name] for name in names]
    external = [model for model in models if model.weights is not None]
    problems = {}
    for model in external:
        try:
            open_external(suite, model)
        except ValueError as error:
            problems[model.id] = str(error)
    if problems and len(problems) == len(external):
        raise ValueError(next(iter(problems.values())))
    return problems
