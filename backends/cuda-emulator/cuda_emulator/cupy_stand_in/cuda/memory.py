"""The stand-in's `cupy.cuda.memory`: blocks of the card's memory, and pointers into them."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Protocol

import numpy as np

from cuda_emulator.cupy_stand_in import _card

__all__ = ["MemoryPointer", "MemoryPool", "OutOfMemoryError", "alloc"]


class Bytes(Protocol):
    """A block of the card's memory, or one of a pool."""

    size: int
    address: int
    bytes: np.ndarray


class OutOfMemoryError(MemoryError):
    """The card has less free memory than was asked for."""

    def __init__(self, size: int, total: int, limit: int = 0):
        """`size` bytes were asked for, and `total` are in use."""
        super().__init__(
            f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes)."
        )


class MemoryPointer:
    """An address in a block `mem`; the block lives as long as something points into it."""

    def __init__(self, mem: Bytes, offset: int):
        """Point `offset` bytes past the block's start."""
        self.mem = mem
        self._offset = offset

    @property
    def ptr(self) -> int:
        """The address."""
        return self.mem.address + self._offset

    @property
    def _left(self) -> int:
        """Bytes from the address to the end of the block."""
        return self.mem.size - self._offset


def alloc(size: int) -> MemoryPointer:
    """Allocate; raise OutOfMemoryError where there is no room."""
    return _allocator(size)


def _malloc(size: int) -> MemoryPointer:
    if size:
        _card.WORK.refuse("cudaMalloc")
    if _card.CARD.used + size > _card.CARD.total:
        raise OutOfMemoryError(size, _card.CARD.used)
    return MemoryPointer(_card.Block(_card.CARD, size), 0)


_allocator: Callable[[int], MemoryPointer] = _malloc  # `using_allocator` changes it


class _Pooled:
    """A block that returns to its pool, not to the card, when it dies."""

    def __init__(self, block: _card.Block, free: list[_card.Block]):
        self.size, self.address, self.bytes = block.size, block.address, block.bytes
        block.soil()
        weakref.finalize(self, free.append, block).atexit = False


class MemoryPool:
    """Memory that is kept when it is freed, for the next array of as many bytes.

    CuPy's also divides blocks. Its blocks are kept by the stream on which they were allocated, too.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._free: defaultdict[tuple[object, int], list[_card.Block]] = defaultdict(list)

    def malloc(self, size: int) -> MemoryPointer:
        """Allocate; from the card only if there is no free block."""
        if size == 0:
            return _malloc(0)
        free = self._free[_card.WORK.stream, size]
        block = free.pop() if free else _malloc(size).mem
        assert isinstance(block, _card.Block)
        return MemoryPointer(_Pooled(block, free), 0)

    def free_bytes(self) -> int:
        """Return how many unused bytes it holds."""
        return sum(size * len(blocks) for (_, size), blocks in self._free.items())

    def free_all_blocks(self) -> None:
        """Give back to the card what is unused."""
        self._free.clear()
