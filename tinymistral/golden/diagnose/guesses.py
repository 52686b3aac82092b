"""What a wrong step may have done: a sentence for each, and the numbers that it would give.

Where a mistake has a parameter, it is measured from a step's input and result. The order is from
simple to complex: of guesses that fit as well, the first counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from tinymistral.golden.diagnose.steps import Array, Step, angles, compute, turned
from tinymistral.operations import NUMPY_DTYPES

HALVES = ("bfloat16", "float16")


@dataclass(frozen=True)
class Guess:
    """What a step may have done."""

    says: str
    make: Callable[..., Array | None]
    name: str = ""  # in the catalogue of mistakes
    last: bool = False  # it only says what is seen: it counts if no other guess fits


def rounded(x: Array, dtype: str) -> Array:
    """Round to 16 bits, or to float32."""
    with np.errstate(over="ignore"):
        return np.asarray(x.astype(np.float32).astype(NUMPY_DTYPES[dtype]).astype(np.float64))


def sig(x: Array) -> Array:
    """Return 1 / (1 + exp(-x))."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def number(x: float) -> str:
    """Return a number as people write it, at most four digits."""
    if x and not 1e-3 <= abs(x) < 1e15:
        return f"{x:.3g}"
    x = float(f"{x:.4g}")
    return f"{x:,.0f}" if x == int(x) else f"{x:g}"


def refined(error: Callable[..., float], grid: Iterable[float]) -> float:
    """Return where an error is smallest: the best of a grid, then between its neighbours."""
    points = list(grid)
    at = min(range(len(points)), key=lambda n: error(points[n]))
    low, high = points[max(0, at - 1)], points[min(len(points) - 1, at + 1)]
    log = low > 0 and high / low > 1.5
    low, high = (math.log(low), math.log(high)) if log else (low, high)
    golden = (math.sqrt(5) - 1) / 2
    f = (lambda t: error(math.exp(t))) if log else error
    a, b = high - golden * (high - low), low + golden * (high - low)
    fa, fb = f(a), f(b)
    for _ in range(34):
        if fa < fb:
            high, b, fb = b, a, fa
            a = high - golden * (high - low)
            fa = f(a)
        else:
            low, a, fa = a, b, fb
            b = low + golden * (high - low)
            fb = f(b)
    best = a if fa < fb else b
    found = math.exp(best) if log else best
    nice = float(f"{found:.2g}")  # what somebody would have written, if it is as near
    near = abs(nice - found) <= 0.01 * abs(found)
    return nice if near and error(nice) <= 1.5 * error(found) + 1e-12 else found


def guesses(steps: list[Step]) -> Iterator[Guess]:
    """Yield guesses for wrong steps of one stage; parameters are measured on the first."""
    from tinymistral.golden.diagnose.attention import mask_guesses, mix_guesses, weights_guesses

    kinds: dict[str, Callable[[list[Step]], Iterator[Guess]]] = {
        "embedding": of_embedding,
        "norm": of_norms,
        "linear": of_linear,
        "rope": of_rope,
        "mask": mask_guesses,
        "weights": weights_guesses,
        "mix": mix_guesses,
        "silu": of_silu,
        "sum": of_sums,
        "cache": of_caches,
    }
    yield from kinds[steps[0].kind](steps)
    if steps[0].kind != "mask":
        yield from of_any(steps)


# Any step


def of_any(steps: list[Step]) -> Iterator[Guess]:
    """Yield what may happen to any result: rounded, scaled, capped, shifted, permuted."""
    first = steps[0]
    for dtype in HALVES:
        yield Guess(f"results are rounded to {dtype}", lambda s, t=dtype: rounded(s.right, t))
        yield Guess(
            f"inputs are rounded to {dtype}", lambda s, t=dtype: compute(s.kind, _all_rounded(s, t))
        )
        yield Guess(
            f"inputs and results are rounded to {dtype}",
            lambda s, t=dtype: rounded(compute(s.kind, _all_rounded(s, t)), t),
        )
    yield Guess("results are 0", lambda s: np.zeros_like(s.right))
    if first.out is first.right:
        return
    out, right = (np.where(first.counts, x, 0.0).ravel() for x in (first.out, first.right))
    if not (np.isfinite(out).all() and np.isfinite(right).all()):
        return
    factor = float(out @ right) / max(float(right @ right), 1e-300)
    yield Guess(
        f"results are {number(factor)} times what they should be", lambda s: factor * s.right
    )
    added = float((out - right).sum() / max(1, first.counts.sum()))
    yield Guess(f"{number(added)} is added to all results", lambda s: s.right + added)
    most = float(np.abs(out).max(initial=0.0))
    if most < np.abs(right).max(initial=0.0):
        yield Guess(
            f"results are clipped at {number(most)}", lambda s: np.clip(s.right, -most, most)
        )
    with np.errstate(all="ignore"):
        cap = refined(
            lambda c: float(np.square(out - c * np.tanh(right / c)).sum()),
            np.geomspace(max(most, 1e-6) * 0.9, max(most, 1e-6) * 100, 40),
        )
    yield Guess(
        f"results are capped softly at {number(cap)}: c · tanh(x / c)",
        lambda s: cap * np.tanh(s.right / cap),
    )
    yield Guess("each token has the result of the one before it", lambda s: np.roll(s.right, 1, 1))
    yield Guess("each token has the result of the one after it", lambda s: np.roll(s.right, -1, 1))
    yield Guess(
        "all rows of the batch have the results of the first",
        lambda s: np.broadcast_to(s.right[:1], s.right.shape),
    )
    if first.kind in ("weights", "mask"):
        return
    bias = np.median(
        (first.out - first.right)[first.counts.any(axis=tuple(range(2, first.out.ndim)))], axis=0
    )
    yield Guess(
        f"a bias is added, of up to {number(float(np.abs(bias).max(initial=0)))}",
        lambda s: s.right + bias if s.right.shape[2:] == bias.shape else None,
    )
    yield from _permuted(first)


def _all_rounded(s: Step, dtype: str) -> dict[str, object]:
    return {
        n: rounded(a, dtype) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
        for n, a in s.x.items()
    }


def _permuted(first: Step) -> Iterator[Guess]:
    """Match columns, that is what each token has at one place, with those that should come out."""
    rows = first.counts.all(axis=tuple(range(2, first.out.ndim)))
    got, want = (x[rows].reshape(int(rows.sum()), -1) for x in (first.out, first.right))
    if len(got) < 3 or not 1 < want.shape[1] <= 4096:
        return
    distance = np.abs(got[:, :, None] - want[:, None, :]).max(axis=0)
    order = distance.argmin(axis=1)
    width = want.shape[1]
    if first.out.ndim == 4:
        H, d = first.out.shape[2:]
        turns = np.arange(width).reshape(H, d)
        rules = {
            "heads are in reverse order": turns[::-1],
            "numbers of a head are in the order of pairs (0, d/2, 1, ...)": turns[
                :, np.arange(d).reshape(2, -1).T.ravel()
            ],
            "numbers of a head are in the order of halves (0, 2, ..., 1, 3, ...)": turns[
                :, np.arange(d).reshape(-1, 2).T.ravel()
            ],
            "heads are cut with stride H: (d, H) is read as (H, d)": turns.reshape(d, H).T,
        }
        for says in rules:
            yield Guess(f"{says}: the order is wrong", lambda s, r=says: _ordered(s, r))
    if len(set(order.tolist())) > 1:
        shown = ", ".join(map(str, order[:8]))
        yield Guess(
            f"the order is permuted: results 0, 1, 2, ... are what {shown}, ... should be",
            lambda s: (
                s.right.reshape(*s.right.shape[:2], -1)[..., order].reshape(s.right.shape)
                if math.prod(s.right.shape[2:]) == width
                else None
            ),
        )


def _ordered(s: Step, rule: str) -> Array | None:
    if s.right.ndim != 4:
        return None
    H, d = s.right.shape[2:]
    if "reverse" in rule:
        return s.right[:, :, ::-1]
    if "pairs" in rule:
        return s.right[..., np.arange(d).reshape(2, -1).T.ravel()]
    if "halves" in rule:
        return s.right[..., np.arange(d).reshape(-1, 2).T.ravel()]
    flat = s.right.reshape(*s.right.shape[:2], d, H)
    return flat.swapaxes(2, 3)


# Embeddings, sums, caches


def of_embedding(steps: list[Step]) -> Iterator[Guess]:
    """Yield wrong rows of the table, and wrong scales."""
    yield Guess(
        "embeddings are multiplied by sqrt(D)",
        lambda s: s.right * s.right.shape[-1] ** 0.5,
        "embedding-scaled",
    )
    for n in (1, -1):
        yield Guess(
            f"ids are looked up {'one row later' if n > 0 else 'one row earlier'}",
            lambda s, n=n: s.x["table"][(s.x["ids"] + n) % len(s.x["table"])],
            "embedding-counts-from-1" if n < 0 else "",
        )
    first = steps[0]
    table, out = first.x["table"], first.out
    nearest = np.abs(out[..., None, :] - table).max(axis=-1).argmin(axis=-1)
    b, t = (
        np.argwhere((nearest != first.x["ids"]) & first.counts.all(axis=-1)).tolist()[:1][0]
        if (((nearest != first.x["ids"]) & first.counts.all(axis=-1)).any())
        else (0, 0)
    )
    yield Guess(
        f"other rows of the table: token id {first.x['ids'][b, t]} has row {nearest[b, t]}",
        lambda s: s.x["table"][
            np.abs(s.out[..., None, :] - s.x["table"]).max(axis=-1).argmin(axis=-1)
        ],
    )


def of_sums(steps: list[Step]) -> Iterator[Guess]:
    """Yield sums of stages, with measured coefficients."""
    first, stage = steps[0], steps[0].stage
    y = first.x["of"]
    yield Guess(
        f"the residual is missing: {stage} is {y} alone", lambda s: s.x["y"], "residual-lost"
    )
    names = {
        ("attention_residual", "x"): "attention-residual-forgotten",
        ("output", "x"): "mlp-residual-forgotten",
    }
    yield Guess(
        f"{y} is missing: {stage} is what it was before",
        lambda s: s.x["x"],
        names.get((stage, "x"), ""),
    )
    normed = "input_layernorm" if stage == "attention_residual" else "post_attention_layernorm"
    yield Guess(
        f"the residual is taken after the norm: {normed} + {y}",
        lambda s: s.others[normed] + s.x["y"],
        "residual-of-the-norm",
    )
    if first.out is first.right:
        return
    for extra in ([], *([n] for n in first.others if n not in ("logits", stage))):
        parts = lambda s, e=extra: [s.x["x"], s.x["y"], *(s.others.get(n) for n in e)]  # noqa: E731
        arrays = parts(first)
        if any(a is None or a.shape != first.out.shape for a in arrays):
            continue
        a = np.stack([np.where(first.counts, p, 0.0).ravel() for p in arrays], axis=1)
        if not np.isfinite(a).all() or not np.isfinite(first.out).all():
            continue
        c = np.linalg.lstsq(a, np.where(first.counts, first.out, 0.0).ravel(), rcond=None)[0]
        c = [float(f"{n:.3g}") if abs(n) > 1e-4 else 0.0 for n in c]
        terms = zip(c, ["the residual", y, *extra], strict=True)
        says = " + ".join(f"{number(n)} · {what}" for n, what in terms)
        yield Guess(
            f"{stage} is {says}",
            lambda s, c=tuple(c), p=parts: sum(
                n * a for n, a in zip(c, p(s), strict=True) if a is not None
            ),
        )


def of_caches(steps: list[Step]) -> Iterator[Guess]:
    """Yield what else may lie in the slots of a cache."""

    def again(s: Step, times: float, x: str = "tokens", neighbours: bool = False) -> Array:
        d = s.x["tokens"].shape[-1]
        angle = angles(s.x["positions"], s.x["theta"], d) * times
        found = turned(s.x[x], angle, neighbours)
        found[s.x["positions"] < 0] = 0
        return found

    if steps[0].x["name"] == "k":
        yield Guess("keys are cached not rotated", lambda s: s.x["plain"], "keys-not-turned")
        yield Guess(
            "cached keys are rotated twice, by their own position",
            lambda s: again(s, 1.0),
            "keys-turned-again",
        )
        yield Guess("keys are cached not rotated: rotated back", lambda s: again(s, -1.0))
    else:
        yield Guess("values are rotated like keys", lambda s: again(s, 1.0), "values-turned")
        yield Guess(
            "values are rotated, as neighbours (2m, 2m + 1)",
            lambda s: again(s, 1.0, neighbours=True),
        )
    for n in (1, -1):
        yield Guess(
            f"slots hold the {'older' if n > 0 else 'newer'} neighbour's {steps[0].x['name']}",
            lambda s, n=n: np.roll(s.right, n, axis=1),
        )

    def either(s: Step) -> Array:
        same = np.abs(s.out - s.right).max(axis=(2, 3), keepdims=True) <= s.limit
        return np.where(same, s.right, 0.0)

    first = steps[0]
    lost = (np.abs(first.out).max(axis=(2, 3)) == 0) & (first.x["positions"] >= 0)
    where = sorted({int(p) for p in first.x["positions"][lost]})
    shown = ", ".join(map(str, where[:6]))
    yield Guess(
        f"slots are empty: in case {first.case}, call {first.call} those of positions {shown}",
        either,
    )


# Norms


def of_norms(steps: list[Step]) -> Iterator[Guess]:
    """Yield other formulas of RMSNorm, and a measured epsilon."""

    def form(f: Callable[..., Array]) -> Callable[..., Array]:
        return lambda s: f(s.x["x"], s.x["weight"], s.x["eps"])

    def root(x: Array, eps: float) -> Array:
        return np.asarray(np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + eps))

    def mean(x: Array) -> Array:
        return np.asarray(x.mean(axis=-1, keepdims=True))

    def summed(x: Array) -> Array:
        return np.asarray(np.square(x).sum(axis=-1, keepdims=True))

    is_last = steps[0].stage == "norm"
    table: list[tuple[str, str, Callable[..., Array]]] = [
        (
            "the weight is 1 + w rather than w",
            "norm-weight-plus-1",
            lambda x, w, e: x / root(x, e) * (1 + w),
        ),
        (
            "there is no weight: x / rms(x) without its weight",
            "norm-weight-forgotten",
            lambda x, w, e: x / root(x, e),
        ),
        (
            "it is not normed: the result is x",
            "final-norm-missing" if is_last else "",
            lambda x, w, e: x,
        ),
        ("it is not normed: the result is x · weight", "", lambda x, w, e: x * w),
        (
            "epsilon is added outside the root: x / (rms + eps)",
            "eps-outside-the-root",
            lambda x, w, e: x / (root(x, 0) + e) * w,
        ),
        (
            "the mean is subtracted first: it is centred, as LayerNorm is",
            "mean-subtracted",
            lambda x, w, e: (x - mean(x)) / root(x - mean(x), e) * w,
        ),
        (
            "the mean is subtracted before the weight, but not from the squares",
            "",
            lambda x, w, e: (x - mean(x)) / root(x, e) * w,
        ),
        (
            "the sum of squares is taken rather than their mean",
            "sum-of-squares",
            lambda x, w, e: x / np.sqrt(summed(x) + e) * w,
        ),
        (
            "the root is missing: x / (mean of squares + eps)",
            "",
            lambda x, w, e: x / root(x, e) ** 2 * w,
        ),
        (
            "the mean of squares is over D - 1 numbers",
            "",
            lambda x, w, e: x / np.sqrt(summed(x) / (x.shape[-1] - 1) + e) * w,
        ),
        (
            "the mean of magnitudes is taken rather than the root of the mean square",
            "",
            lambda x, w, e: x / (np.abs(x).mean(axis=-1, keepdims=True) + e) * w,
        ),
        (
            "it is normed by the largest magnitude",
            "",
            lambda x, w, e: x / np.abs(x).max(axis=-1, keepdims=True) * w,
        ),
        (
            "it is normed twice",
            "final-norm-twice" if is_last else "",
            lambda x, w, e: (lambda y: y / root(y, e) * w)(x / root(x, e) * w),
        ),
        (
            "it is normed and multiplied by the weight twice",
            "",
            lambda x, w, e: x / root(x, e) * w * w,
        ),
    ]
    for says, name, f in table:
        yield Guess(says, form(f), name)
    first = steps[0]
    eps = None if first.out is first.right else _measured_eps(first)
    if eps is not None:
        own = first.x["eps"]
        name = "eps-forgotten" if eps == 0 else "eps-of-another-model" if eps == 1e-6 else ""
        name = "eps-of-mistral" if eps == 1e-5 else name
        yield Guess(
            f"epsilon is {number(eps)}; the configuration says {number(own)}",
            lambda s: s.x["x"] / root(s.x["x"], eps) * s.x["weight"],
            name,
        )
    for dtype in HALVES:
        yield Guess(
            f"the norm is rounded to {dtype} before its weight",
            lambda s, t=dtype: rounded(s.x["x"] / root(s.x["x"], s.x["eps"]), t) * s.x["weight"],
            "norm-rounded-before-its-weight",
        )
        yield Guess(
            f"the squares are summed in {dtype}",
            lambda s, t=dtype: (
                s.x["x"]
                / np.sqrt(
                    rounded(np.square(rounded(s.x["x"], t)), t).mean(axis=-1, keepdims=True)
                    + s.x["eps"]
                )
                * s.x["weight"]
            ),
            "squares-in-16-bits",
        )
        yield Guess(
            f"x and the weight are {dtype}, and the norm is rounded to it before its weight",
            lambda s, t=dtype: rounded(
                rounded(rounded(s.x["x"], t) / root(rounded(s.x["x"], t), s.x["eps"]), t)
                * rounded(s.x["weight"], t),
                t,
            ),
        )
        yield Guess(
            f"x and the result of the norm are rounded to {dtype}",
            lambda s, t=dtype: rounded(
                rounded(s.x["x"], t) / root(rounded(s.x["x"], t), s.x["eps"]) * s.x["weight"], t
            ),
        )
    for other in first.tensors:
        if first.tensors[other].ndim == 1:
            says = other.removesuffix(".weight").removeprefix("model.")
            yield Guess(
                f"the weight is that of {says}",
                lambda s, n=other: s.x["x"] / root(s.x["x"], s.x["eps"]) * _like(s, n),
                "norms-swapped" if "layernorm" in other and not is_last else "",
            )
    for other in first.others:
        yield Guess(
            f"what is normed is {other}",
            lambda s, n=other: _other(s, n) / root(_other(s, n), s.x["eps"]) * s.x["weight"],
        )


def _like(s: Step, name: str) -> Array:
    """Return a weight of the same kind in the step's own layer: names have a layer's number."""
    parts = name.split(".")
    if s.layer >= 0 and parts[1:2] == ["layers"]:
        own = ".".join([*parts[:2], str(s.layer), *parts[3:]])
        same = s.tensors.get(own)
        if same is not None and same is not s.x["weight"]:
            return same
    return s.tensors.get(name, np.nan * s.x["weight"])


def _other(s: Step, name: str) -> Array:
    found = s.others.get(name)
    return (
        np.full_like(s.x["x"], np.nan) if found is None or found.shape != s.x["x"].shape else found
    )


def _measured_eps(s: Step) -> float | None:
    """Return epsilon from what each row is multiplied by."""
    if not s.counts.any():
        return None
    rows = s.counts.all(axis=-1)
    xw, y = (s.x["x"] * s.x["weight"])[rows], s.out[rows]
    square = np.square(s.x["x"][rows]).mean(axis=-1)
    with np.errstate(all="ignore"):
        ratio = (y * xw).sum(axis=-1) / np.square(xw).sum(axis=-1)
        each = 1 / np.square(ratio) - square
        sure = 1 / np.square(square)
        eps = float((each * sure).sum() / sure.sum())
        noise = float(square.min()) * s.unit * 4
    if not math.isfinite(eps) or eps < -noise:
        return None
    if eps <= noise:
        return 0.0
    power = 10.0 ** round(math.log10(eps))
    return power if abs(eps - power) <= max(0.05 * power, noise) else float(f"{eps:.3g}")


# Projections


def of_linear(steps: list[Step]) -> Iterator[Guess]:
    """Yield other weights, orders of the input, roundings and inputs."""
    first = steps[0]
    w, stage = first.x["weight"], first.stage
    shape = lambda s: s.x["x"].reshape(*s.x["x"].shape[:2], -1)  # noqa: E731

    def times(s: Step, x: Array, weight: Array) -> Array | None:
        if weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
            return None
        found = x @ weight.T
        return found.reshape(s.right.shape) if found.size == s.right.size else None

    if stage == "logits":
        yield from _of_logits(first, times)
    swaps = {
        ("gate", "up_proj"): "gate-and-up-weights-swapped",
        ("up", "gate_proj"): "gate-and-up-weights-swapped",
        ("k", "v_proj"): "keys-and-values-swapped",
        ("v", "k_proj"): "keys-and-values-swapped",
    }
    for other, tensor in first.tensors.items():
        if tensor.ndim == 2 and tensor is not w and tensor.shape == w.shape:
            says = other.removesuffix(".weight").removeprefix("model.")
            short = says.split(".")[-1]
            own_layer = f"layers.{first.layer}." in f"{says}."
            name = swaps.get((stage, short), "")
            if stage == "logits":
                name = "tied-though-it-is-not"
            yield Guess(
                f"the weight is that of {short if own_layer else says}",
                lambda s, n=other, own=own_layer: times(
                    s, shape(s), _like(s, n) if own else s.tensors.get(n, np.zeros(1))
                ),
                name,
            )
    yield Guess(
        "the weight is transposed, or read as (inputs, outputs)",
        lambda s: times(s, shape(s), s.x["weight"].reshape(s.x["weight"].shape[::-1]).T),
        "weights-transposed",
    )
    if stage == "attention_output" and first.x["x"].ndim == 4:
        joins: list[tuple[str, str, Callable[..., Array]]] = [
            (
                "heads are joined in another order: transposed, (d, H) rather than (H, d)",
                "heads-joined-with-the-wrong-stride",
                lambda x: x.swapaxes(2, 3),
            ),
            ("heads are joined in reverse order", "", lambda x: x[:, :, ::-1]),
            (
                "heads are joined across tokens, in another order: (H, T, d) is read as (T, H·d)",
                "heads-joined-across-tokens",
                lambda x: x.swapaxes(1, 2),
            ),
            (
                "numbers of each head are joined in the order of pairs",
                "",
                lambda x: x[..., np.arange(x.shape[-1]).reshape(2, -1).T.ravel()],
            ),
        ]
        for says, name, f in joins:
            yield Guess(
                says,
                lambda s, f=f: times(
                    s, f(s.x["x"]).reshape(*s.x["x"].shape[:2], -1), s.x["weight"]
                ),
                name,
            )
    if stage in ("q", "k", "v"):
        yield Guess(
            "rows of the weights are those of q, k and v fused, taken apart group by group: "
            "(q..., k, v) for each key/value head",
            _fused,
        )
        yield Guess(
            "heads are cut across tokens: (T, H·d) is read as (H, T, d)",
            lambda s: s.right.reshape(
                s.right.shape[0], s.right.shape[2], s.right.shape[1], -1
            ).swapaxes(1, 2),
            "heads-cut-across-tokens",
        )
    for other, value in first.others.items():
        if other != stage and value.size == first.x["x"].size and value is not first.x["x"]:
            yield Guess(
                f"the input is {other}" + (", before the norm" if other == "hidden" else ""),
                lambda s, n=other: (
                    times(s, s.others[n].reshape(*s.x["x"].shape[:2], -1), s.x["weight"])
                    if n in s.others
                    else None
                ),
            )
    for dtype in HALVES:
        yield Guess(
            f"the weight is rounded to {dtype}",
            lambda s, t=dtype: times(s, shape(s), rounded(s.x["weight"], t)),
            "weights-rounded-to-bfloat16" if dtype == "bfloat16" else "",
        )
        yield Guess(
            f"the input is rounded to {dtype}",
            lambda s, t=dtype: times(s, rounded(shape(s), t), s.x["weight"]),
        )
    for bits in (8, 4):
        for axis, what in ((1, "row"), (None, "matrix")):
            yield Guess(
                f"the weight is rounded to {bits} bits, int{bits}, with a scale for each {what}",
                lambda s, b=bits, a=axis: times(s, shape(s), _integers(s.x["weight"], b, a)),
            )
    columns = w.shape[1]
    most = 2 if first.out is first.right else 33
    lost = [n for n in range(1, most) if n < columns]
    for n in lost:
        plural = "s" * (n > 1)
        yield Guess(
            f"the last {n} input{plural} of the sum {'are' if n > 1 else 'is'} left out",
            lambda s, n=n: times(s, shape(s)[..., :-n], s.x["weight"][:, :-n]),
        )
    yield Guess(
        "the first input of the sum is left out",
        lambda s: times(s, shape(s)[..., 1:], s.x["weight"][:, 1:]),
    )


def _of_logits(first: Step, times: Callable[..., Array | None]) -> Iterator[Guess]:
    def log_softmax(x: Array) -> Array:
        x = x - x.max(axis=-1, keepdims=True)
        return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))

    yield Guess("they are a log_softmax of the logits", lambda s: log_softmax(s.right))
    yield Guess(
        "they are probabilities: a softmax of the logits", lambda s: np.exp(log_softmax(s.right))
    )
    hidden = "they are those of the hidden state before the norm"
    yield Guess(
        hidden,
        lambda s: times(s, s.others["hidden"], s.x["weight"]) if "hidden" in s.others else None,
        "final-norm-missing",
    )
    for n in (1, -1):
        says = "next" if n < 0 else "one before"
        yield Guess(
            f"columns are shifted: each id has the logit of the {says}",
            lambda s, n=n: np.roll(s.right, n, axis=-1),
        )


def _integers(w: Array, bits: int, axis: int | None) -> Array:
    most = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axis=axis, keepdims=True) / most
    return np.asarray(np.round(w / np.where(scale == 0, 1, scale)) * scale)


def _fused(s: Step) -> Array | None:
    if s.layer < 0:
        return None
    p = f"model.layers.{s.layer}.self_attn."
    q, k, v = (s.tensors[f"{p}{n}_proj.weight"] for n in "qkv")
    d = s.right.shape[-1]
    K = len(k) // d
    G = len(q) // len(k)
    whole = np.concatenate([q, k, v]).reshape(K, G + 2, d, -1)
    rows = {"q": whole[:, :G], "k": whole[:, G], "v": whole[:, G + 1]}[s.stage]
    return np.asarray((s.x["x"] @ rows.reshape(-1, q.shape[1]).T).reshape(s.right.shape))


# Activations


def _gelu(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def of_silu(steps: list[Step]) -> Iterator[Guess]:
    """Yield other activations, and gate and up exchanged."""
    table: list[tuple[str, str, Callable[..., Array]]] = [
        ("the activation is GELU, not SiLU", "exact-gelu-for-silu", lambda g, u: _gelu(g) * u),
        (
            "the activation is the tanh approximation of GELU, not SiLU",
            "gelu-for-silu",
            lambda g, u: _gelu_tanh(g) * u,
        ),
        (
            "the activation is x · sigmoid(1.702 x), an approximation of GELU",
            "",
            lambda g, u: g * sig(1.702 * g) * u,
        ),
        ("the activation is ReLU, not SiLU", "relu-for-silu", lambda g, u: np.maximum(g, 0) * u),
        (
            "gate and up are exchanged: silu(up) · gate",
            "gate-and-up-swapped",
            lambda g, u: u * sig(u) * g,
        ),
        ("up is missing: silu(gate) alone", "up-forgotten", lambda g, u: g * sig(g)),
        ("there is no activation: gate · up", "silu-forgotten", lambda g, u: g * u),
        ("the gate is missing: up alone", "", lambda g, u: u),
        ("the activation is the sigmoid, not SiLU", "sigmoid-for-silu", lambda g, u: sig(g) * u),
        ("up is added, not multiplied: silu(gate) + up", "", lambda g, u: g * sig(g) + u),
        ("the activation is of the product: silu(gate · up)", "", lambda g, u: g * u * sig(g * u)),
        ("both are activated: silu(gate) · silu(up)", "", lambda g, u: g * sig(g) * u * sig(u)),
        ("the activation is tanh, not SiLU", "", lambda g, u: np.tanh(g) * u),
        ("the activation is squared ReLU", "", lambda g, u: np.maximum(g, 0) ** 2 * u),
        ("the activation is softplus", "", lambda g, u: np.logaddexp(0, g) * u),
        ("the activation is Mish", "", lambda g, u: g * np.tanh(np.logaddexp(0, g)) * u),
        ("the activation is ELU", "", lambda g, u: np.where(g > 0, g, np.expm1(g)) * u),
        (
            "the activation is a leaky ReLU of 0.01",
            "",
            lambda g, u: np.where(g > 0, g, 0.01 * g) * u,
        ),
        ("the activation is the hard swish", "", lambda g, u: g * np.clip(g / 6 + 0.5, 0, 1) * u),
        ("SiLU is negated inside: gate · sigmoid(-gate) · up", "", lambda g, u: g * sig(-g) * u),
    ]
    for says, name, f in table:
        yield Guess(says, lambda s, f=f: f(s.x["gate"], s.x["up"]), name)
    for dtype in HALVES:
        yield Guess(
            f"silu is rounded to {dtype} before its product with up",
            lambda s, t=dtype: rounded(s.x["gate"] * sig(s.x["gate"]), t) * s.x["up"],
            "silu-rounded-before-up",
        )
    if steps[0].out is steps[0].right:
        return
    g, u, out = (
        np.where(steps[0].counts, x, 0.0)
        for x in (steps[0].x["gate"], steps[0].x["up"], steps[0].out)
    )

    def error(b: float) -> float:
        return float(np.square(g * sig(b * g) * u - out).sum())

    beta = refined(error, np.geomspace(0.05, 20, 60))
    yield Guess(
        f"the activation is x · sigmoid({number(beta)} x)",
        lambda s: s.x["gate"] * sig(beta * s.x["gate"]) * s.x["up"],
    )

    def cut(c: float, upper: bool) -> Callable[..., Array]:
        return lambda g, u: (
            (np.minimum(g * sig(g), c) if upper else np.clip(g, -c, c) * sig(np.clip(g, -c, c))) * u
        )

    for upper, what in ((True, "the activation is capped at"), (False, "the gate is clipped at")):
        grid = np.geomspace(0.05, 50, 60)
        c = refined(lambda c, k=upper: float(np.square(cut(c, k)(g, u) - out).sum()), grid)
        f = cut(c, upper)
        yield Guess(f"{what} {number(c)}", lambda s, f=f: f(s.x["gate"], s.x["up"]))


# RoPE


def of_rope(steps: list[Step]) -> Iterator[Guess]:
    """Yield pairs, directions, positions and frequencies; the last ones are measured."""
    positions = _positions()
    right = lambda p, s: angles(p, s.x["theta"], s.x["x"].shape[-1])  # noqa: E731

    def by(
        f: Callable[..., Array],
        neighbours: bool = False,
        at: Callable[..., Array] = right,
    ) -> Callable[..., Array]:
        return lambda s: turned(s.x["x"], at(f(s), s), neighbours)

    own = lambda s: s.x["positions"]  # noqa: E731
    alone = "nothing-turned" if steps[0].kind == "" else ""
    yield Guess("it is not rotated", lambda s: s.x["x"], alone)
    yield Guess(
        "neighbours (2m, 2m + 1) are rotated, not the pairs (m, m + d/2)",
        by(own, True),
        "rope-interleaved",
    )
    yield Guess("it is rotated the other way", by(lambda s: -own(s)), "rope-backwards")
    for says, name, f in positions:
        yield Guess(says, by(f), name)
    yield Guess(
        "the exponent is -m/d, without the factor 2",
        by(own, False, lambda p, s: angles(p, s.x["theta"] ** 0.5, s.x["x"].shape[-1])),
        "rope-exponent-halved",
    )
    for n in (1, -1):
        yield Guess(
            f"the exponent is of pair m {'+' if n > 0 else '-'} 1: all frequencies are one too "
            f"{'slow' if n > 0 else 'fast'}",
            by(
                own,
                False,
                lambda p, s, n=n: right(p, s) * s.x["theta"] ** (-2 * n / s.x["x"].shape[-1]),
            ),
        )
    first = steps[0]
    d = first.x["x"].shape[-1]
    for theta, name in ((1e4, "rope-theta-ignored"), (1e6, "theta-of-v0.2")):
        yield _of_theta(theta, False, own, name)
    for neighbours in () if first.out is first.right else (False, True):
        yield _of_theta(_measured_theta(first, neighbours), neighbours, own, "")
    for pairs in (d // 4, *(n for n in range(1, d // 2) if n != d // 4)):
        part = f"{2 * pairs} of the {d} numbers of a head (m < {pairs})"
        if pairs == d // 4:
            part = "half of the numbers of a head"
        keep: Callable[..., int] = lambda s, n=pairs: n  # noqa: E731
        if pairs == d // 4:
            keep = lambda s: s.x["x"].shape[-1] // 4  # noqa: E731
        yield Guess(
            f"only the first part is rotated: {part}",
            lambda s, k=keep: turned(
                s.x["x"], right(own(s), s) * (np.arange(s.x["x"].shape[-1] // 2) < k(s))
            ),
        )
        yield Guess(
            f"only the first part is rotated, with frequencies of its own: {part}",
            lambda s, k=keep: _partial(s, 2 * k(s)),
        )
    before, after = (np.where(first.counts, a, 0.0) for a in (first.x["x"], first.out))
    factor = float(np.linalg.norm(after)) / max(float(np.linalg.norm(before)), 1e-300)
    yield Guess(
        f"it is rotated and stretched by {number(factor)}",
        lambda s: factor * s.right,
        "rope-stretched",
    )
    for dtype in ("float32", *HALVES):
        r = lambda x, t=dtype: rounded(x, t)  # noqa: E731
        yield Guess(
            f"angles are in {dtype}",
            lambda s, r=r: turned(s.x["x"], r(right(own(s), s))),
            "rope-angles-in-float32" if dtype == "float32" else "",
        )
        yield Guess(
            f"frequencies are in {dtype}",
            lambda s, r=r: turned(
                s.x["x"],
                own(s)[..., None, None]
                * r(angles(np.ones((1, 1)), s.x["theta"], s.x["x"].shape[-1])),
            ),
        )
        yield Guess(
            f"positions are in {dtype}",
            lambda s, r=r: turned(s.x["x"], right(r(own(s).astype(np.float64)), s)),
            "rope-positions-in-float32" if dtype == "float32" else "",
        )
        yield Guess(
            f"positions, frequencies and angles are in {dtype}",
            lambda s, r=r: turned(
                s.x["x"],
                r(
                    r(own(s).astype(np.float64))[..., None, None]
                    * r(angles(np.ones((1, 1)), s.x["theta"], s.x["x"].shape[-1]))
                ),
            ),
            "rope-angles-in-float32" if dtype == "float32" else "",
        )
        yield Guess(
            f"cosines and sines are rounded to {dtype}",
            lambda s, r=r: _with(s, r(np.cos(right(own(s), s))), r(np.sin(right(own(s), s)))),
            "rope-in-16-bits" if dtype != "float32" else "",
        )
    yield Guess("the numbers are rotated as pairs and moved to halves", lambda s: _moved(s, True))
    yield Guess("the numbers are rotated as halves and moved to pairs", lambda s: _moved(s, False))
    if first.out is first.right:
        return
    yield from _by_head(first)
    for neighbours in (True, False):
        for says, _, f in [("it is rotated the other way", "", lambda s: -own(s)), *positions]:
            two = "neighbours (2m, 2m + 1) are rotated; " if neighbours else ""
            if neighbours:
                yield Guess(two + says, by(f, True))
            theta = _measured_theta(first, neighbours, f)
            yield Guess(
                f"{two}{says}; theta is {number(theta)}",
                by(f, neighbours, lambda p, s, t=theta: angles(p, t, s.x["x"].shape[-1])),
            )


def _of_theta(theta: float, neighbours: bool, f: Callable[..., Array], name: str) -> Guess:
    pairs = "; neighbours (2m, 2m + 1) are rotated" if neighbours else ""
    return Guess(
        f"angles are those of theta {number(theta)}{pairs}",
        lambda s: turned(s.x["x"], angles(f(s), theta, s.x["x"].shape[-1]), neighbours),
        name,
    )


def _positions() -> list[tuple[str, str, Callable[..., Array]]]:
    """Return what positions may be taken for, and how to say it."""

    def call_columns(s: Step) -> Array:
        return np.broadcast_to(np.arange(s.out.shape[1]), s.x["positions"].shape)

    def columns(s: Step) -> Array:
        return call_columns(s) + (s.x.get("columns") or 0)

    def p(s: Step) -> Array:
        return np.asarray(s.x["positions"])

    table: list[tuple[str, str, Callable[..., Array]]] = [
        ("it is rotated twice: by 2 times its angle", "", lambda s: 2 * p(s)),
        ("positions are 1 larger than they should be", "rope-counts-from-1", lambda s: p(s) + 1),
        ("positions are 1 smaller than they should be", "", lambda s: p(s) - 1),
        (
            "positions are 1 smaller than they should be, from 1 on",
            "decoding-one-behind",
            lambda s: p(s) - (p(s) > 0),
        ),
        ("positions begin at 0 in each call", "rope-begins-anew", call_columns),
        ("positions are those of columns: padding counts", "positions-of-columns", columns),
        ("positions begin at 0, whatever is given", "", lambda s: p(s) - _first(s)),
        (
            "positions are those of slots, modulo the window",
            "rope-by-slot",
            lambda s: p(s) % (s.x.get("window") or 10**9),
        ),
        (
            "positions are limited to the window",
            "",
            lambda s: np.minimum(p(s), (s.x.get("window") or 10**9) - 1),
        ),
        (
            "all rows have the positions of the first",
            "rope-of-the-first-row",
            lambda s: np.broadcast_to(p(s)[:1], p(s).shape),
        ),
        (
            "all positions are the same in a call",
            "",
            lambda s: np.broadcast_to(p(s)[:, :1], p(s).shape),
        ),
        ("positions count down within a call", "", lambda s: p(s)[:, ::-1]),
    ]
    for n in (2, 3, 4, -2):
        says = f"positions are {abs(n)} {'larger' if n > 0 else 'smaller'} than they should be"
        table += [
            (says, "", lambda s, n=n: p(s) + n),
            (f"positions begin at {n} in each call", "", lambda s, n=n: call_columns(s) + n),
        ]
    for m in (2, 4, 8, 16, 1 / 3, 1 / 4):
        says = f"positions are divided by {m}, times {1 / m:g}"
        table += [
            (says if m > 1 else f"positions are times {1 / m:g}", "", lambda s, m=m: p(s) / m)
        ]
    for n in (8, 16, 32):
        says = f"positions are those of slots, modulo {n}"
        table += [(says, "rope-by-slot", lambda s, n=n: p(s) % n)]
    for n in (1, -1, -2):
        says = f"positions are those of slots, modulo W {'+' if n > 0 else '-'} {abs(n)}"
        window = lambda s, n=n: max(1, (s.x.get("window") or 10**9) + n)  # noqa: E731
        table += [(says, "rope-by-slot", lambda s, w=window: p(s) % w(s))]
    return table


def _first(s: Step) -> Array:
    whole = s.x.get("all", s.x["positions"])
    return np.where(whole < 0, whole.max(), whole).min(axis=1, keepdims=True)


def _measured_theta(
    s: Step, neighbours: bool, f: Callable[..., Array] = lambda s: s.x["positions"]
) -> float:
    """Return theta from the angle of each pair, out over in."""
    d = s.x["x"].shape[-1]
    cut = (slice(0, d, 2), slice(1, d, 2)) if neighbours else (slice(0, d // 2), slice(d // 2, d))
    before, after = (a[..., cut[0]] + 1j * a[..., cut[1]] for a in (s.x["x"], s.out))
    z = np.where(s.counts[..., cut[0]], after * before.conj(), 0).sum(axis=2)  # (B, T, d/2)
    p = f(s).astype(np.float64)[..., None]
    m = np.arange(d // 2, dtype=np.float64)

    def error(theta: float) -> float:
        return float((np.abs(z) - (z * np.exp(-1j * p * theta ** (-2 * m / d))).real).sum())

    return refined(error, np.geomspace(1.0, 1e9, 240))


def _partial(s: Step, width: int) -> Array:
    x = np.array(s.x["x"])
    if width:
        angle = angles(s.x["positions"], s.x["theta"], width)
        x[..., :width] = turned(x[..., :width], angle)
    return x


def _with(s: Step, cos: Array, sin: Array) -> Array:
    one, two = np.split(s.x["x"], 2, axis=-1)
    return np.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)


def _moved(s: Step, to_halves: bool) -> Array:
    d = s.x["x"].shape[-1]
    angle = angles(s.x["positions"], s.x["theta"], d)
    order = (
        np.arange(d).reshape(-1, 2).T.ravel()
        if to_halves
        else np.arange(d).reshape(2, -1).T.ravel()
    )
    return turned(s.x["x"], angle, to_halves)[..., order]


def _by_head(first: Step) -> Iterator[Guess]:
    """Yield that some heads are rotated and others are not."""
    same = np.abs(np.where(first.counts, first.out - first.x["x"], 0)).max(axis=(0, 1, 3))
    right = np.abs(np.where(first.counts, first.out - first.right, 0)).max(axis=(0, 1, 3))
    not_ = np.flatnonzero((same <= first.limit) & (right > first.limit))
    if not 0 < len(not_) < len(same):
        return
    heads = ", ".join(map(str, not_[:8]))

    def make(s: Step) -> Array:
        close = np.abs(s.out - s.x["x"]).max(axis=(0, 1, 3), keepdims=True) <= s.limit
        return np.where(close, s.x["x"], s.right)

    yield Guess(f"heads {heads} are not rotated (of {len(same)} heads)", make)
