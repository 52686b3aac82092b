"""Reading a folder of safetensors files, as Hugging Face lays them out, without copying a tensor.

A file is eight bytes that hold the header's length, the header in JSON, and the data:

    {"model.norm.weight": {"dtype": "BF16", "shape": [4096], "data_offsets": [0, 8192]}, ...}

The offsets count from the end of the header, so the data is as unaligned as the header is long.
Format: https://github.com/huggingface/safetensors#format
"""

import mmap
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from tinymistral.checkpoint.errors import CheckpointError, listed, quoted, shortened
from tinymistral.files import JSON_LIMIT, check_is_file, parse_json, read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# The types of the format that NumPy has. The others (8-bit floats and below) are quantized weights.
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

_SHARD_NAME = re.compile(r"\w[\w .+-]{0,200}\.safetensors")  # no separator, drive or control code
GIT_LFS_POINTER = b"version https://git-lfs"  # stands in for a large file in a git clone

# Whatever a broken or hostile file makes the readers below raise.
_READ_ERRORS = (SafetensorError, OSError, ValueError, RecursionError, MemoryError)


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Map the weights of a checkpoint folder: tensor name -> read-only array.

    The arrays are views of the files: nothing is read before it is used, and the files must stay
    as they are while an array lives (replacing them, as `write_tensors` does, is fine). bfloat16 is
    `ml_dtypes.bfloat16`; an array need not be aligned.

    As in transformers, `model.safetensors` comes first, then the shards that
    `model.safetensors.index.json` names. Raises CheckpointError.
    """
    folder = Path(folder)
    try:
        present = sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError) as error:
        raise cannot_read(folder, error) from error
    if SINGLE_FILE in present:
        return read_file(folder / SINGLE_FILE)
    if INDEX_FILE in present:
        return _read_shards(folder)
    weights = [n for n in present if n.endswith((".safetensors", ".bin", ".pth", ".pt", ".gguf"))]
    raise CheckpointError(
        f"no {SINGLE_FILE} and no {INDEX_FILE} in {folder}: it holds "
        + (f"{listed(map(quoted, weights))}, which this does not read" if weights else "no weights")
        + "; a checkpoint in Hugging Face safetensors format is needed"
    )


def _read_shards(folder: Path) -> dict[str, np.ndarray]:
    index = folder / INDEX_FILE
    weight_map = _read_weight_map(index)
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(weight_map.values())):
        found = read_file(folder / shard)
        for name in found:
            if weight_map.get(name) != shard:
                where = quoted(weight_map[name]) if name in weight_map else "nowhere"
                raise CheckpointError(
                    f"{index} does not fit its shards: tensor {quoted(name)} is in "
                    f"{quoted(shard)}, the index says {where}; download the checkpoint again"
                )
        tensors.update(found)
    absent = [f"{quoted(name)} ({weight_map[name]})" for name in weight_map if name not in tensors]
    if absent:
        raise CheckpointError(
            f"{index} does not fit its shards: not where it says are {listed(absent)}; "
            "download the checkpoint again"
        )
    return tensors


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = read_json(index).get("weight_map")
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f'{index}: expected {{"weight_map": {{tensor name: file name, ...}}}}'
        )
    for file in weight_map.values():
        if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file):
            raise CheckpointError(
                f"{index}: {quoted(file)} is not the plain name of a .safetensors file"
            )
    return weight_map


def read_file(path: Path) -> dict[str, np.ndarray]:
    """Map the tensors of one safetensors file, as `read_tensors` does; CheckpointError."""
    try:
        check_is_file(path)
        with path.open("rb") as file:
            beginning = file.read(len(GIT_LFS_POINTER))
        if beginning == GIT_LFS_POINTER:
            raise ValueError("it only stands in for the weights; to get them: git lfs pull")
        header_length = int.from_bytes(beginning[:8], "little")
        if header_length > JSON_LIMIT:
            raise ValueError(
                f"its header claims {header_length} bytes, over {JSON_LIMIT}; "
                "the file is damaged, download it again"
            )
        with safe_open(path, framework="np"):
            pass  # opening makes safetensors check the header, the offsets and the file's length
        with path.open("rb") as file:
            file.seek(8)
            header = parse_json(file.read(header_length))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header.pop("__metadata__", None)
        unreadable = [
            f"{quoted(name)} is {entry['dtype']}"
            for name, entry in header.items()
            if entry["dtype"] not in DTYPES
        ]
        if unreadable:
            raise ValueError(
                f"tensor {listed(unreadable)}; "
                "weights are read in F32, F16 or BF16, quantized ones are not"
            )
        start = 8 + header_length
        return {name: _view(mapped, start, entry) for name, entry in header.items()}
    except _READ_ERRORS as error:
        raise cannot_read(path, error) from error


def _view(mapped: mmap.mmap, start: int, entry: dict[str, Any]) -> np.ndarray:
    dtype = DTYPES[entry["dtype"]]
    begin, end = entry["data_offsets"]
    count = (end - begin) // dtype.itemsize
    return np.frombuffer(mapped, dtype, count, start + begin).reshape(entry["shape"])


def cannot_read(path: Path, error: BaseException) -> CheckpointError:
    """Return the error that says why a file cannot be read."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, SafetensorError):
        reason += "; the file is damaged, download it again"
    return CheckpointError(f"cannot read {path}: {shortened(reason, 2000)}")
