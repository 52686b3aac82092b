"""Conversions and 16-bit arithmetic, against NumPy, ml_dtypes and exact fractions."""

from collections.abc import Iterator
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from run_kernel import apply

KINDS = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """NaN and overflow are meant."""
    with np.errstate(all="ignore"):
        yield


def every(kind: str) -> np.ndarray:
    """All 65,536 values of a 16-bit kind, as bits; 1,024 threads a launch are enough."""
    return np.arange(1 << 16, dtype=np.uint16)


def floats(n: int = 1024, seed: int = 1) -> np.ndarray:
    """float32 of every exponent; near the ties of the 16-bit kinds too."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 1 << 32, n, dtype=np.uint64).astype(np.uint32)
    x[: n // 4] = rng.integers(0x33000000, 0x47800000, n // 4)  # what float16 can hold
    x[: n // 8] &= 0xFFFFF000  # ties of float16
    x[n // 8 : n // 4] += 1
    x[n // 4 : n // 2] = x[n // 4 : n // 2] & 0xFFFF0000 | 0x8000  # ties of bfloat16
    x[n // 2 - 4 : n // 2] = [0, 0x80000000, 0x7F800000, 0xFF800000]
    return x.view(np.float32)


def bits(x: np.ndarray) -> np.ndarray:
    """Return its bits; every NaN becomes the canonical one of PTX."""
    out = x.view(np.uint16).copy()
    out[np.isnan(x.astype(np.float32))] = 0x7FFF
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_narrowing(kind: str) -> None:
    x = floats()
    wanted = bits(x.astype(KINDS[kind]))
    assert (apply(f"cvt.rn.{kind}.f32 d, a;", "uint16", x) == wanted).all()


@pytest.mark.parametrize("kind", KINDS)
def test_narrowing_two(kind: str) -> None:
    x, y = floats(), floats(seed=2)
    high, low = bits(x.astype(KINDS[kind])), bits(y.astype(KINDS[kind]))
    got = apply(f"cvt.rn.{kind}x2.f32 d, a, b;", "uint32", x, y)
    assert (got >> 16 == high).all()
    assert (got & 0xFFFF == low).all()


@pytest.mark.parametrize("kind", KINDS)
def test_widening_is_exact(kind: str) -> None:
    x = every(kind)
    wide = x.view(KINDS[kind]).astype(np.float32)
    got = apply(f"cvt.f32.{kind} d, a;", "float32", x)
    assert ((got == wide) & (np.signbit(got) == np.signbit(wide)) | np.isnan(wide)).all()
    assert np.isnan(got[np.isnan(wide)]).all()


def numbers(kind: str, seed: int) -> np.ndarray:
    """Random bits of a 16-bit kind, near 1 in half of the cases so that sums do not vanish."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 1 << 16, 1024).astype(np.uint16)
    one = 0x3C00 if kind == "f16" else 0x3F80
    x[::2] = one + rng.integers(-2000 if kind == "f16" else -400, 400, 512)
    return x


def round_exact(value: Fraction, kind: str) -> float:
    """Round a fraction to a 16-bit kind, to even, by looking at its neighbours."""
    size = abs(value)
    digits, smallest, largest = (
        (11, -24, 65504) if kind == "f16" else (8, -133, 3.3895313892515355e38)
    )
    if size == 0:
        return 0.0
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - digits + 1, smallest)
    whole, rest = divmod(size / unit, 1)
    whole += rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2)
    rounded = whole * unit
    rounded = float(rounded) if rounded <= Fraction(largest) else np.inf
    return rounded if value > 0 else -rounded


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma.rn"])
@pytest.mark.parametrize("two", [False, True])
def test_16_bit_arithmetic_is_rounded_once(kind: str, name: str, two: bool) -> None:
    a, b, c = (numbers(kind, seed) for seed in (1, 2, 3))
    operands = [a, b, c] if name == "fma.rn" else [a, b]
    text = f"{name}.{kind}{'x2' if two else ''} d, {', '.join('abc'[: len(operands)])};"
    if two:
        pairs = [o.view(np.uint32) for o in operands]
        got = apply(text, "uint32", *pairs).view(np.uint16)
    else:
        got = apply(text, "uint16", *operands)
    wide = [o.view(KINDS[kind]).astype(np.float64).tolist() for o in operands]
    results = got.view(KINDS[kind]).astype(np.float64)
    for z, *values in zip(results, *wide, strict=True):
        if not np.isfinite(values).all():
            continue
        x, y, *rest = map(Fraction, values)
        exact = {"add": x + y, "sub": x - y}.get(name, x * y + sum(rest))
        assert z == round_exact(exact, kind), (values, z)


@pytest.mark.parametrize("kind", KINDS)
def test_16_bit_signs_and_comparisons(kind: str) -> None:
    a, b = numbers(kind, 4), numbers(kind, 5)
    assert (apply(f"neg.{kind} d, a;", "uint16", a) == a ^ 0x8000).all()
    assert (apply(f"abs.{kind} d, a;", "uint16", a) == a & 0x7FFF).all()
    x, y = (o.view(KINDS[kind]).astype(np.float32) for o in (a, b))
    assert (apply(f"setp.lt.{kind} d, a, b;", "bool", a, b) == (x < y)).all()
    assert (apply(f"setp.gtu.{kind} d, a, b;", "bool", a, b) == ~(x <= y)).all()
    got = apply(f"max.{kind} d, a, b;", "uint16", a, b).view(KINDS[kind]).astype(np.float32)
    wanted = np.fmax(x, y)
    assert ((got == wanted) | np.isnan(wanted) & np.isnan(got)).all()


EDGES = np.array(
    [0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 127.5, -128.5, 32767.5, 2.0**31, -(2.0**31), 2.0**32,
     2.0**63, -(2.0**63), 2.0**64, np.inf, -np.inf, np.nan, 1e-45, 3e38, 16777217.0], np.float32
)  # fmt: skip
MODES = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_floats_to_integers_are_clamped(mode: str, dtype: str) -> None:
    rng = np.random.default_rng(6)
    x = np.concatenate([EDGES, (rng.standard_normal(106) * 1000).astype(np.float32)])
    type_ = dtype.replace("uint", "u").replace("int", "s")
    got = apply(f"cvt.{mode}.{type_}.f32 d, a;", dtype, x)
    bounds = np.iinfo(dtype)
    for value, z in zip(x.tolist(), got.tolist(), strict=True):
        if np.isnan(value):  # as the manual says at cvt
            top = 1 << 63 if bounds.min == 0 else bounds.min
            assert z == (top if bounds.bits == 64 else 0)
        elif np.isinf(value):
            assert z == (bounds.max if value > 0 else bounds.min)
        else:
            whole = int(MODES[mode](np.float64(value)))
            assert z == min(max(whole, bounds.min), bounds.max)


@pytest.mark.parametrize("mode", MODES)
def test_floats_to_whole_floats(mode: str) -> None:
    x = np.concatenate(
        [EDGES, (np.random.default_rng(7).standard_normal(106) * 100).astype(np.float32)]
    )
    got = apply(f"cvt.{mode}.f32.f32 d, a;", "float32", x)
    wanted = MODES[mode](x)
    assert ((got == wanted) & (np.signbit(got) == np.signbit(wanted)) | np.isnan(x)).all()


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64", "int16", "uint16"])
def test_integers_to_floats(dtype: str) -> None:
    rng = np.random.default_rng(8)
    bounds = np.iinfo(dtype)
    x = rng.integers(bounds.min, bounds.max, 512, dtype=dtype, endpoint=True)
    x[:256] >>= rng.integers(0, bounds.bits - 1, 256).astype(dtype)
    type_ = dtype.replace("uint", "u").replace("int", "s")
    got = apply(f"cvt.rn.f32.{type_} d, a;", "float32", x)
    for value, z in zip(x.tolist(), got.tolist(), strict=True):
        # Of the neighbours none is nearer, and at a tie the last digit is even.
        error = abs(Fraction(z) - value)
        for other in (np.nextafter(np.float32(z), np.float32(s)) for s in (-np.inf, np.inf)):
            further = abs(Fraction(float(other)) - value)
            assert error < further or (error == further and np.float32(z).view(np.uint32) % 2 == 0)
    if bounds.bits <= 32:
        got = apply(f"cvt.rn.f16.{type_} d, a;", "uint16", x).view(np.float16)
        wanted = [round_exact(Fraction(v), "f16") for v in x.tolist()]
        assert (got == np.array(wanted)).all()


@pytest.mark.parametrize("of", ["int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("to", ["int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_integers_to_integers(of: str, to: str) -> None:
    rng = np.random.default_rng(9)
    bounds = np.iinfo(of)
    x = rng.integers(bounds.min, bounds.max, 256, dtype=of, endpoint=True)
    types = [t.replace("uint", "u").replace("int", "s") for t in (to, of)]
    got = apply(f"cvt.{types[0]}.{types[1]} d, a;", to, x)
    wide, limit = np.iinfo(to), 1 << np.iinfo(to).bits
    wanted = [
        v % limit - (limit if wide.min < 0 and v % limit > wide.max else 0) for v in x.tolist()
    ]
    assert got.tolist() == wanted
    if to != of:
        got = apply(f"cvt.sat.{types[0]}.{types[1]} d, a;", to, x)
        assert got.tolist() == [min(max(v, wide.min), wide.max) for v in x.tolist()]


def test_bytes_in_wider_registers() -> None:
    x = np.arange(-256, 256, dtype=np.int32)
    assert (apply("cvt.s32.s8 d, a;", "int32", x) == x.astype(np.int8)).all()
    assert (apply("cvt.u32.u8 d, a;", "int32", x) == x.astype(np.uint8)).all()
    assert (apply("cvt.s8.s32 d, a;", "int32", x) == x.astype(np.int8)).all()
    assert (apply("cvt.sat.u8.s32 d, a;", "int32", x) == np.clip(x, 0, 255)).all()


def test_single_and_double_precision() -> None:
    x = floats()
    wide = apply("cvt.f64.f32 d, a;", "float64", x)
    assert ((wide == x) | np.isnan(x)).all()
    y = np.random.default_rng(10).standard_normal(256)
    assert (apply("cvt.rn.f32.f64 d, a;", "float32", y) == y.astype(np.float32)).all()
    small = y * 2.0**-127
    flushed = np.where(abs(small.astype(np.float32)) < 2.0**-126, 0, small).astype(np.float32)
    assert (apply("cvt.rn.ftz.f32.f64 d, a;", "float32", small) == flushed).all()
