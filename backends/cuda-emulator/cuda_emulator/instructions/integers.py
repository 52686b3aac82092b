"""Integer instructions that NumPy has no operator for, on arrays over lanes.

Registers hold signed integers; unsigned instructions view them as unsigned. NumPy's shifts by the
width or more give 0 (or the sign), which is what PTX asks for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Values = Any  # an array over lanes, or a NumPy scalar


def shift_left(a: Values, amount: Values) -> Values:
    """Return a << amount (uint32); 0 from the width on."""
    unsigned = a.view(f"u{a.dtype.itemsize}")
    amount = np.minimum(amount, np.uint32(8 * a.dtype.itemsize))
    return (unsigned << amount.astype(unsigned.dtype)).view(a.dtype)


def shift_right(a: Values, amount: Values) -> Values:
    """Return a >> amount (uint32), signed as a's dtype is; only the sign from the width on."""
    width = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(amount, np.uint32(width - 1)).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(amount >= width, a.dtype.type(0), shifted)


def high_product(a: Values, b: Values) -> Values:
    """Return the upper half of the whole product, in the same dtype (`mul.hi`)."""
    width = 8 * a.dtype.itemsize
    if width < 64:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return (a.astype(wide) * b.astype(wide) >> wide(width)).astype(a.dtype)
    kind, low = a.dtype, np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    x, y = a.view(np.uint64), b.view(np.uint64)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = (x0 * y0 >> half) + (x1 * y0 & low) + x0 * y1
    high = x1 * y1 + (x1 * y0 >> half) + (middle >> half)
    if kind.kind == "i":
        zero = np.uint64(0)
        high = high - np.where(a < 0, y, zero) - np.where(b < 0, x, zero)
    return high.view(kind)


def divide(a: Values, b: Values) -> Values:
    """Divide towards zero; all bits are set where b is 0, which the manual leaves open."""
    none = b == 0
    safe = np.where(none, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        return np.where(none, ~b.dtype.type(0), a // safe)
    quotient = a // safe
    quotient = quotient + ((a - quotient * safe != 0) & ((a < 0) != (safe < 0)))
    return np.where(none, b.dtype.type(-1), quotient.astype(a.dtype))


def remainder(a: Values, b: Values) -> Values:
    """Return the remainder of `divide`; a where b is 0, which the manual leaves open."""
    return np.where(b == 0, a, a - b * divide(a, b)).astype(a.dtype)


def population(a: Values) -> Values:
    """Count the bits that are set, as int32 (`popc`)."""
    x = a.astype(np.uint64) if a.dtype.itemsize == 8 else a.view(np.uint32).astype(np.uint64)
    x = x - (x >> np.uint64(1) & np.uint64(0x5555555555555555))
    two = np.uint64(0x3333333333333333)
    x = (x & two) + (x >> np.uint64(2) & two)
    x = x + (x >> np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101) >> np.uint64(56)).astype(np.int32)


def bit_length(a: Values) -> Values:
    """The position of the highest set bit, plus one; 0 for 0, as int32. a is unsigned."""
    if a.dtype.itemsize == 8:
        high = bit_length((a >> np.uint64(32)).astype(np.uint32))
        return np.where(high > 0, high + 32, bit_length(a.astype(np.uint32))).astype(np.int32)
    return np.frexp(a.astype(np.float64))[1].astype(np.int32)


def leading_zeros(a: Values) -> Values:
    """Count the zeros before the highest set bit, as int32 (`clz`)."""
    unsigned = a.view(f"u{a.dtype.itemsize}")
    return (np.int32(8 * a.dtype.itemsize) - bit_length(unsigned)).astype(np.int32)


def find_highest(a: Values) -> Values:
    """The highest bit that differs from the sign, -1 where none does, as int32 (`bfind`)."""
    if a.dtype.kind == "i":
        a = np.where(a < 0, ~a, a).view(f"u{a.dtype.itemsize}")
    return (bit_length(a) - np.int32(1)).astype(np.int32)


def reverse(a: Values) -> Values:
    """The bits in reverse order (`brev`)."""
    x = a.view(f"u{a.dtype.itemsize}")
    kind = x.dtype.type
    width = 8 * x.dtype.itemsize
    ones = (1 << width) - 1
    step = width // 2
    mask = ones
    while step:
        mask ^= mask << step & ones
        x = (x >> kind(step) & kind(mask)) | (x & kind(mask)) << kind(step)
        step //= 2
    return x.view(a.dtype)


def extract(a: Values, start: Values, length: Values) -> Values:
    """Extract `length` bits from `start` on (`bfe`), sign-extended where a is signed."""
    width = 8 * a.dtype.itemsize
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    start = (start & np.int32(255)).astype(np.int64)
    length = (length & np.int32(255)).astype(np.int64)
    sign_at = np.minimum(start + length - 1, width - 1)
    shifted = shift_right(a.view(unsigned), np.minimum(start, width).astype(np.uint32))
    mask = _ones(np.minimum(length, width), unsigned)
    field = shifted & mask
    if a.dtype.kind == "i":
        sign = a.view(unsigned) >> np.maximum(sign_at, 0).astype(unsigned) & unsigned.type(1)
        # Beyond the top bit the field is filled with the sign too.
        kept = _ones(np.clip(np.minimum(length, width - start), 0, width), unsigned)
        field = np.where((sign != 0) & (length > 0), field | ~kept, field & kept)
    return field.astype(unsigned).view(a.dtype)


def insert(a: Values, b: Values, start: Values, length: Values) -> Values:
    """Replace `length` bits of b from `start` on by the lowest bits of a (`bfi`)."""
    width = 8 * a.dtype.itemsize
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    start = (start & np.int32(255)).astype(np.uint32)
    length = np.minimum((length & np.int32(255)).astype(np.int64), width)
    mask = shift_left(_ones(length, unsigned), start)
    return ((b.view(unsigned) & ~mask) | (shift_left(a.view(unsigned), start) & mask)).view(a.dtype)


def _ones(count: Values, dtype: np.dtype) -> Values:
    """The lowest `count` bits set, count from 0 to the width."""
    full = dtype.type((1 << 8 * dtype.itemsize) - 1)
    width = 8 * dtype.itemsize
    return np.where(
        count == 0, dtype.type(0), full >> np.minimum(width - count, width - 1).astype(dtype)
    )


def permute(a: Values, b: Values, selector: Values) -> Values:
    """Pick four bytes of b:a by the selector's nibbles; its top bit repeats the sign (`prmt`)."""
    both = a.view(np.uint32).astype(np.uint64) | b.view(np.uint32).astype(np.uint64) << np.uint64(
        32
    )
    out: Values = np.uint64(0)
    for i in range(4):
        nibble = selector.view(np.uint32).astype(np.uint64) >> np.uint64(4 * i) & np.uint64(15)
        byte = both >> ((nibble & np.uint64(7)) << np.uint64(3)) & np.uint64(255)
        sign = np.where(byte & np.uint64(128) != 0, np.uint64(255), np.uint64(0))
        byte = np.where(nibble & np.uint64(8) != 0, sign, byte)
        out = out | byte << np.uint64(8 * i)
    return out.astype(np.uint32).view(np.int32)


def funnel(low: Values, high: Values, amount: Values, left: bool, wrap: bool) -> Values:
    """Shift the 64 bits high:low and take the upper (left) or lower half (`shf`)."""
    both = low.view(np.uint32).astype(np.uint64)
    both = both | high.view(np.uint32).astype(np.uint64) << np.uint64(32)
    amount = amount.view(np.uint32).astype(np.uint64)
    amount = amount & np.uint64(31) if wrap else np.minimum(amount, np.uint64(32))
    shifted = both << amount >> np.uint64(32) if left else both >> amount
    return shifted.astype(np.uint32).view(np.int32)


def lookup(a: Values, b: Values, c: Values, table: int) -> Values:
    """Apply a bitwise function of three values, given by its truth table (`lop3`)."""
    out = a & ~a
    for row in range(8):
        if table >> row & 1:
            x, y, z = (v if row >> i & 1 else ~v for v, i in ((a, 2), (b, 1), (c, 0)))
            out = out | x & y & z
    return out


def sized(a: Values, dtype: np.dtype, saturated: bool) -> Values:
    """Convert to another integer type, cut to its width or clamped to its range (`cvt`)."""
    if saturated:
        bounds, own = np.iinfo(dtype), np.iinfo(a.dtype)
        a = np.maximum(a, a.dtype.type(max(bounds.min, own.min)))
        a = np.minimum(a, a.dtype.type(min(bounds.max, own.max)))
    return a.astype(dtype)
