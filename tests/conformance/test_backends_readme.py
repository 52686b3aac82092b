"""backends/README.md, how to write a backend, followed in a new virtual environment."""

import importlib.metadata
import os
import re
import shlex
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import pytest
from suite_runner import LIKE_CI, check_all_laws_ran, run

from tinymistral.backend import Backend
from tinymistral.conformance.law import all_laws

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "backends" / "README.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"<!-- backend: (\S+) -->\n```\w*\n(.*?\n)```\n", PAGE, re.DOTALL))
INSTALL, *COMMANDS = BLOCKS["commands"].splitlines()


class Environment(NamedTuple):
    """A new virtual environment's python, its site-packages, and a folder to be in."""

    python: str
    packages: Path
    folder: Path


def pip_can_install_elsewhere() -> bool:
    """Return whether pip is installed and has the option --python, which came with 22.3."""
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(n) for n in version.split(".")[:2]) >= (22, 3)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Install tinymistral and the example; all else is found where this environment finds it."""
    if not pip_can_install_elsewhere():
        pytest.skip("no pip of version 22.3 or later here that could install the example")
    folder = tmp_path_factory.mktemp("reader")
    new = folder / "environment"
    venv.create(new, with_pip=False)
    python = str(new / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run([python, "-c", where], folder).strip())
    ours = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # addsitedir, unlike a path alone, sees the .pth files there: those of editable installs.
    lines = [f"import site; site.addsitedir({path!r})\n" for path in ours]
    (packages / "ours.pth").write_text("".join(lines), "utf-8")

    example = folder / "tinymistral-threads"
    example.mkdir()
    for name in BLOCKS.keys() - {"commands"}:
        (example / name).write_text(BLOCKS[name], "utf-8")
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", python, "install", "-q"]
    pip += ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    run([*pip, str(REPOSITORY), str(example)], folder)
    return Environment(python, packages, folder)


def inside(environment: Environment, *arguments: str) -> str:
    """Run the environment's python -> its output."""
    return run([environment.python, *arguments], environment.folder, PYTHONPATH="")


def follow(environment: Environment, number: int, *more: str) -> str:
    """Run a command of the page, with more arguments -> its output."""
    python, *arguments = shlex.split(COMMANDS[number])
    assert python == "python"
    return inside(environment, *arguments, *more)


@pytest.mark.slow
def test_the_installed_packages_are_tested(environment: Environment) -> None:
    assert INSTALL == 'pip install ".[conformance]" ../tinymistral-threads'
    for module in ("tinymistral", "tinymistral_threads"):
        file = inside(environment, "-c", f"import {module}; print({module}.__file__)").strip()
        assert Path(file).is_relative_to(environment.packages)


@pytest.mark.slow
def test_it_is_listed(environment: Environment) -> None:
    rows = [line.split()[:4] for line in follow(environment, 0).splitlines()]
    assert ["threads", "tinymistral-threads", "0.1.0", "CPU"] in rows


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_generates_the_text_that_numpy_does(dtype: str, environment: Environment) -> None:
    options = ("--greedy", "--max-new-tokens", "100", "--dtype", dtype)
    text = follow(environment, 1, *options)
    assert len(text.split()) > 50
    assert text == follow(environment, 1, *options, "--backend", "numpy")


@pytest.mark.slow
def test_all_laws_hold_on_it(environment: Environment) -> None:
    few = ("--tinymistral-examples", "10")  # what it inherits is tested with more as `plain`
    check_all_laws_ran(follow(environment, 2, *LIKE_CI, *few), "threads")


# What the page says


def test_the_page_names_every_member_of_a_backend() -> None:
    members = {name for name in vars(Backend) | Backend.__annotations__ if not name.startswith("_")}
    named = set(re.findall(r"`(\w+)", PAGE))
    assert members - {"check_dtype", "dtype"} <= named


def test_the_page_says_how_many_laws_there_are() -> None:
    laws = [test.tinymistral_law.name for test in all_laws()]
    assert re.findall(r"(\d+) of (\d+) laws ran, 0 failed", PAGE) == [(str(len(laws)),) * 2]
    declared = re.findall(r'^unsupported = \{"(\w+)": "[^"]+"\}$', PAGE, re.MULTILINE)
    assert len(declared) == 1
    assert set(declared) <= set(laws)
