"""Read the .pth files of torch.save: mapped, without torch, and without running their code.

A file is a zip archive whose entries are in one folder, none of them compressed:

    consolidated.00/data.pkl        the pickle of {"norm.weight": tensor, ...}
    consolidated.00/byteorder       "little"; absent in files of PyTorch before 2.1
    consolidated.00/data/0          a storage, one-dimensional; a tensor is a strided view of one

In the pickle a tensor is a call, and its storage a persistent id:

    torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)
    ("storage", torch.BFloat16Storage, "0", "cpu", number of elements)

Format: https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

import io
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tinymistral.files import CheckpointError, MappedFile, check_is_file
from tinymistral.files.recognition import BEGINNINGS, GIT_LFS_POINTER
from tinymistral.files.safetensors import cannot_read
from tinymistral.files.unpickling import unpickle
from tinymistral.text import listed, quoted

STORAGES = {
    "torch FloatStorage": np.dtype(np.float32),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}

_MAX_DIMENSIONS = 32  # of NumPy 1

# What the readers below raise for a broken or hostile file.
_READ_ERRORS = (OSError, ValueError, OverflowError, MemoryError)
# What zipfile makes of a damaged file, beside OSError and ValueError.
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, struct.error)

_DIRECTORY_LIMIT = 4_000_000  # bytes: 40,000 storages, a 7B model has 291
_READ_LIMIT = 4_000_000  # bytes: a pickle of 20,000 tensors
_ENCRYPTED = 0x41  # bits of the flags: encrypted at all, strongly encrypted
_UTF_8 = 0x800
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # ... lengths of the name and the extra field after it
# The first bytes of a file of torch before 1.6: the pickle of a magic number.
_BEFORE_TORCH_1_6 = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def read_pth(path: Path) -> dict[str, np.ndarray]:
    """Map the tensors of a dict that torch.save wrote: name -> read-only array.

    The arrays are views of the file, with the strides that were saved, and the file must not be
    changed while one lives (see `MappedFile`); float32, float16, or bfloat16 as
    `ml_dtypes.bfloat16`. No code in it is run. Raises CheckpointError for anything but a dict of
    such tensors.
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


class Entry(NamedTuple):
    """Where the bytes of an entry are in the file."""

    start: int
    size: int
    checksum: int  # CRC-32


class Archive:
    """The mapped file, and its entries by their names without the folder.

    What is read here is bounded, whatever sizes the file claims. Raises ValueError or OSError.
    """

    def __init__(self, path: Path):
        with _BoundedFile(path) as file:
            _check_beginning(file.read(64))
            try:
                with zipfile.ZipFile(file) as archive:
                    infos, directory = archive.infolist(), archive.start_dir
            except _ZIP_ERRORS as error:
                raise ValueError(f"{error}; the file is damaged, download it again") from error
            self.mapped = MappedFile(file)
        self.entries = _locate(infos, self.mapped, directory)
        if "byteorder" in self.entries and self.read("byteorder") != b"little":
            raise ValueError("its byteorder is not little; save it again on a common machine")

    def read(self, name: str) -> bytes:
        """Return the bytes of an entry that is not a storage."""
        entry = self.entries.get(name)
        if entry is None:
            raise ValueError(f"it has no {name}, which torch.save writes")
        if entry.size > _READ_LIMIT:
            raise ValueError(f"its {name} has {entry.size} bytes, over {_READ_LIMIT}")
        content = self.mapped[entry.start : entry.start + entry.size]
        # torch writes 0 if it is told not to compute checksums.
        if entry.checksum and entry.checksum != zlib.crc32(content):
            raise ValueError(f"its {name} is damaged (wrong checksum); download it again")
        return content


class _BoundedFile(io.FileIO):
    """A file that refuses to read a large directory; zipfile reads as much as the file claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _DIRECTORY_LIMIT:
            raise ValueError(f"its directory claims {size} bytes, over {_DIRECTORY_LIMIT}")
        return super().read(size) or b""


def _check_beginning(beginning: bytes) -> None:
    if beginning.startswith(GIT_LFS_POINTER):
        raise ValueError(f"it is {BEGINNINGS[GIT_LFS_POINTER]}")
    if beginning.startswith(_BEFORE_TORCH_1_6):
        raise ValueError(
            "it has the format of PyTorch before 1.6; load it with a recent torch and save it again"
        )
    if not beginning.startswith(b"PK\x03\x04"):
        raise ValueError("it is no zip archive, as torch.save writes; download it again")


def _locate(infos: list[zipfile.ZipInfo], mapped: MappedFile, directory: int) -> dict[str, Entry]:
    """Return where the bytes of each entry are: without overlaps, and before the directory."""
    entries: dict[str, Entry] = {}
    folder = infos[0].orig_filename.split("/")[0] if infos else ""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = info.orig_filename
        shown = f"its entry {quoted(name)}"
        parts = name.split("/")
        if parts[0] != folder or not {"", ".", ".."}.isdisjoint(parts):
            raise ValueError(f"{shown} lies outside the folder {quoted(folder)}")
        if info.flag_bits & _ENCRYPTED:
            raise ValueError(f"{shown} is encrypted")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"{shown} is compressed, which torch.save never does; save it so")
        name_start = info.header_offset + _LOCAL_HEADER.size
        header = mapped[info.header_offset : name_start].ljust(_LOCAL_HEADER.size)
        mark, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        name_end = name_start + name_length
        written = name.encode("utf-8" if info.flag_bits & _UTF_8 else "cp437")
        if mark != b"PK\x03\x04" or mapped[name_start:name_end] != written:
            raise ValueError(f"{shown} is not where the directory says")
        start = name_end + extra_length
        if info.header_offset < end or start + info.file_size > directory:
            raise ValueError(f"{shown} overlaps another or the directory; download it again")
        end = start + info.file_size
        inner = name[len(folder) + 1 :]
        if inner in entries:
            raise ValueError(f"{shown} appears twice")
        entries[inner] = Entry(start, info.file_size, info.CRC)
    return entries


@dataclass(frozen=True)
class _Storage:
    """Consecutive elements in the mapped file."""

    mapped: MappedFile
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
    # A further argument would mean that the values are to be negated or conjugated.
    match arguments:
        case (_Storage(), int(), tuple(), tuple(), bool(), {**hooks}) if not hooks:
            storage, offset, size, stride = arguments[:4]
            return _view(storage, offset, size, stride)
    raise ValueError("its pickle has a tensor that is no plain one; save it after .clone()")


def _view(
    storage: _Storage, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]
) -> np.ndarray:
    """Return a view of a storage; offset and strides count elements."""
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
    # No two elements overlap if each stride is longer than the extent of the shorter ones.
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
