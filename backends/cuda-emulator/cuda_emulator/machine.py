"""Run a kernel: all threads of many blocks at once, each with a program counter.

Each step takes the first segment (see `translation/flow.py`) that any thread is at, and executes
it for all threads at it; so diverged threads converge where their paths meet. While all threads are
together, which is most of the time, no masks are needed. A shuffle waits until the lanes that it
names have arrived, a barrier until nothing else can run; then all threads of a block must be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cuda_emulator.faults import (
    DivergentBarrier,
    KernelFault,
    LostLane,
    Misaligned,
    OutOfBounds,
    TooLong,
    Trap,
)
from cuda_emulator.instructions.warps import complete
from cuda_emulator.memory import Memory, Span
from cuda_emulator.ptx import TYPE_BYTES, Kernel
from cuda_emulator.report import Launch, collectors
from cuda_emulator.state import Launched, State, layout
from cuda_emulator.translation.kernel import Translation

LANES = 4096  # so many blocks run together that they have at most this many threads
BUDGET = 2_000_000  # instructions of a launch; one that many threads execute together counts once

Dim = tuple[int, int, int]


def launch(
    kernel: Kernel,
    grid: Dim,
    block: Dim,
    args: Sequence[Span | np.generic],
    memory: Memory,
    dynamic_shared: int = 0,
    budget: int = BUDGET,
) -> Launch:
    """Run a kernel on a grid of blocks, with `dynamic_shared` bytes beside what it declares.

    A pointer argument is a Span, a scalar a NumPy scalar of the parameter's width. Raises
    KernelFault for an error of the kernel (its writes so far stay in memory), ValueError where the
    arguments do not fit its parameters.
    """
    _check_shape(kernel, grid, block)
    if kernel.translation is None:
        kernel.translation = Translation(kernel)
    info: Translation = kernel.translation
    launched = Launched(info, grid, block)
    launched.dynamic_shared = dynamic_shared
    _bind(kernel, args, launched, memory)
    for name, address, variable in info.variables:
        launched.add_variable(name, address, variable.nbytes, variable.data)
    blocks = grid[0] * grid[1] * grid[2]
    at_once = max(1, LANES // (block[0] * block[1] * block[2]))
    with np.errstate(all="ignore"):
        for first in range(0, blocks, at_once):
            count = min(at_once, blocks - first)
            state = State(launched, layout(block, count), first, budget)
            _Run(state).run()
        state.check_global()
    shared = info.static_shared + dynamic_shared
    launched.forget()
    done = Launch(kernel.name, kernel.source, grid, block, shared, launched, kernel.text)
    for collector in collectors:
        collector.append(done)
    return done


def _check_shape(kernel: Kernel, grid: Dim, block: Dim) -> None:
    threads = block[0] * block[1] * block[2]
    if min(grid) < 1 or min(block) < 1:
        raise ValueError(f"kernel {kernel.name}: grid {grid} of blocks {block} is empty")
    if threads > 1024 or block[2] > 64:
        raise ValueError(f"kernel {kernel.name}: a block {block} has more than 1024 threads")
    if grid[0] >= 1 << 31 or max(grid[1:]) > 65535:
        raise ValueError(f"kernel {kernel.name}: the grid {grid} is larger than a GPU takes")


def _bind(
    kernel: Kernel, args: Sequence[Span | np.generic], launched: Launched, memory: Memory
) -> None:
    """Check the arguments against the parameters, and add them to the launch."""
    if len(args) != len(kernel.parameters):
        raise ValueError(
            f"kernel {kernel.name} has {len(kernel.parameters)} parameters, not {len(args)}"
        )
    for i, ((name, type_), arg) in enumerate(zip(kernel.parameters.items(), args, strict=True)):
        width = TYPE_BYTES[type_]
        if isinstance(arg, Span):
            if width != 8:
                raise ValueError(
                    f"kernel {kernel.name}, parameter {i} is a .{type_}, no pointer as {arg.name}"
                )
            if arg.nbytes:
                launched.add_window(memory, arg)
            launched.parameters.append(np.int64(arg.address))
        elif isinstance(arg, np.generic):
            floating = type_[0] == "f"
            if arg.dtype.itemsize != width or (floating and arg.dtype.kind != "f"):
                raise ValueError(
                    f"kernel {kernel.name}, parameter {i} ({name}) is a .{type_} of {width} bytes, "
                    f"not a {arg.dtype} of {arg.dtype.itemsize}"
                )
            launched.parameters.append(arg.view(f"f{width}" if floating else f"i{width}"))
        else:
            raise ValueError(
                f"kernel {kernel.name}, parameter {i} ({name}): expected a Span or a NumPy scalar, "
                f"not {type(arg).__name__}"
            )


class _Run:
    """Runs one batch of blocks to its end."""

    def __init__(self, state: State):
        self.S = state
        self.info: Translation = state.info
        self.R = list(self.info.initial)
        self.exit = self.info.flow.exit

    def run(self) -> None:
        """Run; where a fault follows a race or an uninitialised read, raise the earlier one."""
        S = self.S
        try:
            at: int | None = 0
            while at is not None:
                at = None if self._together(at) else self._apart()
            S.check()
        except (OutOfBounds, Misaligned, TooLong, Trap) as fault:
            try:
                S.check()
                S.check_global()
            except KernelFault as earlier:
                raise earlier from fault
            raise
        S.launched.epoch = S.epoch + 1

    def _together(self, at: int) -> bool:
        """Run while all threads that have not ended are together; return whether all have ended."""
        S, R, info = self.S, self.R, self.info
        S.complete = False
        alive = None if S.live == S.N else ~S.exited
        warps = S.warps if alive is None else S.layout.warps_with(alive)
        issued = S.launched.issued
        while True:
            taken = info.whole_function(at)(S, R, alive)
            for segment in info.chains[at]:
                issued[segment.number] += warps
            self._spend(info.lengths[at], info.ends[at])
            segment = info.ends[at]
            if segment.end == "branch":
                if not taken.ndim:
                    count = S.live if taken else 0
                else:
                    if alive is not None:
                        taken = taken & alive
                    count = int(np.count_nonzero(taken))
                if count == 0:
                    at = segment.number + 1
                elif count == S.live:
                    at = segment.target
                else:
                    self._send(segment.target, taken)
                    self._send(segment.number + 1, ~taken if alive is None else alive & ~taken)
                    return False
            elif segment.end == "barrier":
                self._barrier(segment)
                at = segment.number + 1
            elif segment.end == "fall":
                at = segment.number + 1
            elif segment.end == "trap":
                self._trap(segment, alive)
            else:
                at = segment.target
            if at == self.exit:
                return True

    def _apart(self) -> int | None:
        """Run until all threads are together again; return their segment, None at the end."""
        S, R, info = self.S, self.R, self.info
        while True:
            if not S.runnable:
                if S.stalled:
                    self._stalled()
                if not S.waiting:
                    return None
                self._release()
            at = min(S.runnable)
            m = S.runnable.pop(at)
            if at in S.stalled:
                m = m | S.stalled.pop(at)
            if np.count_nonzero(m) == S.live:
                return at
            segment = info.flow.segments[at]
            if segment.members:
                ready = complete(S, info.members(segment, R), m)
                if ready is not m and np.count_nonzero(ready) < np.count_nonzero(m):
                    S.stalled[at] = m & ~ready
                    if not ready.any():
                        continue
                    m = ready
            S.complete = bool(segment.members) and S.whole_warps
            taken = info.some_function(at)(S, R, m)
            S.launched.issued[at] += S.layout.warps_with(m)
            self._spend(len(segment.body) + 1, segment)
            if segment.end == "branch":
                self._send(segment.target, taken & m)
                self._send(at + 1, m & ~taken)
            elif segment.end == "barrier":
                S.waiting[at + 1] = S.waiting.get(at + 1, False) | m
            elif segment.end == "fall":
                self._send(at + 1, m)
            elif segment.end == "trap":
                self._trap(segment, m)
            else:
                self._send(segment.target, m)

    def _send(self, to: int, m: np.ndarray) -> None:
        """Move lanes to a segment; at the exit they end."""
        S = self.S
        count = int(np.count_nonzero(m))
        if not count:
            return
        if to == self.exit:
            S.exited = S.exited | m
            S.live -= count
        elif to in S.runnable:
            S.runnable[to] = S.runnable[to] | m
        else:
            S.runnable[to] = m

    def _spend(self, count: int, segment: Any) -> None:
        S = self.S
        S.launched.steps += count
        if S.launched.steps > S.budget:
            last = segment.last or segment.body[-1]
            lane = int(np.argmin(S.exited))
            raise S.fault(
                TooLong,
                last,
                lane,
                f"still running after {S.budget} instructions; is a loop endless?",
            )

    def _trap(self, segment: Any, m: Any) -> None:
        lane = 0 if m is None else int(np.argmax(m))
        raise self.S.fault(Trap, segment.last, lane, "the kernel executed trap")

    def _barrier(self, segment: Any) -> None:
        """Pass a barrier at which all threads are that have not ended."""
        S = self.S
        if S.live != S.N:
            ended = S.exited.reshape(-1, S.T)
            if (ended.any(axis=1) & ~ended.all(axis=1)).any():
                S.waiting = {segment.number + 1: ~S.exited}
                self._release()
                S.runnable.clear()
        self._passed()

    def _passed(self) -> None:
        self.S.epoch += 1
        self.S.check()
        if any(window.tracker.full() for window in self.S.windows):
            self.S.check_global()

    def _release(self) -> None:
        """Let blocks pass a barrier; DivergentBarrier unless all threads of each wait at it."""
        S = self.S
        for at, m in S.waiting.items():
            counts = m.reshape(-1, S.T).sum(axis=1)
            bad = (counts > 0) & (counts < S.T)
            if bad.any():
                block = int(np.argmax(bad))
                lanes = slice(block * S.T, (block + 1) * S.T)
                waits = block * S.T + int(np.argmax(m[lanes]))
                other = block * S.T + int(np.argmin(m[lanes]))
                segment = self.info.flow.segments[at - 1]
                raise S.fault(
                    DivergentBarrier,
                    segment.last,
                    waits,
                    f"{counts[block]} of {S.T} threads of the block wait at this barrier; others, "
                    f"such as thread {S._thread(other % S.T)}, {S.where(other)}",
                )
        S.runnable, S.waiting = S.waiting, {}
        self._passed()

    def _stalled(self) -> None:
        """Raise LostLane: nothing can run, and some lanes wait for others of their warp."""
        S = self.S
        at, m = next(iter(S.stalled.items()))
        segment = self.info.flow.segments[at]
        lane = int(np.argmax(m))
        named = np.broadcast_to(self.info.members(segment, self.R), S.N).view(np.uint32)
        first = int(S.layout.warp_first[lane])
        here = sum(
            1 << i for i in range(32) if first + i < S.N and m[first + i] and i + first % S.T < S.T
        )
        absent = int(named[lane]) & ~here
        instruction = segment.body[0]
        names = ", ".join(str(i) for i in range(32) if absent >> i & 1)
        raise S.fault(
            LostLane,
            instruction,
            lane,
            f"{instruction.opcode} waits for lanes {names} of its warp, "
            f"which {S.whereabouts(lane, absent)}",
        )
