"""How cuBLAS is found and declared for ctypes; what its calls compute is checked with graphs."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from cuda_emulator.cublas import Library
from tinymistral_cupy import EmulatedBackend, cublas

FUNCTIONS = [name for name in vars(Library) if name.startswith("cublas")]


@pytest.mark.parametrize(
    ("platform", "version", "file"),
    [
        ("linux", 12060, "libcublas.so.12"),
        ("linux", 13000, "libcublas.so.13"),
        ("win32", 13000, "cublas64_13.dll"),
    ],
)
def test_it_is_the_one_for_cupys_version_of_cuda(monkeypatch, platform, version, file):
    """Each function is declared with as many arguments as the stand-in has."""
    asked = []

    def load(name: str) -> Any:
        asked.append(name)
        return SimpleNamespace(**{name: SimpleNamespace() for name in FUNCTIONS})

    monkeypatch.setattr(cublas.ctypes, "CDLL", load)
    monkeypatch.setattr(cublas.sys, "platform", platform)
    runtime = SimpleNamespace(runtimeGetVersion=lambda: version)
    functions = cublas.library(SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    assert asked == [file]
    for name in FUNCTIONS:
        mine = getattr(functions, name).argtypes
        assert len(mine) == len(inspect.signature(getattr(Library(), name)).parameters), name


@pytest.mark.parametrize(
    ("arch", "dtype", "algorithm"),
    [("sm_75", "float16", 99), ("sm_75", "float32", -1), ("sm_80", "float32", 99)],
)
def test_the_algorithm_is_the_one_that_cupy_names(monkeypatch, arch, dtype, algorithm):
    """CuPy 14, `tensordot_core_v11` in cupy/_core/_routines_linalg.pyx."""
    monkeypatch.setenv("CUDA_EMULATOR_ARCH", arch)
    made = cublas.Cublas(EmulatedBackend.module(), EmulatedBackend.cublas(), dtype)
    assert made._algorithm == algorithm


def test_a_status_is_an_error(monkeypatch):
    monkeypatch.setattr(Library, "cublasSetStream_v2", lambda *_: 13)
    cp = EmulatedBackend.module()
    with pytest.raises(RuntimeError, match="cublasSetStream_v2 of cuBLAS failed with status 13"):
        cublas.Cublas(cp, EmulatedBackend.cublas(), "float16").use(cp.cuda.Stream(null=True))
