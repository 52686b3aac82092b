"""Writing arrays of any dtype to a safetensors file: one after the other, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tinymistral.files import whole_file
from tinymistral.files.safetensors import DTYPES

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
