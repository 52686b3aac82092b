"""Compile CUDA sources side by side in threads; NVRTC runs in several at once.

CuPy keeps what is compiled on disk, by the source and the options (CUPY_CACHE_DIR). So neither may
differ from one process to the next: no path, no time, no order of a set.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

THREADS = ThreadPoolExecutor(4, thread_name_prefix="compile")  # begun when first needed
PATIENCE = 1.0  # seconds of waiting after which it is said what for
NOTICE = "compiling CUDA kernels; CuPy keeps them for the next time"


class Modules:
    """The modules of one card, by their options; each is compiled once."""

    def __init__(self, cp: Any):
        """Begin with none; `cp` is cupy or its stand-in."""
        self._cp = cp
        self._device = cp.cuda.Device().id
        self._modules: dict[tuple[str, ...], Future[Any]] = {}
        self._noticed = False

    def begin(self, code: str, options: tuple[str, ...], name: str) -> Future[Any]:
        """Begin to compile a source, which has a kernel of this name, unless that was done."""
        if options not in self._modules:
            self._modules[options] = THREADS.submit(self._compile, code, options, name)
        return self._modules[options]

    def function(self, code: str, options: tuple[str, ...], name: str) -> Any:
        """Return a kernel of a source, once it is compiled; raise CompileException if it cannot."""
        module = self.begin(code, options, name)
        if not wait([module], PATIENCE).done and not self._noticed:
            self._noticed = True
            if sys.stderr is not None and sys.stderr.isatty():
                with suppress(OSError):  # nobody reads it
                    print(NOTICE, file=sys.stderr, flush=True)
        return module.result().get_function(name)

    def _compile(self, code: str, options: tuple[str, ...], name: str) -> Any:
        self._cp.cuda.Device(self._device).use()  # a thread begins with the first card
        module = self._cp.RawModule(code=code, options=options, backend="nvrtc")
        module.get_function(name)  # which compiles all of it
        return module
