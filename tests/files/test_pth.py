"""Reading the .pth files that torch wrote."""

import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
from handmade_pth import ORDERED_DICT, error_of, pickled, pth, read, tensor, whole

from tinymistral.files.pth import read_pth

FILES = Path(__file__).parents[1] / "fixtures" / "raw" / "files"
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


def values(case: str) -> dict[str, dict]:
    """The tensors that torch saved, as torch's safetensors writer gives their bytes."""
    content = dict(safetensors.deserialize((FILES / "values.safetensors").read_bytes()))
    return {
        key.removeprefix(f"{case}."): value
        for key, value in content.items()
        if key.startswith(f"{case}.")
    }


@pytest.mark.parametrize("path", sorted(FILES.glob("*.pth")), ids=lambda path: path.stem)
def test_the_values_are_those_that_torch_saved(path):
    expected = values(path.stem) or values("dtypes")
    found = read_pth(path)
    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        assert list(found[key].shape) == value["shape"]
        assert found[key].dtype == DTYPES[value["dtype"]]
        assert found[key].tobytes() == bytes(value["data"])
        assert not found[key].flags.writeable


def test_names_keep_their_order():
    assert list(read_pth(FILES / "ordered.pth")) == ["z", "a"]


def test_tensors_are_views_of_the_file(tmp_path):
    content = bytearray((FILES / "views.pth").read_bytes())
    path = tmp_path / "views.pth"
    path.write_bytes(content)
    found = read_pth(path)
    whole = found["whole"].copy()
    place = content.index(whole.tobytes())
    with path.open("r+b") as file:  # in place: what is mapped changes too
        file.seek(place)
        file.write((whole + 1).astype("<f4").tobytes())
    np.testing.assert_array_equal(found["whole"], whole + 1)
    np.testing.assert_array_equal(found["column"], (whole + 1)[4::10])
    assert np.shares_memory(found["whole"], found["transposed"])


def test_a_file_of_over_4_gb_is_read(tmp_path):
    # Sparse: past 4 GiB an archive's offsets are in its zip64 records.
    path = tmp_path / "large.pth"
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as written:
        written.writestr("x/data.pkl", whole({"a": tensor()}))
        written.start_dir = 5 << 30
        written.writestr("x/data/0", struct.pack("<2f", 1, 2))
    assert path.stat().st_size > 5 << 30
    np.testing.assert_array_equal(read_pth(path)["a"], [1, 2])


TORCH_REFUSED = {
    "double": "its pickle names 'torch.DoubleStorage'",
    "expanded": "size (2,) whose strides (0,) overlap; save it after .contiguous()",
    "int64": "its pickle names 'torch.LongStorage'",
    "list": "it holds no dict of tensors; save model.state_dict()",
    "module": "its pickle names 'torch.nn.modules.linear.Linear'",
    "negated": "a tensor that is no plain one",
    "nested": "'epoch' is of type int, 'lr' is of type list, expected tensors alone",
    "overlapping": "size (2, 3) whose strides (1, 1) overlap",
    "protocol1": "its pickle has the opcode INT",
    "sparse": "its pickle names 'torch._utils._rebuild_sparse_tensor'",
    "tensor": "it holds no dict of tensors",
}


@pytest.mark.parametrize("path", sorted(FILES.glob("refused/*.pth")), ids=lambda path: path.stem)
def test_anything_but_a_dict_of_plain_tensors_is_refused(tmp_path, path):
    assert TORCH_REFUSED[path.stem] in error_of(tmp_path, path.read_bytes())


def test_attributes_of_a_state_dict_are_ignored(tmp_path):
    attributes = {"_metadata": {"": {"version": 1, "lr": [b"G" + struct.pack(">d", 0.5)]}}}
    items = b"(" + pickled("a") + tensor() + b"u"
    content = whole(ORDERED_DICT + items + pickled(attributes) + b"b")
    assert list(read(tmp_path, pth(content, _0=bytes(8)))) == ["a"]
