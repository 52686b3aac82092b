"""Reading a dump: what a program computed of the cases of a suite.

    FOLDER/CASE_ID.safetensors     tensors by the names of the case, such as calls.0.layers.0.q
    FOLDER/CASE_ID/NAME.npy        the same, one file each
    FOLDER/CASE_ID.json            of tokenizer and chat cases, in the form of the suite's
    FILE.safetensors               all in one file, named CASE_ID/NAME

Where a case has one call, `calls.0.` may be left out; `layouts.py` has the orders that numbers may
be in. A dump is not trusted: names are matched with those expected, shapes are compared with the
expected ones before numbers are allocated, and no file is read through a link out of the folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.files import CheckpointError, read_json
from tinymistral.files.safetensors import read_file
from tinymistral.golden.compare import layouts
from tinymistral.golden.compare.places import shape_problem, token_too_many
from tinymistral.golden.files import AnotherShapeError, Arrays, npy_shape, read_npy
from tinymistral.golden.manifest import TEXT_KINDS, Case
from tinymistral.golden.shapes import axes_of
from tinymistral.golden.suite import DOCUMENT_LIMIT, CaseArrays, Suite
from tinymistral.text import one_line

MANIFEST = "manifest.json"
RAW_TAKEN = "queries and keys are taken in the order of a raw checkpoint"
COLUMNS_TAKEN = (
    "attention weights are taken to have a column for each token of the input, padding too; the "
    "suite has those of inputs.calls.N.key_positions"
)
REMEDY = "make it readable, or write it again"
LOOKED_UP = 10  # unknown names for which a similar one is searched


@dataclass
class CaseDump:
    """What a dump has of one case."""

    arrays: Arrays = field(default_factory=dict)  # by their expected names
    longer: Arrays = field(default_factory=dict)  # those of a token too many or too few, as given
    document: Any = None  # of tokenizer and chat cases
    problems: dict[str, str] = field(default_factory=dict)  # expected name -> why it is no array
    unknown: dict[str, str] = field(default_factory=dict)  # name -> the nearest expected one, or ""
    layout: str = "hf"  # "raw": queries and keys were in the order of a raw checkpoint
    notes: tuple[str, ...] = ()  # other orders that were recognized, in words


@dataclass(frozen=True)
class Candidate:
    """A dump, whose files are read when they are asked for."""

    path: Path
    suite: Suite
    layout: str  # "hf", "raw", or "auto": for a raw model, whichever is nearer
    files: Mapping[str, list[Path]]  # case id -> its files, or the folder of them
    arrays: Mapping[str, Arrays]  # case id -> its tensors in a single file
    unknown: Mapping[str, str]  # what is no case -> the nearest case id, or ""

    @property
    def cases(self) -> list[str]:
        """The ids of the cases that are given, in the order of the suite."""
        return [n for n in self.suite.manifest.cases if n in self.files or n in self.arrays]

    def read(self, case: Case, arrays: CaseArrays | None = None) -> CaseDump:
        """Read what is given of a case; `arrays` are the suite's, if they have been read.

        Raises ValueError, in one line, where a file cannot be read at all or is empty; what is
        wrong with one tensor is among the `problems`.
        """
        if case.kind in TEXT_KINDS:
            return CaseDump(document=self._document(case))
        arrays = self.suite.read(case) if arrays is None else arrays
        given = CaseDump()
        for given_name, source in self._sources(case):
            name = full_name(case, given_name, arrays.expected)
            if name not in arrays.expected:
                of_cache = case.kind == "model" and ".cache." in f".{name}"
                if not (of_cache and 0 in self._shape(source)):  # an empty cache is no mistake
                    given.unknown[given_name] = ""
                continue
            if name in given.arrays or name in given.problems:
                raise ValueError(f"{self.path}: {case.id}: {name} is given twice")
            self._take(given, case, name, source, arrays)
        if not (given.arrays or given.problems or given.unknown):
            where = ", ".join(map(str, self.files.get(case.id, [self.path])))
            raise ValueError(f"{where}: there is no tensor in it")
        short = [n.removeprefix("calls.0.") for n in arrays.expected] if case.calls == 1 else []
        given.unknown = nearest(given.unknown, [*short, *arrays.expected])
        self._convert(given, case, arrays)
        return given

    def _take(
        self,
        given: CaseDump,
        case: Case,
        name: str,
        source: np.ndarray | Path,
        arrays: CaseArrays,
    ) -> None:
        """Add a tensor, or the reason why it cannot be compared."""
        shapes = [arrays.expected[name].shape]
        columns = layouts.all_columns(case, arrays.inputs, name)
        if columns is not None and len(shapes[0]) == 4:
            shapes.append((*shapes[0][:3], columns.shape[1]))
        try:
            given.arrays[name] = self._array(source, *shapes)
        except AnotherShapeError as error:
            axes = axes_of(case, self.suite.manifest.stages, name)
            given.problems[name] = shape_problem(case, name, axes, error.shape, shapes[0])
            if token_too_many(axes, error.shape, shapes[0]):
                with suppress(ValueError):
                    given.longer[name] = self._array(source, error.shape)
        except ValueError as error:
            given.problems[name] = one_line(error)

    def _array(self, source: np.ndarray | Path, *shapes: tuple[int, ...]) -> np.ndarray:
        if isinstance(source, Path):
            return read_npy(self._inside(source), *shapes)
        if source.shape not in shapes:
            raise AnotherShapeError(source.shape)
        return source

    def _convert(self, given: CaseDump, case: Case, arrays: CaseArrays) -> None:
        """Convert what is given to the orders of the suite."""
        model = self.suite.manifest.models.get(case.model or "")
        if self.layout == "auto" and model is not None and model.layout == "raw":
            given.layout = "raw" if layouts.is_raw(case, arrays, given.arrays) else "hf"
        elif self.layout == "raw" and case.kind == "model":
            given.layout = "raw"
        if given.layout == "raw":
            given.arrays = layouts.all_in_halves(case, given.arrays)
            given.longer = layouts.all_in_halves(case, given.longer)
            given.notes += (RAW_TAKEN,) if self.layout == "auto" else ()
        given.arrays, converted = layouts.by_key(case, arrays, given.arrays)
        given.notes += (COLUMNS_TAKEN,) if converted else ()

    def _sources(self, case: Case) -> list[tuple[str, np.ndarray | Path]]:
        sources: list[tuple[str, np.ndarray | Path]] = [*self.arrays.get(case.id, {}).items()]
        for path in self.files.get(case.id, ()):
            if path.suffix == ".safetensors":
                sources += read_file(self._inside(path)).items()
            elif path.is_dir():
                sources += [(file.name.removesuffix(".npy"), file) for file in _npy_files(path)]
            else:
                raise ValueError(f"{path}: expected the numbers of {case.id} in safetensors or npy")
        return sources

    def _shape(self, source: np.ndarray | Path) -> tuple[int, ...]:
        """Return the shape of a tensor; () where it cannot be read."""
        if not isinstance(source, Path):
            return source.shape
        try:
            return npy_shape(self._inside(source))
        except ValueError:
            return ()

    def _document(self, case: Case) -> dict[str, Any]:
        paths = [path for path in self.files.get(case.id, ()) if path.suffix == ".json"]
        if not paths:
            raise ValueError(f"{self.path}: expected the texts of {case.id} in {case.id}.json")
        return read_json(self._inside(paths[0]), DOCUMENT_LIMIT)

    def _inside(self, path: Path) -> Path:
        """Return the path; ValueError if it is a link that leads out of the folder."""
        try:
            inside = path == self.path or path.resolve().is_relative_to(self.path.resolve())
        except (OSError, RuntimeError):  # such as a link to itself
            raise ValueError(f"{path}: it is a link that leads nowhere") from None
        if not inside:
            raise ValueError(f"{path}: it is a link out of the folder; copy the file into it")
        return path


def open_candidate(path: str | Path, suite: Suite, layout: str = "auto") -> Candidate:
    """Find what a dump holds; ValueError if nothing of it belongs to the suite."""
    path, cases = Path(path), suite.manifest.cases
    example = next(iter(cases), "CASE")
    expected = (
        f"expected a folder with {example}.safetensors or {example}/NAME.npy, "
        f"or a .safetensors file with tensors {example}/NAME"
    )
    files: dict[str, list[Path]] = {}
    arrays: dict[str, Arrays] = {}
    if _is_folder(path):
        files = _files_by_case(path, cases)
        if not any(name in cases for name in files) and (path / MANIFEST).is_file():
            raise ValueError(
                f"{path}: it is a suite, with a {MANIFEST}; expected as CANDIDATE the folder that "
                "your program wrote its results to"
            )
    elif path.stem in cases:
        files[path.stem] = [path]
    else:
        try:
            tensors = read_file(path)
        except CheckpointError as error:
            raise ValueError(f"{error}; as CANDIDATE, {expected}") from None
        for name, array in tensors.items():
            case, _, rest = name.partition("/")
            arrays.setdefault(case, {})[rest] = array
    unknown = nearest((name for name in (*files, *arrays) if name not in cases), cases)
    candidate = Candidate(path, suite, layout, files, arrays, unknown)
    if not candidate.cases:
        text = "no output of any case"
        for name, near in list(unknown.items())[:1]:
            text += f": there is no case {one_line(name, 80)!r}"
            text += f", is it {near!r}?" if near else ""
        raise ValueError(f"{path}: {text}; {expected}; `tinymistral golden list` lists the cases")
    return candidate


def full_name(case: Case, name: str, expected: Iterable[str]) -> str:
    """Return the expected name that a given one stands for, or the given one."""
    full = f"calls.0.{name}"
    return full if case.kind == "model" and case.calls == 1 and full in expected else name


def nearest(unknown: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Return for each unknown name the most similar known one, or ""; for the first few."""
    known, found = list(known), {}
    without_call = {name.split(".", 2)[-1]: name for name in reversed(known)}
    for n, name in enumerate(unknown):
        close = [without_call.get(name, "")]
        if not close[0] and n < LOOKED_UP:
            close = difflib.get_close_matches(name[:120], known, 1)
            close = [n for n in close if ("cache." in n) == ("cache." in name)]
        found[name] = close[0] if close else ""
    return found


# The folder of a dump


def _files_by_case(path: Path, cases: Iterable[str]) -> dict[str, list[Path]]:
    """Find the files of each case, and others that look as if they were of one."""
    files: dict[str, list[Path]] = {}
    for file in _listed(path):
        if file.suffix in (".safetensors", ".json"):
            files.setdefault(file.stem, []).append(file)
        elif _is_folder(file) and (file.name in cases or _has_npy(file)):
            files.setdefault(file.name, []).append(file)  # a case's even if it is empty
    return files


def _has_npy(folder: Path) -> bool:
    try:
        return bool(_npy_files(folder))
    except ValueError:  # unreadable, so it may
        return True


def _npy_files(folder: Path) -> list[Path]:
    return [file for file in _listed(folder) if file.suffix == ".npy"]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        raise ValueError(f"{path}: it cannot be read: {error.strerror}; {REMEDY}") from None


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(
            f"{folder}: this folder cannot be read: {error.strerror}; {REMEDY}"
        ) from None
