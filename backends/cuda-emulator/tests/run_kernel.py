"""Compile or parse a small kernel, give it arrays, run it, and read the arrays back."""

from __future__ import annotations

from functools import cache

import numpy as np

from cuda_emulator.compiler import compile_cuda
from cuda_emulator.machine import launch
from cuda_emulator.memory import Memory, Span
from cuda_emulator.ptx import Kernel, parse
from cuda_emulator.report import Launch

HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n"


@cache
def compiled(source: str, name: str = "k", arch: str = "sm_90") -> Kernel:
    """Compile a CUDA source, and return one kernel of it."""
    return parse(compile_cuda(source, arch).ptx, source).kernels[name]


def run(kernel: Kernel, *args, grid=1, block=32, shared=0, spare=0, **options) -> Launch:
    """Run a kernel on NumPy arrays, which hold the results afterwards, and NumPy scalars.

    After each array come `spare` bytes of the same allocation that the argument does not include.
    """
    memory = Memory()
    given, arrays = [], []
    for i, arg in enumerate(args):
        if isinstance(arg, np.ndarray):
            address = memory.allocate(arg.nbytes + spare)
            memory.bytes(address, arg.nbytes)[:] = np.ascontiguousarray(arg).view(np.uint8).ravel()
            given.append(Span(address, arg.nbytes, f"argument {i}"))
            arrays.append((arg, address))
        else:
            given.append(arg)
    shape = [(n, 1, 1) if isinstance(n, int) else (*n, 1, 1)[:3] for n in (grid, block)]
    try:
        return launch(kernel, shape[0], shape[1], given, memory, shared, **options)
    finally:
        for array, address in arrays:
            array[...] = memory.bytes(address, array.nbytes).view(array.dtype).reshape(array.shape)


@cache
def one_instruction(text: str, sources: tuple[str, ...], result: str) -> Kernel:
    """Make a kernel that runs `text` on each thread's elements: `d` from `a`, `b` and `c`.

    `sources` and `result` are the register types of PTX; each is loaded from, or stored to, an
    array of its own. A predicate result is stored as 0 or 1 (u32).
    """
    names = "abcd"
    size = {"pred": 4, "f32": 4, "f64": 8, "b16": 2, "b32": 4, "b64": 8}
    out = size[result]
    inputs = ", ".join(f".param .u64 in{i}" for i in range(len(sources)))
    lines = [f".visible .entry k(.param .u64 out, {inputs}) {{"]
    lines += [".reg .b64 %rd<9>; .reg .b32 %r<9>;"]
    lines += [f".reg .{type_} {names[i]};" for i, type_ in enumerate(sources)]
    lines += [f".reg .{result} d;", "mov.u32 %r1, %tid.x;", "mov.u32 %r2, %ctaid.x;"]
    lines += ["mov.u32 %r3, %ntid.x;", "mad.lo.s32 %r1, %r2, %r3, %r1;"]
    for i, type_ in enumerate(sources):
        wide = type_ if type_[0] == "f" else f"b{8 * size[type_]}"
        lines += [f"ld.param.u64 %rd1, [in{i}];", f"mul.wide.s32 %rd2, %r1, {size[type_]};"]
        lines += ["add.s64 %rd1, %rd1, %rd2;"]
        if type_ == "pred":
            lines += ["ld.global.u32 %r4, [%rd1];", f"setp.ne.u32 {names[i]}, %r4, 0;"]
        else:
            lines += [f"ld.global.{wide} {names[i]}, [%rd1];"]
    lines += [text]
    lines += ["ld.param.u64 %rd1, [out];", f"mul.wide.s32 %rd2, %r1, {out};"]
    lines += ["add.s64 %rd1, %rd1, %rd2;"]
    if result == "pred":
        lines += ["selp.u32 %r5, 1, 0, d;", "st.global.u32 [%rd1], %r5;"]
    else:
        wide = result if result[0] == "f" else f"b{8 * out}"
        lines += [f"st.global.{wide} [%rd1], d;"]
    return parse(HEAD + "\n".join([*lines, "ret;", "}"])).kernels["k"]


TYPES = {
    "float32": "f32", "float64": "f64", "float16": "b16", "int8": "b16", "uint8": "b16",
    "int16": "b16", "uint16": "b16", "int32": "b32", "uint32": "b32", "int64": "b64",
    "uint64": "b64", "bool": "pred",
}  # fmt: skip


def apply(text: str, result: str, *sources: np.ndarray) -> np.ndarray:
    """Run one instruction, `d` from `a`, `b`, `c`, on whole arrays; `result` is a NumPy type."""
    kernel = one_instruction(text, tuple(TYPES[str(s.dtype)] for s in sources), TYPES[result])
    n = len(sources[0])
    out = np.zeros(n, dtype=np.uint32 if result == "bool" else result)
    given = [s.astype(np.uint32) if s.dtype == bool else s for s in sources]
    block = 64 if n % 64 == 0 else n
    run(kernel, out, *given, grid=n // block, block=block)
    return out.astype(bool) if result == "bool" else out
