"""Laws of reading .pth files: an edited file is refused or reads as tensors."""

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from handmade_pth import ORDERED_DICT, name, pickled, pth, storage, tensor
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinymistral.checkpoint import CheckpointError
from tinymistral.files.pth import read_pth

FILES = Path(__file__).parents[1] / "fixtures" / "raw" / "files"
WHOLE = (FILES / "views.pth").read_bytes()
SHAPES = {key: array.shape for key, array in read_pth(FILES / "views.pth").items()}
DTYPES = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16)))

many = settings(max_examples=10 * settings.default.max_examples)  # half a millisecond each


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoint") / "consolidated.00.pth"


def read_or_refuse(path: Path, content: bytes) -> dict[str, np.ndarray] | None:
    path.unlink(missing_ok=True)  # what is mapped stays as it is
    path.write_bytes(content)
    try:
        return read_pth(path)
    except CheckpointError as error:
        assert str(error).isprintable()
        return None


positions = st.integers(0, len(WHOLE))
directory = st.integers(WHOLE.index(b"PK\x01\x02"), len(WHOLE))  # half of the edits go there
edits = st.tuples(
    positions | directory,
    st.integers(0, 3) | st.integers(0, len(WHOLE)),
    st.binary(max_size=4) | st.integers(0, 70_000).map(bytes),
)


@many
@given(edits=st.lists(edits, min_size=1, max_size=2))
@example(edits=[(len(WHOLE) // 2, len(WHOLE), b"")])
def test_an_edited_file_is_refused_or_has_the_same_names_and_shapes(path, edits):
    # An edit replaces a range by bytes: truncations, flips, deletions, insertions.
    content = WHOLE
    for start, length, inserted in edits:
        content = content[:start] + inserted + content[start + length :]
    found = read_or_refuse(path, content)
    if found is not None:
        assert {key: array.shape for key, array in found.items()} == SHAPES


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_refused_or_leaves_names_and_shapes(path):
    for place in range(8 * len(WHOLE)):
        content = bytearray(WHOLE)
        content[place // 8] ^= 1 << place % 8
        found = read_or_refuse(path, bytes(content))
        if found is not None:
            assert {key: array.shape for key, array in found.items()} == SHAPES


def check_is_of_the_file(array: np.ndarray, content: bytes) -> None:
    """Assert that an array is a read-only view of a storage, and within it."""
    assert array.dtype in DTYPES
    assert not array.flags.writeable
    if array.size:
        mapped = np.frombuffer(array.base, np.uint8)
        start = array.__array_interface__["data"][0] - mapped.__array_interface__["data"][0]
        reach = sum((n - 1) * step for n, step in zip(array.shape, array.strides, strict=True))
        storages = [content.index(marked) for marked in MARKED]
        assert any(
            place <= start <= start + reach + array.itemsize <= place + 8 for place in storages
        )


MARKED = (b"storage0", b"storage1")
PICKLE = bytes(
    b"\x80\x04}q\x00("
    + pickled("a")
    + tensor(size=(2, 1), stride=(1, 1))
    + pickled("b")
    + tensor(storage("1", 4, "HalfStorage"), 1, (3,))
    + b"u."
)

# Edited with a whole archive around it, so that no checksum protects it.
OPCODES = b"\x80\x95N\x88\x89KMJ\x8a\x8cX\x8dGq\x94hrj()\x85\x86\x87t]ae}sucbQR.\x93"
VALUES = (0, 1, 2, 3, -1, 2**31, 2**63, "a", "b", "0", "1", (), (2,), (1, 2), [1], {})
opcodes = st.sampled_from([bytes([code]) for code in OPCODES])
pieces = st.sampled_from(
    [
        *map(pickled, VALUES),
        *(storage(), storage("1", 4, "HalfStorage"), tensor(), ORDERED_DICT),
        *(name("torch", kind) for kind in ("FloatStorage", "BFloat16Storage")),
        *(name("torch._utils", f"_rebuild_{what}") for what in ("tensor_v2", "parameter")),
    ]
)
inserted = opcodes | pieces | st.binary(max_size=3)


@many
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(PICKLE)), st.integers(0, 3), inserted), min_size=1, max_size=3
    )
)
def test_an_edited_pickle_is_refused_or_gives_views_of_the_file(path, edits):
    content = PICKLE
    for start, length, piece in edits:
        content = content[:start] + piece + content[start + length :]
    archive = pth(content, _0=MARKED[0], _1=MARKED[1])
    for array in (read_or_refuse(path, archive) or {}).values():
        check_is_of_the_file(array, archive)


@many
@given(pieces=st.lists(opcodes | pieces, max_size=30))
def test_a_pickle_of_any_opcodes_is_refused_or_gives_views_of_the_file(path, pieces):
    content = b"}" + pickled("a") + b"".join(pieces) + b"s."
    archive = pth(content, _0=MARKED[0], _1=MARKED[1])
    for array in (read_or_refuse(path, archive) or {}).values():
        check_is_of_the_file(array, archive)


numbers = st.integers(-1, 5)


@many
@given(
    st.integers(-1, 30),
    st.lists(st.tuples(numbers, st.integers(-1, 12)), max_size=3),
)
def test_a_tensor_is_read_if_and_only_if_its_elements_are_there_and_differ(path, offset, axes):
    size, stride = (tuple(axis[i] for axis in axes) for i in (0, 1))
    values = np.arange(24, dtype=np.float32)
    archive = pth(
        b"\x80\x02" + pickled({"a": tensor(storage(count=24), offset, size, stride)}) + b".",
        _0=values.tobytes(),
    )
    found = read_or_refuse(path, archive)
    negative = min((offset, *size, *stride)) < 0
    # Where each element lies, one by one.
    places = (
        []
        if negative
        else [
            offset + sum(i * step for i, step in zip(index, stride, strict=True))
            for index in np.ndindex(size)
        ]
    )
    if negative or any(place >= 24 for place in places) or len({*places}) < len(places):
        assert found is None
    elif found is None:  # these interleave: no axis steps over another, yet no two elements meet
        steps = sorted((step, n) for n, step in zip(size, stride, strict=True) if n > 1)
        assert any(
            step <= sum((n - 1) * shorter for shorter, n in steps[:i])
            for i, (step, _) in enumerate(steps)
        )
    else:
        assert found["a"].shape == size
        assert found["a"].ravel().tolist() == places


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux alone")
@pytest.mark.parametrize("laws", ["test_pth_laws.py", "test_read_laws.py"])
def test_the_laws_hold_in_2_gb_of_address_space(laws):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, Path(__file__).with_name(laws)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:]
