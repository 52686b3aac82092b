"""Reading a dump: what somebody's program computed of the cases of a suite.

    FOLDER/CASE_ID.safetensors     tensors by the names of the case, such as calls.0.layers.0.q
    FOLDER/CASE_ID/NAME.npy        the same, one file each
    FOLDER/CASE_ID.json            of tokenizer and chat cases, in the form of the suite's
    FILE.safetensors               all in one file, named CASE_ID/NAME

Where a case has one call, `calls.0.` may be left out. Nothing of a dump is trusted: names are
matched with those expected, shapes are held against the expected ones before there is room for
numbers, and no file is read through a link that leads out of the folder.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.checkpoint.reading import read_file
from tinymistral.files import JSON_LIMIT, parse_json, read_bytes
from tinymistral.golden.checking.npy import AnotherShapeError, read_npy
from tinymistral.golden.checking.places import axes_of, shape_problem
from tinymistral.golden.manifest import TEXTS
from tinymistral.golden.suite import Case, Suite
from tinymistral.plugins import one_line

LOOKED_UP = 10  # unknown names, among the known ones
_IN_PAIRS = re.compile(
    r"calls\.\d+\.(layers\.\d+\.(q|k|q_rotated|k_rotated)|cache\.layers\.\d+\.k)"
)

Tensors = dict[str, np.ndarray]


@dataclass
class Given:
    """What is given of one case."""

    arrays: Tensors = field(default_factory=dict)  # by their expected names
    document: Any = None  # of tokenizer and chat cases
    problems: dict[str, str] = field(default_factory=dict)  # expected name -> why it is no array
    unknown: dict[str, str] = field(default_factory=dict)  # name -> the nearest expected one, or ""


@dataclass(frozen=True)
class Candidate:
    """A dump, whose files are read when they are asked for."""

    path: Path
    suite: Suite
    layout: str  # "raw": queries and keys of a head are in the order of a raw checkpoint
    files: Mapping[str, list[Path]]  # case id -> its files, or the folder of them
    arrays: Mapping[str, Tensors]  # case id -> its tensors in a single file
    unknown: Mapping[str, str]  # what is no case -> the nearest case id, or ""

    @property
    def cases(self) -> list[str]:
        """The ids of the cases that are given, in the order of the suite."""
        return [n for n in self.suite.manifest.cases if n in self.files or n in self.arrays]

    def read(self, case: Case, expected: Tensors | None = None) -> Given:
        """Read what is given of a case; `expected` spares reading what the suite expects of it.

        Raises ValueError, in one line, where a file cannot be read at all; what is wrong with one
        tensor is among the `problems`.
        """
        if case.kind in TEXTS:
            return Given(document=self._document(case))
        expected = self.suite.read(case).expected if expected is None else expected
        given = Given()
        for given_name, source in self._sources(case):
            name = full_name(case, given_name, expected)
            if name not in expected:
                given.unknown[given_name] = ""
                continue
            if name in given.arrays or name in given.problems:
                raise ValueError(f"{self.path}: {case.id}: {name} is given twice")
            shape = expected[name].shape
            try:
                array = self._array(source, shape)
                turned = self.layout == "raw" and in_pairs(case, name)
                given.arrays[name] = halves(array) if turned else array
            except AnotherShapeError as error:
                axes = axes_of(case, self.suite.manifest.stages, name, len(shape))
                given.problems[name] = shape_problem(error.shape, shape, axes)
            except ValueError as error:
                given.problems[name] = one_line(error)
        short = [n.removeprefix("calls.0.") for n in expected] if case.calls == 1 else []
        given.unknown = nearest(given.unknown, [*short, *expected])
        return given

    def _sources(self, case: Case) -> list[tuple[str, np.ndarray | Path]]:
        sources: list[tuple[str, np.ndarray | Path]] = [*self.arrays.get(case.id, {}).items()]
        for path in self.files.get(case.id, ()):
            if path.is_dir():
                sources += [(file.name.removesuffix(".npy"), file) for file in _npy_files(path)]
            elif path.suffix == ".safetensors":
                sources += read_file(self._inside(path)).items()
            else:
                raise ValueError(f"{path}: expected the numbers of {case.id} in safetensors or npy")
        return sources

    def _array(self, source: np.ndarray | Path, shape: tuple[int, ...]) -> np.ndarray:
        if isinstance(source, Path):
            return read_npy(self._inside(source), shape)
        if source.shape != shape:
            raise AnotherShapeError(source.shape)
        return source

    def _document(self, case: Case) -> Any:
        paths = [path for path in self.files.get(case.id, ()) if path.suffix == ".json"]
        if not paths:
            raise ValueError(f"{self.path}: expected the texts of {case.id} in {case.id}.json")
        content = read_bytes(self._inside(paths[0]), JSON_LIMIT)
        try:
            return parse_json(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{paths[0]}: not valid JSON: {one_line(error)}") from None

    def _inside(self, path: Path) -> Path:
        """Return the path; ValueError if it is a link that leads out of the folder."""
        if path != self.path and not path.resolve().is_relative_to(self.path.resolve()):
            raise ValueError(f"{path}: it is a link out of the folder; copy the file into it")
        return path


def open_candidate(path: str | Path, suite: Suite, layout: str = "hf") -> Candidate:
    """Find what a dump holds; ValueError if nothing of it belongs to the suite."""
    path, cases = Path(path), suite.manifest.cases
    files: dict[str, list[Path]] = {}
    arrays: dict[str, Tensors] = {}
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.suffix in (".safetensors", ".json"):
                files.setdefault(file.stem, []).append(file)
            elif file.is_dir() and _npy_files(file):
                files.setdefault(file.name, []).append(file)
    elif path.stem in cases:
        files[path.stem] = [path]
    else:
        for name, array in read_file(path).items():
            case, _, rest = name.partition("/")
            arrays.setdefault(case, {})[rest] = array
    unknown = [name for name in (*files, *arrays) if name not in cases]
    candidate = Candidate(path, suite, layout, files, arrays, nearest(unknown, cases))
    if not candidate.cases:
        raise ValueError(f"{path}: {_nothing(candidate.unknown, next(iter(cases), 'CASE'))}")
    return candidate


def _npy_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"))


def _nothing(unknown: Mapping[str, str], example: str) -> str:
    """Say that nothing is given, and what might be."""
    text = "nothing there is of any case"
    for name, near in list(unknown.items())[:1]:
        text += f": there is no case {one_line(name, 80)!r}"
        text += f", is it {near!r}?" if near else ""
    return (
        f"{text}; expected a folder with {example}.safetensors or {example}/NAME.npy, or a "
        f".safetensors file with tensors {example}/NAME; `tinymistral golden list` lists the cases"
    )


def full_name(case: Case, name: str, expected: Iterable[str]) -> str:
    """Return the expected name that a given one stands for; itself if it stands for none."""
    full = f"calls.0.{name}"
    return full if case.kind == "model" and case.calls == 1 and full in expected else name


def in_pairs(case: Case, name: str) -> bool:
    """Tell whether the numbers of an expected tensor are ordered otherwise in layout raw."""
    return case.kind == "model" and _IN_PAIRS.fullmatch(name) is not None


def halves(x: np.ndarray) -> np.ndarray:
    """Bring the numbers of each head (..., d) from the order of a raw checkpoint into halves.

    Rotary embeddings turn 2i and 2i+1 together there, i and i + d/2 here.
    """
    pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    return pairs.swapaxes(-1, -2).reshape(x.shape)


def nearest(unknown: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Return for each unknown name the known one that it resembles, or ""; for the first few."""
    known, found = list(known), {}
    without_call = {name.split(".", 2)[-1]: name for name in reversed(known)}
    for n, name in enumerate(unknown):
        close = [without_call.get(name, "")]
        if not close[0] and n < LOOKED_UP:
            close = difflib.get_close_matches(name[:120], known, 1)
        found[name] = close[0] if close else ""
    return found
