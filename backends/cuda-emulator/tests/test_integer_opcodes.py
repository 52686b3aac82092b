"""Integer instructions, one by one, against Python's integers."""

import numpy as np
import pytest
from run_kernel import apply

WIDTHS = (16, 32, 64)


def numbers(dtype: str, seed: int, n: int = 192) -> np.ndarray:
    """Random bits of every length, the smallest and the largest among them."""
    rng = np.random.default_rng(seed)
    bounds = np.iinfo(dtype)
    bits = rng.integers(0, 1 << 63, n, dtype=np.uint64) * np.uint64(2) + rng.integers(
        0, 2, n, dtype=np.uint64
    )
    values = (bits >> rng.integers(0, 64, n, dtype=np.uint64)).astype(dtype)
    ends = np.array([0, 1, bounds.max, bounds.min, bounds.max - 1, bounds.max // 2], dtype=dtype)
    values[rng.permutation(n)[: 4 * len(ends)]] = np.tile(ends, 4)
    return values


def wrap(values: list[int], dtype: str) -> np.ndarray:
    """Python's integers cut to a width."""
    kind = np.dtype(dtype)
    cut = np.array([v % (1 << 8 * kind.itemsize) for v in values], dtype=f"u{kind.itemsize}")
    return cut.view(kind)


def both(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    return numbers(dtype, 1), numbers(dtype, 2)


OPERATORS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "min": min,
    "max": max,
}


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", "us")
@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str, kind: str, bits: int) -> None:
    dtype = f"{'u' if kind == 'u' else ''}int{bits}"
    type_ = f"b{bits}" if name in ("and", "or", "xor") else f"{kind}{bits}"
    a, b = both(dtype)
    got = apply(f"{name}.{type_} d, a, b;", dtype, a, b)
    wanted = [OPERATORS[name](x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert (got == wrap(wanted, dtype)).all()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", "us")
def test_high_products(kind: str, bits: int) -> None:
    dtype = f"{'u' if kind == 'u' else ''}int{bits}"
    a, b = both(dtype)
    got = apply(f"mul.hi.{kind}{bits} d, a, b;", dtype, a, b)
    wanted = [x * y >> bits for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert (got == wrap(wanted, dtype)).all()


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("kind", "us")
def test_wide_products(kind: str, bits: int) -> None:
    sign = "u" if kind == "u" else ""
    a, b = both(f"{sign}int{bits}")
    c = numbers(f"{sign}int{2 * bits}", 3)
    wanted = [x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    got = apply(f"mul.wide.{kind}{bits} d, a, b;", f"{sign}int{2 * bits}", a, b)
    assert (got == wrap(wanted, str(got.dtype))).all()
    got = apply(f"mad.wide.{kind}{bits} d, a, b, c;", f"{sign}int{2 * bits}", a, b, c)
    assert (
        got == wrap([w + z for w, z in zip(wanted, c.tolist(), strict=True)], str(got.dtype))
    ).all()


def test_multiply_and_add() -> None:
    a, b = both("int32")
    c = numbers("int32", 3)
    triples = list(zip(a.tolist(), b.tolist(), c.tolist(), strict=True))
    got = apply("mad.lo.s32 d, a, b, c;", "int32", a, b, c)
    assert (got == wrap([x * y + z for x, y, z in triples], "int32")).all()
    got = apply("mad.hi.s32 d, a, b, c;", "int32", a, b, c)
    assert (got == wrap([(x * y >> 32) + z for x, y, z in triples], "int32")).all()


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64", "int16", "uint16"])
def test_quotients_are_towards_zero(dtype: str) -> None:
    a, b = both(dtype)
    b = np.where(b == 0, np.dtype(dtype).type(7), b)
    type_ = dtype.replace("uint", "u").replace("int", "s")
    quotients = [
        abs(x) // abs(y) * (-1 if (x < 0) != (y < 0) else 1)
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    got = apply(f"div.{type_} d, a, b;", dtype, a, b)
    assert (got == wrap(quotients, dtype)).all()
    got = apply(f"rem.{type_} d, a, b;", dtype, a, b)
    rest = [x - y * q for x, y, q in zip(a.tolist(), b.tolist(), quotients, strict=True)]
    assert (got == wrap(rest, dtype)).all()


@pytest.mark.parametrize("bits", WIDTHS)
def test_shifts_by_the_width_and_more(bits: int) -> None:
    a = numbers(f"int{bits}", 4)
    by = np.resize(
        np.array([0, 1, 5, bits - 1, bits, bits + 1, 64, 255, 1 << 31], np.uint32), len(a)
    )
    got = apply(f"shl.b{bits} d, a, b;", f"int{bits}", a, by)
    shifts = [min(s, 64) for s in by.tolist()]
    assert (
        got == wrap([x << s for x, s in zip(a.tolist(), shifts, strict=True)], f"int{bits}")
    ).all()
    got = apply(f"shr.s{bits} d, a, b;", f"int{bits}", a, by)
    assert (got == [x >> s for x, s in zip(a.tolist(), shifts, strict=True)]).all()
    unsigned = a.view(f"uint{bits}")
    for type_ in (f"u{bits}", f"b{bits}"):
        got = apply(f"shr.{type_} d, a, b;", f"uint{bits}", unsigned, by)
        assert (got == [x >> s for x, s in zip(unsigned.tolist(), shifts, strict=True)]).all()


@pytest.mark.parametrize("by", [0, 1, 7, 31, 32, 40])
def test_shifts_by_constants(by: int) -> None:
    a = numbers("int32", 5)
    assert (
        apply(f"shl.b32 d, a, {by};", "int32", a) == wrap([x << by for x in a.tolist()], "int32")
    ).all()
    assert (apply(f"shr.s32 d, a, {by};", "int32", a) == [x >> by for x in a.tolist()]).all()
    u = a.view(np.uint32)
    assert (apply(f"shr.u32 d, a, {by};", "uint32", u) == [x >> by for x in u.tolist()]).all()


@pytest.mark.parametrize("direction", "lr")
@pytest.mark.parametrize("how", ["wrap", "clamp"])
def test_funnel_shifts(direction: str, how: str) -> None:
    low, high = both("uint32")
    by = np.resize(np.array([0, 1, 13, 31, 32, 33, 47, 255], dtype=np.uint32), len(low))
    got = apply(f"shf.{direction}.{how}.b32 d, a, b, c;", "uint32", low, high, by)
    for x, y, s, z in zip(low.tolist(), high.tolist(), by.tolist(), got.tolist(), strict=True):
        n = s & 31 if how == "wrap" else min(s, 32)
        whole = y << 32 | x
        assert z == ((whole << n) >> 32 if direction == "l" else whole >> n) & 0xFFFFFFFF


@pytest.mark.parametrize("bits", [32, 64])
def test_counting_bits(bits: int) -> None:
    a = numbers(f"uint{bits}", 6)
    assert (apply(f"popc.b{bits} d, a;", "uint32", a) == [x.bit_count() for x in a.tolist()]).all()
    wanted = [bits - x.bit_length() for x in a.tolist()]
    assert (apply(f"clz.b{bits} d, a;", "uint32", a) == wanted).all()
    wanted = [int(f"{x:0{bits}b}"[::-1], 2) for x in a.tolist()]
    assert (apply(f"brev.b{bits} d, a;", f"uint{bits}", a) == np.array(wanted, a.dtype)).all()
    wanted = [x.bit_length() - 1 for x in a.tolist()]
    assert (apply(f"bfind.u{bits} d, a;", "int32", a) == wanted).all()
    signed = a.view(f"int{bits}")
    wanted = [(~x if x < 0 else x).bit_length() - 1 for x in signed.tolist()]
    assert (apply(f"bfind.s{bits} d, a;", "int32", signed) == wanted).all()


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_fields(bits: int) -> None:
    rng = np.random.default_rng(7)
    a, b = numbers(f"uint{bits}", 8), numbers(f"uint{bits}", 9)
    for start, length in [
        (0, 0),
        (0, bits),
        (3, 5),
        (bits - 4, 4),
        (bits - 2, 9),
        (bits, 3),
        (5, 0),
    ] + [tuple(rng.integers(0, bits, 2).tolist()) for _ in range(5)]:
        got = apply(f"bfe.u{bits} d, a, {start}, {length};", f"uint{bits}", a)
        wanted = [x >> start & (1 << length) - 1 for x in a.tolist()]
        assert (got == np.array(wanted, a.dtype)).all()
        got = apply(f"bfe.s{bits} d, a, {start}, {length};", f"int{bits}", a.view(f"int{bits}"))
        for x, z in zip(a.tolist(), got.tolist(), strict=True):  # as the manual defines it
            sign = 0 if length == 0 else x >> min(start + length - 1, bits - 1) & 1
            field = 0
            for i in range(bits):
                field |= (x >> start + i & 1 if i < length and start + i < bits else sign) << i
            assert z % (1 << bits) == field
        got = apply(f"bfi.b{bits} d, a, b, {start}, {length};", f"uint{bits}", a, b)
        for x, y, z in zip(a.tolist(), b.tolist(), got.tolist(), strict=True):
            mask = ((1 << length) - 1) << start & (1 << bits) - 1
            assert z == y & ~mask | x << start & mask


def test_permuting_bytes() -> None:
    a, b = both("uint32")
    c = np.random.default_rng(10).integers(0, 1 << 16, len(a)).astype(np.uint32)
    got = apply("prmt.b32 d, a, b, c;", "uint32", a, b, c)
    for x, y, s, z in zip(a.tolist(), b.tolist(), c.tolist(), got.tolist(), strict=True):
        source = x.to_bytes(4, "little") + y.to_bytes(4, "little")
        wanted = bytearray()
        for i in range(4):
            nibble = s >> 4 * i & 15
            byte = source[nibble & 7]
            wanted.append((255 if byte & 128 else 0) if nibble & 8 else byte)
        assert z == int.from_bytes(wanted, "little")


@pytest.mark.parametrize("table", [0xE8, 0x96, 0x80, 0xFE, 0x1B, 0])
def test_lop3(table: int) -> None:
    a, b = both("uint32")
    c = numbers("uint32", 11)
    got = apply(f"lop3.b32 d, a, b, c, {table};", "uint32", a, b, c)
    for x, y, z, d in zip(a.tolist(), b.tolist(), c.tolist(), got.tolist(), strict=True):
        for i in range(32):
            row = (x >> i & 1) << 2 | (y >> i & 1) << 1 | z >> i & 1
            assert d >> i & 1 == table >> row & 1


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64", "int16"])
def test_comparisons(dtype: str) -> None:
    a, b = both(dtype)
    b = np.where(np.arange(len(a)) % 3 == 0, a, b)
    type_ = dtype.replace("uint", "u").replace("int", "s")
    for how, wanted in {
        "eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b,
    }.items():  # fmt: skip
        assert (apply(f"setp.{how}.{type_} d, a, b;", "bool", a, b) == wanted).all()


def test_comparisons_of_unsigned_by_name() -> None:
    a, b = both("uint32")
    for how, wanted in {"lo": a < b, "ls": a <= b, "hi": a > b, "hs": a >= b}.items():
        assert (apply(f"setp.{how}.u32 d, a, b;", "bool", a, b) == wanted).all()


@pytest.mark.parametrize("name", ["and", "or", "xor"])
def test_comparisons_with_a_predicate(name: str) -> None:
    a, b = both("int32")
    c = np.arange(len(a)) % 2 == 0
    operation = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[name]
    got = apply(f"setp.lt.{name}.s32 d, a, b, c;", "bool", a, b, c)
    assert (got == operation(a < b, c)).all()
    got = apply(f"setp.lt.{name}.s32 d, a, b, !c;", "bool", a, b, c)
    assert (got == operation(a < b, ~c)).all()
    got = apply("{ .reg .pred q; setp.lt.s32 q|d, a, b; }", "bool", a, b)
    assert (got == (a >= b)).all()
    assert (apply(f"{name}.pred d, a, b;", "bool", a > 3, c) == operation(a > 3, c)).all()
    assert (apply("not.pred d, a;", "bool", c) == ~c).all()


def test_selp_and_slct() -> None:
    a, b = both("int32")
    c = np.arange(len(a)) % 3 == 0
    assert (apply("selp.b32 d, a, b, c;", "int32", a, b, c) == np.where(c, a, b)).all()
    sign = numbers("int32", 12)
    got = apply("slct.b32.s32 d, a, b, c;", "int32", a, b, sign)
    assert (got == np.where(sign >= 0, a, b)).all()


def test_an_instruction_under_a_predicate() -> None:
    a, b = both("int32")
    c = np.arange(len(a)) % 3 == 0
    got = apply("mov.b32 d, a; @c mov.b32 d, b; @!c add.s32 d, d, 1;", "int32", a, b, c)
    assert (got == np.where(c, b, wrap([x + 1 for x in a.tolist()], "int32"))).all()


def test_not_and_negation() -> None:
    a = numbers("int32", 13)
    assert (apply("not.b32 d, a;", "int32", a) == ~a).all()
    assert (apply("neg.s32 d, a;", "int32", a) == wrap([-x for x in a.tolist()], "int32")).all()
    assert (apply("abs.s32 d, a;", "int32", a) == wrap([abs(x) for x in a.tolist()], "int32")).all()


def test_constants_of_every_form() -> None:
    a = np.zeros(32, dtype=np.int32)
    for text, value in {
        "-7": -7,
        "0x1F": 31,
        "0xFFFFFFFF": -1,
        "4294967295": -1,
        "12U": 12,
    }.items():
        assert (apply(f"add.s32 d, a, {text};", "int32", a) == value).all()


def test_packing_and_unpacking() -> None:
    a = numbers("uint32", 14)
    got = apply("{ .reg .b16 x, y; mov.b32 {x, y}, a; mov.b32 d, {y, x}; }", "uint32", a)
    assert (got == (a >> 16 | a << 16)).all()
    wide = numbers("uint64", 15)
    got = apply("{ .reg .b32 x, y; mov.b64 {x, y}, a; mov.b64 d, {y, x}; }", "uint64", wide)
    assert (got == (wide >> np.uint64(32) | wide << np.uint64(32))).all()
