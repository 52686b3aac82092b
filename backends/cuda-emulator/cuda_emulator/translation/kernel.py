"""Translate a kernel at its first launch: Python functions, addresses of variables, tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from cuda_emulator import accesses
from cuda_emulator.instructions import floating, integers, warps
from cuda_emulator.memory import REGION_BITS, STATIC
from cuda_emulator.ptx import TYPE_BYTES, Instruction, Kernel, Operand, Variable
from cuda_emulator.translation.arithmetic import ARITHMETIC
from cuda_emulator.translation.conversions import CONVERSIONS
from cuda_emulator.translation.data_movement import DATA_MOVEMENT
from cuda_emulator.translation.flow import Flow, Segment, registers
from cuda_emulator.translation.writer import Namespace, Writer, stored_as

VARIABLE_BITS = 28  # variables in constant and global memory are 2^28 bytes apart

# The function that writes each opcode as Python.
EMIT: dict[str, Callable[..., None]] = {**ARITHMETIC, **CONVERSIONS, **DATA_MOVEMENT}

# The functions that the written code may call, by name.
FUNCTIONS: dict[str, Any] = {
    **{name: getattr(floating, name) for name in (
        "flush saturate fma fma_subnormal fma_directed product_directed fma_f64 minimum maximum "
        "half divide_approx exp2 log2 rsqrt sine cosine tanh to_bf16 odd_to_bf16 from_bf16 to_f16 "
        "from_f16 to_integer pack"
    ).split()},
    **{name: getattr(integers, name) for name in (
        "shift_left shift_right high_product divide remainder population leading_zeros "
        "find_highest reverse extract insert permute funnel lookup sized"
    ).split()},
    **{name: getattr(warps, name) for name in (
        "sync_lanes shuffle vote match reduce_warp active_lanes reduce_block chosen "
        "multiply_matrices load_matrices"
    ).split()},
    **floating.ROUNDINGS,
    "start_copy": accesses.start_copy,
    "commit_copies": accesses.commit_copies,
    "wait_for_copies": accesses.wait_for_copies,
    "where": np.where,
    "sqrt": np.sqrt,
    "copysign": np.copysign,
    "isfinite": np.isfinite,
    "isinf": np.isinf,
    "np_minimum": np.minimum,
    "np_maximum": np.maximum,
    "f32_one": np.array(1, dtype=np.float32),
    "f64_one": np.array(1, dtype=np.float64),
}  # fmt: skip


class Translation:
    """A kernel as functions, each compiled when it is first needed."""

    def __init__(self, kernel: Kernel):
        self.name, self.source = kernel.name, kernel.source
        self.kernel = kernel
        self.emitters = EMIT
        self.flow = Flow(kernel)
        self.registers = kernel.registers
        self.index = {name: i for i, name in enumerate(kernel.registers)}
        self.parameters = {name: i for i, name in enumerate(kernel.parameters)}
        self.addresses: dict[str, int] = {}
        types = {t: np.dtype(t) for t in "i1 u1 i2 u2 i4 u4 i8 u8 f2 f4 f8".split()}
        self.namespace = Namespace({**types, **FUNCTIONS})
        self.sites: list[Any] = []
        self.known = self._known()
        self.normal = self._normal()
        self.local = self._local()
        count = self.flow.exit
        self.whole: list[Any] = [None] * count
        self.some: list[Any] = [None] * count
        self.chains: list[list[Segment]] = [self.chain(i) for i in range(count)]
        self.ends = [chain[-1] for chain in self.chains]
        self.lengths = [sum(sum(s.lines.values()) for s in chain) for chain in self.chains]
        self.initial = [np.zeros((), dtype=stored_as(type_)) for type_ in kernel.registers.values()]
        self.variables: list[tuple[str, int, Variable]] = []
        self._place_variables(kernel)
        self.shared_shift = self._shift(kernel, "shared")
        self.global_shift = self._shift(kernel, "global")

    # Registers

    def _definitions(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for ins in self.kernel.instructions:
            for operand in ins.operands[:1]:
                for part in (operand, *operand.parts):
                    if part.kind == "register":
                        counts[part.name] += 1
        return counts

    def _known(self) -> dict[str, Operand]:
        """Find the registers that are assigned once, and to a constant."""
        counts = self._definitions()
        return {
            ins.operands[0].name: ins.operands[1]
            for ins in self.kernel.instructions
            if ins.opcode.startswith("mov.")
            and not ins.guard
            and ins.operands[0].kind == "register"
            and counts[ins.operands[0].name] == 1
            and ins.operands[1].kind in ("integer", "f32", "f64")
        }

    def _normal(self) -> set[str]:
        """Find the 32-bit registers that never hold a subnormal float.

        At first all are assumed to be such; those to which a subnormal may be written are removed
        until nothing changes.
        """
        normal = {name for name, type_ in self.registers.items() if type_ in ("f32", "b32")}
        writes = [
            (part.name, ins)
            for ins in self.kernel.instructions
            for first in ins.operands[:1]
            for part in (first, *first.parts)
            if part.kind == "register" and part.name in normal and first.kind != "address"
        ]
        while True:
            bad = {name for name, ins in writes if name in normal and not _stays(ins, normal)}
            if not bad:
                return normal
            normal -= bad

    def _local(self) -> list[set[str]]:
        """List for each segment the registers that it alone uses, and writes before it reads."""
        named = [segment.registers for segment in self.flow.segments]
        times = Counter(name for names in named for name in names)
        local = []
        for segment, names in zip(self.flow.segments, named, strict=True):
            alone = {name for name in names if times[name] == 1}
            seen: set[str] = set()
            for ins in segment.body:
                first, *rest = ins.operands or (Operand("sink"),)
                written = {p.name for p in (first, *first.parts) if p.kind == "register"}
                if first.kind == "address" or ins.guard:
                    read, written = written | ({ins.guard.name} if ins.guard else set()), set()
                else:
                    read = set()
                read |= set(registers(tuple(rest)))
                alone -= read - seen
                seen |= written
            local.append(alone & seen)
        return local

    # Variables

    def _place_variables(self, kernel: Kernel) -> None:
        """Assign addresses to variables; shared and local ones from 0 on, dynamic ones last."""
        used = {name for ins in kernel.instructions for name in _symbols(ins.operands)}
        self.static_shared = self.local_bytes = 0
        dynamic = []
        for i, (name, variable) in enumerate(kernel.variables.items()):
            if variable.space in ("const", "global"):
                self.addresses[name] = (STATIC << REGION_BITS) + (i << VARIABLE_BITS)
                if name in used:
                    self.variables.append((name, self.addresses[name], variable))
            elif name not in used:
                continue
            elif variable.space == "local":
                self.addresses[name] = _aligned(self.local_bytes, variable.align)
                self.local_bytes = self.addresses[name] + variable.nbytes
            elif variable.nbytes:
                self.addresses[name] = _aligned(self.static_shared, variable.align)
                self.static_shared = self.addresses[name] + variable.nbytes
            else:
                dynamic.append((name, variable))
        if dynamic:
            most = max(variable.align for _, variable in dynamic)
            self.static_shared = _aligned(self.static_shared, max(most, 16))
        for name, _ in dynamic:
            self.addresses[name] = self.static_shared

    @staticmethod
    def _shift(kernel: Kernel, space: str) -> int:
        """Return the binary logarithm of the narrowest access to a memory, in bytes."""
        narrowest = 16
        for ins in kernel.instructions:
            root, *modifiers = ins.opcode.replace("::", ".").split(".")
            if root == "cp":
                narrowest = min(narrowest, 4)
            if root not in ("ld", "st", "atom", "red") or modifiers[-1] not in TYPE_BYTES:
                continue
            if not {"global", "shared", "local", "const", "param"} & set(modifiers):
                modifiers.append(space)
            if space in modifiers or (space == "global" and "const" in modifiers):
                narrowest = min(narrowest, TYPE_BYTES[ins.opcode.rsplit(".", 1)[1]])
        return narrowest.bit_length() - 1

    # Functions

    def compile(self, number: int, some: bool) -> Callable[..., Any]:
        """Compile a segment: alone if for `some` lanes, else with the rest of its chain."""
        segments = [self.flow.segments[number]]
        if not some:
            segments = self.chain(number)
        source = Writer(self, some).write(segments)
        kind = "some" if some else "whole"
        code = compile(source, f"<{self.name}, segment {number}, {kind}>", "exec")
        scope: dict[str, Any] = {}
        exec(code, self.namespace.globals, scope)
        return scope["run"]

    def chain(self, number: int) -> list[Segment]:
        """Return a segment and those after it that begin only because lanes synchronize there."""
        segments = [self.flow.segments[number]]
        while segments[-1].end == "fall" and segments[-1].number + 1 < self.flow.exit:
            following = self.flow.segments[segments[-1].number + 1]
            if not following.members:
                break
            segments.append(following)
        return segments

    def whole_function(self, number: int) -> Any:
        """Return the function of a chain of segments, for when all threads are active."""
        if self.whole[number] is None:
            self.whole[number] = self.compile(number, some=False)
        return self.whole[number]

    def some_function(self, number: int) -> Any:
        """Return the function of a segment, for when only some lanes are active."""
        if self.some[number] is None:
            self.some[number] = self.compile(number, some=True)
        return self.some[number]

    def members(self, segment: Segment, R: list[Any]) -> Any:
        """Return the lanes that synchronize at the start of a segment, from the registers."""
        operand = segment.members
        assert operand is not None
        operand = self.known.get(operand.name, operand)
        if operand.kind == "integer":
            return np.array(operand.value % (1 << 32), dtype=np.uint32).view(np.int32)
        return R[self.index[operand.name]]


def _stays(ins: Instruction, normal: set[str]) -> bool:
    """Return whether an instruction writes no subnormal float32, as long as `normal` hold none."""
    root, *modifiers = ins.opcode.split(".")
    if "ftz" in modifiers and modifiers[-1] in ("f32", "f64"):
        return True
    if ins.opcode.startswith(("cvt.rn.f32.s", "cvt.rn.f32.u", "cvt.f32.f16")):
        return True
    if root == "shfl":
        sources = ins.operands[1:2]
    elif root == "mov" and modifiers in (["b32"], ["f32"]):
        sources = ins.operands[1:]
    elif root == "selp" or (root in ("neg", "abs", "min", "max") and modifiers == ["f32"]):
        sources = ins.operands[1:3]
    else:
        return False
    return all(
        source.name in normal
        if source.kind == "register"
        else source.kind in ("f32", "integer")
        and (source.value & 0x7F800000 != 0 or source.value & 0x7FFFFFFF == 0)
        for source in sources
    )


def _aligned(offset: int, align: int) -> int:
    return -(-offset // align) * align


def _symbols(operands: tuple[Operand, ...]) -> list[str]:
    names = []
    for operand in operands:
        if operand.kind == "symbol":
            names.append(operand.name)
        names.extend(_symbols(operand.parts))
    return names
