"""Count what accesses cost: bank conflicts of shared memory, sectors of global memory.

Shared memory has 32 banks of 4 bytes. A warp's access takes one wavefront, or two for 8 bytes a
lane and four for 16, and one more for each further word that one bank has to deliver (CUDA C++
programming guide, "Shared memory"). Global memory moves sectors of 32 bytes.

While a kernel runs, only the distinct patterns of its accesses are kept, since a pattern costs the
same anywhere in memory. The costs are computed when they are first asked for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from cuda_emulator.accesses import Site

SECTOR = 32


@dataclass
class LineCounts:
    """What one source line cost, over all warps of a launch."""

    instructions: int = 0  # PTX instructions issued, a warp at a time
    conflicts: int = 0  # wavefronts of shared memory beyond the fewest
    wavefronts: int = 0  # of shared memory, all
    sectors: int = 0  # 32-byte sectors of global memory touched
    fewest_sectors: int = 0  # that the same bytes would fit in
    bytes: int = 0  # that lanes read or wrote in global memory

    def add(self, other: LineCounts, times: int = 1) -> None:
        """Add another's counts, `times` times."""
        for field in fields(self):
            added = getattr(self, field.name) + times * getattr(other, field.name)
            setattr(self, field.name, added)


class Counts:
    """The distinct patterns of a kernel's accesses, and how often each occurred."""

    def __init__(self) -> None:
        self._times: Counter[Any] = Counter()
        self._patterns: dict[Any, tuple[Any, ...]] = {}

    def shared(self, S: Any, site: Site, offsets: np.ndarray, lanes: Any) -> None:
        """Note an access to shared memory."""
        self._note(S, site, offsets - (offsets[0] & -4), lanes, conflicts)

    def touched(self, S: Any, site: Site, offsets: np.ndarray, lanes: Any) -> None:
        """Note an access to global memory."""
        self._note(S, site, offsets - (offsets[0] & -SECTOR), lanes, sectors)

    def _note(self, S: Any, site: Site, pattern: np.ndarray, lanes: Any, cost: Any) -> None:
        key = (
            site.index,
            S.N,
            hash(pattern.tobytes()),
            None if lanes is None else hash(lanes.tobytes()),
        )
        self._times[key] += 1
        if key not in self._patterns:
            self._patterns[key] = (site, pattern, lanes, S.layout, cost)

    def lines(self) -> dict[int, LineCounts]:
        """Compute the cost of each pattern, and sum by source line."""
        lines: dict[int, LineCounts] = {}
        for key, (site, pattern, lanes, layout, cost) in self._patterns.items():
            warp = layout.warp if lanes is None else layout.warp.take(lanes)
            lane = layout.lane if lanes is None else layout.lane.take(lanes)
            once = cost(site.size, pattern.astype(np.int64), warp, lane)
            lines.setdefault(site.line, LineCounts()).add(once, self._times[key])
        return lines


def conflicts(size: int, offsets: np.ndarray, warps: np.ndarray, lane: np.ndarray) -> LineCounts:
    """Count the wavefronts of one access to shared memory, `size` bytes a lane."""
    wide = max(size, 4)
    part = lane // (32 * 4 // wide)  # the lanes of a warp that one wavefront can serve
    words = (offsets[:, None] + np.arange(0, wide, 4)) // 4
    group = np.repeat(warps * 32 + part, words.shape[1])
    groups, word = _distinct(group, words.ravel())
    banks, words_a_bank = np.unique(groups * 32 + word % 32, return_counts=True)
    ids = np.unique(banks // 32, return_inverse=True)[1]
    most = np.zeros(ids.max() + 1, dtype=np.int64)
    np.maximum.at(most, ids, words_a_bank)
    return LineCounts(conflicts=int((most - 1).sum()), wavefronts=int(most.sum()))


def sectors(size: int, offsets: np.ndarray, warps: np.ndarray, lane: np.ndarray) -> LineCounts:
    """Count the sectors of one access to global memory, `size` bytes a lane."""
    touched = _distinct(warps, offsets // SECTOR)[0]
    lanes_a_warp = np.unique(_distinct(warps, offsets)[0], return_counts=True)[1]
    fewest = -(-lanes_a_warp * size // SECTOR)
    return LineCounts(
        sectors=len(touched), fewest_sectors=int(fewest.sum()), bytes=len(offsets) * size
    )


def _distinct(group: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct pairs of group and value."""
    low = value.min()
    span = int(value.max() - low) + 1
    pairs = np.unique(group * span + (value - low))
    return pairs // span, pairs % span + low
