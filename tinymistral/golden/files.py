"""Reading one array from a `.npy` file that nobody vouches for.

`np.load` makes room for whatever a header claims, and Python objects of what a pickle says. Here
the header is read by NumPy, held against the shape that is wanted and the file's length, and
only then are there numbers. Format: numpy.lib.format.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tokenize
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tinymistral.files import check_is_file, whole_file
from tinymistral.files.safetensors import DTYPES
from tinymistral.text import one_line

BEGINNING = 20_000  # bytes that a header must end within; NumPy itself refuses 10,000
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# Whatever a header that is no header makes NumPy raise.
_HEADER_ERRORS = (
    ValueError,
    SyntaxError,
    TypeError,
    OverflowError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)


class AnotherShapeError(ValueError):
    """The array has a shape that is not the one that is wanted."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__(f"its shape is {one_line(shape, 80)}")
        self.shape = shape


def read_npy(path: Path, *shapes: tuple[int, ...]) -> np.ndarray:
    """Read numbers of one of these shapes, or of any; AnotherShapeError, or another ValueError.

    bfloat16, which the format does not know, is what NumPy writes of it: two bytes of anything.
    """
    try:
        check_is_file(path)
        with path.open("rb") as file:
            beginning = io.BytesIO(file.read(BEGINNING))
            found, fortran, dtype = _header(beginning)
            if shapes and found not in shapes:
                raise AnotherShapeError(found)
            size = beginning.tell() + math.prod(found) * dtype.itemsize
            length = path.stat().st_size
            if length != size:
                raise ValueError(f"it is {length} bytes long, its header calls for {size}")
            file.seek(beginning.tell())
            flat = np.fromfile(file, dtype, math.prod(found))
        return flat.reshape(found, order="F" if fortran else "C")
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    except MemoryError:
        raise ValueError(f"its {size} bytes are more than there is memory for") from None


def shape_of(path: Path) -> tuple[int, ...]:
    """Return the shape that a file's header claims; ValueError."""
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
            if version != (1, 0):  # 3.0 differs from 2.0 in the names of fields, of which none pass
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


PIECE = 1 << 20  # bytes


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Return the sha256 of a regular file; ValueError in one line if it cannot be read.

    `progress(size)` is told how many bytes more have been read.
    """
    found = hashlib.sha256()
    try:
        check_is_file(path)
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                found.update(piece)
                if progress is not None:
                    progress(len(piece))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot be read: {reason}") from None
    return found.hexdigest()


_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays; they may be views of mapped files, only one is in memory at a time.

    The widest come first, others in the order given, so that each is aligned. OSError.
    """
    order = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    header, end = {}, 0
    for name in order:
        array = arrays[name]
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype.newbyteorder("=")],
            "shape": array.shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            array = arrays[name]
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            file.write(little.reshape(-1).view(np.uint8).data)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def manifest_text(value: Any, indent: str = "") -> str:
    """Write JSON with what is short on one line, so that a change of one entry can be seen."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list | tuple) or len(indent + line) < 100:
        return line
    inner = indent + " "
    if isinstance(value, dict):
        parts = [
            f"{json.dumps(name)}: {manifest_text(part, inner)}" for name, part in value.items()
        ]
    else:
        parts = [manifest_text(part, inner) for part in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return begin + "\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}{end}"


def document_text(document: Mapping[str, Any]) -> str:
    """Write a document as JSON in ASCII, an entry a line, so that a change of one can be seen."""
    return (
        "{\n" + ",\n".join(f"{_text(n)}: {_part(part)}" for n, part in document.items()) + "\n}\n"
    )


def _part(part: Any) -> str:
    if not isinstance(part, list):
        return _text(part)
    return "[\n" + ",\n".join(f" {_text(entry)}" for entry in part) + "\n]"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)
