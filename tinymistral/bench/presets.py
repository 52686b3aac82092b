"""Checkpoints with random weights in well-known shapes, written once to a cache folder."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.files.safetensors import INDEX_FILE, SINGLE_FILE
from tinymistral.heads import MistralForCausalLM
from tinymistral.pretrained import BYTES, random_tensors

PRESETS = {
    "mistral-7b-v0.1": MistralConfig(),
    # HuggingFaceTB/SmolLM2-135M is a Llama: a Mistral without a window.
    "smollm2-135m": MistralConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_theta=100000.0,
        sliding_window=None,
        tie_word_embeddings=True,
    ),
    "125m": MistralConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        sliding_window=256,
    ),
}
STORED = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def cache_folder() -> Path:
    """Return the folder for what can be made again."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tinymistral"


def checkpoint(preset: str, layers: int | None = None, dtype: str = "bfloat16") -> Path:
    """Return the folder of a preset's checkpoint, which is written if it is not there.

    All layers have the same weights, so that one is held in memory, and each its own in the file.
    """
    shape = PRESETS[preset]
    layers = shape.num_hidden_layers if layers is None else layers
    folder = cache_folder() / f"{preset}-{layers}-layers-{dtype}"
    if any((folder / name).exists() for name in (SINGLE_FILE, INDEX_FILE)):  # written last
        return folder
    config = dataclasses.replace(shape, num_hidden_layers=layers, dtype=dtype)
    one = dataclasses.replace(config, num_hidden_layers=1)
    tensors = {
        name: array.astype(STORED[dtype])
        for name, array in random_tensors(
            MistralForCausalLM.parameter_shapes(one), one, seed=0
        ).items()
    }
    names = MistralForCausalLM.parameter_shapes(config)
    tensors = {name: tensors[of_one_layer(name)] for name in names}
    size = sum(array.size for array in tensors.values()) * (BYTES[dtype] or 0)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise ValueError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, {preset} with {layers} layers needs "
            f"{size / 1e9:.1f} GB; take fewer --layers, or another folder as XDG_CACHE_HOME"
        )
    MistralForCausalLM(config, tensors=tensors).save_pretrained(folder)
    return folder


def of_one_layer(name: str) -> str:
    """Return the name of the first layer's tensor: model.layers.7.x -> model.layers.0.x."""
    return re.sub(r"\.layers\.\d+\.", ".layers.0.", name)
