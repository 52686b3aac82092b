"""The examples of the kernels, and what the emulator reports of them."""

from __future__ import annotations

import sys

import pytest

from cuda_emulator.__main__ import main
from tinymistral_cupy.examples import EXAMPLES
from tinymistral_cupy.kernels import SOURCE

PROGRAM = ["report", "tinymistral_cupy.examples"]


@pytest.fixture(autouse=True)
def not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python warns of a module that is run when it is imported already."""
    monkeypatch.delitem(sys.modules, "tinymistral_cupy.examples")


def test_every_kernel_has_an_example() -> None:
    text = SOURCE.read_text(encoding="utf-8")
    assert all(f"{name}(" in text for name in EXAMPLES)
    assert len(EXAMPLES) == text.count('extern "C" __global__')


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_kernel(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PROGRAM, dtype, "--kernel", "rms_norm"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("sm_90\nrms_norm: 32 blocks")
    text = SOURCE.read_text(encoding="utf-8")
    line = next(
        number
        for number, line in enumerate(text.splitlines(), 1)
        if line.startswith('extern "C" __global__ void rms_norm')
    )
    assert f'{line:6}  extern "C" __global__ void rms_norm' in out


@pytest.mark.slow
def test_every_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(PROGRAM) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name}: " in out for name in EXAMPLES)
