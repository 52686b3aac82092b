"""Runs the command line in this process, for its tests."""

import importlib.resources
import io
import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest

from tinymistral import DEMO
from tinymistral.cli import main
from tinymistral.commands.console import Progress

V1 = Path(str(importlib.resources.files("mistral_common") / "data" / "tokenizer.model.v1"))


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def run(
    *arguments: str,
    stdin: bytes | None = None,
    kind: type[io.TextIOWrapper] = io.TextIOWrapper,
) -> Result:
    """Run a command on streams of a console that knows ASCII; no `stdin`: it is closed."""
    streams = [kind(io.BytesIO(), "ascii", newline="\n") for _ in range(2)]
    source = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin), "ascii")
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]), patch("sys.stdin", source):
        Progress._shown = 0  # what a test that was interrupted has left
        code = main(arguments)
    out, err = (stream.buffer.getvalue().decode("utf-8") for stream in streams)
    return Result(code, out, err)


def good(*arguments: str, stdin: bytes | None = None) -> str:
    code, out, err = run(*arguments, stdin=stdin)
    assert (code, err) == (0, "")
    return out


def generated(*arguments: str) -> dict:
    """What --json prints: one object on one line, in the JSON of the standard."""
    out = good("generate", "--json", *arguments)
    assert out.count("\n") == 1
    return json.loads(out, parse_constant=pytest.fail)


def refused(*arguments: str, stdin: bytes | None = None) -> str:
    code, out, err = run(*arguments, stdin=stdin)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"tinymistral: error: .+\n", err), err
    return err


def copy_of_demo(folder: Path, generation: dict | None = None, **config: object) -> str:
    """A copy with other entries in its config.json and generation_config.json (None: no such)."""
    shutil.copytree(DEMO, folder, copy_function=shutil.copyfile)
    fields = json.loads((DEMO / "config.json").read_text("utf-8")) | config
    (folder / "config.json").write_text(json.dumps(fields), "utf-8")
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation), "utf-8")
    return str(folder)
