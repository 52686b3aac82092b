"""The examples of the kernels, and what the emulator reports of them."""

from __future__ import annotations

import sys

import pytest

from cuda_emulator.__main__ import main
from tinymistral_cupy.examples import EXAMPLES, TENSOR_EXAMPLES
from tinymistral_cupy.kernels import SOURCE, TENSOR_SOURCE

PROGRAM = ["report", "tinymistral_cupy.examples"]


@pytest.fixture(autouse=True)
def not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python warns of a module that is run when it is imported already."""
    monkeypatch.delitem(sys.modules, "tinymistral_cupy.examples")


def test_every_kernel_has_an_example() -> None:
    for source, examples in ((SOURCE, EXAMPLES), (TENSOR_SOURCE, TENSOR_EXAMPLES)):
        text = source.read_text(encoding="utf-8")
        assert all(f"{name}(" in text for name in examples)
        assert len(examples) == text.count('extern "C" __global__')


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


@pytest.mark.slow
def test_tensor_cores_are_reported_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PROGRAM, "float16", "--kernel", "attention_tensor_cores"]) == 0
    out = capsys.readouterr().out
    assert "attention_tensor_cores: 1 × 2 × 2 blocks of 128 threads, " in out
    # A line of the kernel's file, and one inlined into it from that file, not from mistral.cu
    for part in ('asm("mma.sync', 'asm volatile("cp.async.cg'):
        assert part in out
    assert "silu" not in out
