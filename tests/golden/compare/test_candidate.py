"""Reading dumps in each of their forms. The files are made with numpy and safetensors."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from handmade_suite import STRINGS, counting, expected, suite_fixture  # noqa: F401
from safetensors.numpy import save_file

from tinymistral.golden.compare.candidate import CaseDump, nearest, open_candidate
from tinymistral.golden.files import read_npy
from tinymistral.golden.suite import Suite


def read(suite: Suite, path: Path, case: str, layout: str = "auto") -> CaseDump:
    return open_candidate(path, suite, layout).read(suite.case(case))


def write_npy(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def as_folder_of_files(path: Path, case: str, arrays: dict[str, np.ndarray]) -> Path:
    path.mkdir()
    save_file(arrays, path / f"{case}.safetensors")
    return path


def as_folder_of_arrays(path: Path, case: str, arrays: dict[str, np.ndarray]) -> Path:
    write_npy(path / case, arrays)
    return path


def as_one_file(path: Path, case: str, arrays: dict[str, np.ndarray]) -> Path:
    file = path.with_name("dump.safetensors")
    save_file({f"{case}/{name}": x for name, x in arrays.items()}, file)
    return file


def as_the_file_of_a_case(path: Path, case: str, arrays: dict[str, np.ndarray]) -> Path:
    return as_folder_of_files(path, case, arrays) / f"{case}.safetensors"


FORMS = [as_folder_of_files, as_folder_of_arrays, as_one_file, as_the_file_of_a_case]
Form = Callable[[Path, str, dict[str, np.ndarray]], Path]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ["once", "twice", "greedy"])
def test_each_form_is_read_the_same(suite: Suite, tmp_path: Path, form: Form, case: str) -> None:
    arrays = expected(case)
    path = form(tmp_path / "dump", case, arrays)
    assert open_candidate(path, suite).cases == [case]
    found = read(suite, path, case)
    assert (found.problems, found.unknown) == ({}, {})
    assert set(found.arrays) == set(arrays)
    for name, array in found.arrays.items():
        np.testing.assert_array_equal(array, arrays[name], strict=True)


@pytest.mark.parametrize("form", FORMS)
def test_names_of_a_single_call_may_be_short(suite: Suite, tmp_path: Path, form: Form) -> None:
    short = {name.removeprefix("calls.0."): x for name, x in expected("once").items()}
    found = read(suite, form(tmp_path / "dump", "once", short), "once")
    assert set(found.arrays) == set(expected("once"))
    assert found.unknown == {}


def test_names_of_several_calls_may_not(suite: Suite, tmp_path: Path) -> None:
    arrays = {"norm": expected("twice")["calls.0.norm"]}
    found = read(suite, as_folder_of_files(tmp_path / "dump", "twice", arrays), "twice")
    assert (found.arrays, found.unknown) == ({}, {"norm": "calls.0.norm"})


def test_a_tensor_that_is_there_twice(suite: Suite, tmp_path: Path) -> None:
    array = expected("once")["calls.0.norm"]
    path = as_folder_of_files(tmp_path / "dump", "once", {"calls.0.norm": array, "norm": array})
    with pytest.raises(ValueError, match=r"once: calls\.0\.norm is given twice"):
        read(suite, path, "once")
    write_npy(tmp_path / "other" / "once", {"norm": array})
    save_file({"norm": array}, tmp_path / "other" / "once.safetensors")
    with pytest.raises(ValueError, match="twice"):
        read(suite, tmp_path / "other", "once")


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<f2", ">f4", "<i8", ">i2", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_in_each_dtype_and_order(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.array(counting(2, 3, 4), dtype=dtype, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "x.npy", array)
    found = read_npy(tmp_path / "x.npy", (2, 3, 4))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_npy_in_bfloat16(tmp_path: Path) -> None:
    array = counting(2, 3).astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "x.npy", array)  # whose header says V2
    found = read_npy(tmp_path / "x.npy", (2, 3))
    np.testing.assert_array_equal(found, array, strict=True)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_in_each_version(tmp_path: Path, version: tuple[int, int]) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, counting(3, 1), version=version)
    np.testing.assert_array_equal(read_npy(tmp_path / "x.npy", (3, 1)), counting(3, 1))


def test_texts_are_read(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text(json.dumps({"strings": STRINGS}), "utf-8")
    assert read(suite, tmp_path, "words").document == {"strings": STRINGS}
    assert read(suite, tmp_path / "words.json", "words").document == {"strings": STRINGS}


# Names


def test_names_that_are_unknown_come_with_the_nearest(suite: Suite, tmp_path: Path) -> None:
    arrays = {name: np.zeros(1, np.float32) for name in ("layers.0.query", "layers.1.Q", "xyz")}
    save_file(arrays | {"norm": expected("once")["calls.0.norm"]}, tmp_path / "once.safetensors")
    save_file(arrays, tmp_path / "one.safetensors")
    (tmp_path / "notes.txt").write_text("not a dump", "utf-8")
    (tmp_path / "folder").mkdir()
    candidate = open_candidate(tmp_path, suite)
    assert candidate.unknown == {"one": "once"}
    found = candidate.read(suite.case("once"))
    assert list(found.arrays) == ["calls.0.norm"]
    assert found.unknown == {"layers.0.query": "layers.0.q", "layers.1.Q": "layers.1.q", "xyz": ""}


def test_cases_that_are_unknown_in_a_single_file(suite: Suite, tmp_path: Path) -> None:
    arrays = {"rope/out": np.zeros(1, np.float32), "greddy/sequences": np.zeros(1, np.float32)}
    save_file(arrays, tmp_path / "dump.safetensors")
    candidate = open_candidate(tmp_path / "dump.safetensors", suite)
    assert (candidate.cases, candidate.unknown) == (["rope"], {"greddy": "greedy"})


def test_an_empty_dump_is_an_error(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no output of any case; expected .*golden list"):
        open_candidate(tmp_path, suite)
    save_file({"out": np.zeros(1, np.float32)}, tmp_path / "ropes.safetensors")
    with pytest.raises(ValueError, match=r"there is no case 'ropes', is it 'rope'\?"):
        open_candidate(tmp_path, suite)
    with pytest.raises(ValueError, match="there is no case 'out'"):
        open_candidate(tmp_path / "ropes.safetensors", suite)
    with pytest.raises(ValueError, match="there is no such file"):
        open_candidate(tmp_path / "nowhere", suite)


def test_a_suite_is_no_candidate(suite: Suite) -> None:
    with pytest.raises(ValueError, match=r"it is a suite, with a manifest\.json; expected as CAND"):
        open_candidate(suite.folder, suite)


def test_a_dump_beside_a_manifest_is_one(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}", "utf-8")
    save_file(expected("rope"), tmp_path / "rope.safetensors")
    assert open_candidate(tmp_path, suite).cases == ["rope"]


def test_no_tensor_at_all(suite: Suite, tmp_path: Path) -> None:
    save_file({}, tmp_path / "rope.safetensors")
    (tmp_path / "once").mkdir()
    (tmp_path / "once" / "norm.npz").write_bytes(b"of another kind")
    for case, name in (("rope", "rope.safetensors"), ("once", "once")):
        with pytest.raises(ValueError, match=f"{name}: there is no tensor in it"):
            read(suite, tmp_path, case)


def test_a_folder_named_like_a_file(suite: Suite, tmp_path: Path) -> None:
    write_npy(tmp_path / "rope.safetensors", expected("rope"))
    with pytest.raises(ValueError, match=r"rope\.safetensors: it is no regular file"):
        read(suite, tmp_path, "rope")


@pytest.mark.parametrize("form", FORMS)
def test_empty_caches_are_not_missing(suite: Suite, tmp_path: Path, form: Form) -> None:
    """A window of 1 leaves nothing to keep: a right program may write so many zeros of it."""
    name = "calls.0.cache.layers.7.k"
    arrays = expected("once") | {name: np.zeros((2, 0, 1, 4), np.float32)}
    assert read(suite, form(tmp_path / "dump", "once", arrays), "once").unknown == {}
    arrays[name] = np.zeros((2, 1, 1, 4), np.float32)
    found = read(suite, form(tmp_path / "other", "once", arrays), "once").unknown
    assert set(found) == {name}
    assert "cache" in found[name]


def test_a_stage_is_not_proposed_for_a_cached_tensor() -> None:
    near = ["calls.0.layers.0.k", "layers.0.k"]
    assert nearest(["calls.0.cache.layers.0.k"], near) == {"calls.0.cache.layers.0.k": ""}


@pytest.mark.parametrize("form", FORMS)
def test_a_tensor_with_a_token_too_many_is_kept_for_the_diagnosis(
    suite: Suite, tmp_path: Path, form: Form
) -> None:
    given = {"layers.0.q": counting(2, 3, 2, 4), "layers.1.q": counting(2, 4, 2, 4)}
    given |= {"norm": counting(2, 1, 3), "embedding": counting(2, 3, 4)}
    found = read(suite, form(tmp_path / "dump", "once", given), "once")
    assert found.arrays == {}
    assert len(found.problems) == 4
    assert set(found.longer) == {"calls.0.layers.0.q", "calls.0.norm"}
    for name, array in found.longer.items():
        np.testing.assert_array_equal(array, given[name.removeprefix("calls.0.")])


def test_a_broken_tensor_with_a_token_too_many_is_one_problem(suite: Suite, tmp_path: Path) -> None:
    write_npy(tmp_path / "once", expected("once") | {"calls.0.norm": counting(2, 3, 3)})
    path = tmp_path / "once" / "calls.0.norm.npy"
    path.write_bytes(path.read_bytes()[:-1])
    found = read(suite, tmp_path, "once")
    assert (set(found.problems), found.longer) == ({"calls.0.norm"}, {})


# Unreadable files; these tests also run as root, which can read anything


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let no folder of this name be listed."""
    real = Path.iterdir

    def iterdir(self: Path) -> Iterator[Path]:
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)


def test_an_unreadable_folder(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, "dump")
    (tmp_path / "dump").mkdir()
    with pytest.raises(ValueError, match=r"dump: this folder cannot be read: Permission denied; "):
        open_candidate(tmp_path / "dump", suite)


def test_an_unreadable_folder_of_a_case(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rope", "ropes"):
        write_npy(tmp_path / name, expected("rope"))
        forbid(monkeypatch, name)
    candidate = open_candidate(tmp_path, suite)
    assert (candidate.cases, candidate.unknown) == (["rope"], {"ropes": "rope"})
    with pytest.raises(ValueError, match=r"rope: this folder cannot be read: Permission denied; "):
        candidate.read(suite.case("rope"))


def test_a_folder_that_cannot_be_searched(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_dir(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", is_dir)
    with pytest.raises(ValueError, match=r"dump: it cannot be read: .* denied; make it readable"):
        open_candidate(tmp_path / "dump", suite)


def test_an_unreadable_file(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.is_file

    def is_file(self: Path) -> bool:
        if self.name == "out.npy":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    write_npy(tmp_path / "rope", expected("rope"))
    monkeypatch.setattr(Path, "is_file", is_file)
    problems = read(suite, tmp_path, "rope").problems
    assert problems == {"out": "it cannot be read: Permission denied"}


@pytest.mark.parametrize("case", ["words", "rope"])
def test_a_file_of_the_wrong_kind(suite: Suite, tmp_path: Path, case: str) -> None:
    (tmp_path / "rope.json").write_text("{}", "utf-8")
    save_file({"out": np.zeros(1, np.float32)}, tmp_path / "words.safetensors")
    with pytest.raises(ValueError, match=f"expected the (texts|numbers) of {case} in"):
        read(suite, tmp_path, case)


# Layout raw


def test_layout_raw_is_converted_from_pairs_to_halves(suite: Suite, tmp_path: Path) -> None:
    arrays = expected("once")
    in_pairs = {}
    for name, x in arrays.items():
        if name.split(".")[-1] in ("q", "k", "k_rotated"):
            pairs = np.empty_like(x)  # d = 4: halves (0, 1 | 2, 3) lie as 0, 2, 1, 3
            pairs[..., [0, 2, 1, 3]] = x[..., [0, 1, 2, 3]]
            in_pairs[name] = pairs
    assert len(in_pairs) == 8  # of two layers: q, k, k_rotated, cached k
    path = as_folder_of_files(tmp_path / "dump", "once", arrays | in_pairs)
    found = read(suite, path, "once", "raw")
    for name, array in found.arrays.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    as_given = read(suite, path, "once", "hf")
    for name, array in in_pairs.items():
        np.testing.assert_array_equal(as_given.arrays[name], array)
    for case, name in (("rope", "out"), ("greedy", "logprobs")):
        path = as_folder_of_files(tmp_path / case, case, {name: expected(case)[name]})
        np.testing.assert_array_equal(
            read(suite, path, case, "raw").arrays[name], expected(case)[name]
        )
