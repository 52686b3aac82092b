"""Write segments of a kernel as Python functions over arrays, to be compiled once.

A register is an array over the lanes, or a NumPy scalar where all lanes share the value. A segment
is written in two forms. `whole` is for when all threads that have not ended are active: it assigns
registers without a mask, and includes the following segments up to the first branch. `some`
is for when only the lanes of a mask are active: the others keep their values, unless the register
is used in no other segment. Both are called with (S, R, m): the state of the launch, the registers,
and the mask of the lanes that access memory, None for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cuda_emulator.faults import UnknownInstruction
from cuda_emulator.ptx import TYPE_BYTES, Instruction, Operand
from cuda_emulator.translation.flow import Segment

if TYPE_CHECKING:
    from cuda_emulator.translation.kernel import Translation

STORED = {1: "i2", 2: "i2", 4: "i4", 8: "i8"}  # the type that holds a register, by its bytes


def stored_as(type_: str) -> str:
    """Return the NumPy type that holds a register: signed for integers and 16-bit floats."""
    if type_ == "pred":
        return "?"
    return {"f32": "f4", "f64": "f8"}.get(type_) or STORED[TYPE_BYTES[type_]]


def seen_as(type_: str) -> str:
    """Return the NumPy type of an instruction's type; 16-bit floats are their bits."""
    if type_ in ("pred", "f32", "f64") or type_[0] == "b" or type_.startswith("f16"):
        return "i1" if type_ == "b8" else stored_as(type_)
    return f"{'u' if type_[0] == 'u' else 'i'}{TYPE_BYTES[type_]}"


class Namespace:
    """The globals of a kernel's generated functions: constants, access sites, functions."""

    def __init__(self, functions: dict[str, Any]):
        self.globals: dict[str, Any] = dict(functions)
        self._names: dict[Any, str] = {}

    def constant(self, value: int | float, dtype: str) -> str:
        """Name a constant, kept as an array of no dimension, which is faster than a scalar."""
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
    """Writes one function; the functions in `EMIT`, one for each opcode, call its methods."""

    def __init__(self, kernel: Translation, some: bool):
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
        """Return the error for an instruction that is not known."""
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
        """Return a boolean expression, negated where the operand is."""
        if operand.kind == "integer":
            return self.names.constant(operand.value, "?")
        if operand.kind != "register":
            raise self.unknown()
        name = self.register(operand.name)
        return f"(~{name})" if operand.negated else name

    def value(self, operand: Operand, type_: str) -> str:
        """Return an expression for the operand, in the instruction's type."""
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
        """Return an expression for a special register, int32."""
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
        """Return a float32 operand, flushed unless it cannot be subnormal."""
        expression = self.value(operand, "f32")
        if operand.kind != "register" or operand.name in self.kernel.known:
            return expression
        if operand.name in self.kernel.normal:
            return expression
        if operand.name not in self._flushed:
            self._flushed[operand.name] = self.temporary(f"flush({expression})")
        return self._flushed[operand.name]

    def temporary(self, expression: str) -> str:
        """Assign an expression to a temporary variable; return its name."""
        self._temporaries += 1
        self.lines.append(f"t{self._temporaries} = {expression}")
        return f"t{self._temporaries}"

    # Results

    def mask(self) -> str:
        """Return an expression for the lanes for which the current instruction accesses memory."""
        guard = self.instruction.guard
        return f"chosen(S, {self.predicate(guard)}, m)" if guard else "m"

    def set(self, operand: Operand, expression: str, type_: str) -> None:
        """Assign an expression, which is of an instruction's type, to a register."""
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
