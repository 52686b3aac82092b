"""Arithmetic on float16 and bfloat16, alone or two in a register.

Registers hold the bits. Sums, products and the like are computed in float32, which has more than
twice the digits and so rounds as if once (Figueroa 1995, https://doi.org/10.1145/221332.221334);
fused multiply-adds in float64, rounded to odd first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinymistral_cupy.emulator import floating

Values = Any  # an array over lanes, or a NumPy scalar

WIDEN = {"f16": floating.from_f16, "bf16": floating.from_bf16}
NARROW = {"f16": floating.to_f16, "bf16": floating.to_bf16}
NARROW_ODD = {"f16": floating.to_f16, "bf16": floating.odd_to_bf16}

OPERATIONS: dict[str, Callable[..., Values]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "min": floating.minimum,
    "max": floating.maximum,
    "min.NaN": np.minimum,
    "max.NaN": np.maximum,
    "ex2": floating.exp2,
    "tanh": floating.tanh,
    "relu": lambda a: np.where(a > 0, a, np.float32(0)),
}


def compute(name: str, kind: str, *operands: Values) -> Values:
    """One operation on float16 or bfloat16 bits (int16), or on pairs of them (int32)."""
    if kind.endswith("x2"):
        return _pairs(lambda *parts: compute(name, kind[:-2], *parts), *operands)
    if name == "neg":
        return operands[0] ^ np.int16(-0x8000)
    if name == "abs":
        return operands[0] & np.int16(0x7FFF)
    wide = [WIDEN[kind](operand) for operand in operands]
    if name == "fma":
        return NARROW_ODD[kind](floating.fma_odd(*wide))
    return NARROW[kind](OPERATIONS[name](*wide))


def pack(low: Values, high: Values) -> Values:
    """Two 16-bit values to one of 32."""
    low, high = low.view(np.uint16).astype(np.int32), high.view(np.uint16).astype(np.int32)
    return low | high << 16


def low(pair: Values) -> Values:
    """The lower 16 bits."""
    return pair.astype(np.int16)


def high(pair: Values) -> Values:
    """The upper 16 bits."""
    return (pair >> 16).astype(np.int16)


def _pairs(function: Callable[..., Values], *operands: Values) -> Values:
    lower = function(*(low(operand) for operand in operands))
    upper = function(*(high(operand) for operand in operands))
    return pack(lower, upper)
