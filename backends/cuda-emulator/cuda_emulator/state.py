"""The state of a launch while a batch of its blocks runs: threads, memories, arguments."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from cuda_emulator.accesses import Copy, Site
from cuda_emulator.counts import Counts
from cuda_emulator.faults import KernelFault, Race
from cuda_emulator.memory import REGION_BITS, Memory, Span
from cuda_emulator.ptx import Instruction
from cuda_emulator.races import Clash, Tracker

STRIDE = 128  # the shared memory of each block of a batch begins at a multiple of this


class Layout:
    """Indices of the lanes of `blocks` equal blocks: arrays, or a scalar where all are the same."""

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
        self.shuffles: dict[Any, Any] = {}  # computed by `warps.shuffle`

    def warps_with(self, m: np.ndarray) -> int:
        """Return how many warps have a lane in a mask."""
        return int(np.count_nonzero(np.logical_or.reduceat(m, self.warp_starts)))


@lru_cache(maxsize=64)
def layout(block: tuple[int, int, int], blocks: int) -> Layout:
    """Return the layout of a shape, which is kept."""
    return Layout(block, blocks)


class Window:
    """The part of an allocation that a launch may touch: bytes `start` to `end` from `base`."""

    def __init__(self, base: int, start: int, end: int, name: str, data: np.ndarray):
        self.base, self.start, self.end, self.name = base, start, end, name
        self.data = data
        self.tracker: Tracker = None  # type: ignore[assignment]  # one for each allocation
        self._views: dict[Any, np.ndarray] = {}

    def view(self, key: tuple[np.dtype, int]) -> np.ndarray:
        """Return the allocation as elements, or as vectors of them."""
        if key not in self._views:
            self._views[key] = view(self.data, key)
        return self._views[key]


def view(data: np.ndarray, key: tuple[np.dtype, int]) -> np.ndarray:
    """Return bytes as elements (n,), or vectors (n, vector); bytes left over at the end are cut."""
    dtype, vector = key
    size = dtype.itemsize * vector
    elements = data[: len(data) // size * size].view(dtype)
    return elements if vector == 1 else elements.reshape(-1, vector)


class Launched:
    """The state that all batches of a launch share."""

    def __init__(self, info: Any, grid: tuple[int, ...], block: tuple[int, ...]):
        self.info, self.grid, self.block = info, grid, block
        self.windows: list[Window] = []
        self.last_window: dict[int, Window] = {}  # the last one of a site, by its index
        self.parameters: list[Any] = []
        self.counts = Counts()
        self.issued = [0] * info.flow.exit  # how often warps executed each segment
        self.steps = 0
        self.epoch = 0
        self.dynamic_shared = 0

    def forget(self) -> None:
        """Keep only the counts."""
        self.windows, self.parameters = [], []

    def add_window(self, memory: Memory, span: Span) -> None:
        """Let the kernel touch what an argument points to."""
        data = memory.region(span.address, span.nbytes)
        base = span.address >> REGION_BITS << REGION_BITS
        start = span.address - base
        self._add(Window(base, start, start + span.nbytes, span.name, data))

    def add_variable(self, name: str, address: int, nbytes: int, data: np.ndarray) -> None:
        """Let the kernel touch a variable in constant or global memory."""
        self._add(Window(address, 0, nbytes, name, data))

    def _add(self, window: Window) -> None:
        for other in self.windows:
            if other.base == window.base:
                window.tracker = other.tracker
        if window.tracker is None:
            window.tracker = Tracker(len(window.data), self.info.global_shift, True)
        self.windows.append(window)


class State:
    """The state of a running batch of blocks; the functions of a kernel call it `S`."""

    def __init__(self, launched: Launched, layout: Layout, first_block: int, budget: int):
        self.launched, self.layout, self.first_block = launched, layout, first_block
        self.budget = budget
        self.info = launched.info
        self.N, self.T = layout.lanes, layout.threads
        self.warps, self.warps_a_block = layout.warps, layout.warps_a_block
        self.whole_warps = layout.whole_warps
        self.threads = np.arange(self.N, dtype=np.int64) + first_block * self.T
        self.parameters, self.windows = launched.parameters, launched.windows
        self.counts = launched.counts
        self.last_window = launched.last_window
        self._specials(launched)
        self._memories()
        self.epoch = launched.epoch  # barriers so far
        self.tick = 0  # synchronizations of a warp so far
        self.clocks: np.ndarray | None = None  # each lane's last tick; None: all have `tick`
        self.copies: list[Copy] = []  # under way, see `accesses.py`
        self.arriving = np.zeros(len(self._shared) // 4, dtype=np.uint8)  # 1: a word they write
        self.groups = np.zeros(self.N, dtype=np.int64)  # how many groups of copies a lane committed
        self.complete = False  # whether the lanes that run are whole warps that synchronized
        self.exited = np.zeros(self.N, dtype=bool)
        self.live = self.N
        self.waiting: dict[int, np.ndarray] = {}  # at a barrier, by the segment that comes next
        self.stalled: dict[int, np.ndarray] = {}  # waiting for lanes of the warp, by segment
        self.runnable: dict[int, np.ndarray] = {}

    def _specials(self, launched: Launched) -> None:
        """Set the special registers."""
        layout, grid = self.layout, launched.grid
        self.tid_x, self.tid_y, self.tid_z = layout.tid
        self.ntid_x, self.ntid_y, self.ntid_z = (np.int32(n) for n in launched.block)
        self.nctaid_x, self.nctaid_y, self.nctaid_z = (np.int32(n) for n in grid)
        number = layout.block + self.first_block
        axes = (number % grid[0], number // grid[0] % grid[1], number // (grid[0] * grid[1]))
        self.ctaid_x, self.ctaid_y, self.ctaid_z = (
            np.int32(axis[0]) if (axis == axis[0]).all() else axis.astype(np.int32) for axis in axes
        )
        self.laneid = layout.lane
        self.warpid, self.nwarpid = layout.warp_in_block, np.int32(layout.warps_a_block)
        self.dynamic_smem_size = np.int32(launched.dynamic_shared)
        self.total_smem_size = np.int32(self.info.static_shared + launched.dynamic_shared)

    @property
    def lanemask_eq(self) -> np.ndarray:
        """The lane's own bit."""
        return self.layout.bit.view(np.int32)

    @property
    def lanemask_lt(self) -> np.ndarray:
        """The bits of lanes before."""
        return (self.layout.bit - np.uint32(1)).view(np.int32)

    @property
    def lanemask_le(self) -> np.ndarray:
        """The bits of lanes before, and the lane's own."""
        return self.lanemask_lt | self.lanemask_eq

    @property
    def lanemask_gt(self) -> np.ndarray:
        """The bits of lanes after."""
        return ~self.lanemask_le

    @property
    def lanemask_ge(self) -> np.ndarray:
        """The bits of lanes after, and the lane's own."""
        return ~self.lanemask_lt

    def _memories(self) -> None:
        info, layout = self.info, self.layout
        self.shared_limit = info.static_shared + self.launched.dynamic_shared
        self._stride = -(-self.shared_limit // STRIDE) * STRIDE
        self._shared = np.full(self._stride * layout.blocks, 0xFF, dtype=np.uint8)
        self.shared_base = layout.block * self._stride if layout.blocks > 1 else None
        self.shared_tracker = Tracker(len(self._shared), info.shared_shift, False)
        self.local_limit = info.local_bytes
        stride = -(-info.local_bytes // 16) * 16
        self._local = np.full(stride * self.N, 0xFF, dtype=np.uint8)
        self.local_base = np.arange(self.N, dtype=np.int64) * stride
        self._views: dict[Any, np.ndarray] = {}

    def shared_view(self, key: tuple[np.dtype, int]) -> np.ndarray:
        """Return the shared memory of all blocks as elements or vectors."""
        if key not in self._views:
            self._views[key] = view(self._shared, key)
        return self._views[key]

    def local_view(self, key: tuple[np.dtype, int]) -> np.ndarray:
        """Return the local memory of all threads as elements or vectors."""
        return view(self._local, key)

    def shared_offset(self, offset: int) -> int:
        """Convert an offset in all blocks' shared memory to one in its own block's."""
        return offset % self._stride

    def window_numbers(self, a: np.ndarray) -> np.ndarray:
        """Return the number of the first window that each address lies in, -1 for none."""
        numbers = np.full(len(a), -1)
        for i, window in reversed(list(enumerate(self.windows))):
            offset = a - window.base
            numbers[(offset >= window.start) & (offset < window.end)] = i
        return numbers

    def within(self, a: np.ndarray, size: int) -> np.ndarray:
        """Return which accesses lie within one window."""
        inside = np.zeros(len(a), dtype=bool)
        for window in self.windows:
            offset = a - window.base
            inside |= (offset >= window.start) & (offset + size <= window.end)
        return inside

    def describe(self, address: int) -> str:
        """Describe an address by the argument that it lies in, or is nearest to."""
        near = [(abs(address - w.base - w.start), i) for i, w in enumerate(self.windows)]
        distance, i = min(near, default=(1 << REGION_BITS, 0))
        if distance >= 1 << (REGION_BITS - 1):
            return f"address {address:#x}, which belongs to no argument"
        window = self.windows[i]
        offset = address - window.base - window.start
        return f"byte {offset} of {window.name!r}, which has {window.end - window.start} bytes"

    # Faults

    def fault(
        self, kind: type[KernelFault], instruction: Instruction | None, lane: int, what: str
    ) -> KernelFault:
        """Make a fault for a lane of this batch."""
        return self._fault(kind, instruction, int(self.threads[lane]), what)

    def race(self, clash: Clash) -> KernelFault:
        """Make the fault for two accesses that clash."""
        first, second = clash.first.site, clash.second.site
        other = self.name_of(clash.first_thread)
        what = (
            f"{second} of {self._place(second, clash.offset)}, which {other} had a "
            f"{first} of on line {first.line}; nothing orders the two"
        )
        return self._fault(Race, second.instruction, clash.second_thread, what)

    def _place(self, site: Site, offset: int) -> str:
        for window in self.windows:
            if site.space != "shared" and window.tracker is self.clashing:
                return f"byte {offset - window.start} of {window.name!r}"
        return f"byte {self.shared_offset(offset)} of shared memory"

    clashing: Tracker | None = None  # the tracker that is being checked

    def name_of(self, number: int) -> str:
        """Describe a thread, numbered through the launch."""
        block, thread = divmod(number, self.T)
        return f"thread {self._thread(thread)} of block {self._block(block)}"

    def _fault(
        self, kind: type[KernelFault], instruction: Instruction | None, thread: int, what: str
    ) -> KernelFault:
        block, within = divmod(thread, self.T)
        return kind(
            what,
            self.info.name,
            self.info.source,
            instruction.line if instruction else 0,
            self._block(block),
            self._thread(within),
        )

    def _block(self, number: int) -> tuple[int, int, int]:
        x, y, _ = self.launched.grid
        return number % x, number // x % y, number // (x * y)

    def _thread(self, number: int) -> tuple[int, int, int]:
        x, y, _ = self.launched.block
        return number % x, number // x % y, number // (x * y)

    def whereabouts(self, lane: int, absent: int) -> str:
        """Describe where the absent lanes of a lane's warp are; `absent` has their bits."""
        first = int(self.layout.warp_first[lane])
        others = [first + i for i in range(32) if absent >> i & 1]
        if first % self.T + others[0] - first >= self.T:
            return "do not exist, as the block is no multiple of 32"
        return self.where(others[0])

    def where(self, lane: int) -> str:
        """Describe where an absent lane is."""
        if self.exited[lane]:
            return "have ended"
        segments = self.info.flow.segments
        for pc, mask in self.waiting.items():
            if mask[lane]:
                return f"wait at the barrier on line {segments[pc - 1].last.line}"
        for pc, mask in self.stalled.items():
            if mask[lane]:
                return f"wait for other lanes on line {segments[pc].body[0].line}"
        return "took another branch"

    def check(self) -> None:
        """Check the noted accesses of shared memory for races and uninitialised reads."""
        self.clashing = None
        self.shared_tracker.check(self)

    def check_global(self) -> None:
        """Check the noted accesses of global memory for races."""
        for tracker in {id(w.tracker): w.tracker for w in self.windows}.values():
            self.clashing = tracker
            tracker.check(self)
