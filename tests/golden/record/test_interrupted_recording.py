"""A recording that is interrupted anywhere continues, and leads to the same bytes.

Every file of a recording is renamed to its place, so the moments before and after each renaming are
all the states that there are; a process that ends itself there leaves what a killed one would.
"""

import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from cli_runner import good, refused, run
from goldens import FIXTURES
from kills import killed_after
from test_cli_process import posix

from tinymistral.golden.record.files import UnfinishedCase

GQA = FIXTURES / "models" / "gqa"
REQUEST = ("--ids", "21", "12", "9", "--new", "3", "--ways", "2", "--stages", "logits", "layers.*")
RENAMED = 31  # files, in this recording

KILLED = """\
import os, sys
from pathlib import Path
from tinymistral.cli import main

renamed, real = 0, Path.replace

def replace(self, target):
    global renamed
    renamed += 1
    if renamed == {n} and not {after}:
        os._exit(9)
    real(self, target)
    if renamed == {n}:
        os._exit(9)

Path.replace = replace
sys.exit(main(sys.argv[1:]))
"""


def command(out: Path, *more: str, model: Path = GQA) -> tuple[str, ...]:
    return ("golden", "record", "--model", str(model), "-o", str(out / "suite"), *REQUEST, *more)


def kill(out: Path, n: int, after: bool) -> None:
    """Let a recording end at the n-th renaming, without any cleaning up."""
    code = [sys.executable, "-c", KILLED.format(n=n, after=after)]
    assert subprocess.run([*code, *command(out)], capture_output=True).returncode == 9


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a recording that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    renamed = []
    real = Path.replace

    def replace(self: Path, target: Path) -> None:
        renamed.append(target)
        real(self, target)

    with patch.object(Path, "replace", replace):
        good(*command(out))
    assert len(renamed) == RENAMED, len(renamed)
    return files(out)


@pytest.mark.parametrize(("n", "after"), [(9, False), (19, True)])
def test_killed_and_resumed(tmp_path: Path, whole: dict[str, bytes], n: int, after: bool) -> None:
    kill(tmp_path, n, after)
    good(*command(tmp_path))
    assert files(tmp_path) == whole


@pytest.mark.slow
def test_killed_anywhere_and_resumed(tmp_path: Path, whole: dict[str, bytes]) -> None:
    for n in range(0, 1000, 7):
        out = tmp_path / str(n)
        out.mkdir()
        if not killed_after(n, out, lambda: run(*command(out))):  # noqa: B023
            assert n > 3 * RENAMED  # each is made, written and renamed
            return
        good(*command(out))
        assert files(out) == whole, n


@posix
def test_a_second_recording_into_the_folder_is_refused(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Also of another case: each has the whole manifest in memory, and would write its own."""
    said = []
    begin = UnfinishedCase.begin

    def begin_beside_another(self: UnfinishedCase, job: dict) -> None:
        said.append(refused(*command(tmp_path, "--case", "other")))
        begin(self, job)

    with patch.object(UnfinishedCase, "begin", begin_beside_another):
        good(*command(tmp_path))
    assert len(said) == 2
    assert "suite: another process is writing to it; wait until that has ended" in said[0]
    assert files(tmp_path) == whole


class Stop(BaseException):
    """The signals of Ctrl-C and of a terminal that closes."""


@pytest.mark.slow
def test_stopped_anywhere_and_resumed(tmp_path: Path, whole: dict[str, bytes]) -> None:
    real = Path.replace
    for n in range(1, RENAMED + 1, 2):
        left, out = n, tmp_path / str(n)

        def replace(self: Path, target: Path) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Stop
            real(self, target)

        with patch.object(Path, "replace", replace), pytest.raises(Stop):
            run(*command(out))
        assert not any(path.name.startswith(".") for path in out.rglob("*.*") if path.is_file())
        good(*command(out))
        assert files(out) == whole, n


def test_finished_steps_are_not_repeated(tmp_path: Path) -> None:
    kill(tmp_path, 9, True)  # schema, manifest, job.json, and of three steps two files each
    parts = tmp_path / "suite" / ".recording" / "prompt"
    before = {path: path.stat().st_mtime_ns for path in parts.glob("0*")}
    assert len(before) == 3
    with patch("tinymistral.golden.record.files.UnfinishedCase.remove"):
        good(*command(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_partial_file_does_not_count(tmp_path: Path, whole: dict[str, bytes]) -> None:
    kill(tmp_path, 13, False)
    suite = tmp_path / "suite"
    for path in (suite / "cases" / "prompt", suite / "manifest", suite / ".recording/prompt/0001"):
        suffix = ".json" if path.name == "manifest" else ".safetensors"
        path.with_name(f".{path.name}{suffix}.unfinished-0123456789abcdef").write_bytes(b"half")
    good(*command(tmp_path))
    assert files(tmp_path) == whole


@pytest.mark.parametrize("n", [9, 23])
def test_a_damaged_state_is_refused(tmp_path: Path, n: int) -> None:
    """Whatever file of it is damaged, and wherever; a state of another file or job is one too."""
    kill(tmp_path, n, True)
    (folder,) = (tmp_path / "suite" / ".recording").iterdir()
    states = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    assert len(states) == 5, list(states)
    random = np.random.default_rng(0)
    for path, content in states.items():
        damaged = [content[:-1], next(other for other in states.values() if other != content)]
        for place in random.integers(len(content), size=2):
            flipped = content[place] ^ 1 << random.integers(7)
            damaged.append(content[:place] + bytes([flipped]) + content[place + 1 :])
        for wrong in damaged:
            path.write_bytes(wrong)
            error = refused(*command(tmp_path))
            assert str(folder) in error, error
        path.write_bytes(content)


def test_a_state_is_of_its_job(tmp_path: Path) -> None:
    kill(tmp_path, 9, True)
    (tmp_path / "suite" / ".recording" / "prompt" / "job.json").unlink()
    assert "of another recording" in refused(*command(tmp_path, "--layers", "0"))


@pytest.mark.parametrize(
    ("more", "model"),
    [(["--layers", "0"], "gqa"), (["--new", "4"], "gqa"), ([], "gqa copied")],
)
def test_another_recording_does_not_continue_it(
    tmp_path: Path, more: list[str], model: str
) -> None:
    kill(tmp_path, 13, True)
    other = GQA
    if model == "gqa copied":
        other = tmp_path / "gqa"
        other.mkdir()
        for path in GQA.iterdir():
            content = path.read_bytes()
            flipped = content[:-1] + bytes([content[-1] ^ 1]) if "tensors" in path.name else content
            (other / path.name).write_bytes(flipped)
    error = refused(*command(tmp_path, *more, model=other))
    assert "other arguments or another checkpoint" in error or "another checkpoint" in error
