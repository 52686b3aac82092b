"""Safetensors files and folders of them in Hugging Face's layout: mapped when read, not copied.

A file is eight bytes that hold the header's length, the header in JSON, and the data:

    {"model.norm.weight": {"dtype": "BF16", "shape": [4096], "data_offsets": [0, 8192]}, ...}

The offsets count from the end of the header, whose length decides how the data is aligned.
Format: https://github.com/huggingface/safetensors#format
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from tinymistral.files import (
    JSON_LIMIT,
    CheckpointError,
    MappedFile,
    check_is_file,
    is_named,
    mapped_files,
    parse_json,
    read_json,
    write_json,
)
from tinymistral.files.recognition import beginning_of, refuse_files
from tinymistral.text import listed, quoted, shorten

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# The types of the format that NumPy has, in the order in which the library writes tensors. The
# others (8-bit floats and below) are quantized weights.
DTYPES = {
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
WEIGHT_DTYPES = tuple(DTYPES[name] for name in ("F64", "F32", "BF16", "F16"))

_SHARD_NAME = re.compile(r"\w[\w .+-]{0,200}\.safetensors")  # no separator, drive or control code
WEIGHTS_NAME = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors(\.index\.json)?")

Prepare = Callable[[str, np.ndarray], np.ndarray]  # name, tensor -> what is written in its place

# What the readers below raise for a broken or hostile file.
_READ_ERRORS = (SafetensorError, OSError, ValueError, MemoryError)


def read_tensors(
    folder: Path, ignorable: Callable[[str], bool] = lambda name: False
) -> dict[str, np.ndarray]:
    """Map the weights of a checkpoint folder: tensor name -> read-only array.

    The arrays are views of the files: nothing is read before it is used, and the files must not be
    changed while an array lives (replacing them, as a save does, is fine; see `MappedFile`).
    bfloat16 is `ml_dtypes.bfloat16`; an array need not be aligned.

    As in transformers, `model.safetensors` is preferred to the shards that
    `model.safetensors.index.json` lists. Raises CheckpointError, also where index and shards
    disagree about a tensor, unless `ignorable(name)` is true.
    """
    folder = Path(folder)
    try:
        present = sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError) as error:
        raise cannot_read(folder, error) from error
    if SINGLE_FILE in present:
        return read_file(folder / SINGLE_FILE)
    if INDEX_FILE in present:
        return _read_shards(folder, ignorable)
    refuse_files(folder)
    weights = [n for n in present if n.endswith((".safetensors", ".bin", ".pth", ".pt", ".gguf"))]
    raise CheckpointError(
        f"no {SINGLE_FILE} and no {INDEX_FILE} in {folder}: it holds "
        + (f"{listed(map(quoted, weights))}, which this does not read" if weights else "no weights")
        + "; a checkpoint in Hugging Face safetensors format is needed"
    )


def _read_shards(folder: Path, ignorable: Callable[[str], bool]) -> dict[str, np.ndarray]:
    index = folder / INDEX_FILE
    weight_map = _read_weight_map(index)
    tensors: dict[str, np.ndarray] = {}
    needed = {shard for name, shard in weight_map.items() if not ignorable(name)}
    for shard in sorted(set(weight_map.values())):
        if shard not in needed and not is_named(folder / shard):
            continue
        found = read_file(folder / shard)
        for name in found:
            if weight_map.get(name) != shard and not ignorable(name):
                where = quoted(weight_map[name]) if name in weight_map else "nowhere"
                raise CheckpointError(
                    f"{index} does not fit its shards: tensor {quoted(name)} is in "
                    f"{quoted(shard)}, the index says {where}; download the checkpoint again"
                )
        tensors.update(found)
    absent = [
        f"{quoted(name)} ({shard})"
        for name, shard in weight_map.items()
        if name not in tensors and not ignorable(name)
    ]
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
    """Map the tensors of one safetensors file as `read_tensors` does. Raises CheckpointError."""
    try:
        check_is_file(path)
        with path.open("rb") as file:
            beginning = file.read(64)
            header_length = int.from_bytes(beginning[:8], "little")
            if header_length > JSON_LIMIT:
                if what := beginning_of(beginning):
                    raise ValueError(f"it is {what}")
                raise ValueError(
                    f"its header claims {header_length} bytes, over {JSON_LIMIT}; "
                    "the file is damaged, download it again"
                )
            mapped = MappedFile(file)
            # The open file by another name, so that no other file can take its place. (Windows has
            # no such name, but there an open file cannot be replaced.)
            same = Path(f"/dev/fd/{file.fileno()}")
            with safe_open(same if same.exists() else path, framework="np"):
                pass  # opening makes safetensors check the header, offsets and the file's length
            file.seek(8)
            header = parse_json(file.read(header_length))
            mapped.check()
        header.pop("__metadata__", None)
        unreadable = [
            f"{quoted(name)} is {entry['dtype']}"
            for name, entry in header.items()
            if entry["dtype"] not in DTYPES
        ]
        if unreadable:
            raise ValueError(
                f"tensor {listed(unreadable)}; "
                "weights are read in F64, F32, F16 or BF16, quantized ones are not"
            )
        start = 8 + header_length
        return {name: _view(mapped, start, entry) for name, entry in header.items()}
    except _READ_ERRORS as error:
        raise cannot_read(path, error) from error


def _view(mapped: MappedFile, start: int, entry: dict[str, Any]) -> np.ndarray:
    begin, _ = entry["data_offsets"]
    return np.ndarray(entry["shape"], DTYPES[entry["dtype"]], mapped, start + begin)


def cannot_read(path: Path, error: BaseException) -> CheckpointError:
    """Return a CheckpointError that says why a file cannot be read."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, SafetensorError):
        reason += "; the file is damaged, download it again"
    return CheckpointError(f"cannot read {path}: {shorten(reason, 2000)}")


def write_shards(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    max_shard_size: int,
    prepare: Prepare | None = None,
) -> list[str]:
    """Write the files of `write_tensors` into an empty folder -> their names, the index last.

    `prepare` as in `write_file`.
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


def write_file(
    path: Path, tensors: Mapping[str, np.ndarray], prepare: Prepare | None = None
) -> None:
    """Write a safetensors file of arrays of any type in DTYPES, with the library's own bytes.

    The library needs all tensors in memory at once; this needs one. `prepare(name, tensor)` is
    called just before a tensor is written, and returns what is written in its place: an array of
    the same size and dtype.

    The header in JSON is padded with spaces, so that the data starts at a multiple of eight. The
    tensors are in the order of DTYPES, then of their names.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    types = {name: codes[tensor.dtype.newbyteorder("=")] for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (list(DTYPES).index(types[name]), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": types[name],
            "shape": tensors[name].shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for mapped in mapped_files([tensors[name]]):
                mapped.check()
            tensor = tensors[name] if prepare is None else prepare(name, tensors[name])
            file.write(_bytes_of(tensor))


def _bytes_of(array: np.ndarray) -> memoryview:
    """Return the bytes of an array in a file; it is copied only if its memory layout differs."""
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    return little.reshape(-1).view(np.uint8).data


def check_writable(tensors: Mapping[str, np.ndarray]) -> None:
    """Raise a CheckpointError for tensors that are no weights."""
    if "__metadata__" in tensors:
        raise CheckpointError("no tensor can be named '__metadata__': the format uses that name")
    for name, tensor in tensors.items():
        if tensor.dtype.newbyteorder("=") not in WEIGHT_DTYPES:
            raise CheckpointError(
                f"cannot write {quoted(name)} as {tensor.dtype}: "
                "convert it to float32, float16 or bfloat16 first"
            )


def _split(tensors: Mapping[str, np.ndarray], limit: int) -> list[dict[str, np.ndarray]]:
    """Fill shards in the order of `tensors`; a tensor larger than `limit` has its own shard."""
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
