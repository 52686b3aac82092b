"""The device's memory, and the part of it that an argument gives to a kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REGION_BITS = 40  # an address is region << 40 + offset: no overrun reaches another allocation

# Regions whose generic addresses stand for shared and local memory, and for variables.
SHARED, LOCAL, STATIC = 1, 2, 3
FIRST_FREE = 16


@dataclass(frozen=True)
class Span:
    """A pointer argument: its address, and how many bytes from there the kernel may access."""

    address: int
    nbytes: int
    name: str


class Memory:
    """Allocations on the emulated device, each in a region of its own."""

    def __init__(self) -> None:
        self._regions: dict[int, np.ndarray] = {}
        self._sizes: dict[int, int] = {}
        self._next = FIRST_FREE

    def allocate(self, nbytes: int) -> int:
        """Return the address of `nbytes` new bytes; they are not zero but 0xFF, which is NaN."""
        if nbytes < 0:
            raise ValueError(f"cannot allocate {nbytes} bytes")
        region, self._next = self._next, self._next + 1
        self._regions[region] = np.full(-(-nbytes // 16) * 16, 0xFF, dtype=np.uint8)
        self._sizes[region] = nbytes
        return region << REGION_BITS

    def free(self, address: int) -> None:
        """Free an allocation; raise ValueError unless `address` is where one begins."""
        region, offset = divmod(address, 1 << REGION_BITS)
        if offset or region not in self._regions:
            raise ValueError(f"cannot free {address:#x}: no allocation begins there")
        del self._regions[region], self._sizes[region]

    def bytes(self, address: int, nbytes: int) -> np.ndarray:
        """Return the bytes at an address as a writable view (uint8).

        Raises ValueError unless they lie in one allocation.
        """
        region, offset = divmod(address, 1 << REGION_BITS)
        if offset + nbytes > self._sizes.get(region, -1):
            raise ValueError(f"{nbytes} bytes at {address:#x} do not lie in an allocation")
        return self._regions[region][offset : offset + nbytes]

    def region(self, address: int, nbytes: int) -> np.ndarray:
        """Return the whole allocation that the bytes lie in, padded to a multiple of 16 bytes.

        Raises ValueError as `bytes` does.
        """
        self.bytes(address, nbytes)
        return self._regions[address >> REGION_BITS]
