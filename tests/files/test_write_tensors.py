"""Writing checkpoints: the files that transformers would write, whole or not at all."""

import json
import os
import stat
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open

from tinymistral.checkpoint import CheckpointError, read_tensors, write_tensors
from tinymistral.files import safetensors as writing


def floats(count, value=0.0, dtype=np.float32):
    return np.full(count, value, dtype)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_small_checkpoint_is_one_file_that_safetensors_reads(tmp_path):
    folder = tmp_path / "new" / "folder"
    write_tensors(
        folder,
        {
            "x": np.array([[1.0], [-2.0]], np.float32),
            "half": np.array(0.5, np.float16),
            "brain": floats(3, 1.5, ml_dtypes.bfloat16),
            "none": np.zeros((0, 2), np.float32),
        },
    )
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    with safe_open(folder / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}  # what transformers asks for when it loads
        types = [file.get_slice(name).get_dtype() for name in ("x", "half", "brain", "none")]
        assert types == ["F32", "F16", "BF16", "F32"]
        assert file.get_tensor("x").tolist() == [[1.0], [-2.0]]
        assert file.get_tensor("half").tolist() == 0.5
        assert file.get_tensor("none").shape == (0, 2)
    assert read_tensors(folder)["brain"].tolist() == [1.5, 1.5, 1.5]


def test_shards_are_filled_in_order_and_named_as_in_transformers(tmp_path):
    # The rule and the example (6, 6, 2, 6, 2, 2 with room for 10) are those of huggingface_hub's
    # split_state_dict_into_shards_factory: [6], [6+2], [6+2+2].
    names = ["a", "b", "c", "d", "e", "f"]
    sizes = [6, 6, 2, 6, 2, 2]
    tensors = {name: floats(size) for name, size in zip(names, sizes, strict=True)}
    write_tensors(tmp_path, tensors, max_shard_size=40)
    shard = "model-0000{}-of-00003.safetensors".format
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text("utf-8")) == {
        "metadata": {"total_size": 96},
        "weight_map": {
            "a": shard(1),
            "b": shard(2),
            "c": shard(2),
            "d": shard(3),
            "e": shard(3),
            "f": shard(3),
        },
    }
    assert len(list(tmp_path.iterdir())) == 4
    assert read_tensors(tmp_path).keys() == set(names)


def test_a_tensor_over_the_limit_has_a_shard_of_its_own(tmp_path):
    # As there: the large one is set aside at once, the shard being filled stays open.
    write_tensors(tmp_path, {"a": floats(1), "big": floats(9), "b": floats(1)}, max_shard_size=8)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text("utf-8"))
    assert index["weight_map"] == {
        "big": "model-00001-of-00002.safetensors",
        "a": "model-00002-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }


@given(counts=st.lists(st.integers(0, 9), max_size=9), limit=st.integers(1, 60))
def test_a_shard_exceeds_the_limit_only_with_a_single_tensor(tmp_path_factory, counts, limit):
    folder = tmp_path_factory.mktemp("checkpoint")
    write_tensors(folder, {str(i): floats(c) for i, c in enumerate(counts)}, max_shard_size=limit)
    for path in folder.glob("*.safetensors"):
        sizes = [len(tensor["data"]) for _, tensor in safetensors.deserialize(path.read_bytes())]
        assert sum(sizes) <= limit or len(sizes) == 1


def test_strided_and_big_endian_arrays_are_written_correctly(tmp_path):
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    brain = grid.astype(ml_dtypes.bfloat16)
    write_tensors(
        tmp_path,
        {
            "transposed": grid.T,
            "strided": grid[::2, ::-1],
            "brain": brain.T,
            "fortran": np.asfortranarray(grid),
            "big": grid.astype(">f4"),
            "big_scalar": np.array(3, ">f2"),
            "big_strided": grid.astype(">f4").T,
            "broadcast": np.broadcast_to(np.float32(1), (2, 2)),
        },
    )
    found = {name: tensor.tolist() for name, tensor in read_tensors(tmp_path).items()}
    rows = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    columns = [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    assert found == {
        "transposed": columns,
        "strided": [[3, 2, 1, 0], [11, 10, 9, 8]],
        "brain": columns,
        "fortran": rows,
        "big": rows,
        "big_scalar": 3,
        "big_strided": columns,
        "broadcast": [[1, 1], [1, 1]],
    }


@given(
    st.dictionaries(
        st.text(max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from(list(writing.DTYPES.values())),
            st.lists(st.integers(0, 3), max_size=3),
        ),
        max_size=16,
    )
)
@example(
    {'日本\x00\x1f\x7f\n"\\/\u2028': (np.float16, [1]), "": (np.float32, []), "🙂": (">f4", [2])}
)
@example({})
def test_a_file_has_the_bytes_that_safetensors_writes(tmp_path_factory, entries):
    tensors = {
        name: np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
        for name, (dtype, shape) in entries.items()
    }
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    writing.write_file(path, tensors)
    expected = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    assert path.read_bytes() == expected


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    # Each is a megabyte, and has to be copied before it is written.
    tensors = {str(i): np.ones((512, 512), np.float32).T for i in range(6)}
    tracemalloc.start()
    try:
        write_tensors(tmp_path, tensors, max_shard_size=2_500_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 1_000_000 < peak < 1_900_000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_is_reported_as_such():
    with pytest.raises(OSError, match="No space left on device"):
        writing.write_file(Path("/dev/full"), {"x": floats(100_000)})


@pytest.mark.parametrize("dtype", [np.int64, ml_dtypes.float8_e5m2, ">i8"])
def test_types_that_cannot_be_read_are_not_written(tmp_path, dtype):
    with pytest.raises(CheckpointError, match=r"cannot write 'x' as .* convert it to float32"):
        write_tensors(tmp_path / "new", {"x": np.zeros(1, dtype)})
    assert not (tmp_path / "new").exists()


def test_the_name_that_the_format_reserves_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no tensor can be named '__metadata__'"):
        write_tensors(tmp_path, {"__metadata__": floats(1)})


def test_a_limit_below_one_byte_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="a size is 0, expected 1 byte or more"):
        write_tensors(tmp_path, {}, max_shard_size=0)


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be replaced there")
@pytest.mark.parametrize("before", [12, 1000])
@pytest.mark.parametrize("after", [12, 1000])
def test_a_checkpoint_can_be_written_over_itself(tmp_path, before, after):
    write_tensors(tmp_path, {"a": floats(3, 1.0), "b": floats(3, 2.0)}, max_shard_size=before)
    mapped = read_tensors(tmp_path)
    swapped = {"a": mapped["b"], "b": mapped["a"][::-1]}
    write_tensors(tmp_path, swapped, max_shard_size=after)
    found = {name: tensor.tolist() for name, tensor in read_tensors(tmp_path).items()}
    assert found == {"a": [2.0] * 3, "b": [1.0] * 3}
    assert mapped["a"].tolist() == [1.0] * 3  # the old file lives on as long as its views


@pytest.mark.parametrize("before", [4, 8, 12, 100])
@pytest.mark.parametrize("after", [4, 8, 12, 100])
def test_a_later_save_leaves_nothing_of_an_earlier_one(tmp_path, before, after):
    kept = {"config.json", "consolidated.safetensors", "model-best.safetensors", "tokenizer.model"}
    for name in kept:
        (tmp_path / name).touch()
    write_tensors(tmp_path, {name: floats(1, 1) for name in "abcd"}, max_shard_size=before)
    write_tensors(tmp_path, {name: floats(1, 2) for name in "ABC"}, max_shard_size=after)
    written = {
        4: {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)},
        8: {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)},
    }.get(after)
    written = written | {"model.safetensors.index.json"} if written else {"model.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == kept | written
    assert {name: t.tolist() for name, t in read_tensors(tmp_path).items()} == {
        name: [2] for name in "ABC"
    }


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, OSError("disk full")])
def test_a_failed_save_leaves_the_folder_as_it_was(tmp_path, monkeypatch, failure):
    write_tensors(tmp_path, {"a": floats(1), "b": floats(1)}, max_shard_size=4)
    before = content_of(tmp_path)
    write_file = writing.write_file

    def fails_half_way_through_the_second(path, tensors, prepare):
        assert tmp_path in path.parents  # a rename from elsewhere would be a copy
        write_file(path, tensors, prepare)
        if "b" in tensors:
            path.write_bytes(path.read_bytes()[:-2])
            raise failure

    monkeypatch.setattr(writing, "write_file", fails_half_way_through_the_second)
    expected = CheckpointError if isinstance(failure, OSError) else failure
    with pytest.raises(expected):
        write_tensors(tmp_path, {"a": floats(1, 5), "b": floats(1, 5)}, max_shard_size=4)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("before", [4, 8, 100])
@pytest.mark.parametrize("after", [4, 8, 100])
@pytest.mark.parametrize("step", range(7))
def test_a_save_stopped_at_any_rename_or_removal_never_reads_wrongly(
    tmp_path, monkeypatch, before, after, step
):
    write_tensors(tmp_path, {name: floats(1, 1) for name in "abc"}, max_shard_size=before)
    steps = 0

    def stops(method):
        def wrapped(path, *target, **options):
            nonlocal steps
            if tmp_path in (path.parent, *(t.parent for t in target)):
                steps += 1
                if steps > step:
                    raise KeyboardInterrupt
            return method(path, *target, **options)

        return wrapped

    read = [{"a": 2, "b": 2, "c": 2}]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stops(Path.replace))
        patch.setattr(Path, "unlink", stops(Path.unlink))
        try:
            write_tensors(tmp_path, {name: floats(1, 2) for name in "abc"}, max_shard_size=after)
        except KeyboardInterrupt:
            read += [{"a": 1, "b": 1, "c": 1}, None]
    try:
        found = {name: tensor.item() for name, tensor in read_tensors(tmp_path).items()}
    except CheckpointError:
        found = None
    assert found in read
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file is a file, expected a folder to write to"):
        write_tensors(tmp_path / "file", {"x": floats(1)})


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_files_have_the_permissions_of_the_umask(tmp_path):
    # The library would make them readable by their owner only.
    umask = os.umask(0o027)
    try:
        write_tensors(tmp_path, {"a": floats(1), "b": floats(1)}, max_shard_size=4)
    finally:
        os.umask(umask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege there")
def test_saving_into_a_snapshot_of_the_hub_cache_leaves_its_blobs_alone(tmp_path):
    write_tensors(tmp_path / "blobs", {"x": floats(1, 1)})
    blob = tmp_path / "blobs" / "model.safetensors"
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(blob)
    write_tensors(snapshot, {"x": floats(1, 2)})
    assert read_tensors(snapshot)["x"].tolist() == [2]
    assert read_tensors(tmp_path / "blobs")["x"].tolist() == [1]
