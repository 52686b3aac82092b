"""Archives that torch.save does not write are refused before their claimed sizes are allocated."""

import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from handmade_pth import archive, error_of, patched, pth, read, storage, tensor, whole

from tinymistral.checkpoint import CheckpointError
from tinymistral.files.pth import read_pth

WHOLE = pth(whole({"a": tensor()}), _0=bytes(8))


def test_the_file_that_the_broken_ones_are_made_from_is_valid(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, WHOLE)["a"], [0, 0])


GOOD = whole({"a": tensor()})
TWICE = archive({"x/data.pkl": GOOD, "x/data/0": bytes(8), "x/data/1": bytes(8)})
BROKEN_ARCHIVES = {
    "empty": (b"", "no zip archive"),
    "no zip": (b"hello, world" * 9, "no zip archive"),
    "an empty zip": (archive({}), "no zip archive"),
    "safetensors": (struct.pack("<Q", 2) + b"{}", "no zip archive"),
    "a git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    # torch/serialization.py: MAGIC_NUMBER, pickled first
    "before torch 1.6": (
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + whole(1001) + whole({}),
        "PyTorch before 1.6",
    ),
    "a plain pickle": (whole({"a": 1}), "no zip archive"),
    "no pickle": (archive({"x/data/0": bytes(8)}), "has no data.pkl"),
    "no folder": (archive({"data.pkl": GOOD, "data/0": bytes(8)}), "outside the folder"),
    "an entry in another folder": (
        archive({"x/data.pkl": GOOD, "x/data/0": bytes(8), "y/data/1": b""}),
        "'y/data/1' lies outside the folder 'x'",
    ),
    "an entry above": (archive({"x/data.pkl": GOOD, "x/../../a": b""}), "lies outside"),
    "an absolute entry": (archive({"/x/data.pkl": GOOD, "/x/data/0": bytes(8)}), "lies outside"),
    "the folder above": (archive({"../data.pkl": GOOD, "../data/0": bytes(8)}), "lies outside"),
    "an entry twice": (TWICE.replace(b"x/data/1", b"x/data/0"), "'x/data/0' appears twice"),
    "the pickle twice": (
        archive({"x/data.pkl": GOOD, "x/data.pkm": GOOD}).replace(b".pkm", b".pkl"),
        "'x/data.pkl' appears twice",
    ),
    "encrypted": (patched(WHOLE, "x/data/0", 8, b"\x01"), "'x/data/0' is encrypted"),
    "compressed": (
        archive({"x/data.pkl": GOOD, "x/data/0": bytes(10**7)}, zipfile.ZIP_DEFLATED),
        "'x/data.pkl' is compressed",
    ),
    "a method nobody knows": (patched(WHOLE, "x/data/0", 10, b"\x63"), "is compressed"),
    "sizes that differ": (patched(WHOLE, "x/data/0", 24, b"\x09"), "is compressed"),
    "a storage past the file": (
        patched(WHOLE, "x/data/0", 20, b"\xff\xff\xff\x7f" * 2),
        "overlaps another or the directory",
    ),
    "a storage over the directory": (
        patched(WHOLE, "x/data/0", 20, struct.pack("<II", 9, 9)),
        "overlaps another or the directory",
    ),
    "a pickle over its storage": (
        patched(WHOLE, "x/data.pkl", 20, struct.pack("<II", 400, 400)),
        "overlaps another or the directory",
    ),
    "a storage over another": (
        patched(TWICE, "x/data/0", 20, struct.pack("<II", 28, 28)),
        "'x/data/1' overlaps another",
    ),
    "a storage elsewhere": (patched(WHOLE, "x/data/0", 42, b"\x00\x00"), "is not where"),
    "a storage nowhere": (patched(WHOLE, "x/data/0", 42, b"\xff\xff\x00\x00"), "is not where"),
    "cut in half": (WHOLE[:200], "File is not a zip file; the file is damaged, download it again"),
    "no mark before the bytes": (
        WHOLE[:99] + WHOLE[99:].replace(b"PK\x03\x04", b"PK\x03\x05", 1),
        "is not where",
    ),
    "another name before the bytes": (
        WHOLE.replace(b"x/data/0", b"x/data/1", 1),
        "'x/data/0' is not where",
    ),
    "one byte of the pickle changed": (
        WHOLE.replace(b"FloatStorage", b"FloatStorags"),
        "wrong checksum",
    ),
    "big-endian": (archive({"x/data.pkl": GOOD, "x/byteorder": b"big"}), "byteorder"),
    "a byteorder of 5 MB": (archive({"x/data.pkl": GOOD, "x/byteorder": bytes(5_000_000)}), "over"),
    "a pickle of 5 MB": (archive({"x/data.pkl": bytes(5_000_000)}), "over 4000000"),
    "a very long name": (archive({"x/data.pkl": GOOD, "y/" + "n" * 60_000: b""}), "nnn...'"),
    "a line break in a name": (archive({"x/data.pkl": GOOD, "y\n\x1b[1m": b""}), "y\\n\\x1b"),
}


@pytest.mark.parametrize("case", BROKEN_ARCHIVES)
def test_a_broken_archive_is_refused(tmp_path, case):
    content, says = BROKEN_ARCHIVES[case]
    assert says in error_of(tmp_path, content)


def test_a_file_cut_at_any_length_is_refused(tmp_path):
    for length in range(len(WHOLE)):
        error_of(tmp_path, WHOLE[:length])


def test_a_folder_a_pipe_and_a_missing_file_are_refused(tmp_path):
    for path, says in [(tmp_path, "cannot read"), (tmp_path / "absent", "no such file")]:
        with pytest.raises(CheckpointError, match=says):
            read_pth(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="no regular file"):
            read_pth(tmp_path / "pipe")


def directory_of_3_gb(path: Path) -> None:
    """A sparse file whose end says that the three billion bytes before it are its directory."""
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, 3 << 30, 100, 0)
    with path.open("wb") as file:
        file.write(WHOLE[:100])
        file.seek(100 + (3 << 30))
        file.write(end)


def storage_of_3_gb(path: Path) -> None:
    """A sparse file with a storage of three billion bytes that its tensor does not fit."""
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as written:
        written.writestr(
            "x/data.pkl", whole({"a": tensor(storage(count=3 << 28), size=(3 << 30,))})
        )
        written.writestr("x/data/0", b"")
        place = written.start_dir
        written.infolist()[1].file_size = written.infolist()[1].compress_size = 3 << 30
        written.start_dir = place + (3 << 30)
        written._didModify = True


@pytest.mark.parametrize("make", [directory_of_3_gb, storage_of_3_gb])
def test_a_claimed_size_is_refused_before_it_is_allocated(tmp_path, make):
    path = tmp_path / "large.pth"
    make(path)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            read_pth(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert {"directory_of_3_gb": "claims", "storage_of_3_gb": "a storage of"}[make.__name__] in str(
        caught.value
    )


def test_a_bomb_of_zeros_is_refused_before_it_is_allocated(tmp_path):
    bomb = archive({"x/data.pkl": bytes(10**8)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 200_000
    tracemalloc.start()
    try:
        assert "is compressed" in error_of(tmp_path, bomb)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
