"""Writing weights as transformers does: one safetensors file, or shards and their index."""

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.checkpoint.checking import WEIGHT_DTYPES
from tinymistral.checkpoint.errors import CheckpointError, quoted
from tinymistral.checkpoint.reading import DTYPES, INDEX_FILE, SINGLE_FILE
from tinymistral.files import write_json

_TYPES = {dtype.name: name for name, dtype in DTYPES.items()}
_WEIGHTS_NAME = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors(\.index\.json)?")

Prepare = Callable[[str, np.ndarray], np.ndarray]  # name, tensor -> what is written in its place


def as_it_is(name: str, tensor: np.ndarray) -> np.ndarray:
    """Prepare nothing."""
    return tensor


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
            names = write_shards(Path(temporary), tensors, max_shard_size)
            if INDEX_FILE in names:
                # Without an index no half-replaced set of shards can be read.
                (folder / INDEX_FILE).unlink(missing_ok=True)
            for name in names:
                (Path(temporary) / name).replace(folder / name)
            for path in list(folder.iterdir()):
                if _WEIGHTS_NAME.fullmatch(path.name) and path.name not in names:
                    path.unlink()
    except OSError as error:
        raise CheckpointError(f"cannot write the weights to {folder}: {error}") from error


def write_shards(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    max_shard_size: int,
    prepare: Prepare = as_it_is,
) -> list[str]:
    """Write the files of `write_tensors` into an empty folder, as `write_file` does -> their names.

    The index is the last.
    """
    shards = _split(tensors, max_shard_size)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [SINGLE_FILE]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard, prepare)
    if len(shards) > 1:
        _write_index(folder / INDEX_FILE, dict(zip(names, shards, strict=True)))
        names.append(INDEX_FILE)
    return names


def write_file(path: Path, tensors: Mapping[str, np.ndarray], prepare: Prepare = as_it_is) -> None:
    """Write one safetensors file, with the bytes that safetensors itself would write.

    It would have all tensors in memory at once, in C order; here it is one. `prepare(name, tensor)`
    is called when a tensor's turn comes, and returns what is written: as large, of the same dtype.

    The header in JSON is filled up with spaces, so that the data starts at a multiple of eight;
    then come the tensors, widest dtype first, each dtype sorted by name.
    """
    types = {name: tensor.dtype.newbyteorder("=").name for name, tensor in tensors.items()}
    kinds = list(_TYPES)
    order = sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, kinds.index(types[n]), n))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _TYPES[types[name]],
            "shape": tensors[name].shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes_of(prepare(name, tensors[name])))


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """View an array as its bytes in a file; only one that lies otherwise in memory is copied."""
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    return little.reshape(-1).view(np.uint8)


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


def _write_index(path: Path, shards: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    size = sum(tensor.nbytes for shard in shards.values() for tensor in shard.values())
    weight_map = {name: file for file, shard in shards.items() for name in shard}
    write_json(path, {"metadata": {"total_size": size}, "weight_map": weight_map})
