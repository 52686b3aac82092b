"""The report of what lines cost, and the command that prints it."""

import subprocess
import sys

import numpy as np
import pytest
from run_kernel import compiled, run

from tinymistral_cupy.emulator.__main__ import main
from tinymistral_cupy.emulator.compiler import CompileError
from tinymistral_cupy.emulator.cupy_stand_in import _raw
from tinymistral_cupy.emulator.examples import EXAMPLES
from tinymistral_cupy.emulator.machine import collecting
from tinymistral_cupy.emulator.report import report
from tinymistral_cupy.kernels import SOURCE

TRANSPOSE = """// A tile of 32 by 32, turned.

extern "C" __global__ void k(const float* x, float* y)
{
    __shared__ float tile[32][32];
    for (int row = 0; row < 32; row++) {
        float v = x[32 * row + threadIdx.x];
        tile[row][threadIdx.x] = v;
    }
    __syncthreads();
    // Nothing

    // to see

    // here.
    for (int row = 0; row < 32; row++)
        y[32 * row + threadIdx.x] = tile[threadIdx.x][row];
}
"""


def test_a_report() -> None:
    x, y = np.arange(1024, dtype=np.float32).reshape(32, 32), np.zeros((32, 32), np.float32)
    with collecting() as launches:
        launch = run(compiled(TRANSPOSE), x, y)
    assert launches == [launch]
    assert (y == x.T).all()
    text = report(TRANSPOSE, launch)
    assert text.startswith("k: 1 blocks of 32 threads, 4096 bytes of shared memory each\n")
    rows = text.splitlines()
    loads = next(row for row in rows if row.endswith("x[32 * row + threadIdx.x];"))
    turned = next(row for row in rows if row.endswith("tile[threadIdx.x][row];"))
    total = next(row for row in rows if row.endswith("in all"))
    # 32 rows of 128 bytes, in and out, are 4 sectors each. A column is 32 words of one bank.
    assert loads.split()[1:5] == ["128", "128", "4096", "7"]  # the last is the line
    assert turned.split()[1:6] == [str(32 * 31), "128", "128", "4096", "17"]
    assert total.split()[1:5] == [str(32 * 31), "256", "256", "8192"]
    assert "..." in text
    assert "to see" not in text


def test_the_list_of_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    text = SOURCE.read_text(encoding="utf-8")
    assert sorted(names) == sorted(EXAMPLES)
    assert all(f"{name}(" in text for name in names)
    assert len(names) == text.count('extern "C" __global__')  # none is left out


NO_ARCH = "'{}': expected one of sm_75, sm_80, sm_86, "


@pytest.mark.parametrize(
    ("arguments", "variable", "said"),
    [
        (["report", "rms_norn"], "sm_90", "no kernel 'rms_norn'; expected one of rms_norm, "),
        (["report", "rms_norm", "--arch", "foo"], "sm_90", "--arch " + NO_ARCH.format("foo")),
        (["report", "rms_norm", "--arch", "sm_086"], "sm_90", "--arch " + NO_ARCH.format("sm_086")),
        (["report", "rms_norm", "--arch", ""], "sm_90", "--arch " + NO_ARCH.format("")),
        (["report", "rms_norm"], "sm_086", "TINYMISTRAL_EMULATED_ARCH is 'sm_086'; unset it, or "),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: list[str],
    variable: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINYMISTRAL_EMULATED_ARCH", variable)
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert error.startswith("tinymistral_cupy.emulator: " + said)


def test_what_nvrtc_refuses_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(code: str, arch: str, options: tuple[str, ...]) -> None:
        raise CompileError("mistral.cu", arch, "mistral.cu(1): error: no\n\n1 error\n")

    monkeypatch.setattr(_raw, "_compiled", _raw._compiled.__wrapped__)  # whatever came before
    monkeypatch.setattr(_raw, "compile_cuda", refused)
    assert main(["report", "rms_norm"]) == 2
    out, error = capsys.readouterr()
    assert (out, error) == ("", "tinymistral_cupy.emulator: mistral.cu(1): error: no 1 error\n")


@pytest.mark.parametrize("arguments", [["report"], ["report", "rms_norm"], ["--help"], []])
def test_a_reader_who_leaves_is_no_error(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "tinymistral_cupy.emulator", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141  # as a shell has it, and as tinymistral itself


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "report" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["report", "--help"])
    assert left.value.code == 0
    assert "bank conflicts" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_kernel(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "rms_norm", "--dtype", dtype]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"sm_90, {dtype}\nrms_norm: 32 blocks")
    assert 'extern "C" __global__ void rms_norm' in out


@pytest.mark.slow
@pytest.mark.parametrize("kernel", EXAMPLES)
def test_every_kernel(kernel: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", kernel]) == 0
    assert f"\n{kernel}: " in capsys.readouterr().out
