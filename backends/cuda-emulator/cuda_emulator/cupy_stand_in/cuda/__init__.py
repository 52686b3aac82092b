"""The stand-in's `cupy.cuda`: one device, its events, streams, graphs, and pinned memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

from cuda_emulator.cupy_stand_in import _card
from cuda_emulator.cupy_stand_in._card import COPIES, WORK, PinnedMemory
from cuda_emulator.cupy_stand_in.cuda import compiler, memory, runtime
from cuda_emulator.cupy_stand_in.cuda.memory import MemoryPointer, MemoryPool, alloc

__all__ = [
    "Device",
    "Event",
    "MemoryPointer",
    "MemoryPool",
    "Stream",
    "alloc",
    "alloc_pinned_memory",
    "compiler",
    "get_current_stream",
    "get_elapsed_time",
    "memory",
    "runtime",
    "using_allocator",
]

PAGE = 512  # CuPy rounds allocations up to a multiple of this
NO_SUCH_DEVICE = 101  # cudaErrorInvalidDevice
INVALID_HANDLE = 400  # cudaErrorInvalidResourceHandle
ILLEGAL_STATE = 401  # cudaErrorIllegalState


class Device:
    """The emulated card."""

    id = 0
    cublas_handle = 1

    def __init__(self, device: int | None = None):
        """Name a card, of which there is one; None is the current one."""
        if device not in (None, 0):
            raise runtime.CUDARuntimeError(NO_SUCH_DEVICE)

    def use(self) -> None:
        """Make it the one that this thread uses."""

    @property
    def compute_capability(self) -> str:
        """The compute capability, such as "90"."""
        return str(_card.capability())

    @property
    def mem_info(self) -> tuple[int, int]:
        """Free bytes, and all bytes."""
        return _card.CARD.total - _card.CARD.used, _card.CARD.total

    @property
    def attributes(self) -> dict[str, int]:
        """Its limits, under CUDA's names."""
        return {
            "MultiProcessorCount": _card.model().multiprocessors,
            "MaxSharedMemoryPerBlock": _card.SHARED_BYTES,
            "MaxSharedMemoryPerBlockOptin": _card.model().shared_bytes,
            "MaxSharedMemoryPerMultiprocessor": _card.model().multiprocessor_bytes,
            "MaxThreadsPerBlock": _card.MOST_THREADS,
            "WarpSize": 32,
        }


class Event:
    """A mark in the order of copies, and in time; the host can wait for the copies before it."""

    def __init__(self, *, disable_timing: bool = False):
        """Make an event before all copies."""
        self._copies = 0
        self._seconds = None if disable_timing else 0.0

    def record(self) -> None:
        """Move it after all copies so far."""
        WORK.refuse("recording an event to wait for")
        self._copies = COPIES.begun
        if self._seconds is not None:
            self._seconds = time.perf_counter()

    def synchronize(self) -> None:
        """Wait for the copies before `record`; raise Overwritten if the source of one changed."""
        COPIES.wait(self._copies)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Return the milliseconds between two events, as long as the emulation took."""
    if start_event._seconds is None or end_event._seconds is None:
        raise runtime.CUDARuntimeError(INVALID_HANDLE)  # made with disable_timing
    return (end_event._seconds - start_event._seconds) * 1000


class Graph:
    """What a stream has captured, in order; made by `Stream.end_capture`."""

    def __init__(self, *works: Callable[[], object]):
        """Take what to do."""
        self._works = works

    def launch(self) -> None:
        """Do all of it, on the current stream."""
        WORK.refuse("launching a graph")
        for work in self._works:
            work()


class Stream:
    """A stream; in a `with` it is the current one. All streams' work is done in one order."""

    _pointers = count(1 << 20)

    def __init__(self, null: bool = False, non_blocking: bool = False):
        """Make one, or name the default stream."""
        self.ptr = 0 if null else next(self._pointers)
        self._before: list[int] = []

    def __enter__(self) -> Stream:
        """Make it the current one."""
        self._before.append(WORK.stream)
        WORK.stream = self.ptr
        return self

    def __exit__(self, *args: object) -> None:
        """Make the one before it the current one."""
        WORK.stream = self._before.pop()

    def synchronize(self) -> None:
        """Wait for all copies so far."""
        COPIES.wait()

    def begin_capture(self) -> None:
        """Keep what is launched from here on for a graph; nothing of it is done."""
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        WORK.refuse("another capture")
        if WORK.stream != self.ptr:
            raise RuntimeError("the stand-in captures only the current stream")
        WORK.captures[self.ptr] = []

    def end_capture(self) -> Graph:
        """Return what was launched since `begin_capture`, to be done later and again."""
        if self.ptr not in WORK.captures:
            raise runtime.CUDARuntimeError(ILLEGAL_STATE)
        return Graph(*WORK.captures.pop(self.ptr))


def get_current_stream() -> Stream:
    """Return the current stream."""
    stream = Stream(null=True)
    stream.ptr = WORK.stream
    return stream


@contextmanager
def using_allocator(allocator: Callable[[int], MemoryPointer]) -> Iterator[None]:
    """Return a context in which arrays are made in memory from `allocator`."""
    before = memory._allocator
    memory._allocator = allocator
    try:
        yield
    finally:
        memory._allocator = before


def alloc_pinned_memory(size: int) -> PinnedMemory:
    """Return host memory that holds garbage, of at least `size` bytes."""
    return PinnedMemory(b"\xc1" * (-(-size // PAGE) * PAGE))
