"""The stand-in's `cupy.cuda`."""

from tinymistral_cupy.emulator.cupy_stand_in.cuda import compiler, memory, runtime
from tinymistral_cupy.emulator.cupy_stand_in.cuda._device import (
    Device,
    Event,
    alloc_pinned_memory,
)
from tinymistral_cupy.emulator.cupy_stand_in.cuda.memory import MemoryPointer, alloc

__all__ = [
    "Device",
    "Event",
    "MemoryPointer",
    "alloc",
    "alloc_pinned_memory",
    "compiler",
    "memory",
    "runtime",
]
