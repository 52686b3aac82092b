"""GGUF files, the format of llama.cpp: their metadata and their tensors, which `gguf` dequantizes.

    "GGUF", version, number of tensors, number of entries       u32, u32, u64, u64
    the entries: key, type, value                               a text has its length before it
    the tensors: name, shape (fastest first), type, offset      from where the data starts
    the data                                                    at a multiple of the alignment

A model may lie in several files, `name-00001-of-00003.gguf` and so on; the first has the metadata.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

The reader of the package `gguf` believes each count in a file, and makes objects until the memory
is full where one is wrong; so the header is read here, and the package dequantizes.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinymistral.files import MappedFile, check_is_file, mapped_files
from tinymistral.files.safetensors import cannot_read
from tinymistral.text import quoted, short

LARGEST_HEADER = 50_000_000  # bytes: 131,072 tokens and their merges are 7 million; some 300 MB
TEXT, ARRAY = 8, 9  # types of metadata
NUMBERS = {n: np.dtype(t) for n, t in enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4"))}
NUMBERS |= {7: np.dtype("?"), 10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8")}
AT_ONCE = 2**20  # weights that are dequantized at a time
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


class QuantizedTensor(NamedTuple):
    """A tensor as it is stored: `data` are the bytes of its rows, a view of the mapped file."""

    type: Any  # of gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    data: np.ndarray

    def dequantize(self, dtype: Any) -> np.ndarray:
        """Return the tensor, rounded to `dtype`. Memory: the result and a few blocks."""
        import gguf

        for mapped in mapped_files([self.data]):
            mapped.check()
        out = np.empty(self.shape, dtype)
        rows, step = out.reshape(-1, self.shape[-1]), max(1, AT_ONCE // self.shape[-1])
        for n in range(0, len(rows), step):
            rows[n : n + step] = gguf.dequantize(self.data[n : n + step], self.type)
        return out


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is named as a GGUF file, be it there or not."""
    return os.fspath(path).endswith(".gguf") and not os.path.isdir(path)  # noqa: PTH112 - no error


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, QuantizedTensor]]:
    """Read the metadata and map the tensors of a GGUF file and, if it is one of several, of all.

    Raises CheckpointError, also where the package `gguf` is not installed.
    """
    shard = _SHARD.fullmatch(path.name)
    count = int(shard[3]) if shard else 1
    metadata: dict[str, Any] = {}
    tensors: dict[str, QuantizedTensor] = {}
    for n in range(count):
        file = path.with_name(f"{shard[1]}-{n + 1:05}-of-{count:05}.gguf") if shard else path
        try:
            found, more = _read_file(file)
            says = (found.get("split.no", 0), found.get("split.count") or 1)
            if says != (n, count):
                raise ValueError(
                    f"it says that split.no is {says[0]!r:.20} and split.count {says[1]!r:.20}; "
                    "expected the name that its part of a model has, -00001-of-00002.gguf"
                )
            if twice := sorted(tensors.keys() & more.keys()):
                raise ValueError(f"the tensor {quoted(twice[0])} is in an earlier part too")
        except (OSError, ValueError, MemoryError) as error:
            raise cannot_read(file, error) from error
        metadata, tensors = metadata or found, tensors | more
    return metadata, tensors


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, QuantizedTensor]]:
    check_is_file(path)
    with path.open("rb") as file:
        mapped = MappedFile(file)
    header = _Header(mapped)
    if header.take(4) != b"GGUF":
        raise ValueError("it is no GGUF file")
    if (version := header.number("<u4")) not in (2, 3):
        raise ValueError(f"its GGUF version is {version}, expected 2 or 3, little-endian")
    tensor_count, entry_count = header.number("<u8"), header.number("<u8")
    metadata: dict[str, Any] = {}
    for _ in range(entry_count):
        key = header.text()
        if key in metadata:
            raise ValueError(f"its metadata has {quoted(key)} twice")
        metadata[key] = header.value(header.number("<u4"))
    entries = [header.tensor() for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**16:
        raise ValueError(f"general.alignment is {short(alignment)}, expected 1 to {2**16}")
    end = -(-header.place // alignment) * alignment
    start, tensors = end, {}
    # In the order of the data, which may not overlap: a small file cannot become a large one.
    for name, kind, shape, offset in sorted(entries, key=lambda entry: entry[-1]):
        if name in tensors:
            raise ValueError(f"the tensor {quoted(name)} is there twice")
        tensors[name], begin = _map(mapped, name, kind, shape, start + offset), end
        end = start + offset + tensors[name].data.nbytes
        if start + offset < begin:
            raise ValueError(f"the tensor {quoted(name)} overlaps another; download it again")
    return metadata, {name: tensors[name] for name, *_ in entries}


def _map(
    mapped: MappedFile, name: str, kind: int, shape: tuple[int, ...], place: int
) -> QuantizedTensor:
    try:
        import gguf
    except ImportError:
        raise ValueError(
            "the package gguf, which dequantizes it, is not installed; to install it: "
            "pip install 'tinymistral[gguf]'"
        ) from None
    try:
        known = gguf.GGMLQuantizationType(kind)
        block, size = gguf.GGML_QUANT_SIZES[known]
        gguf.dequantize(np.zeros((1, size), dtype=np.uint8), known)
    except (ValueError, KeyError, NotImplementedError):
        kinds = gguf.GGMLQuantizationType
        what = kinds(kind).name if kind in [k.value for k in kinds] else f"number {kind}"
        raise ValueError(
            f"the tensor {quoted(name)} has the type {what}, which the package gguf cannot "
            "dequantize; take another quantization, or a newer gguf"
        ) from None
    if not 1 <= len(shape) <= 4 or min(shape) < 1 or shape[-1] % block:
        raise ValueError(
            f"the tensor {quoted(name)} has the shape {shape}, expected 1 to 4 sizes from 1, the "
            f"last one divisible by {block}, which is a block of {known.name}"
        )
    rows, width = math.prod(shape[:-1]), shape[-1] // block * size
    if place + rows * width > len(mapped):
        raise ValueError(
            f"the tensor {quoted(name)} ends past the file's {len(mapped)} bytes; download it again"
        )
    return QuantizedTensor(known, shape, np.ndarray((rows, width), np.uint8, mapped, place))


class _Header:
    """Reads a header from front to back; ValueError where it claims more than the file has."""

    def __init__(self, mapped: MappedFile) -> None:
        self.content, self.place = memoryview(mapped)[:LARGEST_HEADER], 0

    def take(self, size: int) -> memoryview:
        start, self.place = self.place, self.place + size
        if self.place > len(self.content):
            raise ValueError(
                f"its header claims more than the {len(self.content)} bytes that the file, or a "
                "header, may have; the file is damaged, download it again"
            )
        return self.content[start : self.place]

    def number(self, dtype: str) -> int:
        return int(np.frombuffer(self.take(np.dtype(dtype).itemsize), dtype)[0])

    def text(self) -> str:
        return bytes(self.take(self.number("<u8"))).decode("utf-8")

    def value(self, kind: int) -> Any:
        """Return a value of the metadata: a text, a number, a list of texts, or an array."""
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            kind, count = self.number("<u4"), self.number("<u8")
            if kind == TEXT:
                return [self.text() for _ in range(count)]
            return self._numbers(kind, count)
        value = self._numbers(kind, 1)[0]
        # A float32 as the shortest decimal number that it is: 1e-05 where 9.9999997e-06 is stored.
        return float(str(value)) if value.dtype == np.float32 else value.item()

    def _numbers(self, kind: int, count: int) -> np.ndarray:
        if kind not in NUMBERS:
            raise ValueError(f"its metadata has a value of type {kind}; the file is damaged")
        return np.frombuffer(self.take(NUMBERS[kind].itemsize * count), NUMBERS[kind])

    def tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """Return the name, type, shape (in NumPy's order) and offset of a tensor."""
        name, dimensions = self.text(), self.number("<u4")
        sizes = np.frombuffer(self.take(8 * dimensions), "<u8").tolist()
        return name, self.number("<u4"), tuple(sizes[::-1]), self.number("<u8")
