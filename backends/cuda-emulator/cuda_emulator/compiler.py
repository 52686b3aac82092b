"""CUDA to PTX and machine code, by NVRTC, which needs neither a GPU nor a driver.

NVRTC comes as a wheel (nvidia-cuda-nvrtc), its headers as another (nvidia-cuda-runtime), and
cuda-bindings calls it. The flags are those that CuPy compiles with. CuPy asks for machine code, as
`cubin` does; NVRTC assembles it from the same PTX.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

REMEDY = (
    'install it: pip install "nvidia-cuda-nvrtc>=13,<14" "nvidia-cuda-runtime>=13,<14" '
    '"cuda-bindings>=13,<14"'
)

# What CuPy 14 adds to each compilation, see `cupy/cuda/compiler.py`. They change register counts.
CUPY_FLAGS = ("--std=c++17", "-ftz=true", "--device-as-default-execution-space")


class Unavailable(ValueError):  # noqa: N818, as it is read after `raise`
    """The emulator cannot run here: `reason` says why, `remedy` what to do about it."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(reason, remedy)
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        """Return both on one line."""
        return " ".join(f"{self.reason}; {self.remedy}".split())


class CompileError(ValueError):
    """NVRTC refused a source; `log` is its output."""

    def __init__(self, name: str, arch: str, log: str):
        super().__init__(f"{name} does not compile for {arch}: {log.strip()}")
        self.log = log


@dataclass(frozen=True)
class Program:
    """A compiled source: PTX, the compiler's log, and machine code if it was asked for."""

    ptx: str
    log: str
    cubin: bytes


def compile_cuda(
    source: str,
    arch: str = "sm_90",
    options: tuple[str, ...] = (),
    name: str = "kernel.cu",
    cubin: bool = False,
) -> Program:
    """Compile CUDA C++ for an architecture such as "sm_90", as CuPy would.

    `options` are added to CuPy's flags (`-DNAME=value`, ...); `name` is the source's name in line
    information. With `cubin` the log has the registers, shared memory and spills of each kernel.
    Raises CompileError with NVRTC's log, Unavailable where a wheel is missing, and
    ValueError for an architecture that is not written as sm_ and a number.
    """
    if not re.fullmatch(r"sm_\d+[af]?", arch):
        raise ValueError(f"arch {arch!r} is not known; expected one such as 'sm_90'")
    nvrtc = _nvrtc()
    flags = [
        *CUPY_FLAGS,
        # For a real architecture NVRTC makes machine code too, which takes most of the time.
        f"-arch={arch if cubin else arch.replace('sm_', 'compute_')}",
        f"-I{_headers()}",
        "--generate-line-info",
        *(["--ptxas-options=-v"] if cubin else []),
        *options,
    ]
    program = _call(nvrtc.nvrtcCreateProgram, source.encode(), name.encode(), 0, [], [])
    try:
        (status,) = nvrtc.nvrtcCompileProgram(
            program, len(flags), [flag.encode() for flag in flags]
        )
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode()
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(name, arch, log or _reason(nvrtc, status))
        ptx = _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).decode()
        code = _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program) if cubin else b""
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Program(ptx.rstrip("\0"), log.rstrip("\0"), code)


@cache
def _nvrtc() -> ModuleType:
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    except ImportError:
        raise Unavailable("cuda-bindings, which calls NVRTC, is missing", REMEDY) from None
    try:
        _call(nvrtc.nvrtcVersion)
    except RuntimeError as error:  # cuda.pathfinder found no libnvrtc
        raise Unavailable(f"NVRTC is missing ({_first_line(error)})", REMEDY) from None
    return nvrtc


@cache
def _headers() -> Path:
    """Return the folder that has cuda_fp16.h: nvidia/cu13/include in CUDA 13's wheel."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for header in sorted(Path(folder).glob("*/include/cuda_fp16.h")):
            return header.parent
    raise Unavailable("the CUDA headers (nvidia-cuda-runtime) are missing", REMEDY)


def _call(function: Any, *args: Any) -> Any:
    """Call NVRTC; raise RuntimeError where that fails."""
    status, *results = function(*args)
    if status.value:
        raise RuntimeError(f"{function.__name__}: {status.name}")
    return results[0] if len(results) == 1 else results


def _text(size: Any, get: Any, program: Any) -> bytes:
    buffer = bytes(_call(size, program))
    _call(get, program, buffer)
    return buffer


def _reason(nvrtc: ModuleType, status: Any) -> str:
    return _call(nvrtc.nvrtcGetErrorString, status).decode()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
