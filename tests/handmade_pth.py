"""Files as torch.save writes them, put together opcode by opcode and entry by entry.

Opcodes: the standard library's pickletools. Zip: PKWARE's APPNOTE.TXT, 4.3 and 4.5.
"""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tinymistral.checkpoint import CheckpointError
from tinymistral.files.pth import read_pth


def name(module: str, attribute: str) -> bytes:
    """A global."""
    return f"c{module}\n{attribute}\n".encode()


def pickled(value) -> bytes:
    """Opcodes that push a value; bytes, in any depth, are opcodes as they are."""
    match value:
        case bytes():
            return value
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(content)]) + content
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(pickled, value)) + b"t"
        case list():
            return b"](" + b"".join(map(pickled, value)) + b"e"
        case dict():
            items = [part for item in value.items() for part in item]
            return b"}(" + b"".join(map(pickled, items)) + b"u"
    raise TypeError(value)


def call(function: bytes, *arguments) -> bytes:
    return function + pickled(arguments) + b"R"


def storage(key="0", count=2, kind="FloatStorage", location="cpu") -> bytes:
    return pickled(("storage", name("torch", kind), key, location, count)) + b"Q"


ORDERED_DICT = call(name("collections", "OrderedDict"))


def tensor(stored=None, offset=0, size=(2,), stride=(1,), grad=False, hooks=ORDERED_DICT, *more):
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        *(storage() if stored is None else stored, offset, size, stride, grad, hooks, *more),
    )


def whole(value, protocol=2) -> bytes:
    """A pickle of one value."""
    return b"\x80" + bytes([protocol]) + pickled(value) + b"."


def archive(entries: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as written:
        for entry, content in entries.items():
            written.writestr(entry, content)
    return file.getvalue()


def pth(pickle: bytes, **storages: bytes) -> bytes:
    """An archive with a pickle and storages, `_0=bytes(8)`."""
    data = {f"x/data/{key[1:]}": content for key, content in storages.items()}
    return archive({"x/data.pkl": pickle, "x/byteorder": b"little", **data})


def patched(content: bytes, entry: str, offset: int, field: bytes) -> bytes:
    """Change what the archive's directory says of an entry, so many bytes into its record."""
    end = content.rindex(b"PK\x05\x06")
    place = content.index(b"PK\x01\x02")
    while content[place + 46 :][: len(entry)] != entry.encode():
        place = content.index(b"PK\x01\x02", place + 1, end)
    place += offset
    return content[:place] + field + content[place + len(field) :]


def read(folder: Path, content: bytes) -> dict[str, np.ndarray]:
    path = folder / "consolidated.00.pth"
    path.write_bytes(content)
    return read_pth(path)


def error_of(folder: Path, content: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(folder, content)
    message = str(caught.value)
    assert message.isprintable()  # one line, no control codes
    assert len(message) < 4000
    assert message.startswith(f"cannot read {folder / 'consolidated.00.pth'}: ")
    return message
