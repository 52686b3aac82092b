"""The stand-in's `cupy.cuda`: one device, its events and pinned memory."""

from __future__ import annotations

import time

from cuda_emulator.cupy_stand_in import _card
from cuda_emulator.cupy_stand_in._card import STREAM, PinnedMemory
from cuda_emulator.cupy_stand_in.cuda import compiler, memory, runtime
from cuda_emulator.cupy_stand_in.cuda.memory import MemoryPointer, alloc

__all__ = [
    "Device",
    "Event",
    "MemoryPointer",
    "alloc",
    "alloc_pinned_memory",
    "compiler",
    "get_elapsed_time",
    "memory",
    "runtime",
]

PAGE = 512  # CuPy rounds allocations up to a multiple of this
NO_SUCH_DEVICE = 101  # cudaErrorInvalidDevice
INVALID_HANDLE = 400  # cudaErrorInvalidResourceHandle


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
        self._copies = STREAM.begun
        if self._seconds is not None:
            self._seconds = time.perf_counter()

    def synchronize(self) -> None:
        """Wait for the copies before `record`; raise Overwritten if the source of one changed."""
        STREAM.wait(self._copies)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Return the milliseconds between two events, as long as the emulation took."""
    if start_event._seconds is None or end_event._seconds is None:
        raise runtime.CUDARuntimeError(INVALID_HANDLE)  # made with disable_timing
    return (end_event._seconds - start_event._seconds) * 1000


def alloc_pinned_memory(size: int) -> PinnedMemory:
    """Return host memory that holds garbage, of at least `size` bytes."""
    return PinnedMemory(b"\xc1" * (-(-size // PAGE) * PAGE))
