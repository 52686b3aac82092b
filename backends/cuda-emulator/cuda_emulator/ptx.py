"""Read PTX, as NVRTC writes it: kernels, their variables and their instructions.

The grammar is that of the PTX ISA manual (https://docs.nvidia.com/cuda/parallel-thread-execution),
of which NVRTC uses little. Inline assembly may open scopes, `{ .reg .pred p; ... }`: registers and
labels declared in one get a unique name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np

TYPE_BYTES = {
    **{f"{letter}{bits}": bits // 8 for letter in "bsu" for bits in (8, 16, 32, 64)},
    "f16": 2, "bf16": 2, "f16x2": 4, "bf16x2": 4, "f32": 4, "f64": 8, "b128": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Operand:
    """An operand: its kind, and the fields that this kind needs.

    kind: register | special (`%tid.x`) | symbol | integer | f32 | f64 (bits in `value`) |
    address (`[name + value]`) | vector (`{a, b}`) | pair (`d|p`) | sink (`_`)
    """

    kind: str
    name: str = ""
    value: int = 0
    parts: tuple[Operand, ...] = ()
    negated: bool = False  # !%p1


@dataclass(frozen=True)
class Instruction:
    """One instruction; `line` is the CUDA source's, 0 where there is none."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: Operand | None
    line: int
    text: str


@dataclass(frozen=True)
class Variable:
    """A variable in shared, local, constant or global memory; the launch sizes one of 0 bytes.

    `data` has the bytes of a constant or global one, padded to 16, for all kernels of a module.
    """

    name: str
    space: str
    nbytes: int
    align: int
    data: np.ndarray


@dataclass
class Kernel:
    """An entry point: parameters in order, registers, variables and instructions."""

    name: str
    parameters: dict[str, str]  # name -> type
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    variables: dict[str, Variable] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # name -> index of an instruction
    source: str = ""  # the name of the CUDA file
    text: str = ""  # of the CUDA file, where it is known
    translation: Any = None  # made by `machine.launch` at the first launch, and kept


@dataclass(frozen=True)
class Module:
    """All kernels of a compilation, by name; looking up one that cannot be read is a ValueError."""

    kernels: Mapping[str, Kernel]


_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak)\s+)*\.(shared|local|const|global)\s+(?:\.align\s+(\d+)\s+)?"
    r"\.(\w+)\s+([\w$%]+)\s*((?:\[\d*\])*)\s*(?:=\s*(.*))?$",
    re.DOTALL,
)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{;]*)\{", re.DOTALL)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s+[^,]*\s)?([\w$]+)(\[\d+\])?$"
)
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
_LOC = re.compile(
    r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:,\s*function_name\s+\S+,\s*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?"
)
_LABEL = re.compile(r"([\w$%.]+):(?!:)")


def parse(ptx: str, cuda: str = "") -> Module:
    """Read a module; raise ValueError where this parser does not know the PTX.

    `cuda` is the source that it was compiled from, kept for reports.
    """
    files = {int(number): PurePath(name).name for number, name in _FILE.findall(ptx)}
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", ptx, flags=re.DOTALL)
    module_level, bodies = _split(text)
    variables = {}
    for statement in module_level.split(";"):
        found = _VARIABLE.search(statement.strip())
        if found:
            variable = _variable(found)
            variables[variable.name] = variable
    return Module(_Kernels(bodies, variables, files, cuda))


class _Kernels(Mapping[str, Kernel]):
    """Kernels by name; each is read when it is first asked for."""

    def __init__(
        self,
        bodies: list[tuple[str, str, str]],
        variables: dict[str, Variable],
        files: dict[int, str],
        cuda: str,
    ):
        self._bodies = {name: (parameters, body) for name, parameters, body in bodies}
        self._variables, self._files, self._cuda = variables, files, cuda
        self._read: dict[str, Kernel] = {}

    def __getitem__(self, name: str) -> Kernel:
        if name not in self._read:
            parameters, body = self._bodies[name]
            kernel = Kernel(name, _parameters(name, parameters), variables=dict(self._variables))
            kernel.text = self._cuda
            _Body(kernel, self._files).read(body)
            self._read[name] = kernel
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bodies)

    def __len__(self) -> int:
        return len(self._bodies)


def _split(text: str) -> tuple[str, list[tuple[str, str, str]]]:
    """Split into the text outside of kernels, and (name, parameters, body) of each kernel."""
    outside, bodies, position = [], [], 0
    for entry in _ENTRY.finditer(text):
        if entry.start() < position:
            continue
        outside.append(text[position : entry.start()])
        end = _closing(text, entry.end() - 1)
        bodies.append((entry[1], entry[2], text[entry.end() : end]))
        position = end + 1
    outside.append(text[position:])
    return "".join(outside), bodies


def _closing(text: str, opening: int) -> int:
    depth = 0
    for brace in re.finditer(r"[{}]", text[opening:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return opening + brace.start()
    raise ValueError("PTX ends within braces")


def _parameters(kernel: str, text: str) -> dict[str, str]:
    parameters = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = _PARAMETER.match(part)
        if not found or found[3]:
            raise ValueError(
                f"kernel {kernel} has the parameter {part!r}; expected a pointer or a scalar"
            )
        parameters[found[2]] = found[1]
    return parameters


def _variable(found: re.Match[str]) -> Variable:
    space, align, type_, name, shape, initial = found.groups()
    count = int(np.prod([int(n or 0) for n in re.findall(r"\[(\d*)\]", shape)], dtype=np.int64))
    width = TYPE_BYTES[type_]
    data = b""
    if initial is not None:
        # 0f3F800000 and 0d3FF0000000000000 have the bits of a float
        floats = re.sub(r"\b0[fFdD](?=[0-9a-fA-F]{8})", "0x", initial)
        numbers = [int(n, 0) for n in re.findall(r"-?\w+", floats)]
        data = b"".join((n % (1 << 8 * width)).to_bytes(width, "little") for n in numbers)
    nbytes = width * count
    stored = np.zeros(-(-nbytes // 16) * 16, dtype=np.uint8)
    stored[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return Variable(name, space, nbytes, int(align or width), stored)


class _Body:
    """Reads one kernel's body into it."""

    def __init__(self, kernel: Kernel, files: dict[int, str]):
        self.kernel = kernel
        self.files = files
        self.scopes: list[dict[str, str]] = [{}]  # what is declared -> its unique name
        self.labels: dict[tuple[int, ...], dict[str, int]] = {}
        self.path: list[int] = [0]  # the numbers of the open scopes, to look up labels
        self.opened = 0
        self.branches: list[tuple[int, tuple[int, ...]]] = []
        self.main: int | None = None  # the file that the kernel is in
        self.line = 0
        self.callers: dict[tuple[int, int, int], tuple[int, int, int]] = {}

    def read(self, text: str) -> None:
        """Read statement by statement: scopes, labels, `.loc` and what ends in a semicolon."""
        position = 0
        while True:
            while position < len(text) and text[position].isspace():
                position += 1
            if position == len(text):
                break
            if text[position] == "{":
                self.opened += 1
                self.path.append(self.opened)
                self.scopes.append({})
                position += 1
            elif text[position] == "}":
                self.path.pop()
                self.scopes.pop()
                position += 1
            elif _LOC.match(text, position):
                start, position = position, self._end(text, "\n", position)
                self._loc(text[start:position])
            elif label := _LABEL.match(text, position):
                scope = self.labels.setdefault(tuple(self.path), {})
                scope[label[1]] = len(self.kernel.instructions)
                position = label.end()
            else:
                end = self._end(text, ";", position)
                self._statement(" ".join(text[position : end - 1].split()))
                position = end
        self._resolve()

    @staticmethod
    def _end(text: str, what: str, position: int) -> int:
        found = text.find(what, position)
        if found < 0:
            raise ValueError(f"PTX ends within {text[position : position + 60]!r}")
        return found + 1

    def _loc(self, text: str) -> None:
        """Take the line in the kernel's own file; for code inlined from another, the caller's."""
        found = _LOC.match(text)
        if not found:
            raise ValueError(f"not a location: {text[-80:].strip()!r}")
        numbers = [int(n) for n in found.groups() if n is not None]
        place = (numbers[0], numbers[1], numbers[2])
        if self.main is None:
            self.main = place[0]
            self.kernel.source = self.files.get(place[0], "")
        if len(numbers) == 6:
            self.callers[place] = (numbers[3], numbers[4], numbers[5])
        seen = set()
        while place[0] != self.main and place in self.callers and place not in seen:
            seen.add(place)
            place = self.callers[place]
        if place[0] == self.main:
            self.line = place[1]

    def _statement(self, text: str) -> None:
        if text.startswith(".reg"):
            self._registers(text)
        elif found := _VARIABLE.match(text):
            variable = _variable(found)
            self.kernel.variables[variable.name] = variable
        elif text.startswith("."):
            if not text.startswith(".pragma"):
                raise ValueError(f"kernel {self.kernel.name}: unknown directive {text!r}")
        elif text:
            self._instruction(text)

    def _registers(self, text: str) -> None:
        type_, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text).groups()  # type: ignore[union-attr]
        for name in re.split(r"\s*,\s*", names):
            ranged = re.fullmatch(r"(.*)<(\d+)>", name)
            for each in [f"{ranged[1]}{i}" for i in range(int(ranged[2]))] if ranged else [name]:
                unique = each if len(self.scopes) == 1 else f"{each}@{self.path[-1]}"
                self.scopes[-1][each] = unique
                self.kernel.registers[unique] = type_

    def _instruction(self, text: str) -> None:
        guard = None
        rest = text
        if rest.startswith("@"):
            name, rest = rest[1:].split(None, 1)
            guard = self._operand(name)
        opcode, _, operands = rest.partition(" ")
        if opcode in ("bra", "bra.uni"):
            self.branches.append((len(self.kernel.instructions), tuple(self.path)))
            parsed: tuple[Operand, ...] = (Operand("symbol", operands.strip()),)
        else:
            parsed = tuple(self._operand(part) for part in _commas(operands))
        self.kernel.instructions.append(Instruction(opcode, parsed, guard, self.line, text))

    def _operand(self, text: str) -> Operand:
        text = text.strip()
        for scope in reversed(self.scopes):
            if text in scope:
                return Operand("register", scope[text])
        if text.startswith("!"):
            inner = self._operand(text[1:])
            return Operand(inner.kind, inner.name, negated=True)
        if text.startswith("{"):
            return Operand("vector", parts=tuple(self._operand(p) for p in _commas(text[1:-1])))
        if text.startswith("["):
            return self._address(text[1:-1].strip())
        if "|" in text:
            return Operand("pair", parts=tuple(self._operand(p) for p in text.split("|")))
        if text == "_":
            return Operand("sink")
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
            return Operand("f32", value=int(text[2:], 16))
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
            return Operand("f64", value=int(text[2:], 16))
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            return Operand("integer", value=_integer(text))
        if text.startswith("%"):
            return Operand("special", text)
        if re.fullmatch(r"[\w$]+", text):
            return Operand("symbol", text)
        raise ValueError(f"kernel {self.kernel.name}: not an operand: {text!r}")

    def _address(self, text: str) -> Operand:
        base, _, offset = text.partition("+")
        inner = self._operand(base)
        if inner.kind == "integer":
            return Operand("address", value=inner.value)
        return Operand("address", value=_integer(offset.strip()) if offset else 0, parts=(inner,))

    def _resolve(self) -> None:
        """Give each label a unique name, and each branch the name of its target in scope."""
        for path, scope in self.labels.items():
            for name, index in scope.items():
                self.kernel.labels[f"{name}@{path[-1]}" if len(path) > 1 else name] = index
        for index, path in self.branches:
            ins = self.kernel.instructions[index]
            name = ins.operands[0].name
            while path and name not in self.labels.get(path, {}):
                path = path[:-1]
            if not path:
                raise ValueError(f"kernel {self.kernel.name}: no label for {ins.text!r}")
            unique = f"{name}@{path[-1]}" if len(path) > 1 else name
            self.kernel.instructions[index] = Instruction(
                ins.opcode, (Operand("symbol", unique),), ins.guard, ins.line, ins.text
            )


def _integer(text: str) -> int:
    text = text.rstrip("U")
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
    return sign * int(digits, 8 if octal else 0)


def _commas(text: str) -> list[str]:
    """Split at commas outside of braces and brackets."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        if letter in "{[":
            depth += 1
        elif letter in "}]":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    last = text[start:]
    return [*parts, last] if last.strip() else parts
