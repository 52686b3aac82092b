"""Conversion between raw checkpoints and Hugging Face's format, and from GGUF, by tensor."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.checkpoint.gguf import open_gguf
from tinymistral.checkpoint.loading import load_checkpoint, read_raw_unpermuted
from tinymistral.checkpoint.tensors import pair_rows, raw_name, rotate_halves
from tinymistral.config import PARAMS_NAMES, MistralConfig
from tinymistral.files import CheckpointError, parse_size, write_json
from tinymistral.files.consolidated import CONFIG_FILE, PARAMS_FILE, SAFETENSORS_FILE, is_raw
from tinymistral.files.gguf import is_gguf
from tinymistral.files.hub import find_checkpoint
from tinymistral.files.recognition import refuse_folder
from tinymistral.files.safetensors import write_file, write_shards
from tinymistral.files.saving import strangers, whole_folder
from tinymistral.sampling import read_generation_config, write_generation_config
from tinymistral.text import listed, quoted, short
from tinymistral.tokenizer import MistralTokenizer

DTYPES = ("bfloat16", "float16", "float32")  # of the weights that a GGUF file becomes
REORDERED = ("q_proj.weight", "k_proj.weight", "wq.weight", "wk.weight")


@dataclass(frozen=True)
class Converted:
    """What was written: the configuration, the number of weights, and their size in bytes."""

    config: MistralConfig
    parameters: int
    size: int


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str = "hf",
    dtype: str | None = None,
    model_size: str | None = None,
    max_shard_size: int | str = "5GB",
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Converted:
    """Convert a checkpoint to the format `to`, "hf" or "raw", in the folder `target`.

    source: a folder, or a hub name in the local cache, in the other format; or a GGUF file, of
        several the first.
    dtype: of the weights, if `source` is a GGUF file: bfloat16, float16 or float32.
    model_size: such as 7B; compared with the checkpoint.
    max_shard_size: as in `write_tensors`, bytes or such as "5GB"; a raw checkpoint is one file.
    force: replace a checkpoint that is already in `target`, if that folder holds nothing else.
    progress: called with the bytes that are written and their total.

    Each weight of a checkpoint keeps its dtype and its bits; at most one is in memory. The folder
    appears complete or not at all, see `whole_folder`. A warning lists the fields that
    `params.json` does not have. Raises ValueError.
    """
    given = target
    source = Path(source) if is_gguf(source) else find_checkpoint(source)
    target = Path(os.path.realpath(target))  # which accepts a loop of links
    _check_formats(source, to, dtype)
    _check_target(given, target, source.resolve(), force)
    shard_size = parse_size(max_shard_size)
    opened = open_gguf(source, dtype or DTYPES[0]) if is_gguf(source) else None
    reorder, lost = rotate_halves, {}
    if opened:
        config, tensors = opened.config, opened.placeholders()
        if not opened.tokenizer_files:
            raise CheckpointError(f"{source} has no vocabulary, tokenizer.ggml; take another file")
    elif to == "hf":
        config, tensors = read_raw_unpermuted(source)
    else:
        config, tensors = load_checkpoint(source)
        reorder, lost = pair_rows, lost_in_raw(config, read_generation_config(source))
    parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
    check_size(model_size, parameters)
    if opened:
        save_tokenizer = opened.save_tokenizer
    else:
        tokenizer = MistralTokenizer.from_pretrained(source)
        save_tokenizer = partial(tokenizer.save_pretrained, raw=to == "raw")

    done, total = 0, sum(tensor.nbytes for tensor in tensors.values())

    def prepare(name: str, tensor: np.ndarray) -> np.ndarray:
        nonlocal done
        progress(done, total)
        done += tensor.nbytes
        if opened:
            tensor = opened.read(name)
        return reorder(tensor, config.head_dim) if name.endswith(REORDERED) else tensor

    try:
        with whole_folder(target, force) as new:
            if to == "hf":
                write_shards(new, tensors, shard_size, prepare)
                config.save_pretrained(new)
                write_generation_config(new, config)
            else:
                named = {raw_name(name): tensor for name, tensor in tensors.items()}
                write_file(new / SAFETENSORS_FILE, named, prepare)
                write_json(new / PARAMS_FILE, params_of(config))
            save_tokenizer(new)
    except OSError as error:
        raise CheckpointError(f"{given}: cannot be written: {error.strerror or error}") from error
    if lost:
        fields = listed(f"{name} ({short(value)})" for name, value in lost.items())
        warnings.warn(f"{PARAMS_FILE} has no place for {fields}", stacklevel=2)
    return Converted(config, parameters, total)


def _check_formats(source: Path, to: str, dtype: str | None) -> None:
    if to not in ("hf", "raw"):
        raise ValueError(f"to: expected 'hf' or 'raw', got {to!r}")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {short(dtype)}")
    if is_gguf(source):
        if to == "raw":
            raise ValueError(
                f"{source}: a GGUF file is converted by --to hf; then that by --to raw"
            )
        return
    if dtype is not None:
        raise ValueError(f"dtype: {dtype} is for GGUF files; here each weight keeps its bits")
    found = PARAMS_FILE if is_raw(source) else CONFIG_FILE
    if not (source / found).exists():
        refuse_folder(source)
    if is_raw(source) != (to == "hf"):
        what, other = ("raw", "hf") if to == "raw" else ("in Hugging Face's format", "raw")
        raise CheckpointError(
            f"{source} is {what} already: it has {found}; to convert it the other way: --to {other}"
        )


def _check_target(given: str | Path, target: Path, source: Path, force: bool) -> None:
    """Refuse to replace a folder that holds anything but a checkpoint, or the one that is read.

    The paths are resolved.
    """
    if target == source or target in source.parents or source in target.parents:
        raise ValueError(f"{given}: is, holds or lies in the input's own folder; give another")
    here = Path.cwd().resolve()
    try:
        if not target.exists():
            return
        if not target.is_dir():
            raise ValueError(f"{given}: is a file; give a folder that is not there yet")
        if target in (here, *here.parents) or os.path.ismount(target):
            raise ValueError(f"{given}: is in use, it cannot be replaced; give a folder inside it")
        others = strangers(target)
        if not any(target.iterdir()) or (force and not others):
            return
    except OSError as error:
        raise CheckpointError(f"{given}: cannot be opened: {error.strerror or error}") from error
    if force:
        raise ValueError(
            f"{given}: holds {listed(map(quoted, others))}, which no conversion wrote, so it is "
            "not replaced; give another folder"
        )
    advice = "" if others else ", or --force"
    raise ValueError(f"{given}: is there already; give another folder{advice}")


def check_size(model_size: str | None, parameters: int) -> None:
    """Raise a ValueError if a size such as 7B is not within 10% of the number of parameters."""
    if model_size is None:
        return
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)([KMB]?)", model_size.upper(), re.ASCII)
    if not match:
        raise ValueError(
            f"model_size: expected a number such as 7B, 260K or 19808, got {short(model_size)}"
        )
    size = float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}[match[2]]
    if not 0.9 * size <= parameters <= 1.1 * size:
        raise CheckpointError(
            f"model_size: {model_size} was given, but the checkpoint has {parameters:,} parameters"
        )


def params_of(config: MistralConfig) -> dict[str, Any]:
    """Return the params.json of a configuration."""
    fields = {raw: getattr(config, name) for raw, name in PARAMS_NAMES.items()}
    return {name: value for name, value in fields.items() if value is not None}


def lost_in_raw(config: MistralConfig, generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a raw checkpoint does not store.

    `generation` are those of generation_config.json, which a raw checkpoint does not have.
    """
    read_again = dataclasses.replace(
        MistralConfig.from_params(params_of(config)),
        tie_word_embeddings=config.tie_word_embeddings,  # what the tensors say
        dtype=config.dtype,
    ).to_dict()
    fields = config.to_dict()
    lost = {name: value for name, value in fields.items() if value != read_again.get(name)}
    return lost | {n: value for n, value in generation.items() if value != fields.get(n)}
