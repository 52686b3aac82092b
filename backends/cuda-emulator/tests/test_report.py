"""The report of what lines cost, and the command that prints it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_kernel import compiled, run

from cuda_emulator import collecting, report
from cuda_emulator.__main__ import main

EXAMPLE = str(Path(__file__).parents[1] / "examples" / "transpose.py")

TRANSPOSE = """// A tile of 32 by 32, transposed.

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
    text = report(launch)
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


def test_a_first_line_that_names_the_source_is_not_counted() -> None:
    x = np.zeros((32, 32), np.float32)
    text = report(run(compiled(f'#line 1 "mine.cu"\n{TRANSPOSE}'), x, x.copy()))
    assert "     7          float v = x[32 * row + threadIdx.x];" in text


def test_of_a_source_of_several_files_that_of_the_kernel_is_shown() -> None:
    helper = '#line 1 "helper.cu"\n__device__ float twice(float x) { return 2 * x; }\n'
    kernel = (
        'extern "C" __global__ void k(float* x)\n'
        "{\n    x[threadIdx.x] = twice(x[threadIdx.x]);\n}\n"
    )
    for source in (
        f'{helper}#line 1 "mine.cu"\n{kernel}',
        f'{helper}#line 1 "mine.cu"\n{kernel}#line 1 "other.cu"\n// more\n// lines\n',
    ):
        launch = run(compiled(source), np.ones(32, np.float32))
        assert launch.source == "mine.cu"
        text = report(launch)
        assert "     3      x[threadIdx.x] = twice(x[threadIdx.x]);" in text
        assert "helper" not in text
        assert "more" not in text


# The command

NO_ARCH = "'{}': expected one of sm_75, sm_80, sm_86, "


@pytest.mark.parametrize(
    ("arguments", "variable", "said"),
    [
        ([EXAMPLE, "--kernel", "pad"], "sm_90", "no kernel 'pad'; expected one of conflicting, pa"),
        ([EXAMPLE, "--arch", "foo"], "sm_90", "--arch " + NO_ARCH.format("foo")),
        ([EXAMPLE, "--arch", "sm_086"], "sm_90", "--arch " + NO_ARCH.format("sm_086")),
        ([EXAMPLE, "--arch", ""], "sm_90", "--arch " + NO_ARCH.format("")),
        ([EXAMPLE], "sm_086", "CUDA_EMULATOR_ARCH is 'sm_086'; unset it, or "),
        (["nowhere.py"], "sm_90", "no program 'nowhere.py'"),
        (["nowhere.to_be_found"], "sm_90", "no program 'nowhere.to_be_found'"),
    ],
)
def test_a_mistake_takes_one_line(
    arguments: list[str],
    variable: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_EMULATOR_ARCH", variable)
    assert main(["report", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert error.startswith("cuda_emulator: " + said)


PROGRAM = """
import cupy, numpy, sys
from cupy.cuda import runtime
assert runtime is cupy.cuda.runtime
module = cupy.RawModule(code=sys.argv[1])
module.get_function("k")((1,), (32,), (cupy.asarray(numpy.zeros(31, numpy.float32)),))
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("y[threadIdx.x] = z;", 'kernel.cu(1): error: identifier "z" is undefined'),
        ("y[threadIdx.x] = 1;", "OutOfBounds: kernel k, kernel.cu:1, block (0, 0, 0), thread (31,"),
    ],
)
def test_what_is_wrong_with_a_kernel_takes_one_line(
    body: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    source = f'extern "C" __global__ void k(float* y) {{ {body} }}'
    assert main(["report", str(program), source]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert error.startswith("cuda_emulator: " + said)


def test_a_program_that_launches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "idle_program.py").write_text("import cupy", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    before = sys.modules.get("cupy"), sys.argv
    assert main(["report", "idle_program"]) == 2
    assert capsys.readouterr().err == "cuda_emulator: idle_program launches no kernel\n"
    assert (sys.modules.get("cupy"), sys.argv) == before


@pytest.mark.parametrize("arguments", [["report", EXAMPLE], ["report", "--help"], ["--help"], []])
def test_a_reader_who_leaves_is_no_error(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "cuda_emulator", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141  # as in a shell


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "report" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["report", "--help"])
    assert left.value.code == 0
    assert "bank conflicts" in capsys.readouterr().out


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    """A column of 32 words lies in one bank, unless rows are 33 words apart."""
    assert main(["report", EXAMPLE, "--kernel", "padded"]) == 0
    assert capsys.readouterr().out.startswith("sm_90\npadded: ")
    assert main(["report", EXAMPLE, "--arch", "sm_80"]) == 0
    first, second = capsys.readouterr().out.split("sm_80\n")[1:]
    assert first.startswith("conflicting: 1 blocks of 32 threads, 4096 bytes")
    assert second.startswith("padded: 1 blocks of 32 threads, 4224 bytes")
    totals = [next(row for row in text.splitlines() if "in all" in row) for text in (first, second)]
    assert totals[0].split()[1:-2] == ["992", "256", "256", "8192"]
    assert totals[1].split()[1:-2] == ["256", "256", "8192"]
