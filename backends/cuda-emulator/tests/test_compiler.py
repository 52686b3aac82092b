"""NVRTC with CuPy's flags, and the parser of what it writes."""

import pytest

from cuda_emulator import compiler
from cuda_emulator.compiler import CompileError, Unavailable, compile_cuda
from cuda_emulator.ptx import parse

SOURCE = """__device__ float twice(float x) {
    return 2 * x;
}
extern "C" __global__ void k(float* y, int n) {
    y[threadIdx.x] = twice(y[threadIdx.x]) / n;
}
extern "C" __global__ void other(const double* y) {}
"""


def test_a_program() -> None:
    program = compile_cuda(SOURCE, "sm_80")
    assert ".target sm_80" in program.ptx
    assert "div.rn.ftz.f32" in program.ptx  # -ftz=true, as in CuPy
    assert program.cubin == b""


def test_machine_code_and_what_ptxas_says() -> None:
    program = compile_cuda(SOURCE, "sm_90", cubin=True)
    assert program.cubin.startswith(b"\x7fELF")
    assert "Compiling entry function 'k' for 'sm_90'" in program.log
    assert "bytes spill stores" in program.log


def test_options_are_added() -> None:
    source = 'extern "C" __global__ void k(int* y) { *y = SIZE; }'
    assert "1234567" in compile_cuda(source, options=("-DSIZE=1234567",)).ptx


def test_headers_of_16_bit_numbers() -> None:
    source = '#include <cuda_fp16.h>\n#include <cuda_bf16.h>\nextern "C" __global__ void k() {}'
    assert list(parse(compile_cuda(source).ptx).kernels) == ["k"]


def test_a_mistake_in_the_source() -> None:
    with pytest.raises(CompileError, match=r"mine.cu\(2\): error") as caught:
        compile_cuda("\nint x = y;", name="mine.cu")
    assert 'identifier "y" is undefined' in caught.value.log


@pytest.mark.parametrize("arch", ["sm_1", "90", "sm_ninety"])
def test_an_unknown_architecture(arch: str) -> None:
    with pytest.raises(ValueError, match=arch):
        compile_cuda("", arch)


def test_missing_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    compiler._nvrtc.cache_clear()
    monkeypatch.setattr(compiler.importlib, "import_module", missing)
    with pytest.raises(Unavailable, match=r'pip install "nvidia-cuda-nvrtc>=13,<14"'):
        compile_cuda("")
    monkeypatch.undo()
    compiler._headers.cache_clear()
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="headers"):
        compile_cuda("")
    monkeypatch.undo()
    assert compile_cuda("").ptx


def test_kernels_and_parameters() -> None:
    kernels = parse(compile_cuda(SOURCE).ptx).kernels
    assert list(kernels) == ["k", "other"]
    assert list(kernels["k"].parameters.values()) == ["u64", "u32"]
    assert list(kernels["other"].parameters.values()) == ["u64"]


def test_lines_are_those_of_the_source() -> None:
    kernel = parse(compile_cuda(SOURCE, name="mine.cu").ptx).kernels["k"]
    assert kernel.source == "mine.cu"
    lines = {i.opcode.split(".")[0]: i.line for i in kernel.instructions}
    assert lines["st"] == lines["div"] == 5
    assert {i.line for i in kernel.instructions if i.opcode.startswith("add.ftz")} == {2}


def test_lines_of_inlined_headers_are_those_of_the_call() -> None:
    source = """#line 70 "helper.h"
    __device__ float inner(float x) { return sqrtf(x); }
    __device__ float outer(float x) { return inner(x) + 1; }
    #line 3 "kernel.cu"
    extern "C" __global__ void k(float* y) {
        float a = y[1];
        y[0] = outer(a);
    }"""
    kernel = parse(compile_cuda(source).ptx).kernels["k"]
    assert kernel.source == "kernel.cu"
    found = {i.opcode.split(".")[0]: i.line for i in kernel.instructions}
    assert found["ld"] in (3, 4)  # of the parameter, or of y[1]
    assert found["sqrt"] == found["add"] == 5


def test_lines_of_what_is_inlined_twice() -> None:
    text = """.visible .entry k() {
        .reg .b32 %r<2>;
        .loc 1 3 0
        mov.u32 %r0, 1;
        .loc 1 9 0
        .loc 2 71 22, function_name $info, inlined_at 1 5 9
        mov.u32 %r0, 2;
        .loc 1 9 0
        .loc 2 70 22, function_name $info, inlined_at 2 71 22
        mov.u32 %r0, 3;
        ret;
    }
    .file 1 "/somewhere/mine.cu"
    .file 2 "helper.h"
    """
    kernel = parse(text).kernels["k"]
    assert kernel.source == "mine.cu"
    assert [i.line for i in kernel.instructions] == [3, 5, 5, 5]


def test_a_structure_is_no_parameter() -> None:
    source = 'struct S { int a[3]; }; extern "C" __global__ void k(S s, int* y) { y[0] = s.a[1]; }'
    with pytest.raises(ValueError, match="expected a pointer or a scalar"):
        parse(compile_cuda(source).ptx).kernels["k"]


@pytest.mark.parametrize(
    "text", [".entry k() { mov.u32", ".entry k() {", ".entry k() { mov.u32 ?x, 1; }"]
)
def test_what_is_not_ptx(text: str) -> None:
    with pytest.raises(ValueError, match=r"k|PTX"):
        parse(text).kernels["k"]
