"""CUDA kernels on NumPy: NVRTC compiles them to PTX, which is interpreted under checks.

`compile_cuda` and `parse` make a `Kernel` of a CUDA source; `launch` runs it on a `Memory`, and
raises a `KernelFault` where the kernel has an error. `cuda_emulator.cupy_stand_in` does the same
with the names of CuPy.
"""

from cuda_emulator.compiler import CompileError, Unavailable, compile_cuda
from cuda_emulator.faults import KernelFault
from cuda_emulator.machine import launch
from cuda_emulator.memory import Memory, Span
from cuda_emulator.ptx import parse
from cuda_emulator.report import Launch, collecting, report

__all__ = [
    "CompileError",
    "KernelFault",
    "Launch",
    "Memory",
    "Span",
    "Unavailable",
    "collecting",
    "compile_cuda",
    "launch",
    "parse",
    "report",
]
