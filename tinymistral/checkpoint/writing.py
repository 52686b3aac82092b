"""Writing weights as transformers does: one safetensors file, or shards and their index."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tinymistral.checkpoint.checking import WEIGHT_DTYPES
from tinymistral.checkpoint.errors import CheckpointError, quoted
from tinymistral.checkpoint.reading import INDEX_FILE, SINGLE_FILE
from tinymistral.files import whole_file, write_json

_WEIGHTS_NAME = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors(\.index\.json)?")


def write_tensors(
    folder: Path, tensors: Mapping[str, np.ndarray], max_shard_size: int = 5_000_000_000
) -> None:
    """Write float32, float16 or bfloat16 arrays to `folder`, which is made if it is not there.

    They become `model.safetensors`, or, when they are more than `max_shard_size` bytes,
    `model-00001-of-0000N.safetensors` ... and `model.safetensors.index.json`. A shard is larger
    only if it holds a single tensor that is.

    Every file is complete before the first one takes its place, by renaming, so the arrays may be
    views of the files that are replaced. An earlier save in the same folder is removed. Stopped
    between two renames, a folder may be left that is refused, never one that reads wrongly.
    Raises CheckpointError.
    """
    folder = Path(folder)
    _check(tensors, max_shard_size)
    shards = _split(tensors, max_shard_size)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [SINGLE_FILE]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
            staging = Path(temporary)
            for name, shard in zip(names, shards, strict=True):
                _write_file(staging / name, shard)
            if len(shards) > 1:
                _write_index(staging / INDEX_FILE, dict(zip(names, shards, strict=True)))
                names.append(INDEX_FILE)
                # Without an index no half-replaced set of shards can be read.
                (folder / INDEX_FILE).unlink(missing_ok=True)
            for name in names:
                (staging / name).replace(folder / name)
            for path in list(folder.iterdir()):
                if _WEIGHTS_NAME.fullmatch(path.name) and path.name not in names:
                    path.unlink()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the weights to {folder}: {error}") from error


def _check(tensors: Mapping[str, np.ndarray], max_shard_size: int) -> None:
    if max_shard_size < 1:
        raise CheckpointError(f"max_shard_size is {max_shard_size}, expected 1 byte or more")
    if "__metadata__" in tensors:
        raise CheckpointError("no tensor can be named '__metadata__': the format uses that name")
    for name, tensor in tensors.items():
        if tensor.dtype.newbyteorder("=") not in WEIGHT_DTYPES:
            raise CheckpointError(
                f"cannot write {quoted(name)} as {tensor.dtype}: "
                "convert it to float32, float16 or bfloat16 first"
            )


def _split(tensors: Mapping[str, np.ndarray], limit: int) -> list[dict[str, np.ndarray]]:
    """Fill shards in the order of the names; a tensor larger than `limit` gets its own."""
    shards: list[dict[str, np.ndarray]] = []
    current: dict[str, np.ndarray] = {}
    size = 0
    for name, tensor in tensors.items():
        if tensor.nbytes > limit:
            shards.append({name: tensor})
            continue
        if size + tensor.nbytes > limit:
            shards.append(current)
            current, size = {}, 0
        current[name] = tensor
        size += tensor.nbytes
    if current or not shards:
        shards.append(current)
    return shards


def _write_file(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    # safetensors writes from the arrays' memory, taken to be in C order; big-endian ones it swaps.
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with whole_file(path) as temporary:
        save_file(contiguous, temporary, metadata={"format": "pt"})


def _write_index(path: Path, shards: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    size = sum(tensor.nbytes for shard in shards.values() for tensor in shard.values())
    weight_map = {name: file for file, shard in shards.items() for name in shard}
    write_json(path, {"metadata": {"total_size": size}, "weight_map": weight_map})
