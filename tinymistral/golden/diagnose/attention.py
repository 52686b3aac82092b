"""Guesses of attention weights, with the mask as it is, and of the mix of values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from tinymistral.golden.diagnose.guess import HALVES, Guess, is_known, number, refined, rounded, sig
from tinymistral.golden.diagnose.masks import RULES, by_rule, distance, oldest
from tinymistral.golden.diagnose.steps import (
    Array,
    Step,
    angles,
    mask_of,
    mixed,
    scores_of,
    softmax,
    turned,
)

Weigh = Callable[..., Array]  # of a step and its mask (B, H or 1, T, S)

# Which key/value head each of H query heads reads.
HEADS: dict[str, Callable[[int, int], Array]] = {
    "tiled-heads | query head h reads key/value head h % K, not h // (H/K)": lambda H, K: (
        np.arange(H) % K
    ),
    "query heads read key/value heads in reverse order: K - 1 - h // (H/K)": lambda H, K: (
        K - 1 - np.arange(H) // (H // K)
    ),
    "one-head-for-all | all query heads read key/value head 0": lambda H, K: np.arange(H) * 0,
    "query heads read the next key/value head, (h // (H/K) + 1) % K": lambda H, K: (
        (np.arange(H) // (H // K) + 1) % K
    ),
    "query heads read the key/value head of the next query head": lambda H, K: (
        (np.arange(H) + 1) % H // (H // K)
    ),
    "all query heads read the last key/value head": lambda H, K: np.arange(H) * 0 + K - 1,
}
# The scale, from d, H and the hidden size D.
SCALES: dict[str, Callable[[int, int, int], float]] = {
    "scores-scaled-twice | the scale is 1/d, not 1/sqrt(d)": lambda d, H, D: 1 / d,
    "scores-not-scaled | the scale is 1: scores are not scaled": lambda d, H, D: 1.0,
    "the scale is 1/sqrt(d/2)": lambda d, H, D: (d / 2) ** -0.5,
    "scores-scaled-by-the-model-width | the scale is 1/sqrt(H·d), of the width of all heads": (
        lambda d, H, D: (H * d) ** -0.5
    ),
    "the scale is 1/sqrt(D), of the hidden size": lambda d, H, D: D**-0.5,
    "the scale is d^-0.25": lambda d, H, D: d**-0.25,
    "the scale is sqrt(d)": lambda d, H, D: d**0.5,
    "the scale has a factor ln(2): 2^x for e^x": lambda d, H, D: d**-0.5 * float(np.log(2)),
    "the scale has a factor log2(e) = 1.4427": lambda d, H, D: d**-0.5 / float(np.log(2)),
    "the scale is negative": lambda d, H, D: -(d**-0.5),
}
# Other queries and keys.
INPUTS: dict[str, Callable[[Step], dict[str, Array]]] = {
    "keys-not-turned | keys are not rotated": lambda s: {"k": s.x["plain_k"]},
    "queries are not rotated": lambda s: {"q": s.x["plain_q"]},
    "nothing-turned | neither queries nor keys are rotated": lambda s: {
        "q": s.x["plain_q"],
        "k": s.x["plain_k"],
    },
    "keys are rotated twice, by their own position": lambda s: {"k": _again(s, "k")},
    "keys of earlier calls are rotated twice": lambda s: {
        "k": np.where(_old(s), _again(s, "k"), s.x["k"])
    },
    "keys of earlier calls are not rotated": lambda s: {
        "k": np.where(_old(s), s.x["plain_k"], s.x["k"])
    },
    "keys are values": lambda s: {"k": s.x["v"]},
    "queries and keys are divided by their length first": lambda s: {
        n: _per_length(s.x[n], 1) for n in "qk"
    },
    "queries and keys are normed first, as by RMSNorm": lambda s: {
        n: _per_length(s.x[n], s.x[n].shape[-1] ** 0.5) for n in "qk"
    },
    "scores are cosines of queries and keys, not scaled": lambda s: {
        n: _per_length(s.x[n], s.x[n].shape[-1] ** 0.25) for n in "qk"
    },
    "the last number of each head is left out of q · k": lambda s: {
        "q": s.x["q"] * (np.arange(s.x["q"].shape[-1]) < s.x["q"].shape[-1] - 1)
    },
    "keys of earlier calls are 0": lambda s: {"k": np.where(_old(s), 0.0, s.x["k"])},
}
# Other softmaxes, of scaled scores z and a mask m.
SOFTMAXES: dict[str, Callable[..., Array]] = {
    "1 is added to the sum of the softmax, relative to e^0": lambda z, m: _with(_exps(z, m, 0)),
    "1 is added to the sum of the softmax, after the largest score is subtracted": lambda z, m: (
        _with(_exps(z, m, _largest(z, m)))
    ),
    "softmax-not-divided | weights are not divided by their sum": lambda z, m: _exps(
        z, m, _largest(z, m)
    ),
    "weights are not divided by their sum, nor is the largest score subtracted": lambda z, m: _exps(
        z, m, 0
    ),
    "weights are sigmoids of the scores, not a softmax": lambda z, m: sig(z) * m,
    "weights are ReLUs of the scores, not a softmax": lambda z, m: np.maximum(z, 0) * m,
    "softmax-over-queries | the softmax is over queries, not over keys": lambda z, m: _along(
        2, z, m
    ),
    "the softmax is over heads, not over keys": lambda z, m: _along(1, z, m),
    "the softmax is taken twice": lambda z, m: softmax(softmax(z, m), m),
    "all visible keys have the same weight": lambda z, m: softmax(0 * z, m),
    "masked-after-the-softmax | keys are masked after the softmax: weights do not sum to 1": (
        lambda z, m: softmax(z, np.ones_like(z, dtype=bool)) * m
    ),
}
for _dtype in HALVES:
    SOFTMAXES |= {
        f"scores are rounded to {_dtype}": lambda z, m, t=_dtype: softmax(rounded(z, t), m),
        f"softmax-in-16-bits | the softmax is computed in {_dtype}": lambda z, m, t=_dtype: rounded(
            softmax(rounded(z, t), m), t
        ),
    }
# With a parameter c, of scaled scores, the mask and the distance of keys; and the grid to begin
# with, in units of the largest score, or 1.
FITTED: dict[str, tuple[Callable[..., Array], Array]] = {
    "the scale is {} times 1/sqrt(d)": (
        lambda z, m, n, c: softmax(z * c, m),
        np.geomspace(0.01, 30, 60),
    ),
    "scores are capped softly at {}: c · tanh(x / c)": (
        lambda z, m, n, c: softmax(c * np.tanh(z / c), m),
        np.geomspace(0.02, 30, 60),
    ),
    "scores are clipped at {}": (
        lambda z, m, n, c: softmax(np.clip(z, -c, c), m),
        np.geomspace(0.02, 1, 40),
    ),
    "{} is added to the sum of the softmax, after the largest score is subtracted": (
        lambda z, m, n, c: _with(_exps(z, m, _largest(z, m)), c),
        np.geomspace(1e-4, 30, 40),
    ),
    "a bias of the distance is added to the scores, {} for each token": (
        lambda z, m, n, c: softmax(z + c * n, m),
        np.linspace(-2, 2, 81),
    ),
}
# Other values.
VALUES: dict[str, Callable[[Step], Array]] = {
    "values-turned | values are rotated like keys": lambda s: _again(s, "v"),
    "values-turned | values are rotated, as neighbours (2m, 2m + 1)": lambda s: _again(
        s, "v", True
    ),
    "values of earlier calls are 0": lambda s: np.where(_old(s), 0.0, s.x["v"]),
    "values are keys": lambda s: s.x["k"],
    "values are keys before their rotation": lambda s: s.x["plain_k"],
    "values are those of the token before": lambda s: np.roll(s.x["v"], 1, axis=1),
}


def _largest(z: Array, mask: Array) -> Array:
    found = np.where(mask, z, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
    return np.where(np.isfinite(found), found, 0)


def _exps(z: Array, mask: Array, less: Array | float) -> Array:
    with np.errstate(all="ignore"):
        return np.exp(np.where(mask, z, -np.inf) - less)


def _with(exps: Array, more: float = 1) -> Array:
    return np.asarray(exps / (more + exps.sum(axis=-1, keepdims=True)))


def _along(axis: int, z: Array, mask: Array) -> Array:
    mask = np.broadcast_to(mask, z.shape)
    return softmax(z.swapaxes(axis, 3), mask.swapaxes(axis, 3)).swapaxes(axis, 3)


def _per_length(x: Array, length: float) -> Array:
    size = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(x / np.where(size == 0, 1, size) * length)


def scaled(s: Step) -> Array:
    """Return the scores (B, H, T, S), scaled as they should be."""
    return scores_of(s.x) * float(s.x["q"].shape[-1] ** -0.5)


def seen(s: Step) -> Array:
    """Return the mask of a step as it is (B, H or 1, T, S)."""
    mask = mask_of(s.x)
    return mask if mask.ndim == 4 else mask[:, None]


def _old(s: Step) -> Array:
    """Return which keys are of earlier calls (B, S, 1, 1)."""
    return (s.x["k_positions"] < oldest(s)[:, 0])[..., None, None]


def _again(s: Step, name: str, neighbours: bool = False) -> Array:
    x = s.x[name]
    return turned(x, angles(s.x["k_positions"], s.x.get("theta", 1e4), x.shape[-1]), neighbours)


def _read(f: Callable[[int, int], Array], s: Step) -> Array:
    return f(s.x["q"].shape[2], s.x["k"].shape[2])


def weighers(first: Step) -> Iterator[tuple[str, Weigh]]:
    """Yield ways to make weights: the heads, scales, sums; measured where there are weights."""
    for says, of_heads in HEADS.items():
        yield (
            says,
            lambda s, m, f=of_heads: softmax(
                scores_of(s.x, _read(f, s)) * s.x["q"].shape[-1] ** -0.5, m
            ),
        )
    for says, scale in SCALES.items():
        yield (
            says,
            lambda s, m, f=scale: softmax(
                scores_of(s.x) * f(s.x["q"].shape[-1], s.x["q"].shape[2], s.x.get("width", 1)), m
            ),
        )
    for says, other in INPUTS.items() if "plain_k" in first.x else ():
        yield says, lambda s, m, f=other: softmax(scaled(replace(s, x={**s.x, **f(s)})), m)
    for says, soft in SOFTMAXES.items():
        yield says, lambda s, m, f=soft: f(scaled(s), m)
    yield (
        "a bias of the distance is added to the scores, as ALiBi does",
        lambda s, m: softmax(scaled(s) - _slopes(s) * distance(s), m),
    )
    if is_known(first):
        yield from _fitted(first)


def _slopes(s: Step) -> Array:
    H = s.x["q"].shape[2]
    return (2.0 ** (-8 * (np.arange(H) + 1) / H))[:, None, None]


def _fitted(first: Step) -> Iterator[tuple[str, Weigh]]:
    """Yield a scale, a cap, slopes and heads that are measured in the first step."""
    z, n, mask = scaled(first), distance(first), seen(first)
    H, K = first.x["q"].shape[2], first.x["k"].shape[2]

    def errors(weights: Array, heads: Array | None = None) -> Array:
        found = weights if first.kind == "weights" else mixed(weights, first.x["v"], heads)
        with np.errstate(invalid="ignore"):
            far = np.square(np.where(first.counts, found - first.out, 0))
        axes = (0, 2, 3) if first.kind == "weights" else (0, 1, 3)
        return np.asarray(np.nansum(far, axis=axes))

    most = max(float(np.abs(np.where(np.isfinite(z), z, 0)).max(initial=0)), 1e-3)
    for says, (f, grid) in FITTED.items():
        c = refined(
            lambda c, f=f: float(errors(f(z, mask, n, c)).sum()),
            grid * (most if says.startswith("scores") else 1),
        )
        yield (
            says.format(number(c)),
            lambda s, m, f=f, c=c: f(scaled(s), m, distance(s), c),
        )
    if first.kind == "weights":
        by_head = [
            refined(
                lambda c, h=h: float(errors(softmax(z * c, mask))[h]), np.geomspace(0.01, 30, 60)
            )
            for h in range(H)
        ]
        yield (
            f"the scale differs by head: {', '.join(map(number, by_head))} times 1/sqrt(d)",
            lambda s, m: softmax(scaled(s) * np.array(by_head)[:, None, None], m),
        )
    if K == 1:
        return
    every = [np.full(H, k) for k in range(K)]
    scale = first.x["q"].shape[-1] ** -0.5
    far = [errors(softmax(scores_of(first.x, heads) * scale, mask), heads) for heads in every]
    order = np.argmin(far, axis=0)
    yield (
        f"query heads 0 to {H - 1} read key/value heads {', '.join(map(str, order))}",
        lambda s, m: softmax(scores_of(s.x, order) * s.x["q"].shape[-1] ** -0.5, m),
    )


def weights_guesses(steps: Sequence[Step]) -> Iterator[Guess]:
    """Yield ways to make weights of the mask as it is."""
    for says, weigh in weighers(steps[0]):
        yield Guess(says, lambda s, f=weigh: f(s, seen(s)))


# The mix


def mixed_by(text: str, s: Step, weights: Array) -> Array:
    """Mix values with weights; what is said of heads is true of values too."""
    f = HEADS.get(text)
    return mixed(weights, s.x["v"], None if f is None else _read(f, s))


def _weights(s: Step) -> Array:
    found = s.x.get("weights")
    return softmax(scaled(s), seen(s)) if found is None else found


def mix_guesses(steps: Sequence[Step]) -> Iterator[Guess]:
    """Yield wrong values; and wrong masks and weights, which a fused kernel does not show."""
    first = steps[0]
    for text in HEADS:
        yield Guess(text, lambda s, text=text: mixed_by(text, s, _weights(s)))
    H, K = first.right.shape[2], first.x["v"].shape[2]
    if K > 1 and is_known(first):
        each = [mixed(_weights(first), first.x["v"], np.full(H, n)) for n in range(K)]
        with np.errstate(invalid="ignore"):
            far = [np.nansum(np.square(x - first.out), axis=(0, 1, 3)) for x in each]
        order = np.argmin(far, axis=0)
        yield Guess(
            f"query heads 0 to {H - 1} mix values of heads {', '.join(map(str, order))}",
            lambda s: mixed(_weights(s), s.x["v"], order),
        )
    for says, change in VALUES.items():
        yield Guess(says, lambda s, f=change: mixed(_weights(s), f(s)))
    if is_known(first):
        for text, rule in RULES.items():
            yield Guess(text, lambda s, f=rule: mixed(softmax(scaled(s), by_rule(f, s)), s.x["v"]))
        for text, weigh in weighers(first):
            yield Guess(text, lambda s, f=weigh, text=text: mixed_by(text, s, f(s, seen(s))))
