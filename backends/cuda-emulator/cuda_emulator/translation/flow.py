"""Cut a kernel's instructions into segments, which have no branch or wait inside.

A segment ends before a label or an instruction that synchronizes the lanes of a warp (a shuffle, a
vote), and after a branch, a barrier or an exit. The program counter of a thread is the number of
a segment; threads that have ended are at `Flow.exit`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from cuda_emulator.faults import UnknownInstruction
from cuda_emulator.ptx import Instruction, Kernel, Operand

ENDS = {"bra": "jump", "ret": "exit", "exit": "exit", "trap": "trap"}
BARRIERS = ("bar.sync", "bar.red", "barrier.sync", "barrier.red", "bar.cta", "barrier.cta")
WARP_SYNCS = ("shfl", "vote", "match", "redux", "mma", "ldmatrix", "elect")  # with `.sync`
WHOLE_WARP = Operand("integer", value=-1)


@dataclass
class Segment:
    """Instructions that are executed together.

    `end` says what comes after the last one: fall (the next segment), jump, branch, exit,
    barrier or trap; `target` is the segment that a jump or a taken branch goes to.
    """

    number: int
    body: list[Instruction]
    end: str = "fall"
    target: int = -1
    last: Instruction | None = None  # the branch, barrier or the like that ends it
    members: Operand | None = None  # the lanes that synchronize at its first instruction
    after: Instruction | None = None  # the barrier just before it, if that has a result

    @cached_property
    def lines(self) -> Counter[int]:
        """The number of its instructions by source line."""
        return Counter(ins.line for ins in [*self.body, *([self.last] if self.last else [])])

    @property
    def registers(self) -> set[str]:
        """All registers that it names."""
        found: set[str] = set()
        for ins in [*self.body, *filter(None, (self.last, self.after))]:
            found.update(registers(ins.operands))
            if ins.guard:
                found.add(ins.guard.name)
        return found


def registers(operands: tuple[Operand, ...]) -> list[str]:
    """List the registers in operands, also those in addresses and vectors."""
    names = []
    for operand in operands:
        if operand.kind == "register":
            names.append(operand.name)
        names.extend(registers(operand.parts))
    return names


def members(ins: Instruction) -> Operand | None:
    """Return the operand that names the lanes an instruction synchronizes; None if it does not."""
    if ins.opcode.startswith("bar.warp.sync"):
        return ins.operands[0]
    root = ins.opcode.split(".", 1)[0]
    if root not in WARP_SYNCS:
        return None
    if root in ("mma", "ldmatrix"):
        return WHOLE_WARP
    return ins.operands[-1]


def is_barrier(ins: Instruction) -> bool:
    """Return whether all threads of a block wait for each other here."""
    return ins.opcode.startswith(BARRIERS)


class Flow:
    """The segments of a kernel, in order; the first one runs first."""

    def __init__(self, kernel: Kernel):
        starts = {0, *kernel.labels.values()}
        for i, ins in enumerate(kernel.instructions):
            if ins.opcode.split(".", 1)[0] in ENDS or is_barrier(ins):
                starts.add(i + 1)
            elif members(ins):
                starts.add(i)
        bounds = sorted(start for start in starts if start < len(kernel.instructions))
        number = {start: i for i, start in enumerate(bounds)}
        self.exit = len(bounds)
        self.segments: list[Segment] = []
        for start, stop in zip(bounds, [*bounds[1:], len(kernel.instructions)], strict=True):
            segment = Segment(number[start], kernel.instructions[start:stop])
            self._finish(kernel, segment, number)
            self.segments.append(segment)
        for before, segment in zip(self.segments, self.segments[1:], strict=False):
            if before.end == "barrier" and before.last and ".red" in before.last.opcode:
                segment.after = before.last

    def _finish(self, kernel: Kernel, segment: Segment, number: dict[int, int]) -> None:
        first, last = segment.body[0], segment.body[-1]
        segment.members = members(first)
        if first.guard and segment.members:
            raise _unknown(kernel, first, "under a predicate")
        if is_barrier(last):
            if last.guard:
                raise _unknown(kernel, last, "under a predicate")
            if len(last.operands) != (3 if ".red" in last.opcode else 1):
                raise _unknown(kernel, last, "a barrier for a part of the block")
            segment.end = "barrier"
        elif last.opcode.split(".", 1)[0] in ENDS:
            segment.end = ENDS[last.opcode.split(".", 1)[0]]
            if segment.end == "jump":
                at = kernel.labels[last.operands[0].name]
                segment.target = number.get(at, self.exit)
            elif segment.end == "exit":
                segment.target = self.exit
            if last.guard:
                segment.end = "branch"
                if last.opcode == "trap":
                    raise _unknown(kernel, last, "under a predicate")
        if segment.end != "fall":
            segment.last = segment.body.pop()


def _unknown(kernel: Kernel, instruction: Instruction, why: str) -> UnknownInstruction:
    what = f"{instruction.text!r} is not known to the emulator: {why}"
    return UnknownInstruction(what, kernel.name, kernel.source, instruction.line)
