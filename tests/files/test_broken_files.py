"""Broken safetensors files and indexes are refused in one line, as by the library."""

import contextlib
import json
from pathlib import Path

import pytest
from handmade import entry, file_bytes, write_shards
from safetensors import SafetensorError, safe_open

from tinymistral.checkpoint import CheckpointError, read_tensors

GOOD = {"a": entry("F32", [1], 0, 4), "b": entry("BF16", [2, 1], 4, 8)}
WHOLE = file_bytes(GOOD, bytes(8))
DEEP = b"[" * 100_000 + b"]" * 100_000


def with_a(dtype="F32", shape=(1,), offsets=(0, 4), data=4):
    tensor = {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}
    return file_bytes({"a": tensor}, bytes(data))


def with_a_twice(first, second):
    pair = f'"a":{json.dumps(entry("F32", [1], *first))},"\\u0061":'
    return file_bytes(f"{{{pair}{json.dumps(entry('F32', [1], *second))}}}".encode(), bytes(8))


# What the library refuses too.
BROKEN = {
    "no bytes": b"",
    "seven bytes": WHOLE[:7],
    "a header's length and nothing else": WHOLE[:8],
    "a header cut short": WHOLE[:40],
    "a header without its data": WHOLE[:-8],
    "one byte short": WHOLE[:-1],
    "one byte too many": WHOLE + b"\0",
    "header length 0": file_bytes(b"", length=0),
    "header length past the end": file_bytes(GOOD, bytes(8), length=10_000),
    "header length 1 short": file_bytes(GOOD, bytes(8), length=len(WHOLE) - 17),
    "header length over the format's 100 MB": file_bytes(GOOD, length=100_000_001),
    "header length 2^63": file_bytes(GOOD, bytes(8), length=2**63),
    "header length 2^64 - 1": file_bytes(GOOD, bytes(8), length=2**64 - 1),
    "header is a list": file_bytes(b"[1, 2]"),
    "header is a number": file_bytes(b"12"),
    "header is null": file_bytes(b"null"),
    "header is nothing but nesting": file_bytes(DEEP),
    "nesting where nobody looks": file_bytes(
        b'{"a":{"x":' + DEEP + b',"dtype":"F16","shape":[0],"data_offsets":[0,0]}}'
    ),
    "header is not UTF-8": file_bytes(b'{"\xff": {}}'),
    "header is UTF-16": file_bytes(json.dumps(GOOD).encode("utf-16-le"), bytes(8)),
    "header has a byte order mark": file_bytes(b"\xef\xbb\xbf{}"),
    "header ends in NULs": file_bytes(b"{}\0\0"),
    "half a surrogate pair for a name": file_bytes(b'{"\\ud800": {}}'),
    "NaN": file_bytes(b'{"a": NaN}'),
    "tensor is null": file_bytes({"a": None}),
    "tensor is a list": file_bytes({"a": []}),
    "no dtype": file_bytes({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "no shape": file_bytes({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)),
    "no offsets": file_bytes({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "metadata that is not text": file_bytes({"__metadata__": {"a": 1}}),
    "dtype unknown": with_a(dtype="F31"),
    "dtype a number": with_a(dtype=32),
    "shape negative": with_a(shape=[-1]),
    "shape a float": with_a(shape=[1.0]),
    "shape a bool": with_a(shape=[True]),
    "shape a string": with_a(shape=["1"]),
    "shape over 64 bits": with_a(shape=[2**64]),
    "shape's product overflows": with_a(shape=[2**33, 2**33]),
    "shape's product overflows to what is there": with_a(shape=[2**32, 2**32 + 1]),
    "shape smaller than the offsets": with_a(shape=[1], offsets=(0, 8), data=8),
    "shape larger than the offsets": with_a(shape=[2]),
    "offsets negative": with_a(offsets=(-4, 0)),
    "offsets floats": with_a(offsets=(0, 4.0)),
    "offsets bools": with_a(offsets=(False, 4)),
    "offsets strings": with_a(offsets=("0", "4")),
    "offsets reversed": with_a(offsets=(4, 0)),
    "offsets past the file": with_a(offsets=(4, 8)),
    "offsets over 64 bits": with_a(offsets=(0, 2**64 + 4)),
    "offsets at the end of 64 bits": with_a(offsets=(2**64 - 4, 2**64)),
    "three offsets": with_a(offsets=(0, 4, 4)),
    "two tensors over each other": file_bytes({**GOOD, "b": entry("F32", [1], 0, 4)}, bytes(4)),
    "two tensors overlapping": file_bytes({**GOOD, "b": entry("F32", [1], 2, 6)}, bytes(6)),
    "a hole": file_bytes({**GOOD, "b": entry("F32", [1], 8, 12)}, bytes(12)),
    "a hole at the start": with_a(offsets=(4, 8), data=8),
    "an empty tensor inside another": file_bytes({**GOOD, "c": entry("F32", [0], 2, 2)}, bytes(8)),
    "an empty tensor past the end": file_bytes({"a": entry("F32", [0], 4, 4)}),
    "a name twice, at two places": with_a_twice((0, 4), (4, 8)),
    "a name of 100 KB": file_bytes({"x" * 100_000: entry("F32", [1], 4, 0)}),
    "a line break and colour in a name": file_bytes({"\n\x1b[31m": entry("F32", [1], 4, 0)}),
}

# What the library accepts.
REFUSED_BY_US_ALONE = {
    "a name twice, at one place": (with_a_twice((0, 4), (0, 4))[:-4], "'a' appears twice"),
    "metadata twice": (file_bytes(b'{"__metadata__":{"k":"1","k":"2"}}'), "'k' appears twice"),
    "a shape that NumPy cannot hold": (with_a(shape=[0, 2**33, 2**33], offsets=(0, 0), data=0), ""),
    "a length that NumPy cannot hold": (with_a(shape=[2**63, 0], offsets=(0, 0), data=0), ""),
    "a hundred axes": (with_a(shape=[1] * 100), ""),
    "a header over 10 MB": (file_bytes(b"{}" + b" " * 10_000_000), "claims 10000002 bytes"),
    "an 8-bit float": (with_a("F8_E4M3", [4]), "'a' is F8_E4M3; weights are read in F64, F32,"),
    "a 4-bit float": (with_a("F4", [8]), "'a' is F4; weights are read in F64, F32, F16 or BF16"),
}


def error_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tensors(folder)
    assert str(caught.value).isprintable()  # one line, no control codes
    assert len(str(caught.value)) < 4000
    return str(caught.value)


def test_the_file_that_the_broken_ones_are_made_from_is_valid(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(WHOLE)
    assert list(read_tensors(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("case", BROKEN)
def test_what_safetensors_refuses_is_refused(tmp_path, case):
    path = tmp_path / "model.safetensors"
    path.write_bytes(BROKEN[case])
    with pytest.raises((SafetensorError, OSError)):
        safe_open(path, framework="np")
    assert str(path) in error_of(tmp_path)


@pytest.mark.parametrize("case", REFUSED_BY_US_ALONE)
def test_some_files_that_safetensors_accepts_are_refused(tmp_path, case):
    content, says = REFUSED_BY_US_ALONE[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with safe_open(path, framework="np"):
        pass
    message = error_of(tmp_path)
    assert str(path) in message
    assert says in message


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_file_cut_at_any_length_is_refused(tmp_path, length):
    (tmp_path / "model.safetensors").write_bytes(WHOLE[:length])
    error_of(tmp_path)


BROKEN_INDEXES = {
    "empty": b"",
    "cut short": b'{"weight_map": {"a": "x.safet',
    "a list": b"[]",
    "null": b"null",
    "no weight_map": b'{"metadata": {}}',
    "weight_map empty": b'{"weight_map": {}}',
    "weight_map a list": b'{"weight_map": ["x.safetensors"]}',
    "weight_map null": b'{"weight_map": null}',
    "file null": b'{"weight_map": {"a": null}}',
    "file a list": b'{"weight_map": {"a": ["x.safetensors"]}}',
    "a name twice": b'{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}',
    "weight_map twice": b'{"weight_map": {"a": "x.safetensors"}, "weight_map": {}}',
    "not UTF-8": b'{"weight_map": {"\xff": "x.safetensors"}}',
    "UTF-16": '{"weight_map": {"a": "x.safetensors"}}'.encode("utf-16"),
    "nothing but nesting": DEEP,
    "a number of 100,000 digits": b'{"weight_map": {"a": ' + b"9" * 100_000 + b"}}",
    "over 10 MB": b'{"weight_map": {"a": "x.safetensors"}}' + b" " * 10_000_000,
    "a very long file name": b'{"weight_map": {"a": "' + b"x" * 100_000 + b'.safetensors"}}',
}


@pytest.mark.parametrize("case", BROKEN_INDEXES)
def test_a_broken_index_is_refused(tmp_path, case):
    write_shards(tmp_path, {"x.safetensors": {"a": 1}}, {})
    (tmp_path / "model.safetensors.index.json").write_bytes(BROKEN_INDEXES[case])
    error_of(tmp_path)


@pytest.mark.parametrize(
    "shard",
    [
        "",
        ".",
        "..",
        ".safetensors",
        "x.bin",
        "x.safetensors\n",
        "x.safetensors\0",
        "\ud800.safetensors",
        "../outside.safetensors",
        "..\\outside.safetensors",
        "./x.safetensors",
        "folder/x.safetensors",
        "folder\\x.safetensors",
        "/dev/stdin.safetensors",
        "C:x.safetensors",
        "C:\\x.safetensors",
        "\\\\host\\share\\x.safetensors",
        "x:stream.safetensors",
    ],
)
def test_a_shard_stays_inside_the_folder(tmp_path, shard):
    # Files of these names where possible, so that only the name can be the reason.
    folder = tmp_path / "checkpoint"
    (folder / "folder").mkdir(parents=True)
    write_shards(folder, {"x.safetensors": {"a": 1}}, {"a": shard})
    for path in ("../outside", "folder/x", "folder\\x", "..\\outside", "C:x", "x:stream", ""):
        with contextlib.suppress(OSError):
            (folder / f"{path}.safetensors").write_bytes((folder / "x.safetensors").read_bytes())
    assert "is not the plain name of a .safetensors file" in error_of(folder)


X, Y = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("shards", "weight_map", "says"),
    [
        ({X: {"a": 1}}, {"a": X, "b": Y}, f"{Y}: there is no such file"),
        ({X: {"a": 1}, Y: {"c": 1}}, {"a": X, "b": X, "c": Y}, f"it says are 'b' ({X});"),
        ({X: {"a": 1}, Y: {"b": 1}}, {"a": Y, "b": X}, f"'a' is in '{X}', the index says '{Y}';"),
        ({X: {"a": 1}, Y: {"a": 1, "b": 1}}, {"a": X, "b": Y}, f"'a' is in '{Y}', the index says"),
        ({X: {"a": 1, "b": 1}}, {"a": X}, f"'b' is in '{X}', the index says nowhere;"),
    ],
    ids=["no shard", "tensor absent", "tensors swapped", "tensor in both", "tensor not promised"],
)
def test_index_and_shards_must_agree(tmp_path, shards, weight_map, says):
    write_shards(tmp_path, shards, weight_map)
    assert says in error_of(tmp_path)
