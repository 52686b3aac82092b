"""Reading one array from a `.npy` file that nobody vouches for.

`np.load` makes room for whatever a header claims, and Python objects of what a pickle says. Here
the header is read by NumPy, held against the shape that is wanted and the file's length, and
only then are there numbers. Format: numpy.lib.format.
"""

from __future__ import annotations

import io
import math
import tokenize
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np

from tinymistral.files import check_is_file
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
