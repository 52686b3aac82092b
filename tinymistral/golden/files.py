"""The files of suites and dumps: arrays in safetensors and .npy, JSON, checksums."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tokenize
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tinymistral.files import check_is_file, whole_file
from tinymistral.files.safetensors import write_file
from tinymistral.text import one_line

Arrays = dict[str, np.ndarray]  # by name: the inputs or outputs of a case, or weights

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HASHED_AT_ONCE = 1 << 20  # bytes
HEADER_LIMIT = 20_000  # bytes; NumPy itself refuses a header of more than 10,000

# What NumPy raises for a damaged header.
_HEADER_ERRORS = (
    ValueError,
    SyntaxError,
    TypeError,
    OverflowError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a regular file of any size; ValueError if it is unreadable."""
    digest = hashlib.sha256()
    try:
        check_is_file(path)
        with path.open("rb") as file:
            while block := file.read(HASHED_AT_ONCE):
                digest.update(block)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot be read: {reason}") from None
    return digest.hexdigest()


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file, whole or not at all; one array is in memory at a time. OSError."""
    with whole_file(path) as temporary:
        write_file(temporary, arrays)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def manifest_text(value: Any, indent: str = "") -> str:
    """Return JSON whose short values stand on one line, so that a diff shows single entries."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list | tuple) or len(indent + line) < 100:
        return line
    inner = indent + " "
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {manifest_text(x, inner)}" for name, x in value.items()]
    else:
        parts = [manifest_text(x, inner) for x in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return begin + "\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}{end}"


def document_text(document: Mapping[str, Any]) -> str:
    """Return a tokenizer or chat document as JSON in ASCII, one entry a line."""

    def text(value: Any) -> str:
        if not isinstance(value, list):
            return json.dumps(value, allow_nan=False)
        return "[\n" + ",\n".join(f" {json.dumps(x, allow_nan=False)}" for x in value) + "\n]"

    entries = (f"{json.dumps(name)}: {text(value)}" for name, value in document.items())
    return "{\n" + ",\n".join(entries) + "\n}\n"


# Untrusted .npy files. `np.load` allocates whatever a header claims, and unpickles. Here the header
# is compared with the wanted shape and the file's length before anything is allocated.


class AnotherShapeError(ValueError):
    """The array does not have the wanted shape."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__(f"its shape is {one_line(shape, 80)}")
        self.shape = shape


def read_npy(path: Path, *shapes: tuple[int, ...]) -> np.ndarray:
    """Read numbers of one of these shapes, or of any; AnotherShapeError, or another ValueError.

    NumPy writes bfloat16, which the format does not know, as two bytes of type void.
    """
    try:
        check_is_file(path)
        with path.open("rb") as file:
            beginning = io.BytesIO(file.read(HEADER_LIMIT))
            shape, fortran, dtype = _header(beginning)
            if shapes and shape not in shapes:
                raise AnotherShapeError(shape)
            size = beginning.tell() + math.prod(shape) * dtype.itemsize
            length = path.stat().st_size
            if length != size:
                raise ValueError(f"it is {length} bytes long, its header calls for {size}")
            file.seek(beginning.tell())
            flat = np.fromfile(file, dtype, math.prod(shape))
        return flat.reshape(shape, order="F" if fortran else "C")
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    except MemoryError:
        raise ValueError(f"its {size} bytes are more than there is memory for") from None


def npy_shape(path: Path) -> tuple[int, ...]:
    """Return the shape in a file's header; ValueError."""
    try:
        read_npy(path, (-1,))  # no array has it
    except AnotherShapeError as error:
        return error.shape
    raise AssertionError


def _header(beginning: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return the shape, whether it is in Fortran's order, and the dtype."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = np.lib.format.read_magic(beginning)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):  # 3.0 is 2.0 with any field names, and no fields are accepted
                read = np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(beginning)
    except _HEADER_ERRORS as error:
        reason = one_line(error, 200) or type(error).__name__
        raise ValueError(f"it is not an array as np.save writes it: {reason}") from None
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {one_line(shape, 80)}")
    if dtype.hasobject:
        raise ValueError("it holds Python objects; save an array of numbers")
    if dtype.str[1:] == "V2":
        dtype = BFLOAT16
    if dtype.kind not in "fiu" and dtype != BFLOAT16:
        raise ValueError(f"it holds {one_line(dtype, 80)}; save an array of numbers")
    return tuple(shape), fortran, dtype
