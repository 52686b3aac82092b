"""Write segments of a kernel as Python functions over arrays, to be compiled once.

A register is an array over the lanes, or a NumPy scalar where all lanes share the value. A segment
is written in two forms. `whole` is for when all threads that have not ended are here: it assigns
registers outright, and goes on through the following segments as far as nothing branches. `some`
is for when only the lanes of a mask are here: the others keep their values, unless nobody else
reads the register. Both are called with (S, R, m): the state of the launch, the registers, and
the mask of the lanes that memory accesses are made for, None for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from tinymistral_cupy.emulator.faults import UnknownInstruction
from tinymistral_cupy.emulator.flow import Flow, Segment, members
from tinymistral_cupy.emulator.ptx import TYPE_BYTES, Instruction, Kernel, Operand

STORED = {1: "i2", 2: "i2", 4: "i4", 8: "i8"}  # what holds a register, by its bytes


def stored_as(type_: str) -> str:
    """The NumPy type of a register: of PTX's type, all integers and halves being signed."""
    if type_ == "pred":
        return "?"
    return {"f32": "f4", "f64": "f8"}.get(type_) or STORED[TYPE_BYTES[type_]]


def seen_as(type_: str) -> str:
    """The NumPy type that an instruction's type asks for; halves are their bits."""
    if type_ in ("pred", "f32", "f64") or type_[0] == "b" or type_.startswith("f16"):
        return "i1" if type_ == "b8" else stored_as(type_)
    return f"{'u' if type_[0] == 'u' else 'i'}{TYPE_BYTES[type_]}"


class Namespace:
    """What the functions of a kernel see as globals: constants, access sites, functions."""

    def __init__(self, functions: dict[str, Any]):
        self.globals: dict[str, Any] = dict(functions)
        self._names: dict[Any, str] = {}

    def constant(self, value: int | float, dtype: str) -> str:
        """Name a constant. It is an array of no dimension, which is faster than a scalar."""
        key = (value, dtype)
        if key not in self._names:
            kind = np.dtype(dtype)
            if kind.kind in "iu":
                value = int(value) % (1 << 8 * kind.itemsize)
                array = np.array(value, dtype=f"u{kind.itemsize}").view(kind)
            else:
                array = np.array(value, dtype=kind)
            self._names[key] = self.name("k", array)
        return self._names[key]

    def floating(self, bits: int, dtype: str) -> str:
        """Name a floating-point constant, given by its bits."""
        key = (bits, dtype, "bits")
        if key not in self._names:
            array = np.array(bits, dtype=f"u{np.dtype(dtype).itemsize}").view(dtype)
            self._names[key] = self.name("k", array)
        return self._names[key]

    def name(self, prefix: str, value: Any) -> str:
        """Name any object."""
        name = f"{prefix}{len(self.globals)}"
        self.globals[name] = value
        return name


class Writer:
    """Writes one function. `emitters.EMIT` has a function for each opcode, which calls this."""

    def __init__(self, kernel: KernelInfo, some: bool):
        self.kernel = kernel
        self.some = some
        self.names = kernel.namespace
        self.lines: list[str] = []
        self._loads: dict[str, None] = {}
        self._written: dict[str, None] = {}
        self._flushed: dict[str, str] = {}
        self._local: set[str] = set()
        self.instruction: Instruction = None  # type: ignore[assignment]
        self._temporaries = 0

    def write(self, segments: list[Segment]) -> str:
        """Return the source of the function `run` for consecutive segments."""
        result = "None"
        for segment in segments:
            self._local = self.kernel.local[segment.number]
            if segment.after:
                self._emit(segment.after)
            for instruction in segment.body:
                self._emit(instruction)
            if segment.end == "branch" and segment.last and segment.last.guard:
                result = self.predicate(segment.last.guard)
        index = self.kernel.index
        head = [f"{self._variable(n)} = R[{index[n]}]" for n in self._loads]
        local = set().union(*(self.kernel.local[s.number] for s in segments))
        tail = [f"R[{index[n]}] = {self._variable(n)}" for n in self._written if n not in local]
        body = [*head, *self.lines, *tail, f"return {result}"]
        return "def run(S, R, m):\n" + "".join(f"    {line}\n" for line in body)

    def _emit(self, instruction: Instruction) -> None:
        self.instruction = instruction
        root, *modifiers = instruction.opcode.replace("::", ".").split(".")
        emit = self.kernel.emitters.get(root)
        if emit is None:
            raise self.unknown()
        emit(self, instruction, modifiers)

    def unknown(self, why: str = "") -> UnknownInstruction:
        """Say that the instruction at hand is not known."""
        return UnknownInstruction(
            f"{self.instruction.text!r} is not known to the emulator{why and ': ' + why}",
            self.kernel.name,
            self.kernel.source,
            self.instruction.line,
        )

    # Operands

    def _variable(self, register: str) -> str:
        return f"r{self.kernel.index[register]}"

    def register(self, name: str) -> str:
        """Name a register in the function, as it is stored."""
        if name not in self._written:
            self._loads[name] = None
        return self._variable(name)

    def predicate(self, operand: Operand) -> str:
        """An expression of booleans, negated where the operand is."""
        if operand.kind == "integer":
            return self.names.constant(operand.value, "?")
        if operand.kind != "register":
            raise self.unknown()
        name = self.register(operand.name)
        return f"(~{name})" if operand.negated else name

    def value(self, operand: Operand, type_: str) -> str:
        """An expression of the operand as an instruction's type sees it."""
        wanted = seen_as(type_)
        if type_ == "pred":
            return self.predicate(operand)
        if operand.kind == "register":
            operand = self.kernel.known.get(operand.name, operand)
        if operand.kind == "integer":
            if wanted[0] == "f":
                raise self.unknown()
            return self.names.constant(operand.value, wanted)
        if operand.kind in ("f32", "f64"):
            if TYPE_BYTES[operand.kind] != np.dtype(wanted).itemsize:
                raise self.unknown()
            return self.names.floating(operand.value, wanted)
        if operand.kind == "register":
            has = stored_as(self.kernel.registers[operand.name])
            return self._cast(self.register(operand.name), has, wanted)
        if operand.kind == "special":
            return self._cast(self.special(operand.name), "i4", wanted)
        if operand.kind == "symbol":
            if operand.name not in self.kernel.addresses:
                raise self.unknown(f"no variable {operand.name}")
            return self.names.constant(self.kernel.addresses[operand.name], wanted)
        raise self.unknown()

    def special(self, name: str) -> str:
        """A special register, int32."""
        if name not in SPECIAL:
            raise self.unknown(f"no special register {name}")
        return f"S.{SPECIAL[name]}"

    def _cast(self, expression: str, has: str, wanted: str) -> str:
        if has == wanted:
            return expression
        if has == "?" or wanted == "?":
            raise self.unknown()
        have, want = int(has[1:]), int(wanted[1:])
        if have == want:
            return f"{expression}.view({wanted})"
        if have > want and has[0] != "f" and wanted[0] != "f":
            return f"{expression}.astype({wanted})"
        raise self.unknown("a register of another width")

    def flushed(self, operand: Operand) -> str:
        """A float32 operand with subnormals flushed, unless it cannot be one."""
        expression = self.value(operand, "f32")
        if operand.kind != "register" or operand.name in self.kernel.known:
            return expression
        if operand.name in self.kernel.normal:
            return expression
        if operand.name not in self._flushed:
            self._flushed[operand.name] = self.temporary(f"flush({expression})")
        return self._flushed[operand.name]

    def temporary(self, expression: str) -> str:
        """Give a value a name, for as long as the function runs."""
        self._temporaries += 1
        self.lines.append(f"t{self._temporaries} = {expression}")
        return f"t{self._temporaries}"

    # Results

    def mask(self) -> str:
        """The lanes that the instruction at hand accesses memory for."""
        guard = self.instruction.guard
        return f"chosen(S, {self.predicate(guard)}, m)" if guard else "m"

    def set(self, operand: Operand, expression: str, type_: str) -> None:
        """Assign what an expression of an instruction's type gives to a register."""
        if operand.kind == "sink":
            return
        if operand.kind != "register":
            raise self.unknown()
        has, wanted = seen_as(type_), stored_as(self.kernel.registers[operand.name])
        if has != wanted:
            if "?" in (has, wanted):
                raise self.unknown()
            have, want = int(has[1:]), int(wanted[1:])
            if have == want:
                expression = f"({expression}).view({wanted})"
            elif have < want and "f" not in has + wanted:
                unsigned = type_[0] == "b" and has[0] != "u"
                view = f".view(u{have})" if unsigned else ""
                expression = f"({expression}){view}.astype({wanted})"
            else:
                raise self.unknown("a register of another width")
        guard = self.instruction.guard
        merged = self.some and operand.name not in self._local
        if guard or merged:
            condition = self.predicate(guard) if guard else "m"
            if guard and merged:
                condition = f"({condition} & m)"
            old = self.register(operand.name)
            expression = f"where({condition}, {expression}, {old})"
        self.lines.append(f"{self._variable(operand.name)} = {expression}")
        self._written[operand.name] = None
        self._flushed.pop(operand.name, None)


class KernelInfo:
    """What is known of a kernel before it runs: its flow, registers, constants and addresses."""

    def __init__(
        self,
        kernel: Kernel,
        emitters: dict[str, Callable[..., None]],
        functions: dict[str, Any],
    ):
        self.name, self.source = kernel.name, kernel.source
        self.kernel = kernel
        self.emitters = emitters
        self.flow = Flow(kernel)
        self.registers = kernel.registers
        self.index = {name: i for i, name in enumerate(kernel.registers)}
        self.parameters = {name: i for i, name in enumerate(kernel.parameters)}
        self.addresses: dict[str, int] = {}
        types = {t: np.dtype(t) for t in "i1 u1 i2 u2 i4 u4 i8 u8 f2 f4 f8".split()}
        self.namespace = Namespace({**types, **functions})
        self.sites: list[Any] = []
        self.known = self._known()
        self.normal = self._normal()
        self.local = self._local()

    def _definitions(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for ins in self.kernel.instructions:
            for operand in ins.operands[:1]:
                for part in (operand, *operand.parts):
                    if part.kind == "register":
                        counts[part.name] += 1
        return counts

    def _known(self) -> dict[str, Operand]:
        """Registers that are given a constant and nothing else, ever."""
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
        """32-bit registers that never hold a subnormal float, whatever is done with them.

        All are taken for such at first; then those are struck out that something else is written
        to, until nothing changes.
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
        """For each segment the registers that no other one names, and that it writes first."""
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
                read |= set(_names(tuple(rest)))
                alone -= read - seen
                seen |= written
            local.append(alone & seen)
        return local

    def compile(self, number: int, some: bool) -> Callable[..., Any]:
        """Compile a segment, alone for `some` lanes, or with those that follow."""
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
        """A segment and those that it falls through to only because lanes meet there."""
        segments = [self.flow.segments[number]]
        while segments[-1].end == "fall" and segments[-1].number + 1 < self.flow.exit:
            following = self.flow.segments[segments[-1].number + 1]
            if not members(following.body[0] if following.body else _NOTHING):
                break
            segments.append(following)
        return segments


def _stays(ins: Instruction, normal: set[str]) -> bool:
    """Tell whether an instruction writes no subnormal float32, if `normal` registers hold none."""
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


_NOTHING = Instruction("", (), None, 0, "")


def _names(operands: tuple[Operand, ...]) -> list[str]:
    names = []
    for operand in operands:
        if operand.kind == "register":
            names.append(operand.name)
        names.extend(_names(operand.parts))
    return names


SPECIAL = {
    **{
        f"%{name}.{axis}": f"{name}_{axis}"
        for name in ("tid", "ntid", "ctaid", "nctaid")
        for axis in "xyz"
    },
    "%laneid": "laneid",
    "%warpid": "warpid",
    "%nwarpid": "nwarpid",
    "%lanemask_eq": "lanemask_eq",
    "%lanemask_lt": "lanemask_lt",
    "%lanemask_le": "lanemask_le",
    "%lanemask_gt": "lanemask_gt",
    "%lanemask_ge": "lanemask_ge",
    "%dynamic_smem_size": "dynamic_smem_size",
    "%total_smem_size": "total_smem_size",
}
