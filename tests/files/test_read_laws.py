"""Laws of reading: a round trip keeps all bits, and no edit of a file gets past the checks."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
from handmade import entry, file_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from tinymistral.checkpoint import CheckpointError, read_tensors, write_tensors

CODES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@st.composite
def arrays(draw):
    """An array of any bits, NaN with their payloads included."""
    dtype = draw(st.sampled_from(list(CODES.values())))
    shape = draw(st.lists(st.integers(0, 4), max_size=4).map(tuple))
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


names = st.text(st.characters(codec="utf-8")).filter(lambda name: name != "__metadata__")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoint")


# The examples share a folder: each save must also replace what the one before it left there.
@given(
    tensors=st.dictionaries(names, arrays()),
    limit=st.integers(1, 500),
)
def test_written_tensors_read_back_bit_by_bit(folder, tensors, limit):
    write_tensors(folder, tensors, max_shard_size=limit)
    found = read_tensors(folder)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].tobytes() == tensor.tobytes()


WHOLE = file_bytes(
    {
        "__metadata__": {"format": "pt"},
        "a": entry("F32", [2], 0, 8),
        "b": entry("BF16", [2, 1], 8, 12),
        "c": entry("F16", [0, 2], 12, 12),
    },
    bytes(range(12)),
)

positions = st.integers(0, len(WHOLE) - 1)
json_bytes = st.sampled_from(list(b'0123456789-+.eE"\\,:[]{} abFI_')) | st.integers(0, 255)
many = settings(max_examples=10 * settings.default.max_examples)  # half a millisecond each
edits = st.lists(
    st.tuples(st.just("replace"), positions, json_bytes)
    | st.tuples(st.just("insert"), positions, json_bytes)
    | st.tuples(st.just("delete"), positions, st.integers(1, 20))
    | st.tuples(st.just("cut"), positions, st.none()),
    min_size=1,
    max_size=3,
)


def edited(content: bytes, edits) -> bytes:
    content = bytearray(content)
    for kind, position, value in edits:
        if kind == "replace":
            content[position : position + 1] = [value]
        elif kind == "insert":
            content.insert(position, value)
        elif kind == "delete":
            del content[position : position + value]
        else:
            del content[position:]
    return bytes(content)


def with_right_length(content: bytes) -> bytes:
    """Make the header's length fit the data again, so that edits reach the checks of the JSON."""
    return (len(content) - 8 - 12).to_bytes(8, "little", signed=True) + content[8:]


@many
@given(edits=edits, mend=st.booleans())
def test_an_edited_file_is_refused_or_read_as_safetensors_reads_it(folder, edits, mend):
    content = edited(WHOLE, edits)
    if mend and len(content) >= 20:
        content = with_right_length(content)
    for path in folder.iterdir():
        path.unlink()
    Path(folder, "model.safetensors").write_bytes(content)
    try:
        ours = read_tensors(folder)
    except CheckpointError as error:
        assert str(error).isprintable()
        return
    try:
        theirs = dict(safetensors.deserialize(content))
    except SafetensorError as error:
        raise AssertionError(f"safetensors refuses this: {error}") from None
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert list(ours[name].shape) == tensor["shape"]
        assert ours[name].tobytes() == bytes(tensor["data"])
        assert ours[name].dtype == CODES.get(tensor["dtype"], ours[name].dtype)


INDEX = (
    b'{"metadata": {"total_size": 24}, "weight_map": '
    b'{"a": "x.safetensors", "b": "x.safetensors", "c": "x.safetensors"}}'
)


@many
@given(edits=edits)
def test_an_edited_index_is_refused_or_leads_to_the_same_tensors(folder, edits):
    for path in folder.iterdir():
        path.unlink()
    Path(folder, "x.safetensors").write_bytes(WHOLE)
    Path(folder, "model.safetensors.index.json").write_bytes(edited(INDEX, edits))
    try:
        found = read_tensors(folder)
    except CheckpointError as error:
        assert str(error).isprintable()
        return
    assert found.keys() == {"a", "b", "c"}
