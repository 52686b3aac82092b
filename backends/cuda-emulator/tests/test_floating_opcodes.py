"""Floating-point instructions, one by one, against exact fractions and NumPy."""

from fractions import Fraction

import numpy as np
import pytest
from run_kernel import apply

TINY = np.float32(2.0**-126)
SPECIAL = np.array(
    [0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, TINY, -TINY, TINY / 2, -TINY / 4, 1e-45, 3.4e38],
    dtype=np.float32,
)


def floats(n: int, seed: int) -> np.ndarray:
    """Random bits: every exponent, every kind of number."""
    bits = np.random.default_rng(seed).integers(0, 1 << 32, n, dtype=np.uint64)
    return bits.astype(np.uint32).view(np.float32)


def pairs() -> tuple[np.ndarray, np.ndarray]:
    """All pairs of special values, and random ones."""
    a, b = (x.ravel() for x in np.meshgrid(SPECIAL, SPECIAL))
    more = floats(343, 1), floats(343, 2)
    return np.concatenate([a, more[0]]), np.concatenate([b, more[1]])


def same(got: np.ndarray, wanted: np.ndarray) -> None:
    """Compare bits, but for NaN, whose payload is not defined."""
    assert got.dtype == wanted.dtype
    fine = (got == wanted) & (np.signbit(got) == np.signbit(wanted))
    fine |= np.isnan(got) & np.isnan(wanted)
    assert fine.all(), (got[~fine][:5], wanted[~fine][:5])


def flushed(x: np.ndarray) -> np.ndarray:
    """What `.ftz` makes of subnormals, stated by the bits."""
    bits = x.view(np.uint32).copy()
    subnormal = bits & 0x7F800000 == 0
    bits[subnormal] &= 0x80000000
    return bits.view(np.float32)


def nearest(exact: Fraction, mode: str = "rn") -> np.float32:
    """Round a fraction to float32: to even, or down, up, or towards zero."""
    if exact == 0:
        return np.float32(0)
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    whole, rest = divmod(size / unit, 1)
    up = {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1),
        "rz": False,
        "rm": exact < 0 and rest > 0,
        "rp": exact > 0 and rest > 0,
    }[mode]
    rounded = (whole + up) * unit
    if rounded >= Fraction(2) ** 128:
        keeps = mode == "rz" or mode == ("rm" if exact > 0 else "rp")
        value = float(np.finfo(np.float32).max) if keeps else np.inf
    else:
        value = float(rounded)
    return np.float32(value if exact > 0 else -value)


def fma_cases() -> list[np.ndarray]:
    """Products plus sums of all sizes, many of them next to a tie of float32."""
    rng = np.random.default_rng(3)
    n = 704
    a = (rng.integers(1 << 23, 1 << 24, n) * 2.0 ** rng.integers(-60, 20, n)).astype(np.float32)
    b = (rng.integers(1 << 23, 1 << 24, n) * 2.0 ** rng.integers(-60, 20, n)).astype(np.float32)
    product = a.astype(np.float64) * b
    # c so that the sum is half a unit away from a float32, give or take a little.
    c = (product * 2.0 ** rng.integers(-3, 30, n)).astype(np.float32)
    # (1 + u)(1 - u) = 1 - u^2 is less than 1 by so little that a sum in float64 does not show it:
    # with an odd last digit before it, a tie that is none.
    for i in range(0, n, 2):
        u = 2.0**-23 * int(rng.integers(1, 4000))
        a[i], b[i] = 1 + u, 2.0**-24 * (1 - u)
        c[i] = 1 + 2.0**-23 * int(rng.integers(0, 1 << 22))
        if i % 4:
            b[i], c[i] = b[i] / 2, -c[i] / 2
    a[1::4] *= -1
    return [a, b, c.astype(np.float32)]


@pytest.mark.parametrize("mode", ["rn", "rm", "rp", "rz"])
def test_fma_is_rounded_once(mode: str) -> None:
    a, b, c = fma_cases()
    got = apply(f"fma.{mode}.f32 d, a, b, c;", "float32", a, b, c)
    exact = [
        Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    same(got, np.array([nearest(e, mode) for e in exact], dtype=np.float32))
    if mode == "rn":
        same(apply("fma.rn.ftz.f32 d, a, b, c;", "float32", a, b, c), flushed(got))


def test_fma_is_not_two_roundings() -> None:
    # 2^-24 · (1 - 2^-46) is less than half of the last digit of 1 + 2^-23, which so stays; in
    # float64 the sum is a tie, which would go to the even 1 + 2^-22.
    a = np.full(32, 1 + 2.0**-23, dtype=np.float32)
    b = np.full(32, 2.0**-24 * (1 - 2.0**-23), dtype=np.float32)
    c = np.full(32, 1 + 2.0**-23, dtype=np.float32)
    assert np.float32(np.float64(a[0]) * np.float64(b[0]) + np.float64(c[0])) == 1 + 2.0**-22
    for ftz in ("", ".ftz"):
        got = apply(f"fma.rn{ftz}.f32 d, a, b, c;", "float32", a, b, c)
        assert (got == np.float32(1 + 2.0**-23)).all()


def test_fma_of_subnormals() -> None:
    rng = np.random.default_rng(4)
    a, b = (
        (rng.integers(-(1 << 24), 1 << 24, 640) * 2.0 ** rng.integers(-99, -85, 640)).astype(
            np.float32
        )
        for _ in range(2)
    )
    c = np.float32(2.0**-149) * np.random.default_rng(8).integers(-99, 99, 640).astype(np.float32)
    got = apply("fma.rn.f32 d, a, b, c;", "float32", a, b, c)
    exact = [
        Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    assert (got == np.array([nearest(e) for e in exact])).all()


def test_fma_of_infinity_and_nan() -> None:
    a, b = pairs()
    for c in (np.inf, -np.inf, np.nan, 1.0):
        third = np.full(len(a), c, dtype=np.float32)
        finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(third)
        with np.errstate(all="ignore"):
            wanted = (a.astype(np.float64) * b + third)[~finite].astype(np.float32)
        same(apply("fma.rn.f32 d, a, b, c;", "float32", a, b, third)[~finite], wanted)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div.rn", "div.full", "div.approx"])
@pytest.mark.parametrize("ftz", ["", ".ftz"])
def test_two_operands(name: str, ftz: str) -> None:
    a, b = pairs()
    x, y = (flushed(a), flushed(b)) if ftz else (a, b)
    operation = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name[:3]]
    with np.errstate(all="ignore"):
        wanted = operation(x, y)
        if name == "div.approx":  # as the manual says at `div`
            huge = (abs(y) > np.float32(2.0**126)) & np.isfinite(y)
            no_number = np.isnan(x) | np.isinf(x)
            zeros = np.where(np.signbit(x) == np.signbit(y), np.float32(0), np.float32(-0.0))
            wanted = np.where(huge, np.where(no_number, np.float32(np.nan), zeros), wanted)
            assert huge.any()
    got = apply(f"{name}{ftz}.f32 d, a, b;", "float32", a, b)
    same(got, flushed(wanted) if ftz else wanted)


def test_approximate_division_by_numbers_without_a_normal_reciprocal() -> None:
    limit = np.float32(2.0**126)
    above, below = np.nextafter(limit, np.float32(np.inf)), np.nextafter(limit, np.float32(0))
    largest, inf, nan = np.finfo(np.float32).max, np.float32(np.inf), np.float32(np.nan)
    for a, b, wanted in [
        (largest, limit, largest / limit),  # 2^126 itself divides
        (limit, below, limit / below),
        (limit, above, 0),
        (largest, -largest, -0.0),
        (-largest, largest, -0.0),
        (inf, above, nan),
        (-inf, -largest, nan),
        (nan, largest, nan),
        (largest, inf, 0),
        (inf, limit, inf),
    ]:
        for ftz in ("", ".ftz"):
            operands = np.full(32, a, np.float32), np.full(32, b, np.float32)
            got = apply(f"div.approx{ftz}.f32 d, a, b;", "float32", *operands)
            same(got, np.full(32, wanted, np.float32))
    full = apply("div.full.f32 d, a, b;", "float32", np.full(32, limit), np.full(32, largest))
    same(full, np.full(32, limit / largest))


@pytest.mark.parametrize("mode", ["rm", "rp", "rz"])
@pytest.mark.parametrize("name", ["add", "mul"])
def test_directed_sums_and_products(name: str, mode: str) -> None:
    a, b, _ = fma_cases()
    got = apply(f"{name}.{mode}.f32 d, a, b;", "float32", a, b)
    x, y = ([Fraction(float(v)) for v in values] for values in (a, b))
    exact = [p + q if name == "add" else p * q for p, q in zip(x, y, strict=True)]
    same(got, np.array([nearest(e, mode) for e in exact], dtype=np.float32))


def test_the_sign_of_zero() -> None:
    one, zero = np.float32(1), np.float32(0)
    for a, b, down, otherwise in [
        (one, -one, -zero, zero),
        (zero, -zero, -zero, zero),
        (zero, zero, zero, zero),
        (-zero, -zero, -zero, -zero),
    ]:
        for mode in ("rn", "rm", "rp", "rz"):
            wanted = np.full(32, down if mode == "rm" else otherwise)
            same(
                apply(f"add.{mode}.f32 d, a, b;", "float32", np.full(32, a), np.full(32, b)), wanted
            )
            text = f"fma.{mode}.f32 d, a, b, c;"
            ones, first, second = np.ones(32, np.float32), np.full(32, a), np.full(32, b)
            same(apply(text, "float32", first, ones, second), wanted)
            product = apply(f"mul.{mode}.f32 d, a, b;", "float32", first, np.zeros(32, np.float32))
            same(product, np.full(32, np.copysign(zero, a)))


@pytest.mark.parametrize("name", ["min", "max"])
def test_minimum_and_maximum(name: str) -> None:
    a, b = pairs()
    got = apply(f"{name}.f32 d, a, b;", "float32", a, b)
    for x, y, z in zip(a, b, got, strict=True):
        if np.isnan(x) or np.isnan(y):
            other = y if np.isnan(x) else x
            assert np.isnan(z) if np.isnan(other) else z == other
        else:  # -0 is smaller than +0
            key = lambda v: (float(v), not np.signbit(v))  # noqa: E731
            wanted = min(x, y, key=key) if name == "min" else max(x, y, key=key)
            assert z == wanted
            assert np.signbit(z) == np.signbit(wanted)
    nan = apply(f"{name}.NaN.f32 d, a, b;", "float32", a, b)
    assert (np.isnan(nan) == (np.isnan(a) | np.isnan(b))).all()


def test_sign_operations() -> None:
    a, b = pairs()
    same(apply("neg.f32 d, a;", "float32", a), -a)
    same(apply("abs.f32 d, a;", "float32", a), np.abs(a))
    same(apply("neg.ftz.f32 d, a;", "float32", a), -flushed(a))
    same(apply("copysign.f32 d, a, b;", "float32", a, b), np.copysign(b, a))


@pytest.mark.parametrize(
    ("name", "function", "low", "high"),
    [
        ("ex2.approx.ftz", np.exp2, -126, 127),
        ("lg2.approx.ftz", np.log2, 1e-30, 1e30),
        ("rcp.approx.ftz", np.reciprocal, 1e-30, 1e30),
        ("rcp.rn", np.reciprocal, 1e-30, 1e30),
        ("sqrt.rn", np.sqrt, 0, 1e30),
        ("sqrt.approx.ftz", np.sqrt, 0, 1e30),
        ("rsqrt.approx.ftz", lambda x: 1 / np.sqrt(x), 1e-30, 1e30),
        ("sin.approx.ftz", np.sin, -7, 7),
        ("cos.approx.ftz", np.cos, -7, 7),
        ("tanh.approx", np.tanh, -9, 9),
    ],
)
def test_functions(name: str, function, low: float, high: float) -> None:
    a = np.random.default_rng(9).uniform(low, high, 256).astype(np.float32)
    got = apply(f"{name}.f32 d, a;", "float32", a)
    assert (got == function(a.astype(np.float64)).astype(np.float32)).all()


def test_functions_at_the_limits() -> None:
    inf, nan = np.inf, np.nan
    a = np.array([0, -0.0, inf, -inf, nan, -200, 200, 1e-40], dtype=np.float32)
    wanted = {
        "ex2.approx.ftz": [1, 1, inf, 0, nan, 0, inf, 1],
        "lg2.approx.ftz": [-inf, -inf, inf, nan, nan, nan, np.log2(200), -inf],
        "rcp.approx.ftz": [inf, -inf, 0, -0.0, nan, -1 / 200, 1 / 200, inf],
        "rsqrt.approx.ftz": [inf, -inf, 0, nan, nan, nan, 1 / np.sqrt(200), inf],
        "sqrt.approx.ftz": [0, -0.0, inf, nan, nan, nan, np.sqrt(200), 0],
    }
    for name, values in wanted.items():
        same(apply(f"{name}.f32 d, a;", "float32", a), np.array(values, dtype=np.float32))


def test_saturation() -> None:
    a = np.array([-1, -0.0, 0.25, 1, 1.5, np.nan, np.inf, -np.inf], dtype=np.float32)
    wanted = np.array([0, 0, 0.25, 1, 1, 0, 1, 0], dtype=np.float32)
    same(apply("cvt.sat.f32.f32 d, a;", "float32", a), wanted)
    zero = np.zeros(8, dtype=np.float32)
    same(apply("add.sat.f32 d, a, b;", "float32", a, zero), wanted)


COMPARISONS = {
    "eq": lambda a, b: a == b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "ne": lambda a, b: a != b,
}


@pytest.mark.parametrize("how", COMPARISONS)
def test_comparisons_with_nan(how: str) -> None:
    a, b = pairs()
    unordered = np.isnan(a) | np.isnan(b)
    plain = COMPARISONS[how](a, b)
    got = apply(f"setp.{how}.f32 d, a, b;", "bool", a, b)
    assert (got == (plain & ~unordered)).all()
    got = apply(f"setp.{how}u.f32 d, a, b;", "bool", a, b)
    assert (got == (plain | unordered)).all()
    got = apply(f"setp.{how}.ftz.f32 d, a, b;", "bool", a, b)
    assert (got == (COMPARISONS[how](flushed(a), flushed(b)) & ~unordered)).all()
    assert (apply("setp.nan.f32 d, a, b;", "bool", a, b) == unordered).all()
    assert (apply("setp.num.f32 d, a, b;", "bool", a, b) == ~unordered).all()


def test_double_precision() -> None:
    rng = np.random.default_rng(10)
    a, b = (rng.standard_normal(128) for _ in range(2))
    assert (apply("add.f64 d, a, b;", "float64", a, b) == a + b).all()
    assert (apply("mul.rn.f64 d, a, b;", "float64", a, b) == a * b).all()
    assert (apply("div.rn.f64 d, a, b;", "float64", a, b) == a / b).all()
    assert (apply("sqrt.rn.f64 d, a;", "float64", abs(a)) == np.sqrt(abs(a))).all()
    got = apply("fma.rn.f64 d, a, b, c;", "float64", a, b, -a * b)
    exact = [float(Fraction(x) * Fraction(y) - Fraction(x * y)) for x, y in zip(a, b, strict=True)]
    assert (got == exact).all()
    assert (got != 0).any()


def test_a_flushed_register_that_is_assigned_again() -> None:
    a, b = np.full(32, TINY / 2), np.full(32, np.float32(3))
    text = "{ .reg .f32 x, y; mov.b32 x, a; add.ftz.f32 y, x, 0f3F800000; mov.b32 x, b; "
    got = apply(text + "add.ftz.f32 d, x, y; }", "float32", a, b)
    assert (got == 4).all()


def test_testp() -> None:
    a = np.resize(SPECIAL, 64)
    assert (apply("testp.finite.f32 d, a;", "bool", a) == np.isfinite(a)).all()
    assert (apply("testp.infinite.f32 d, a;", "bool", a) == np.isinf(a)).all()
    assert (apply("testp.notanumber.f32 d, a;", "bool", a) == np.isnan(a)).all()
