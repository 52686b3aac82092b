"""The stand-in's `cupy.cuda.memory`: blocks of the card's memory, and pointers into them."""

from __future__ import annotations

from cuda_emulator.cupy_stand_in import _card

__all__ = ["MemoryPointer", "OutOfMemoryError", "alloc"]


class OutOfMemoryError(MemoryError):
    """The card has less free memory than was asked for."""

    def __init__(self, size: int, total: int, limit: int = 0):
        """`size` bytes were asked for, and `total` are in use."""
        super().__init__(
            f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes)."
        )


class MemoryPointer:
    """An address in a block `mem`; the block lives as long as something points into it."""

    def __init__(self, mem: _card.Block, offset: int):
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
    if _card.CARD.used + size > _card.CARD.total:
        raise OutOfMemoryError(size, _card.CARD.used)
    return MemoryPointer(_card.Block(_card.CARD, size), 0)
