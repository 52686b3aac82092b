"""Read ptxas's output for the kernels: registers, shared memory, spills, instructions, loops."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cuda_emulator.compiler import Program

ENTRY = re.compile(
    r"Compiling entry function '(\w+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers([^\n]*)",
    re.DOTALL,
)
SECTION = re.compile(r"^\.text\.(\w+):$")
LABEL = re.compile(r"^(\.L_x_\d+):$")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)(.*?);")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")
LINE = re.compile(r'^\s*//## File "[^"]*\b(mistral|tensor_cores)\.cu", line (\d+)')


@dataclass(frozen=True)
class Resources:
    """The resources of a kernel, from ptxas's log."""

    registers: int  # of a thread
    shared: int  # bytes of a block
    stack: int  # bytes of a thread
    spills: int  # bytes that are stored, and loaded


@dataclass(frozen=True)
class Loop:
    """A loop's instructions, without those of inner loops."""

    file: str  # of the backward branch: mistral.cu or tensor_cores.cu
    line: int
    opcodes: tuple[str, ...]
    innermost: bool

    def count(self, name: str) -> int:
        return sum(opcode.startswith(name) for opcode in self.opcodes)


@dataclass(frozen=True)
class Code:
    """A kernel's instructions in order, and its loops in the order in which they begin."""

    opcodes: tuple[str, ...]
    loops: tuple[Loop, ...]


def resources(program: Program) -> dict[str, Resources]:
    """Read the resources of each kernel from ptxas's log."""
    found = {}
    for name, stack, stores, loads, registers, rest in ENTRY.findall(program.log):
        shared = re.search(r"(\d+) bytes smem", rest)
        found[name] = Resources(
            int(registers), int(shared[1]) if shared else 0, int(stack), int(stores) + int(loads)
        )
    return found


@cache
def nvdisasm() -> Path:
    """Find the disassembler of the wheel nvidia-cuda-nvdisasm."""
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for found in Path(folder).glob("*/bin/nvdisasm*"):
            return found
    raise FileNotFoundError("nvdisasm is missing; install it: pip install nvidia-cuda-nvdisasm")


def disassemble(cubin: bytes) -> dict[str, Code]:
    """Return the code of each kernel."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cubin"
        file.write_bytes(cubin)
        # -gi: the line of each instruction, that of an inlined function before its caller's.
        command = [nvdisasm(), "-gi", "-c", file]
        text = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    kernels: dict[str, list[str]] = {}
    lines: list[str] = []
    for text_line in text.splitlines():
        if section := SECTION.match(text_line):
            lines = kernels.setdefault(section[1], [])
        lines.append(text_line)
    return {name: _code(lines) for name, lines in kernels.items()}


def _code(lines: list[str]) -> Code:
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    # Of a loop: first and last instruction, file and line
    spans: list[tuple[int, int, tuple[str, int]]] = []
    line, fresh = ("", 0), True
    for text in lines:
        if label := LABEL.match(text):
            labels[label[1]] = len(opcodes)
        elif (place := LINE.match(text)) and fresh:
            line, fresh = (f"{place[1]}.cu", int(place[2])), False
        elif instruction := INSTRUCTION.match(text):
            fresh = True
            target = TARGET.search(instruction[2])
            if instruction[1].startswith("BRA") and target and target[1] in labels:
                spans.append((labels[target[1]], len(opcodes), line))
            opcodes.append(instruction[1])
    return Code(tuple(opcodes), tuple(_loops(opcodes, spans)))


def _loops(opcodes: list[str], spans: list[tuple[int, int, tuple[str, int]]]) -> list[Loop]:
    """Make a loop of each backward branch, except those that only wait, for lanes or at the end."""
    busy = [(a, b, line) for a, b, line in spans if b - a > 7 or "YIELD" not in opcodes[a : b + 1]]
    loops = []
    for start, stop, line in sorted(busy):
        inner = [(a, b) for a, b, _ in busy if start <= a and b <= stop and (a, b) != (start, stop)]
        own = [opcodes[n] for n in range(start, stop + 1) if not any(a <= n <= b for a, b in inner)]
        if len(own) > 1:
            loops.append(Loop(*line, tuple(own), not inner))
    return loops
