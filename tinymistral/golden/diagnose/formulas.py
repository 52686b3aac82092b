"""Guesses of embeddings, norms, activations, sums and caches: other formulas, and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tinymistral.golden.diagnose.guess import (
    HALVES,
    Guess,
    each,
    is_known,
    number,
    refined,
    rounded,
    sig,
)
from tinymistral.golden.diagnose.steps import Array, Step, angles, turned

Formulas = dict[str, Callable[..., Array]]


def _mean(x: Array) -> Array:
    return np.asarray(x.mean(axis=-1, keepdims=True))


def _rms(x: Array, eps: float) -> Array:
    return np.asarray(np.sqrt(_mean(np.square(x)) + eps))


# Norms: x, weight w, epsilon e

NORMS: Formulas = {
    "norm-weight-plus-1 | the weight is 1 + w rather than w": lambda x, w, e: (
        x / _rms(x, e) * (1 + w)
    ),
    "norm-weight-forgotten | there is no weight: x / rms(x) without its weight": lambda x, w, e: (
        x / _rms(x, e)
    ),
    "it is not normed: the result is x": lambda x, w, e: x,
    "it is not normed: the result is x · weight": lambda x, w, e: x * w,
    "eps-outside-the-root | epsilon is added outside the root: x / (rms + eps)": lambda x, w, e: (
        x / (_rms(x, 0) + e) * w
    ),
    "mean-subtracted | the mean is subtracted first, as in LayerNorm": lambda x, w, e: (
        (x - _mean(x)) / _rms(x - _mean(x), e) * w
    ),
    "the mean is subtracted before the weight, but not from the squares": lambda x, w, e: (
        (x - _mean(x)) / _rms(x, e) * w
    ),
    "sum-of-squares | the sum of squares is taken rather than their mean": lambda x, w, e: (
        x / np.sqrt(np.square(x).sum(axis=-1, keepdims=True) + e) * w
    ),
    "the root is missing: x / (mean of squares + eps)": lambda x, w, e: x / _rms(x, e) ** 2 * w,
    "the mean of squares is over D - 1 numbers": lambda x, w, e: (
        x / _rms(x * (x.shape[-1] / (x.shape[-1] - 1)) ** 0.5, e) * w
    ),
    "the mean of magnitudes is taken rather than the root of the mean square": lambda x, w, e: (
        x / (_mean(np.abs(x)) + e) * w
    ),
    "the weight is applied before the norm: rms_norm(x · weight)": lambda x, w, e: (
        x * w / _rms(x * w, e)
    ),
    "the mean is subtracted first, and squares are averaged over D - 1": lambda x, w, e: (
        lambda y: y / _rms(y * (y.shape[-1] / (y.shape[-1] - 1)) ** 0.5, e) * w
    )(x - _mean(x)),
    "squares are averaged over the first half of the numbers": lambda x, w, e: (
        x / _rms(x[..., : x.shape[-1] // 2], e) * w
    ),
    "it is normed by the largest magnitude": lambda x, w, e: (
        x / np.abs(x).max(axis=-1, keepdims=True) * w
    ),
    "it is normed twice": lambda x, w, e: (lambda y: y / _rms(y, e) * w)(x / _rms(x, e) * w),
    "it is normed and multiplied by the weight twice": lambda x, w, e: x / _rms(x, e) * w * w,
}
for _dtype in HALVES:
    NORMS |= {
        f"norm-rounded-before-its-weight | normed x is in {_dtype}": lambda x, w, e, t=_dtype: (
            rounded(x / _rms(x, e), t) * w
        ),
        f"squares-in-16-bits | squares are summed in {_dtype}": lambda x, w, e, t=_dtype: (
            x / np.sqrt(_mean(rounded(np.square(rounded(x, t)), t)) + e) * w
        ),
        f"x, normed x and its product are rounded to {_dtype}": lambda x, w, e, t=_dtype: rounded(
            rounded(rounded(x, t) / _rms(rounded(x, t), e), t) * rounded(w, t), t
        ),
    }


def of_norms(steps: Sequence[Step]) -> Iterator[Guess]:
    """Yield other formulas of RMSNorm, a measured epsilon, other weights and inputs."""
    first, is_last = steps[0], steps[0].stage == "norm"
    yield from each(NORMS, lambda s: (s.x["x"], s.x["weight"], s.x["eps"]))
    if is_known(first):
        ratio = _factors(first).ravel()[first.counts.all(axis=-1).argmax()]
        yield Guess(
            f"it is x · weight, each token times a factor of its own: {number(ratio)} for the "
            f"first of case {first.case}",
            lambda s: s.right * _factors(s),
            last=True,
        )
    eps = _measured_eps(first) if is_known(first) else None
    if eps is not None:
        names = {0: "eps-forgotten | ", 1e-6: "eps-of-another-model | "}
        own = number(first.x["eps"])
        yield Guess(
            f"{names.get(eps, '')}epsilon is {number(eps)}; the configuration says {own}",
            lambda s: s.x["x"] / _rms(s.x["x"], eps) * s.x["weight"],
        )
    for other in first.tensors:
        if first.tensors[other].ndim == 1:
            known = "norms-swapped | " if "layernorm" in other and not is_last else ""
            yield Guess(
                f"{known}the weight is that of {short_name(other)}",
                lambda s, n=other: s.x["x"] / _rms(s.x["x"], s.x["eps"]) * tensor_like(s, n),
            )
    for other in first.others:
        yield Guess(
            f"what is normed is {other}",
            lambda s, n=other: s.others[n] / _rms(s.others[n], s.x["eps"]) * s.x["weight"],
        )


def _factors(s: Step) -> Array:
    """Return by what each token's result has to be multiplied (B, T, 1)."""
    out, right = (np.where(s.counts, x, 0.0) for x in (s.out, s.right))
    square = np.square(right).sum(axis=-1, keepdims=True)
    return np.asarray((out * right).sum(axis=-1, keepdims=True) / np.where(square, square, 1))


def short_name(tensor: str) -> str:
    """Return the name of a weight without what all have."""
    return tensor.removesuffix(".weight").removeprefix("model.")


def tensor_like(s: Step, name: str) -> Array:
    """Return a weight of the same kind in the step's own layer: names have a layer's number."""
    parts = name.split(".")
    if s.layer >= 0 and parts[1:2] == ["layers"]:
        same = s.tensors.get(".".join([*parts[:2], str(s.layer), *parts[3:]]))
        if same is not None and same is not s.x["weight"]:
            return same
    return s.tensors[name]


def _measured_eps(s: Step) -> float | None:
    """Return epsilon from what each row is multiplied by."""
    if not s.counts.any():
        return None
    rows = s.counts.all(axis=-1)
    xw, y = (s.x["x"] * s.x["weight"])[rows], s.out[rows]
    square = np.square(s.x["x"][rows]).mean(axis=-1)
    with np.errstate(all="ignore"):
        ratio = (y * xw).sum(axis=-1) / np.square(xw).sum(axis=-1)
        found = 1 / np.square(ratio) - square
        sure = 1 / np.square(square)
        eps = float((found * sure).sum() / sure.sum())
        noise = float(square.min()) * s.unit * 4
    if not math.isfinite(eps) or eps < -noise:
        return None
    if eps <= noise:
        return 0.0
    power = 10.0 ** round(math.log10(eps))
    return power if abs(eps - power) <= max(0.05 * power, noise) else float(f"{eps:.3g}")


# Activations: gate g, up u


def _gelu(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _silu(x: Array) -> Array:
    return x * sig(x)


ACTIVATIONS: Formulas = {
    "the activation is GELU, not SiLU": lambda g, u: _gelu(g) * u,
    "gelu-for-silu | the activation is the tanh approximation of GELU, not SiLU": lambda g, u: (
        _gelu_tanh(g) * u
    ),
    "the activation is x · sigmoid(1.702 x), an approximation of GELU": lambda g, u: (
        g * sig(1.702 * g) * u
    ),
    "the activation is ReLU, not SiLU": lambda g, u: np.maximum(g, 0) * u,
    "gate-and-up-swapped | gate and up are exchanged: silu(up) · gate": lambda g, u: _silu(u) * g,
    "silu(gate) is multiplied by up + 1": lambda g, u: _silu(g) * (u + 1),
    "the activation is GELU, of up: gelu(up) · gate": lambda g, u: _gelu(u) * g,
    "up is missing: silu(gate) alone": lambda g, u: _silu(g),
    "there is no activation: gate · up": lambda g, u: g * u,
    "the gate is missing: up alone": lambda g, u: u,
    "sigmoid-for-silu | the activation is the sigmoid, not SiLU": lambda g, u: sig(g) * u,
    "up is added, not multiplied: silu(gate) + up": lambda g, u: _silu(g) + u,
    "the activation is of the product: silu(gate · up)": lambda g, u: _silu(g * u),
    "both are activated: silu(gate) · silu(up)": lambda g, u: _silu(g) * _silu(u),
    "the activation is tanh, not SiLU": lambda g, u: np.tanh(g) * u,
    "the activation is squared ReLU": lambda g, u: np.maximum(g, 0) ** 2 * u,
    "the activation is softplus": lambda g, u: np.logaddexp(0, g) * u,
    "the activation is Mish": lambda g, u: g * np.tanh(np.logaddexp(0, g)) * u,
    "the activation is ELU": lambda g, u: np.where(g > 0, g, np.expm1(g)) * u,
    "the activation is a leaky ReLU of 0.01": lambda g, u: np.where(g > 0, g, 0.01 * g) * u,
    "the activation is the hard swish": lambda g, u: g * np.clip(g / 6 + 0.5, 0, 1) * u,
    "SiLU is negated inside: gate · sigmoid(-gate) · up": lambda g, u: g * sig(-g) * u,
}
FITTED: dict[str, Callable[..., Array]] = {  # with a number c
    "the activation is x · sigmoid({} x)": lambda g, u, c: g * sig(c * g) * u,
    "the activation is capped at {}": lambda g, u, c: np.minimum(_silu(g), c) * u,
    "the gate is clipped at {}": lambda g, u, c: _silu(np.clip(g, -c, c)) * u,
}


def of_silu(steps: Sequence[Step]) -> Iterator[Guess]:
    """Yield other activations, and gate and up exchanged."""
    first = steps[0]
    yield from each(ACTIVATIONS, lambda s: (s.x["gate"], s.x["up"]))
    for dtype in HALVES:
        yield Guess(
            f"silu-rounded-before-up | silu is rounded to {dtype} before its product with up",
            lambda s, t=dtype: rounded(_silu(s.x["gate"]), t) * s.x["up"],
        )
    if is_known(first):
        g, u, out = (
            np.where(first.counts, x, 0.0) for x in (first.x["gate"], first.x["up"], first.out)
        )
        for says, f in FITTED.items():
            c = refined(
                lambda c, f=f: float(np.square(f(g, u, c) - out).sum()), np.geomspace(0.05, 50, 60)
            )
            yield Guess(says.format(number(c)), lambda s, f=f, c=c: f(s.x["gate"], s.x["up"], c))
        large = max(steps, key=lambda s: _usable(s).sum())
        for name, other in (("gate", "up"), ("up", "gate")):
            if _usable(large).sum() < LEAST:
                break
            values = (number(f) for f in _curve(large, name, other)(np.array([-1.0, 0.0, 1.0])))
            yield Guess(
                f"it is f({name}) · {other}, of another curve: f(-1), f(0), f(1) are "
                + ", ".join(values),
                lambda s, n=name, m=other: (
                    _curve(s if _usable(s).sum() >= LEAST else large, n, m)(s.x[n]) * s.x[m]
                ),
                last=True,
            )


def _usable(s: Step) -> Array:
    every = (s.x["gate"], s.x["up"], s.out)
    return np.asarray(s.counts & np.isfinite(every).all(axis=0))


def _curve(s: Step, name: str, other: str) -> Callable[[Array], Array]:
    """Return the function f of the gate with f(gate) · up, or of up: straight between its knots."""
    x, times, out = (a[_usable(s)] for a in (s.x[name], s.x[other], s.out))
    knots = np.linspace(x.min(), x.max(), KNOTS)
    hats = np.maximum(0, 1 - np.abs(x[:, None] - knots) / max(knots[1] - knots[0], 1e-30))
    values = np.linalg.lstsq(hats * times[:, None], out, rcond=None)[0]
    return lambda x: np.interp(x, knots, values)


KNOTS = 33
LEAST = 4 * KNOTS  # numbers that make a curve

# Embeddings, sums, caches


def of_embedding(steps: Sequence[Step]) -> Iterator[Guess]:
    """Yield wrong rows of the table, and wrong scales."""
    first = steps[0]
    yield Guess(
        "embedding-scaled | embeddings are multiplied by sqrt(D)",
        lambda s: s.right * s.right.shape[-1] ** 0.5,
    )
    for n, says in (
        (1, "ids are looked up one row later"),
        (-1, "embedding-counts-from-1 | ids are looked up one row earlier"),
    ):
        yield Guess(says, lambda s, n=n: s.x["table"][(s.x["ids"] + n) % len(s.x["table"])])
    if is_known(first):
        rows = _nearest_rows(first)
        wrong = np.argwhere((rows != first.x["ids"]) & first.counts.all(axis=-1))
        b, t = wrong[0] if len(wrong) else (0, 0)
        yield Guess(
            f"other rows of the table: token id {first.x['ids'][b, t]} has row {rows[b, t]}",
            lambda s: s.x["table"][_nearest_rows(s)],
        )


def _nearest_rows(s: Step) -> Array:
    far = [np.abs(s.out[..., None, :] - row).max(axis=(-1, -2)) for row in s.x["table"]]
    return np.asarray(np.argmin(far, axis=0))


def of_sums(steps: Sequence[Step]) -> Iterator[Guess]:
    """Yield sums of stages, with measured coefficients."""
    first, stage, y = steps[0], steps[0].stage, steps[0].x["of"]
    normed = "input_layernorm" if stage == "attention_residual" else "post_attention_layernorm"
    yield Guess(
        f"residual-lost | the residual is missing: {stage} is {y} alone", lambda s: s.x["y"]
    )
    yield Guess(f"{y} is missing: {stage} is what it was before", lambda s: s.x["x"])
    yield Guess(
        f"the residual is taken after the norm: {normed} + {y}",
        lambda s: s.others[normed] + s.x["y"],
    )
    if not is_known(first):
        return
    others = [n for n in first.others if n not in ("logits", stage)]
    for extra in ([], *([n] for n in others)):

        def parts(s: Step, extra: Sequence[str] = tuple(extra)) -> Array:
            return np.stack([s.x["x"], s.x["y"], *(s.others[n] for n in extra)])

        if any(first.others[n].shape != first.out.shape for n in extra):
            continue
        a, out = np.where(first.counts, parts(first), 0.0), np.where(first.counts, first.out, 0.0)
        if not np.isfinite(a).all() or not np.isfinite(out).all():
            continue
        c = np.linalg.lstsq(a.reshape(len(a), -1).T, out.ravel(), rcond=None)[0]
        c = np.array([float(f"{n:.3g}") if abs(n) > 1e-4 else 0.0 for n in c])
        terms = zip(c.tolist(), ["the residual", y, *extra], strict=True)
        says = " + ".join(f"{number(n)} · {what}" for n, what in terms)
        yield Guess(
            f"{stage} is {says}", lambda s, c=c, parts=parts: np.tensordot(c, parts(s), axes=1)
        )


def of_caches(steps: Sequence[Step]) -> Iterator[Guess]:
    """Yield what else may lie in the slots of a cache."""
    first, name = steps[0], steps[0].x["name"]

    def again(s: Step, times: float, neighbours: bool = False) -> Array:
        angle = angles(s.x["positions"], s.x["theta"], s.right.shape[-1]) * times
        at = (s.x["positions"] >= 0)[..., None, None]
        return np.where(at, turned(s.x["tokens"], angle, neighbours), 0)

    if name == "k":
        yield Guess("keys-not-turned | keys are cached not rotated", lambda s: s.x["plain"])
        yield Guess(
            "cached keys are rotated twice, by their own position",
            lambda s: again(s, 1.0),
        )
        yield Guess("keys are cached not rotated: rotated back", lambda s: again(s, -1.0))
    else:
        yield Guess("values-turned | values are rotated like keys", lambda s: again(s, 1.0))
        yield Guess("values are rotated, as neighbours (2m, 2m + 1)", lambda s: again(s, 1.0, True))
    for n, older in ((1, "older"), (-1, "newer")):
        yield Guess(
            f"slots hold the {older} neighbour's {name}", lambda s, n=n: np.roll(s.right, n, axis=1)
        )

    def some(s: Step) -> Array:
        same = np.abs(s.out - s.right).max(axis=(2, 3), keepdims=True) <= s.limit
        return np.where(same, s.right, 0.0)

    lost = (np.abs(first.out).max(axis=(2, 3)) == 0) & (first.x["positions"] >= 0)
    where = sorted({int(p) for p in first.x["positions"][lost]})
    yield Guess(
        f"slots are empty: in case {first.case}, call {first.call} those of positions "
        f"{', '.join(map(str, where[:6]))}",
        some,
    )
