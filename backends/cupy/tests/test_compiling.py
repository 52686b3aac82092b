"""Compiling: ahead, side by side, the same in every process; the modules here compile nothing."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from threading import Barrier, Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import tiny_config

from cuda_emulator import cupy_stand_in as cp
from cuda_emulator.cupy_stand_in.cuda.compiler import CompileException
from tinymistral_cupy import compiling
from tinymistral_cupy.compiling import NOTICE, Modules
from tinymistral_cupy.kernels import Kernels


def kernel(*_: Any, **__: Any) -> None:
    """Compute nothing."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list to which the stand-in adds each module; they compile nothing."""
    modules: list[Any] = []

    class Module:
        def __init__(self, **given: Any):
            self.__dict__.update(given)
            modules.append(self)

        def get_function(self, name: str) -> Any:
            return lambda *_, **__: None

    monkeypatch.setattr(cp, "RawModule", Module)
    return modules


def numbers(*shape: int, dtype: Any) -> Any:
    return cp.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "kind", "sizes", "count"),
    [
        ("float16", np.float16, {"hidden_size": 64, "head_dim": 64}, 3),
        ("float32", np.float32, {"hidden_size": 24, "head_dim": 8}, 2),
        ("float16", np.float16, {"hidden_size": 12, "head_dim": 12}, 4),
    ],
)
def test_what_a_model_launches_was_compiled_ahead(made, dtype, kind, sizes, count):
    config = tiny_config(**sizes)
    kernels = Kernels(cp, dtype)
    kernels.prepare(config)
    D, d, K = config.hidden_size, config.head_dim, config.num_key_value_heads
    for T in (1, 40):
        at = numbers(1, T, dtype=np.int64)
        angles = numbers(1, T, d // 2, dtype=np.float32)
        q, k = numbers(1, T, 2 * K, d, dtype=kind), numbers(1, T, K, d, dtype=kind)
        kernels.rms_norm(numbers(1, T, D, dtype=kind), numbers(D, dtype=kind), 1e-5)
        kernels.rope(q, angles, angles)
        kernels.scatter(k, at, k)
        kernels.attention(q, k, k, at, at, None)
        kernels.silu_mul(numbers(1, T, 64, dtype=kind), numbers(1, T, 64, dtype=kind))
    assert len(made) == len({module.options for module in made}) == count


HERE = Path(__file__).parent
WHAT_IS_COMPILED = """
import hashlib, sys
from cuda_emulator import cupy_stand_in as cp
from tiny import tiny_config
from tinymistral_cupy.kernels import Kernels
class Module:
    def __init__(self, code, options, backend):
        sys.stdout.write(f"{hashlib.md5(code.encode()).hexdigest()} {options}\\n")
    def get_function(self, name): pass
cp.RawModule = Module
Kernels(cp, "float16").prepare(tiny_config(head_dim=64))
"""


def test_sources_and_options_are_the_same_in_every_process(tmp_path):
    """They are the key of CuPy's cache, whose kernels would else be compiled again."""
    outs = set()
    for seed, folder in (("1", tmp_path), ("2", os.sep)):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(HERE)}
        command = [sys.executable, "-c", WHAT_IS_COMPILED]
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, check=True
        )
        outs.add(tuple(sorted(done.stdout.splitlines())))
    assert len(outs) == 1
    assert len(outs.pop()) == 3


# Modules, with a module of CuPy that does what a test says


def on_a_card(get_function: Any, used: list[int] | None = None) -> Any:
    """Return what stands for cupy, on whose card 3 modules are compiled by a function."""

    class Device:
        def __init__(self, device: int = 3):
            self.id = device

        def use(self) -> None:
            if used is not None:
                used.append(self.id)

    def module(**_: Any) -> Any:
        return SimpleNamespace(get_function=get_function)

    return SimpleNamespace(cuda=SimpleNamespace(Device=Device), RawModule=module)


def test_modules_are_compiled_side_by_side_on_the_card_that_was_current():
    together, used = Barrier(3), []

    def get_function(name: str) -> Any:
        together.wait(timeout=30)  # broken unless three arrive
        return kernel

    modules = Modules(on_a_card(get_function, used))
    begun = [modules.begin("", (option,), "f") for option in "abc"]
    assert [future.result().get_function is get_function for future in begun] == [True] * 3
    assert used == [3, 3, 3]


def test_a_source_is_compiled_once():
    names = []
    modules = Modules(on_a_card(lambda name: names.append(name) or kernel))
    modules.begin("", ("x",), "f")
    assert [modules.function("", ("x",), name) for name in "gh"] == [kernel] * 2
    assert names == ["f", "g", "h"]


def test_an_error_of_the_compiler_is_raised_where_the_kernel_is_wanted():
    def fails(name: str) -> Any:
        raise CompileException("no such thing", "", "kernel.cu", ())

    modules = Modules(on_a_card(fails))
    modules.begin("", (), "f")
    with pytest.raises(CompileException, match="no such thing"):
        modules.function("", (), "f")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "seconds", "said"),
    [(Terminal, 0.01, f"{NOTICE}\n"), (io.StringIO, 0.01, ""), (Terminal, 60, "")],
    ids=["on a terminal", "in a file", "when it is quick"],
)
def test_a_terminal_is_told_once_what_takes_long(monkeypatch, stream, seconds, said):
    monkeypatch.setattr(compiling, "PATIENCE", seconds)
    monkeypatch.setattr(sys, "stderr", stream())
    slow, finished = seconds < 1, Event()

    def get_function(name: str) -> Any:
        if slow:
            finished.wait(timeout=0.5)
        return kernel

    modules = Modules(on_a_card(get_function))
    for option in "ab":
        modules.function("", (option,), "f")
    assert sys.stderr.getvalue() == said
