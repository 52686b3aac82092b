"""Where the threads of a batch of blocks stand: their indices, lanes and warps.

Lanes of a batch are numbered block after block, and within a block as CUDA numbers threads: x
first, then y, then z. 32 of them, from a block's first on, are a warp.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np


class Layout:
    """Arrays over the lanes of `blocks` blocks of a shape; a NumPy scalar where all are equal."""

    def __init__(self, block: tuple[int, int, int], blocks: int):
        threads = block[0] * block[1] * block[2]
        self.threads, self.blocks, self.lanes = threads, blocks, threads * blocks
        thread = np.tile(np.arange(threads, dtype=np.int32), blocks)
        self.thread = thread
        self.tid = (
            thread % np.int32(block[0]) if block[0] > 1 else np.int32(0),
            thread // np.int32(block[0]) % np.int32(block[1]) if block[1] > 1 else np.int32(0),
            thread // np.int32(block[0] * block[1]) if block[2] > 1 else np.int32(0),
        )
        self.warps_a_block = -(-threads // 32)
        self.warps = self.warps_a_block * blocks
        self.whole_warps = threads % 32 == 0
        self.lane = thread % np.int32(32)
        self.warp_in_block = thread // np.int32(32)
        self.block = np.repeat(np.arange(blocks, dtype=np.int64), threads)
        self.warp = self.block * self.warps_a_block + self.warp_in_block
        self.bit = np.uint32(1) << self.lane.astype(np.uint32)
        self.warp_starts = np.flatnonzero(self.lane == 0)
        self.warp_first = self.warp_starts[self.warp]
        self.shuffles: dict[Any, Any] = {}  # what `warps.shuffle` has worked out

    def warps_with(self, m: np.ndarray) -> int:
        """How many warps have a lane in a mask."""
        return int(np.count_nonzero(np.logical_or.reduceat(m, self.warp_starts)))


@lru_cache(maxsize=64)
def layout(block: tuple[int, int, int], blocks: int) -> Layout:
    """Make a layout, or take one that was made."""
    return Layout(block, blocks)
