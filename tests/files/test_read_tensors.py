"""Reading whole checkpoints: types, alignment, shards, what is mapped and what is copied."""

import os
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from handmade import entry, file_bytes, write_shards
from safetensors import safe_open

from tinymistral.checkpoint import CheckpointError, read_tensors, write_tensors


def one_file(folder: Path, content: bytes) -> Path:
    (folder / "model.safetensors").write_bytes(content)
    return folder


def error_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tensors(folder)
    assert str(caught.value).isprintable()  # one line, no control codes
    return str(caught.value)


# 1.0, -2.0 and 0.5 by the formats' definitions: sign, exponent, fraction; little-endian.
@pytest.mark.parametrize(
    ("code", "dtype", "data"),
    [
        ("F32", np.float32, "0000803f 000000c0 0000003f"),
        ("F16", np.float16, "003c 00c0 0038"),
        ("BF16", ml_dtypes.bfloat16, "803f 00c0 003f"),
    ],
)
@pytest.mark.parametrize("padding", range(9))
def test_each_type_is_read_correctly_at_any_alignment(tmp_path, code, dtype, data, padding):
    data = bytes.fromhex(data)
    header = file_bytes({"x": entry(code, [3, 1], 0, len(data))})[8:] + b" " * padding
    x = read_tensors(one_file(tmp_path, file_bytes(header, data)))["x"]
    assert x.dtype == dtype
    assert x.shape == (3, 1)
    assert x.astype(np.float64).tolist() == [[1.0], [-2.0], [0.5]]
    assert x.T.astype(np.float32).tolist() == [[1.0, -2.0, 0.5]]


def test_types_may_be_mixed_and_tensors_empty_or_without_an_axis(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "scalar": entry("F32", [], 0, 4),
        "half": entry("F16", [1], 4, 6),
        "middle": entry("BF16", [2, 0], 6, 6),
        "positions": entry("I64", [1], 6, 14),
        "end": entry("F32", [0, 3], 14, 14),
    }
    tensors = read_tensors(one_file(tmp_path, file_bytes(header, bytes(14))))
    assert {name: (str(t.dtype), t.shape) for name, t in tensors.items()} == {
        "scalar": ("float32", ()),
        "half": ("float16", (1,)),
        "middle": ("bfloat16", (2, 0)),
        "positions": ("int64", (1,)),
        "end": ("float32", (0, 3)),
    }


def test_a_file_without_tensors_is_an_empty_mapping(tmp_path):
    assert read_tensors(one_file(tmp_path, file_bytes({}))) == {}


def test_tensors_are_read_only_views_of_the_file(tmp_path):
    one_file(tmp_path, file_bytes({"x": entry("F32", [2], 0, 8)}, bytes(8)))
    x = read_tensors(tmp_path)["x"]
    with pytest.raises(ValueError, match="read-only"):
        x[0] = 1
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(7).tobytes())
    assert x.tolist() == [0.0, 7.0]


def test_model_safetensors_comes_before_an_index(tmp_path):
    # As in transformers 5: _get_resolved_checkpoint_files looks for the single file first.
    write_shards(tmp_path, {"other.safetensors": {"sharded": 1}}, {"sharded": "other.safetensors"})
    one_file(tmp_path, file_bytes({"single": entry("F32", [1], 0, 4)}, bytes(4)))
    assert list(read_tensors(tmp_path)) == ["single"]


def test_shards_are_read_as_one_checkpoint(tmp_path):
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    shards = {first: {"a": 1, "b": 2}, second: {"c": 3}, "consolidated.safetensors": {"a": 9}}
    write_shards(tmp_path, shards, {"a": first, "b": first, "c": second})
    shapes = {name: tensor.shape for name, tensor in read_tensors(tmp_path).items()}
    assert shapes == {"a": (1,), "b": (2,), "c": (3,)}


def test_files_may_be_symbolic_links_as_in_the_hub_cache(tmp_path):
    write_shards(tmp_path / "blobs", {"0a1b": {"a": 1}}, {"a": "model-00001-of-00001.safetensors"})
    snapshot = tmp_path / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    for link, blob in [
        ("model-00001-of-00001.safetensors", "0a1b"),
        ("model.safetensors.index.json", "model.safetensors.index.json"),
    ]:
        (snapshot / link).symlink_to(Path("..", "..", "blobs", blob))
    assert read_tensors(snapshot)["a"].shape == (1,)


@pytest.mark.skipif(sys.platform == "win32", reason="no open file can be replaced there")
def test_what_is_checked_is_what_is_read_also_if_another_file_takes_its_place(
    tmp_path, monkeypatch
):
    path = tmp_path / "model.safetensors"

    def swap(content: bytes) -> None:
        (tmp_path / "other").write_bytes(content)
        (tmp_path / "other").replace(path)

    def checked_between_two_swaps(checked_path, framework):
        swap(b"broken")
        checked = safe_open(checked_path, framework)
        swap(file_bytes({"a": entry("F32", [1], 0, 4)}, b"new!"))
        return checked

    one_file(tmp_path, file_bytes({"a": entry("F32", [1], 0, 4)}, b"old!"))
    monkeypatch.setattr("tinymistral.files.safetensors.safe_open", checked_between_two_swaps)
    assert read_tensors(tmp_path)["a"].tobytes() == b"old!"


@pytest.mark.skipif(sys.platform == "win32", reason="no mapped file can be cut there")
@pytest.mark.parametrize("length", [0, 79, 81])
def test_tensors_of_a_file_that_is_cut_are_not_written(tmp_path, length):
    one_file(tmp_path, file_bytes({"a": entry("F32", [3], 0, 12)}, bytes(12)))
    tensors = read_tensors(tmp_path)
    path = tmp_path / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, length)
    with pytest.raises(CheckpointError, match=f"was {size} bytes when it was opened, .* {length};"):
        write_tensors(tmp_path / "copy", tensors)


@pytest.mark.skipif(sys.platform == "win32", reason="files with holes take their full size")
def test_a_7b_checkpoint_opens_at_once_and_takes_no_memory(tmp_path):
    # 7,241,732,096 parameters of two bytes, in two files that are one hole each.
    def resident() -> int:
        with Path("/proc/self/statm").open() as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    count = 7_241_732_096 // 292  # elements a tensor, 146 tensors a file
    weight_map = {}
    for file in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        names = [f"{file}.{i}" for i in range(146)]
        header = {
            name: entry("BF16", [count], 2 * count * i, 2 * count * (i + 1))
            for i, name in enumerate(names)
        }
        (tmp_path / file).write_bytes(file_bytes(header))
        os.truncate(tmp_path / file, len(file_bytes(header)) + 2 * count * 146)
        weight_map |= dict.fromkeys(names, file)
    write_shards(tmp_path, {}, weight_map)

    before = resident() if Path("/proc/self/statm").exists() else None
    start = time.perf_counter()
    tensors = read_tensors(tmp_path)
    assert time.perf_counter() - start < 1
    assert sum(tensor.nbytes for tensor in tensors.values()) > 14.4e9
    if before is not None:
        assert resident() - before < 16e6


@pytest.mark.parametrize(
    ("present", "says"),
    [
        ([], "it holds no weights"),
        (["training_args.bin", "config.json"], "it holds 'training_args.bin', which"),
        (["consolidated.00.pth"], "it holds 'consolidated.00.pth', which"),
        (["consolidated.safetensors"], "it holds 'consolidated.safetensors', which"),
        ([f"{i}.bin" for i in range(10)], "'7.bin' and 2 more, which"),
    ],
)
def test_the_error_for_other_weights_names_them_and_what_is_needed(tmp_path, present, says):
    for name in present:
        (tmp_path / name).touch()
    message = error_of(tmp_path)
    assert says in message
    assert message.endswith("; a checkpoint in Hugging Face safetensors format is needed")


def test_a_missing_folder_or_a_file_in_its_place_is_an_error(tmp_path):
    assert error_of(tmp_path / "nowhere").endswith("nowhere: No such file or directory")
    (tmp_path / "file").touch()
    assert error_of(tmp_path / "file").endswith("file: Not a directory")
    assert "null" in error_of(tmp_path / "a\0b")


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_dangling_link(path: Path) -> None:
    path.symlink_to("gone")


def make_circle(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders there")
@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "x"])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (make_folder, "it is no regular file"),
        (make_pipe, "it is no regular file"),
        (make_dangling_link, "it is a symbolic link to a file that is not there"),
        (make_circle, "symbolic link"),
    ],
)
def test_a_pipe_or_a_device_is_refused_without_reading_it(tmp_path, make, says, name):
    if name == "x":  # a shard
        name = "x.safetensors"
        write_shards(tmp_path, {}, {"a": name})
    make(tmp_path / name)
    assert says in error_of(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_file_that_may_not_be_read_is_an_error(tmp_path):
    one_file(tmp_path, file_bytes({}))
    (tmp_path / "model.safetensors").chmod(0)
    assert error_of(tmp_path).endswith("Permission denied")


def test_a_git_lfs_pointer_is_reported_as_such(tmp_path):
    # The pointer file's form: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    assert error_of(one_file(tmp_path, pointer)).endswith("to get them: git lfs pull")
