"""Floating point as PTX defines it: rounded once, subnormals flushed where asked.

Each function works on arrays over lanes, or on NumPy scalars, values that all lanes share.
float32 fused multiply-adds are summed in float64, exact but for the sum's own rounding; where that
rounding could change the second one, to float32, the sum is first rounded to odd (Boldo and
Melquiond 2008, https://doi.org/10.1109/TC.2007.70819).

The approximate instructions (`ex2.approx`, `rcp.approx`, `div.full`, `sin.approx`, ...) give the
float64 result rounded, and `div.approx` 0 where the PTX ISA manual says so. Hardware may differ, up
to the error bound that the manual states for each of them; a test on a GPU has to allow for that.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

Values = Any  # an array over lanes, or a NumPy scalar

_MASK29 = np.array((1 << 29) - 1, dtype=np.int64)
_TIE = np.array(1 << 28, dtype=np.int64)
_TINY = np.array(2.0**-126, dtype=np.float32)
_LARGEST_DIVISOR = np.array(2.0**126, dtype=np.float32)
_INFINITY = np.array(np.inf, dtype=np.float32)
_ZERO = np.array(0, dtype=np.float32)
_ONE64 = np.array(1, dtype=np.float64)


def flush(x: Values) -> Values:
    """Turn float32 subnormals to zeros of the same sign (`.ftz`)."""
    small = abs(x) < _TINY
    return x * ~small if 1 in small.tobytes() else x


def saturate(x: Values) -> Values:
    """Clamp to [0, 1]; NaN and -0 become +0 (`.sat`)."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    return np.where(x > zero, np.minimum(x, one), zero)


def fma(a: Values, b: Values, c: Values) -> Values:
    """Return a · b + c in float32, rounded once to nearest even."""
    product = a.astype(np.float64) * b.astype(np.float64)
    c = c.astype(np.float64)
    total = product + c
    tie = total.view(np.int64) & _MASK29 == _TIE
    if 1 in tie.tobytes():
        total = _untie(total, product, c, tie)
    return total.astype(np.float32)


def fma_subnormal(a: Values, b: Values, c: Values) -> Values:
    """Return a · b + c as `fma` does, where the result may be subnormal: ties then lie anywhere."""
    product = a.astype(np.float64) * b.astype(np.float64)
    c = c.astype(np.float64)
    return _to_odd(product + c, product, c).astype(np.float32)


def fma_odd(a: Values, b: Values, c: Values) -> Values:
    """Return a · b + c of float32 values, as float64 rounded to odd."""
    product = a.astype(np.float64) * b.astype(np.float64)
    c = c.astype(np.float64)
    return _to_odd(product + c, product, c)


def fma_directed(a: Values, b: Values, c: Values, mode: str) -> Values:
    """Return a · b + c in float32, rounded down (rm), up (rp) or towards zero (rz)."""
    product = a.astype(np.float64) * b.astype(np.float64)
    c = c.astype(np.float64)
    total = product + c
    if mode == "rm":  # a sum that cancels is then -0
        negative = (total == 0) & (np.signbit(product) | np.signbit(c))
        total = np.where(negative, -0.0, total)
    return _directed(total, _error(total, product, c), mode)


def product_directed(a: Values, b: Values, mode: str) -> Values:
    """Return a · b in float32, rounded down (rm), up (rp) or towards zero (rz)."""
    return _directed(a.astype(np.float64) * b.astype(np.float64), np.float64(0), mode)


def _directed(total: Values, error: Values, mode: str) -> Values:
    """Round total + error, which is much smaller, to float32 in a direction."""
    rounded = total.astype(np.float32)
    rest = total - rounded.astype(np.float64)  # exact
    rest = np.where(rest == 0, error, rest)
    infinity = np.float32(np.inf)
    if mode == "rm":
        return np.where(rest < 0, np.nextafter(rounded, -infinity), rounded)
    if mode == "rp":
        return np.where(rest > 0, np.nextafter(rounded, infinity), rounded)
    beyond = np.where(rounded > 0, rest < 0, rest > 0)
    return np.where(beyond, np.nextafter(rounded, np.float32(0)), rounded)


def _untie(total: Values, a: Values, b: Values, tie: Values) -> Values:
    """Round a + b to odd in the lanes where `total`, its float64 value, is a tie of float32."""
    if not total.ndim:
        return _to_odd(total, a, b)
    lanes = np.flatnonzero(tie)
    a, b = (part[lanes] if part.ndim else part for part in (a, b))
    total[lanes] = _to_odd(total[lanes], a, b)
    return total


def _error(total: Values, a: Values, b: Values) -> Values:
    """Return the error of total = a + b, exactly (Knuth's two-sum); 0 where not finite."""
    part = total - a
    error = (a - (total - part)) + (b - part)
    return np.where(np.isfinite(error), error, 0.0)


def _to_odd(total: Values, a: Values, b: Values) -> Values:
    """Round a + b to odd; total is a + b rounded to nearest."""
    error = _error(total, a, b)
    if not np.count_nonzero(error):
        return total
    bits = total.view(np.int64)
    step = np.where((error > 0) == (total > 0), np.int64(1), np.int64(-1))
    step = np.where((error != 0) & (bits & 1 == 0), step, np.int64(0))
    return (bits + step).view(np.float64)


def fma_f64(a: Values, b: Values, c: Values) -> Values:
    """Return a · b + c in float64, rounded once, by exact fractions: slow, and rarely used."""
    a, b, c = np.broadcast_arrays(a, b, c)
    out = np.array(a * b + c)
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    for i in np.ndindex(out.shape):
        if finite[i]:
            exact = Fraction(a[i]) * Fraction(b[i]) + Fraction(c[i])
            if exact:  # the sign of zero is as computed
                out[i] = _nearest(exact)
    return out


def _nearest(exact: Fraction) -> float:
    try:
        return float(exact)  # Python divides integers with one rounding
    except OverflowError:
        return np.inf if exact > 0 else -np.inf


def minimum(a: Values, b: Values) -> Values:
    """Return the smaller, or the other one where one is NaN; -0 is smaller than +0."""
    out = np.fmin(a, b)
    if 1 in (out == 0).tobytes():
        return np.where(np.signbit(a) & (a == b), a, np.where(a == b, b, out))
    return out


def maximum(a: Values, b: Values) -> Values:
    """Return the larger, or the other one where one is NaN; +0 is larger than -0."""
    out = np.fmax(a, b)
    if 1 in (out == 0).tobytes():
        return np.where(np.signbit(a) & (a == b), b, np.where(a == b, a, out))
    return out


def divide_approx(a: Values, b: Values) -> Values:
    """The quotient in float32, as `div.approx`: a · (1/b), where 1/b is 0 if |b| is over 2^126."""
    size = abs(b)
    huge = (size > _LARGEST_DIVISOR) & (size < _INFINITY)
    out = a / b
    return np.where(huge, a * np.copysign(_ZERO, b), out) if 1 in huge.tobytes() else out


def exp2(x: Values) -> Values:
    """2^x in float32, as `ex2.approx`."""
    return np.exp2(x.astype(np.float64)).astype(np.float32)


def log2(x: Values) -> Values:
    """The base-2 logarithm in float32, as `lg2.approx`."""
    return np.log2(x.astype(np.float64)).astype(np.float32)


def rsqrt(x: Values) -> Values:
    """1 / sqrt(x) in float32, as `rsqrt.approx`."""
    return (_ONE64 / np.sqrt(x.astype(np.float64))).astype(np.float32)


def sine(x: Values) -> Values:
    """The sine in float32, as `sin.approx`."""
    return np.sin(x.astype(np.float64)).astype(np.float32)


def cosine(x: Values) -> Values:
    """The cosine in float32, as `cos.approx`."""
    return np.cos(x.astype(np.float64)).astype(np.float32)


def tanh(x: Values) -> Values:
    """The hyperbolic tangent in float32, as `tanh.approx`."""
    return np.tanh(x.astype(np.float64)).astype(np.float32)


def to_bf16(x: Values) -> Values:
    """Round float32 to bfloat16, returned as its bits (int16); NaN becomes 0x7FFF."""
    bits = x.view(np.uint32)
    rounded = (bits + (bits >> 16 & 1) + np.uint32(0x7FFF)) >> 16
    nan = x != x
    if 1 in nan.tobytes():
        rounded = np.where(nan, np.uint32(0x7FFF), rounded)
    return rounded.astype(np.uint16).view(np.int16)


def odd_to_bf16(x: Values) -> Values:
    """Round float64 (exact, or rounded to odd) to bfloat16 bits, via float32 rounded to odd."""
    wide = np.asarray(x)
    nearest = wide.astype(np.float32)
    rest = wide - nearest.astype(np.float64)
    bits = nearest.view(np.int32)
    step = np.where((rest > 0) == (wide > 0), np.int32(1), np.int32(-1))
    inexact = np.isfinite(rest) & (rest != 0) & (bits & 1 == 0)
    return to_bf16((bits + np.where(inexact, step, np.int32(0))).astype(np.int32).view(np.float32))


def from_bf16(bits: Values) -> Values:
    """Widen bfloat16 bits (int16) to float32."""
    return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def to_f16(x: Values) -> Values:
    """Round float32 or float64 to float16, returned as its bits (int16); NaN becomes 0x7FFF."""
    out = x.astype(np.float16).view(np.int16)
    nan = x != x
    return np.where(nan, np.int16(0x7FFF), out) if 1 in nan.tobytes() else out


def from_f16(bits: Values) -> Values:
    """Widen float16 bits (int16) to float32."""
    return bits.view(np.float16).astype(np.float32)


ROUNDINGS = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def to_integer(x: Values, mode: str, dtype: np.dtype) -> Values:
    """Round to a whole number and clamp to the integer type; NaN as the manual says at `cvt`.

    NaN becomes 0; to or from 64 bits, the smallest integer (signed) or the top bit (unsigned).
    """
    bounds = np.iinfo(dtype)
    whole = ROUNDINGS[mode](x.astype(np.float64))
    low, high = float(bounds.min), float(bounds.max)  # 2^63 - 1 rounds to 2^63
    inside = (whole >= low) & (whole < high)
    out = np.where(inside, whole, 0.0).astype(dtype)
    out = np.where(whole >= high, dtype.type(bounds.max), out)
    out = np.where(whole < low, dtype.type(bounds.min), out)
    if dtype.itemsize == 8 or x.dtype == np.float64:
        top = dtype.type(1 << 8 * dtype.itemsize - 1) if bounds.min == 0 else bounds.min
        out = np.where(x != x, dtype.type(top), out)
    return out


# float16 and bfloat16, alone or two in a register
#
# Registers hold the bits. Sums, products and the like are computed in float32, which has more than
# twice the digits, so that rounding twice equals rounding once (Figueroa 1995,
# https://doi.org/10.1145/221332.221334); fused multiply-adds in float64, rounded to odd first.

WIDEN = {"f16": from_f16, "bf16": from_bf16}
NARROW = {"f16": to_f16, "bf16": to_bf16}
NARROW_ODD = {"f16": to_f16, "bf16": odd_to_bf16}

HALF_OPERATIONS: dict[str, Callable[..., Values]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "min": minimum,
    "max": maximum,
    "min.NaN": np.minimum,
    "max.NaN": np.maximum,
    "ex2": exp2,
    "tanh": tanh,
    "relu": lambda a: np.where(a > 0, a, np.float32(0)),
}


def half(name: str, kind: str, *operands: Values) -> Values:
    """Apply an operation to float16 or bfloat16 bits (int16), or to pairs of them (int32)."""
    if kind.endswith("x2"):
        return _pairs(lambda *parts: half(name, kind[:-2], *parts), *operands)
    if name == "neg":
        return operands[0] ^ np.int16(-0x8000)
    if name == "abs":
        return operands[0] & np.int16(0x7FFF)
    wide = [WIDEN[kind](operand) for operand in operands]
    if name == "fma":
        return NARROW_ODD[kind](fma_odd(*wide))
    return NARROW[kind](HALF_OPERATIONS[name](*wide))


def pack(low: Values, high: Values) -> Values:
    """Pack two 16-bit values into one of 32."""
    low, high = low.view(np.uint16).astype(np.int32), high.view(np.uint16).astype(np.int32)
    return low | high << 16


def _low(pair: Values) -> Values:
    """The lower 16 bits."""
    return pair.astype(np.int16)


def _high(pair: Values) -> Values:
    """The upper 16 bits."""
    return (pair >> 16).astype(np.int16)


def _pairs(function: Callable[..., Values], *operands: Values) -> Values:
    lower = function(*(_low(operand) for operand in operands))
    upper = function(*(_high(operand) for operand in operands))
    return pack(lower, upper)
