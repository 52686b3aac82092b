"""Reading the .pth files of torch.save without torch, and without copying a tensor.

The file is an archive (see archive.py) of one-dimensional storages and a pickle. There, a tensor
is a call, and its storage a persistent id:

    torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)
    ("storage", torch.BFloat16Storage, "0", "cpu", number of elements)
"""

import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tinymistral.checkpoint.archive import Archive
from tinymistral.checkpoint.errors import CheckpointError, listed, quoted
from tinymistral.checkpoint.reading import cannot_read
from tinymistral.checkpoint.unpickling import unpickle
from tinymistral.files import check_is_file

STORAGES = {
    "torch FloatStorage": np.dtype(np.float32),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}

_MAX_DIMENSIONS = 32  # of NumPy 1

# Whatever a broken or hostile file makes the readers below raise.
_READ_ERRORS = (OSError, ValueError, OverflowError, MemoryError)


def read_pth(path: Path) -> dict[str, np.ndarray]:
    """Map the tensors of a dict that torch.save wrote: name -> read-only array.

    The arrays are views of the file, strided as they were saved, and the file must stay as it is
    while one lives; float32, float16, or bfloat16 as `ml_dtypes.bfloat16`. Nothing in it is run.
    Raises CheckpointError for whatever is not a dict of such tensors alone.
    """
    path = Path(path)
    try:
        check_is_file(path)
        archive = Archive(path)

        def storage(persistent_id: tuple[Any, ...]) -> _Storage:
            return _map_storage(archive, persistent_id)

        tensors = unpickle(archive.read("data.pkl"), _FUNCTIONS, STORAGES, storage)
        if not isinstance(tensors, dict) or not tensors:
            raise CheckpointError("it holds no dict of tensors; save model.state_dict()")
        others = [
            f"{quoted(name)} is of type {type(value).__name__}"
            for name, value in tensors.items()
            if not isinstance(value, np.ndarray)
        ]
        if others:
            raise CheckpointError(
                f"{listed(others)}, expected tensors alone; save model.state_dict()"
            )
        return tensors
    except _READ_ERRORS as error:
        raise cannot_read(path, error) from error


@dataclass(frozen=True)
class _Storage:
    """Elements one after another in the mapped file."""

    mapped: mmap.mmap
    start: int  # in bytes
    dtype: np.dtype
    count: int


def _map_storage(archive: Archive, persistent_id: tuple[Any, ...]) -> _Storage:
    match persistent_id:
        case ("storage", np.dtype() as dtype, str(key), str(), int(count)):
            entry = archive.entries.get(f"data/{key}")
        case _:
            raise ValueError("its pickle has a persistent id that is no storage")
    if entry is None:
        raise ValueError(f"its storage {quoted(key)} is not there")
    if count * dtype.itemsize != entry.size:
        raise ValueError(
            f"its storage {quoted(key)} has {entry.size} bytes, expected {count} elements of "
            f"{dtype}; download it again"
        )
    return _Storage(archive.mapped, entry.start, dtype, count)


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise ValueError("its pickle makes an OrderedDict of something")
    return {}


def _rebuild_parameter(arguments: tuple[Any, ...]) -> np.ndarray:
    match arguments:
        case (np.ndarray() as data, bool(), {**hooks}) if not hooks:
            return data
    raise ValueError("its pickle has a parameter that is no plain one; save model.state_dict()")


def _rebuild_tensor(arguments: tuple[Any, ...]) -> np.ndarray:
    # One more argument would say that the values are to be negated or conjugated.
    match arguments:
        case (_Storage(), int(), tuple(), tuple(), bool(), {**hooks}) if not hooks:
            storage, offset, size, stride = arguments[:4]
            return _view(storage, offset, size, stride)
    raise ValueError("its pickle has a tensor that is no plain one; save it after .clone()")


def _view(
    storage: _Storage, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]
) -> np.ndarray:
    """View a storage from an offset on in the given size; offset and strides count elements."""
    if not len(size) == len(stride) <= _MAX_DIMENSIONS:
        raise ValueError(
            f"its pickle has a tensor of {len(size)} dimensions with {len(stride)} strides, "
            f"expected as many, and {_MAX_DIMENSIONS} at most"
        )
    if not all(type(number) is int and number >= 0 for number in (offset, *size, *stride)):
        raise ValueError("its pickle has a tensor whose size, stride or offset is negative")
    count = math.prod(size)
    if not count:
        return np.ndarray(size, storage.dtype, buffer=b"")
    # No two indices meet if each step is longer than all that the shorter ones reach.
    axes = sorted((step, length) for step, length in zip(stride, size, strict=True) if length > 1)
    last = 0
    for step, length in axes:
        if step <= last:
            raise ValueError(
                f"its pickle has a tensor of size {size} whose strides {stride} overlap; "
                "save it after .contiguous()"
            )
        last += step * (length - 1)
    if offset + last >= storage.count:
        raise ValueError(
            f"its pickle has a tensor of size {size} with strides {stride} from {offset} on in a "
            f"storage of {storage.count} elements; download it again"
        )
    width = storage.dtype.itemsize
    strides = [step * width for step in stride]
    start = storage.start + offset * width
    return np.ndarray(size, storage.dtype, storage.mapped, start, strides)


_FUNCTIONS = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
}
