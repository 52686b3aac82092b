"""Broken and hostile dumps are reported in one line, and cost no memory.

The files are made byte by byte.
"""

import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from handmade_suite import expected, suite_fixture  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from tinymistral.golden.compare.candidate import CaseDump, open_candidate
from tinymistral.golden.suite import Suite


def read(suite: Suite, path: Path, case: str, layout: str = "hf") -> CaseDump:
    return open_candidate(path, suite, layout).read(suite.case(case))


def npy(header: str, data: bytes = b"", length: int | None = None) -> bytes:
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length or len(text)) + text + data


def header(descr: object = "<f4", shape: object = (1, 2, 1, 4)) -> str:
    return repr({"descr": descr, "fortran_order": False, "shape": shape})


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}] * 8, dtype=object).reshape(1, 2, 1, 4), allow_pickle=True)
    return file.getvalue()


HUGE = 10**15
BROKEN_ARRAYS = {
    "empty": (b"", "not an array as np.save writes it"),
    "pickle": (b"\x80\x04N.", "not an array"),
    "zip": (b"PK\x03\x04" + bytes(100), "not an array"),
    "magic alone": (b"\x93NUMPY\x01\x00", "not an array"),
    "version 9": (b"\x93NUMPY\x09\x00" + bytes(40), "not an array"),
    "truncated header": (npy(header())[:30], "not an array"),
    "no python": (npy("{'descr': <"), "not an array"),
    "not a dictionary": (npy("(1, 2)"), "not an array"),
    "code": (npy("__import__('os').abort()"), "not an array"),
    "missing field": (npy("{'descr': '<f4', 'shape': (1,)}"), "not an array"),
    "deep": (npy("(" * 5000), "not an array"),
    "claims a long header": (npy(header(), length=65535), "not an array"),
    "claims 4 GB of header": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(20), "not an array"),
    "unknown dtype": (npy(header("<q9")), "not an array"),
    "truncated": (npy(header(), bytes(31)), "header calls for"),
    "too long": (npy(header(), bytes(33)), "header calls for"),
    "objects": (pickled(), "Python objects"),
    "complex": (npy(header("<c8"), bytes(64)), "holds complex64"),
    "text": (npy(header("<U4"), bytes(128)), "save an array of numbers"),
    "fields": (npy(header([("a", "<f4")]), bytes(32)), "save an array of numbers"),
    "void": (npy(header("|V4"), bytes(32)), "save an array of numbers"),
    "dates": (npy(header("<M8[s]"), bytes(64)), "save an array of numbers"),
    "another shape": (npy(header(shape=(1, 2, 4)), bytes(32)), "its shape is (1, 2, 4), expected"),
    "no dimension": (npy(header(shape=()), bytes(4)), "its shape is (), expected"),
    "huge shape": (npy(header(shape=(HUGE, HUGE)), bytes(8)), f"({HUGE}, {HUGE}), expected"),
    "negative shape": (npy(header(shape=(-1, 2, 1, 4)), bytes(32)), "its shape is (-1, 2"),
    "many dimensions": (npy(header(shape=(1,) * 2000), bytes(4)), "its shape is (1, 1, 1"),
}


@pytest.mark.parametrize("name", BROKEN_ARRAYS)
def test_a_broken_array_is_reported_in_one_line(suite: Suite, tmp_path: Path, name: str) -> None:
    content, says = BROKEN_ARRAYS[name]
    (tmp_path / "rope").mkdir()
    (tmp_path / "rope" / "out.npy").write_bytes(content)
    found = read(suite, tmp_path, "rope")
    assert found.arrays == {}
    assert says in found.problems["out"]
    assert found.problems["out"].isprintable()
    assert len(found.problems["out"]) < 500


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (length or len(text)).to_bytes(8, "little") + text + data


WHOLE = save({"out": np.zeros((1, 2, 1, 4), np.float32)})
BROKEN_FILES = {
    "empty": b"",
    "truncated": WHOLE[:-1],
    "too long": WHOLE + b"x",
    "huge header": safetensors({}, length=2**62),
    "no JSON": safetensors(b"{"),
    "deep": safetensors(b'{"a":' * 50_000),
    "twice": safetensors(
        b'{"out":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"out":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
    ),
    "absurd size": safetensors(
        {"out": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ),
    "overflowing shape": safetensors(
        {"out": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}}
    ),
    "pickle": b"\x80\x04N.",
}


@pytest.mark.parametrize("name", BROKEN_FILES)
@pytest.mark.parametrize("file", ["rope.safetensors", "all.safetensors"])
def test_a_broken_file_is_reported_in_one_line(
    suite: Suite, tmp_path: Path, name: str, file: str
) -> None:
    path = tmp_path / file
    path.write_bytes(BROKEN_FILES[name])
    with pytest.raises(ValueError, match=str(path)) as error:
        read(suite, path, "rope")
    assert "\n" not in str(error.value)


def deep(levels: int) -> bytes:
    return b'{"strings": ' + b"[" * levels + b"]" * levels + b"}"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[" * 10**6, deep(900), b'{"a": 1, "a": 2}', b'{"a": ' + b"9" * 10**6],
)
def test_broken_texts_are_reported_in_one_line(
    suite: Suite, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "words.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"words\.json: not valid JSON") as error:
        read(suite, tmp_path, "words")
    assert "\n" not in str(error.value)


def test_huge_texts_are_not_read(suite: Suite, tmp_path: Path) -> None:
    with (tmp_path / "words.json").open("wb") as file:
        file.truncate(2**40)  # a hole
    with pytest.raises(ValueError, match="expected 4000000 at most"):
        read(suite, tmp_path, "words")


def test_a_wrong_shape_is_not_allocated(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "rope").mkdir()
    with (tmp_path / "rope" / "out.npy").open("wb") as file:
        file.write(npy(header("<f8", shape=(2**37,))))
        file.truncate(file.tell() + 2**40)  # all of it there, as a hole
    assert "expected (1, 2, 1, 4)" in read(suite, tmp_path, "rope").problems["out"]
    fields = {"out": {"dtype": "F64", "shape": [2**37], "data_offsets": [0, 2**40]}}
    with (tmp_path / "once.safetensors").open("wb") as file:
        file.write(safetensors({"norm": fields["out"]}))
        file.truncate(file.tell() + 2**40)
    found = read(suite, tmp_path, "once", "raw")
    assert "expected (2, 2, 3), which is B T D" in found.problems["calls.0.norm"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_no_link_leads_out_of_the_folder(suite: Suite, tmp_path: Path) -> None:
    outside, dump = tmp_path / "outside", tmp_path / "dump"
    for folder in (outside, dump, tmp_path / "files"):
        folder.mkdir()
    np.save(outside / "out.npy", expected("rope")["out"])
    save_file(expected("once"), tmp_path / "files" / "once.safetensors")
    (dump / "rope").symlink_to(outside)
    (dump / "once.safetensors").symlink_to(tmp_path / "files" / "once.safetensors")
    (dump / "words.json").symlink_to("/etc/passwd")
    candidate = open_candidate(dump, suite)
    assert "link out of the folder" in candidate.read(suite.case("rope")).problems["out"]
    for case in ("once", "words"):
        with pytest.raises(ValueError, match="link out of the folder"):
            candidate.read(suite.case(case))
    # A link to the folder itself, or within it, is fine.
    (tmp_path / "link").symlink_to(tmp_path / "files")
    assert read(suite, tmp_path / "link", "once").arrays
    (tmp_path / "files" / "twice.safetensors").symlink_to("once.safetensors")
    assert read(suite, tmp_path / "files", "twice").arrays
    # One to itself leads nowhere.
    (dump / "rope").unlink()
    (dump / "rope").mkdir()
    (dump / "rope" / "out.npy").symlink_to("out.npy")
    assert "leads nowhere" in open_candidate(dump, suite).read(suite.case("rope")).problems["out"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_is_not_waited_for(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "rope").mkdir()
    os.mkfifo(tmp_path / "rope" / "out.npy")
    os.mkfifo(tmp_path / "once.safetensors")
    (tmp_path / "words.json").symlink_to(tmp_path / "nowhere")
    candidate = open_candidate(tmp_path, suite)
    assert "no regular file" in candidate.read(suite.case("rope")).problems["out"]
    for case in ("once", "words"):
        with pytest.raises(ValueError, match=r"no regular file|link"):
            candidate.read(suite.case(case))


@given(place=st.integers(0, 200), byte=st.integers(0, 255), cut=st.integers(0, 200))
def test_damage_anywhere_is_a_problem_or_another_number(
    place: int, byte: int, cut: int, suite: Suite, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("dump")
    (folder / "rope").mkdir()
    file = io.BytesIO()
    np.save(file, expected("rope")["out"])
    for name, whole in (("rope/out.npy", file.getvalue()), ("rope.safetensors", WHOLE)):
        damaged = bytearray(whole)
        damaged[place % len(whole)] = byte
        (folder / name).write_bytes(bytes(damaged[: len(whole) - cut]))
    for path in (folder / "rope.safetensors", folder):
        candidate = open_candidate(path, suite)
        try:
            found = candidate.read(suite.case("rope"))
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            for array in found.arrays.values():
                assert array.shape == (1, 2, 1, 4)
        (folder / "rope.safetensors").unlink(missing_ok=True)
