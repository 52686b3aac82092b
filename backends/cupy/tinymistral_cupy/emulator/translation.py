"""What is made of a kernel once, at its first launch: functions, addresses, tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinymistral_cupy.emulator import asynchronous, floating, halves, integers, tensor, warps
from tinymistral_cupy.emulator.emit_arithmetic import ARITHMETIC
from tinymistral_cupy.emulator.emit_conversions import CONVERSIONS
from tinymistral_cupy.emulator.emit_memory import DATA
from tinymistral_cupy.emulator.emit_tensor import TENSOR
from tinymistral_cupy.emulator.flow import Segment
from tinymistral_cupy.emulator.memory import REGION_BITS, STATIC
from tinymistral_cupy.emulator.ptx import TYPE_BYTES, Kernel, Operand, Variable
from tinymistral_cupy.emulator.writer import KernelInfo, stored_as

VARIABLE_BITS = 28  # variables in constant and global memory lie so far apart

EMIT = {**ARITHMETIC, **CONVERSIONS, **DATA, **TENSOR}

FUNCTIONS: dict[str, Any] = {
    **{name: getattr(floating, name) for name in (
        "flush saturate fma fma_subnormal fma_directed product_directed fma_f64 minimum maximum "
        "divide_approx exp2 log2 rsqrt sine cosine tanh to_bf16 odd_to_bf16 from_bf16 to_f16 "
        "from_f16 to_integer"
    ).split()},
    **{name: getattr(integers, name) for name in (
        "shift_left shift_right high_product divide remainder population leading_zeros "
        "find_highest reverse extract insert permute funnel lookup sized"
    ).split()},
    **{name: getattr(warps, name) for name in (
        "meet shuffle vote match reduce_warp active_lanes reduce_block chosen"
    ).split()},
    **floating.ROUNDINGS,
    "multiply": tensor.multiply,
    "load_matrices": tensor.load_matrices,
    "start": asynchronous.start,
    "commit": asynchronous.commit,
    "wait": asynchronous.wait,
    "half": halves.compute,
    "pack": halves.pack,
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


class Translation(KernelInfo):
    """A kernel as functions; each is compiled when it is first needed."""

    def __init__(self, kernel: Kernel):
        super().__init__(kernel, EMIT, FUNCTIONS)
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

    def _place_variables(self, kernel: Kernel) -> None:
        """Give addresses: in shared and local memory from 0 on, what a launch sizes at the end."""
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
        """The width of the narrowest access to a memory, as a power of two."""
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

    def whole_function(self, number: int) -> Any:
        """The function of a chain of segments, for when all threads are here."""
        if self.whole[number] is None:
            self.whole[number] = self.compile(number, some=False)
        return self.whole[number]

    def some_function(self, number: int) -> Any:
        """The function of a segment, for when only some lanes are here."""
        if self.some[number] is None:
            self.some[number] = self.compile(number, some=True)
        return self.some[number]

    def members(self, segment: Segment, R: list[Any]) -> Any:
        """The lanes that meet at the start of a segment, as the registers say."""
        operand = segment.members
        assert operand is not None
        operand = self.known.get(operand.name, operand)
        if operand.kind == "integer":
            return np.array(operand.value % (1 << 32), dtype=np.uint32).view(np.int32)
        return R[self.index[operand.name]]


def _aligned(offset: int, align: int) -> int:
    return -(-offset // align) * align


def _symbols(operands: tuple[Operand, ...]) -> list[str]:
    names = []
    for operand in operands:
        if operand.kind == "symbol":
            names.append(operand.name)
        names.extend(_symbols(operand.parts))
    return names
