"""Kernels with a bug planted are caught, by a fault of the emulator or by the oracle."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path

import pytest
from planted_bugs import BUGS, CHECKS, Bug

from cuda_emulator import cupy_stand_in as cp
from cuda_emulator.faults import KernelFault
from tinymistral_cupy.kernels import SOURCE, Kernels

FILES = ("mistral.cu", "tensor_cores.cu", "kernels.py")


@cache
def kernels_for(dtype: str) -> Kernels:
    return Kernels(cp, dtype)


def kernels_with(bug: Bug, folder: Path) -> Kernels:
    """Return the kernels compiled from a copy of the source that has the bug."""
    for name in FILES:
        text = SOURCE.with_name(name).read_text(encoding="utf-8")
        if name == bug.file:
            assert text.count(bug.old) == 1, f"{bug.old!r} is {text.count(bug.old)} times in {name}"
            text = text.replace(bug.old, bug.new)
        (folder / name).write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("kernels_with_a_bug", folder / "kernels.py")
    module = sys.modules["kernels_with_a_bug"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.SOURCE.parent == folder
    return module.Kernels(cp, bug.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_it_is_caught(bug, tmp_path):
    kernels = kernels_with(bug, tmp_path)
    with pytest.raises((AssertionError, KernelFault)):
        CHECKS[bug.check](kernels, bug.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name, dtype", sorted({(bug.check, bug.dtype) for bug in BUGS}))
def test_without_a_bug_the_same_check_passes(name, dtype):
    CHECKS[name](kernels_for(dtype), dtype)


def test_every_check_catches_something():
    assert {bug.check for bug in BUGS} == CHECKS.keys()
    assert len({bug.name for bug in BUGS}) == len(BUGS)
