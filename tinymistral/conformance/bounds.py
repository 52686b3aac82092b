"""How far rounding may move a right backend from the oracle, derived for each operation.

N. J. Higham, Accuracy and Stability of Numerical Algorithms (2002), chapters 2 and 3: rounding to
p bits multiplies by 1 + δ, |δ| <= u = 2^-p; n such factors make 1 + θ, |θ| <= γ(n) = nu / (1 - nu);
a dot product of n terms, summed in any order, errs by at most γ(n) Σ|x||y|.

A bound is for the computation inside an operation, in float32 at least. `agree` adds the rounding
of the result to the backend's dtype. No tolerance is chosen by hand.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from tinymistral.operations import NUMPY_DTYPES

UNIT = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}
EXP = 8  # roundings that exp counts as: NumPy and CUDA promise 4 units in the last place, 2u each


def gamma(n: float, dtype: str) -> float:
    """Bound n roundings inside an operation, and as many of the oracle's own in float64."""
    u = UNIT["float64"] + (UNIT["float64"] if dtype == "float64" else UNIT["float32"])
    return n * u / (1 - n * u)


def smallest(dtype: str) -> float:
    """Return how far a tiny number may be off because it becomes 0 or subnormal.

    GPUs flush to zero what is below the normal numbers of the dtype that they compute in. A result
    that is subnormal in float16 is off by at most half its smallest step, which is far larger.
    """
    return max(
        smallest_inside(dtype), float(ml_dtypes.finfo(NUMPY_DTYPES[dtype]).smallest_subnormal)
    )


def smallest_inside(dtype: str) -> float:
    """Return the smallest normal number of the dtype that a backend computes in at least."""
    return float(np.finfo("float64" if dtype == "float64" else "float32").smallest_normal)


def rounded(exact: np.ndarray, error: np.ndarray | float, dtype: str) -> np.ndarray:
    """Bound a number that is within `error` of `exact` and is then rounded to the dtype."""
    return np.asarray(error + UNIT[dtype] * (np.abs(exact) + error) + smallest(dtype))


def agree(actual: np.ndarray, exact: np.ndarray, error: np.ndarray | float, dtype: str) -> None:
    """Check that `actual` has the dtype, and was within `error` of `exact` before its rounding."""
    assert actual.dtype == NUMPY_DTYPES[dtype], f"dtype {actual.dtype}, expected {dtype}"
    assert actual.shape == exact.shape, f"shape {actual.shape}, expected {exact.shape}"
    within(actual, exact, rounded(exact, error, dtype))


def within(actual: np.ndarray, exact: np.ndarray, bound: np.ndarray | float) -> None:
    """Check that every number of `actual` is within `bound` of that in `exact`."""
    difference = np.abs(actual.astype(np.float64) - exact)
    bound = np.broadcast_to(bound, difference.shape)
    wrong = ~(difference <= bound)  # NaN is wrong too
    if wrong.any():
        worst = np.unravel_index(np.argmax(np.where(wrong, difference / bound, 0)), wrong.shape)
        at = tuple(int(n) for n in worst)
        raise AssertionError(
            f"at {at}: got {float(actual[at])!r}, expected {float(exact[at])!r} within "
            f"{float(bound[at]):.3g}; "
            f"{np.count_nonzero(wrong)} of {wrong.size} numbers are out of bounds"
        )


def linear_error(x: np.ndarray, weight: np.ndarray, dtype: str) -> np.ndarray:
    """Bound the error of x @ weight.T: dot products of n terms."""
    size = np.abs(x.astype(np.float64)) @ np.abs(weight.astype(np.float64)).T
    return gamma(x.shape[-1], dtype) * size


def rms_norm_error(exact: np.ndarray, dtype: str) -> np.ndarray:
    """Bound rms_norm: D squares and their sum, / D, + eps, the root, the quotient, the product.

    GPUs compute one over the root, which may be off by 2 units in the last place, 4u; and · (1 / D)
    is one rounding more than / D.
    """
    return gamma(exact.shape[-1] + 12, dtype) * np.abs(exact)


def rope_error(x: np.ndarray, positions: np.ndarray, theta: float, dtype: str) -> np.ndarray:
    """Bound rope: each output is two products with a cosine or sine: 4 roundings.

    The angle: i · theta^e, e rounded (relative error u, |e| <= 1, so ln(theta) u of the power; as
    exp(e · ln(theta)) three times that), the power itself 2u, one over it u, the product u; all in
    float64, as in the oracle. A cosine errs by no more than its angle does.
    """
    angle = 2 * (3 * math.log(theta) + 4) * UNIT["float64"] * np.abs(positions[..., None, None])
    x = np.abs(x.astype(np.float64))
    return (gamma(4, dtype) + angle) * (x + np.roll(x, x.shape[-1] // 2, axis=-1))


def silu_mul_error(gate: np.ndarray, up: np.ndarray, exact: np.ndarray, dtype: str) -> np.ndarray:
    """Bound silu_mul: exp, sum, quotient, product; and the argument of exp.

    exp(x) may be computed as 2^(x / ln 2): the constant and the product move the exponent by 2u|x|.
    Where exp overflows, or its inverse is flushed to zero, less than the smallest number is lost.
    """
    gate, up = np.abs(gate.astype(np.float64)), np.abs(up.astype(np.float64))
    with np.errstate(over="ignore"):
        relative = np.exp(2 * gamma(1, dtype) * gate) * (1 + gamma(EXP + 3, dtype)) - 1
    return relative * np.abs(exact) + smallest_inside(dtype) * gate * up


def repeated(array: np.ndarray, heads: int) -> np.ndarray:
    """Repeat key/value heads (B, S, K, d) to (B, S, heads, d), as float64."""
    return np.repeat(array.astype(np.float64), heads // array.shape[2], axis=2)


def softmax_roundings(S: int) -> int:
    """Count the roundings of a softmax mix, without those of the exponents.

    Numerator and denominator each have exps and a sum of S terms; then comes one division. A sum
    that is made tile by tile is multiplied by another exp for each tile, at most S times.
    """
    return 2 * (2 * S + EXP * (S + 1))


def softmax_error(q: np.ndarray, k: np.ndarray, weights: np.ndarray, dtype: str) -> float:
    """Bound the relative error of softmax weights and of their mix, for all rows together.

    A score, a sum of d products times d^-0.5, errs by γ(d + 2) |q|·|k| d^-0.5. The largest score is
    subtracted; its own error cancels, and the difference, at most twice as large, is rounded. exp
    may be computed with a factor 1 / ln 2, which is two roundings more. Together the exponent is
    off by δ = γ(d + 8) |q|·|k| d^-0.5, which exp turns into a factor e^δ. `softmax_roundings`
    counts the rest.
    """
    d, S = q.shape[-1], k.shape[1]
    sizes = (np.abs(q.astype(np.float64)), np.abs(repeated(k, q.shape[2])))
    size = np.einsum("bthd,bshd->bhts", *sizes)
    exponent = gamma(d + 8, dtype) * np.max(size * (weights > 0), initial=0) * d**-0.5
    return math.exp(2 * exponent) * (1 + gamma(softmax_roundings(S), dtype)) - 1


def attention_error(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, weights: np.ndarray, dtype: str
) -> np.ndarray:
    """Bound attention: the relative error of the weights, times Σ weights |v|.

    In 16 bits weights may be rounded before they are multiplied by the values, as FlashAttention
    does for its matrix products: one more rounding of each, or half the smallest step if subnormal.
    """
    values = np.abs(repeated(v, q.shape[2]))
    size = np.einsum("bhts,bshd->bthd", weights, values)
    error = softmax_error(q, k, weights, dtype) * size
    if dtype in ("float32", "float64"):
        return error
    step = float(ml_dtypes.finfo(NUMPY_DTYPES[dtype]).smallest_subnormal)
    seen = np.einsum("bhts,bshd->bthd", weights > 0, values)
    return error + UNIT[dtype] * (size + error) + step / 2 * seen
