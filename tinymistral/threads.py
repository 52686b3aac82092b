"""What a process computes with: its threads, and the memory of its arrays.

NumPy's linear algebra and our own pools have as many threads, one a core.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Part = TypeVar("Part")

# The library that NumPy multiplies matrices with reads one of these, once, when it is loaded.
VARIABLES = (
    *(f"{library}_NUM_THREADS" for library in ("OPENBLAS", "OMP", "MKL", "BLIS")),
    "VECLIB_MAXIMUM_THREADS",
)

# Parameters of mallopt, in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads(number: int) -> None:
    """Let so many threads compute, at most one a core; ValueError once NumPy has been loaded."""
    number = min(number, cores())
    if "numpy" in sys.modules and threads() != number:
        raise ValueError(
            f"--threads: NumPy has started already; set OMP_NUM_THREADS={number} before it"
        )
    os.environ.update(dict.fromkeys(VARIABLES, str(number)))
    threads.cache_clear()


@cache
def threads() -> int:
    """Return how many threads compute: what the first of VARIABLES says, else one a core."""
    said = next((os.environ[name] for name in VARIABLES if os.environ.get(name)), "")
    return min(int(said), cores()) if said.isdecimal() and int(said) else cores()


def in_parallel(task: Callable[[Part], object], parts: Sequence[Part]) -> None:
    """Call `task(part)` for each part, on `threads()` threads; each takes the next part there is.

    The tasks may multiply matrices. The threads of NumPy's library and ours would wait for each
    other, so it computes with one meanwhile, if it is OpenBLAS; if it is another one, the tasks are
    called one after the other, and only the library has threads.
    """
    number = min(threads(), len(parts))
    if number < 2 or _openblas() is None:
        for part in parts:
            task(part)
        return
    queue = iter(parts)

    def work() -> None:
        for part in queue:
            task(part)

    with _one_thread_a_product():
        others = [_pool().submit(work) for _ in range(number - 1)]
        try:
            work()
        finally:  # also after an interrupt
            errors = [other.exception() for other in others]
    for error in filter(None, errors):
        raise error


@cache
def _pool() -> ThreadPoolExecutor:
    """Return the threads beside the one that calls; they end with the process."""
    from concurrent.futures import ThreadPoolExecutor  # takes milliseconds to import

    return ThreadPoolExecutor(cores())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of the threads


_lock = Lock()
_inside = 0  # how many calls of `in_parallel` there are now, by a user's own threads
_outside = 0  # the threads of OpenBLAS outside of them


@contextmanager
def _one_thread_a_product() -> Iterator[None]:
    """Let OpenBLAS multiply with one thread, in the whole process; this takes less than 1 µs."""
    global _inside, _outside
    get, set_ = _openblas() or (int, int)
    with _lock:
        if not _inside:
            _outside = get()
            set_(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                set_(_outside)


@cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], Any]] | None:
    """Return what gets and sets the threads of OpenBLAS; None if NumPy has another library.

    Wheels of NumPy have it under the first of the names, with 64-bit integers.
    """
    import ctypes

    import numpy as np

    core = getattr(np, "_core", None) or np.core  # the latter in NumPy 1
    library = ctypes.CDLL(core._multiarray_umath.__file__)  # which is linked with OpenBLAS
    for name in (
        "scipy_openblas_{}_num_threads64_",
        "openblas_{}_num_threads64_",
        "scipy_openblas_{}_num_threads",
        "openblas_{}_num_threads",
    ):
        if hasattr(library, name.format("set")):
            return getattr(library, name.format("get")), getattr(library, name.format("set"))
    return None


def keep_freed_memory() -> None:
    """Let glibc keep what this process frees, for its next arrays; call it before threads start.

    By default it gives a large array back to the system as soon as it is freed, and the system
    fills the next one with zeros, a page at a time: an eighth of the time of a prefill, and of
    `loss_and_gradients`. Where the C library is another one, nothing happens.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_ARENA_MAX, 1)  # one heap for all threads, as those of threads are limited
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest that is allowed
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
