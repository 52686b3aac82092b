"""The stand-in's RawModule: kernels that NVRTC compiles and the PTX interpreter runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np

from cuda_emulator import ptx
from cuda_emulator.compiler import CompileError, compile_cuda
from cuda_emulator.cupy_stand_in import _card
from cuda_emulator.cupy_stand_in._array import ndarray
from cuda_emulator.cupy_stand_in.cuda.compiler import CompileException
from cuda_emulator.cupy_stand_in.cuda.memory import MemoryPointer
from cuda_emulator.machine import launch
from cuda_emulator.memory import Span

MOST_BLOCKS = (2**31 - 1, 65535, 65535)  # of a grid, for each axis


@cache
def _compiled(code: str, options: tuple[str, ...], arch: str) -> ptx.Module:
    try:
        program = compile_cuda(code, arch, options)
    except CompileError as error:
        raise CompileException(error.log, code, "kernel.cu", options) from error
    return ptx.parse(program.ptx, code)


class RawModule:
    """A CUDA source, compiled when its first kernel is asked for, and once in a process."""

    def __init__(self, *, code: str, options: tuple[str, ...] = (), backend: str = "nvrtc"):
        """Take a source and options for NVRTC."""
        if not isinstance(options, tuple) or backend != "nvrtc":
            raise TypeError("options are a tuple, and the backend is 'nvrtc'")
        self.code = code
        self.options = options

    def get_function(self, name: str) -> RawKernel:
        """Return a kernel; ValueError if it is not `extern "C"` in the source."""
        kernels = _compiled(self.code, self.options, _card.arch()).kernels
        if name not in kernels:
            raise ValueError(f"kernel {name!r} is not there; expected one of {', '.join(kernels)}")
        return RawKernel(kernels[name])


class RawKernel:
    """A kernel, called like cupy's with a grid, a block and a tuple of arguments."""

    def __init__(self, kernel: ptx.Kernel):
        """Take a parsed kernel."""
        self._kernel = kernel
        self._most_shared = _card.SHARED_BYTES
        self._carveout = -1

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """The most dynamic shared memory of a block; more than 48 KiB has to be set first."""
        return self._most_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, nbytes: int) -> None:
        most = _card.model().shared_bytes
        if nbytes > most:
            raise ValueError(f"{nbytes} bytes of shared memory: {_card.arch()} has {most} a block")
        self._most_shared = nbytes

    @property
    def preferred_shared_memory_carveout(self) -> int:
        """How many per cent of a multiprocessor's fast memory should be shared; -1: no matter."""
        return self._carveout

    @preferred_shared_memory_carveout.setter
    def preferred_shared_memory_carveout(self, percent: int) -> None:
        if not -1 <= percent <= 100:
            raise ValueError(f"a carveout of {percent}; expected per cent, or -1")
        self._carveout = percent

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
    ) -> None:
        """Run it; `shared_mem` is how many bytes of dynamic shared memory a block has."""
        if shared_mem > self._most_shared:
            raise ValueError(
                f"{shared_mem} bytes of dynamic shared memory, where {self._most_shared} are "
                "allowed; set max_dynamic_shared_size_bytes first"
            )
        grid, block = _three(grid), _three(block)
        if any(n > most for n, most in zip(grid, MOST_BLOCKS, strict=True)):
            raise ValueError(f"a grid of {grid} blocks; expected at most {MOST_BLOCKS}")
        if prod(block) > _card.MOST_THREADS or block[2] > 64:
            raise ValueError(f"a block of {block} threads; expected at most {_card.MOST_THREADS}")
        arguments = [_argument(n, value) for n, value in enumerate(args)]
        memory = _card.CARD.memory
        _card.WORK.do(
            (self._kernel.name, id(self._kernel)),
            lambda: launch(self._kernel, grid, block, arguments, memory, shared_mem),
        )


def _three(size: Any) -> tuple[int, int, int]:
    if not isinstance(size, tuple):
        raise TypeError(f"a grid or a block is a tuple, not {type(size)}")
    x, y, z = (*map(int, size), 1, 1)[:3]
    return max(1, x), max(1, y), max(1, z)  # as cupy does


def _argument(n: int, value: Any) -> Span | np.generic:
    """Convert an argument for the interpreter; a Python number gets the width it has in cupy."""
    name = f"argument {n}"
    if value is None:
        return Span(0, 0, name)
    if isinstance(value, ndarray):
        if not value.flags.c_contiguous:
            raise ValueError(f"{name} has gaps, which cupy does not pass to the kernel")
        return Span(value.data.ptr, value.nbytes, name)
    if isinstance(value, MemoryPointer):
        return Span(value.ptr, value._left, name)
    if isinstance(value, np.generic):
        return value
    for python, numpy in ((bool, np.bool_), (int, np.int64), (float, np.float64)):
        if isinstance(value, python):
            return numpy(value)
    raise TypeError(f"{name} is a {type(value)}; expected an array on the card, or a number")
