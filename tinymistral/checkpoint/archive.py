"""The zip archive that torch.save writes: entries in one folder, none compressed, mapped.

    consolidated.00/data.pkl        the pickle of {"norm.weight": tensor, ...}
    consolidated.00/byteorder       "little"; absent in files of PyTorch before 2.1
    consolidated.00/data/0          a storage, one-dimensional; a tensor is a strided view of one

Format: https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

import io
import mmap
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from tinymistral.checkpoint.errors import quoted
from tinymistral.checkpoint.reading import GIT_LFS_POINTER

# What zipfile makes of a damaged file, beside OSError and ValueError.
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, struct.error)

_DIRECTORY_LIMIT = 4_000_000  # bytes: 40,000 storages, a 7B model has 291
_READ_LIMIT = 4_000_000  # bytes: a pickle of 20,000 tensors
_ENCRYPTED = 0x41  # bits of the flags: encrypted at all, strongly encrypted
_UTF_8 = 0x800
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # ... lengths of the name and the extra field after it
# How a file begins that torch before 1.6 wrote: the pickle of a magic number.
_BEFORE_TORCH_1_6 = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


class Entry(NamedTuple):
    """Where the bytes of an entry lie in the file."""

    start: int
    size: int
    checksum: int  # CRC-32


class Archive:
    """The mapped file, and its entries by their names without the folder.

    Whatever sizes the file claims, what is read here is bounded. Raises ValueError or OSError.
    """

    def __init__(self, path: Path):
        with _BoundedFile(path) as file:
            _check_beginning(file.read(64))
            try:
                with zipfile.ZipFile(file) as archive:
                    infos, directory = archive.infolist(), archive.start_dir
            except _ZIP_ERRORS as error:
                raise ValueError(f"{error}; the file is damaged, download it again") from error
            self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.entries = _locate(infos, self.mapped, directory)
        if "byteorder" in self.entries and self.read("byteorder") != b"little":
            raise ValueError("its byteorder is not little; save it again on a common machine")

    def read(self, name: str) -> bytes:
        """Return the bytes of an entry that is no storage."""
        entry = self.entries.get(name)
        if entry is None:
            raise ValueError(f"it has no {name}, which torch.save writes")
        if entry.size > _READ_LIMIT:
            raise ValueError(f"its {name} has {entry.size} bytes, over {_READ_LIMIT}")
        content = self.mapped[entry.start : entry.start + entry.size]
        # torch writes 0 where it is told to compute no checksum.
        if entry.checksum and entry.checksum != zlib.crc32(content):
            raise ValueError(f"its {name} is damaged (wrong checksum); download it again")
        return content


class _BoundedFile(io.FileIO):
    """A file for zipfile, which reads a directory of as many bytes as the file's end claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _DIRECTORY_LIMIT:
            raise ValueError(f"its directory claims {size} bytes, over {_DIRECTORY_LIMIT}")
        return super().read(size) or b""


def _check_beginning(beginning: bytes) -> None:
    if beginning.startswith(GIT_LFS_POINTER):
        raise ValueError("it only stands in for the weights; to get them: git lfs pull")
    if beginning.startswith(_BEFORE_TORCH_1_6):
        raise ValueError(
            "it has the format of PyTorch before 1.6; load it with a recent torch and save it again"
        )
    if not beginning.startswith(b"PK\x03\x04"):
        raise ValueError("it is no zip archive, as torch.save writes; download it again")


def _locate(infos: list[zipfile.ZipInfo], mapped: mmap.mmap, directory: int) -> dict[str, Entry]:
    """Return where the bytes of each entry lie, one after another and before the directory."""
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
            raise ValueError(f"{shown} stands there twice")
        entries[inner] = Entry(start, info.file_size, info.CRC)
    return entries
