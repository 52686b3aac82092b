"""What a wrong step of attention may have done: its mask, its weights, its mix of values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tinymistral.golden.diagnose.guesses import HALVES, Guess, number, refined, rounded, sig
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

FAR = 2**62


def _places(s: Step) -> tuple[Array, Array, int]:
    window = s.x["window"]
    return s.x["q_positions"][:, :, None], s.x["k_positions"][:, None, :], window or FAR


def _rule(f: Callable[..., Array]) -> Callable[..., Array]:
    """Return a mask (B, 1, T, S) by positions i, j and the window; nothing at padding."""

    def make(s: Step) -> Array:
        i, j, W = _places(s)
        mask = np.broadcast_to(f(i, j, W, s), (len(i), i.shape[1], j.shape[2]))
        return (mask & (i >= 0) & (j >= 0))[:, None]

    return make


def masks() -> Iterator[tuple[str, str, Callable[..., Array]]]:
    """Yield masks: what to say, the name in the catalogue, and the mask."""

    def newest(s: Step) -> Array:
        return np.asarray(s.x["q_positions"].max(axis=1)[:, None, None])

    def oldest(s: Step) -> Array:
        i = s.x["q_positions"]
        return np.where(i < 0, FAR, i).min(axis=1)[:, None, None]

    def single(s: Step) -> bool:
        return bool(s.x["q_positions"].shape[1] == 1)

    def sees(says: str, n: Callable[[int], int], name: str = "") -> Any:
        return says, name, _rule(lambda i, j, W, s: (j <= i) & (i - j < (n(W) if W < FAR else W)))

    yield (
        "the window is ignored: there is no window, and a query sees all earlier keys",
        "no-window-and-no-ring",
        _rule(lambda i, j, W, s: j <= i),
    )
    yield sees("a query sees one key too many, W + 1", lambda W: W + 1, "inclusive-window")
    yield sees("a query sees one key too few, W - 1", lambda W: W - 1, "short-window")
    yield sees("a query sees W / 2 keys", lambda W: max(1, W // 2))
    yield sees("a query sees 2 W keys", lambda W: 2 * W)
    yield sees("a query sees W - 2 keys", lambda W: W - 2)
    for n in (*range(1, 17), 32, 64, 128, 256, 512, 1024, 4096):
        yield (
            f"a query sees {n} key{'s' * (n > 1)}, whatever the window is",
            "window-by-default" if n == 4096 else "",
            _rule(lambda i, j, W, s, n=n: (j <= i) & (i - j < n)),
        )
    yield (
        "keys after the query are visible, within the window: there is no causal mask",
        "future-seen",
        _rule(lambda i, j, W, s: i - j < W),
    )
    yield (
        "keys of the future are visible on both sides of the query, |i - j| < W",
        "future-seen",
        _rule(lambda i, j, W, s: np.where(W < FAR, abs(i - j) < W, j <= i)),
    )
    yield (
        "all keys are visible, also later ones: there is neither a causal mask nor a window",
        "future-seen",
        _rule(lambda i, j, W, s: i == i),
    )
    yield (
        "the next token is visible too, j <= i + 1",
        "next-token-seen",
        _rule(lambda i, j, W, s: (j <= i + 1) & (i - j < W)),
    )
    yield (
        "a query's own key is not visible",
        "blind-to-itself",
        _rule(lambda i, j, W, s: (j < i) & (i - j < W)),
    )
    yield (
        "a single token sees all earlier keys, without a window",
        "window-forgotten-when-decoding",
        _rule(lambda i, j, W, s: (j <= i) & (single(s) | (i - j < W))),
    )
    yield (
        "several tokens at once see all earlier keys, without a window; a single one does not",
        "window-forgotten-in-prompts",
        _rule(lambda i, j, W, s: (j <= i) & ((not single(s)) | (i - j < W))),
    )
    yield (
        "several tokens at once see W + 1 keys; a single one does not",
        "inclusive-window-of-prompts",
        _rule(lambda i, j, W, s: (j <= i) & (i - j < W + (not single(s)))),
    )
    for n in (1, 4):
        yield (
            f"the first {n} position{'s' * (n > 1)} of the text stay visible, as a sink",
            "",
            _rule(lambda i, j, W, s, n=n: (j <= i) & ((i - j < W) | (j < n))),
        )
    yield (
        "a query sees only its own block of W keys, i // W == j // W",
        "",
        _rule(lambda i, j, W, s: (j <= i) & (i // W == j // W)),
    )
    yield (
        "only keys of this call are visible",
        "cache-forgotten",
        _rule(lambda i, j, W, s: (j <= i) & (i - j < W) & (j >= oldest(s))),
    )
    yield (
        "in the first call keys after the query are visible: it has no causal mask",
        "",
        _rule(lambda i, j, W, s: ((j <= i) & (i - j < W)) | (s.x.get("call") == 0)),
    )
    yield (
        "in the first call keys after the query are visible within the window: no causal mask",
        "",
        _rule(lambda i, j, W, s: ((j <= i) | (s.x.get("call") == 0)) & (i - j < W)),
    )
    yield (
        "in later calls keys after the query are visible: they have no causal mask",
        "no-mask-in-later-calls",
        _rule(lambda i, j, W, s: ((j <= i) | bool(s.x.get("call"))) & (i - j < W)),
    )
    yield (
        "all queries of a call have the window of its last one, as if all of it was written to a "
        "cache of W slots first",
        "window-of-the-piece",
        _rule(lambda i, j, W, s: (j <= i) & (newest(s) - j < W)),
    )
    for n in (-1, -2, 1, 2, -3):
        slots = f"W {'+' if n > 0 else '-'} {abs(n)}"
        yield (
            f"older keys are gone before they are attended to: the cache has {slots} slots, "
            "and all of a call is written first",
            "ring-too-small",
            _rule(lambda i, j, W, s, n=n: (j <= i) & (i - j < W) & (newest(s) - j < max(1, W + n))),
        )
    yield (
        "the window is counted in columns or slots, not in positions",
        "window-by-slot",
        lambda s: _by_column(s, True),
    )
    yield (
        "the future is masked by columns or slots, not by positions",
        "causal-by-slot",
        lambda s: _by_column(s, False),
    )
    yield (
        "query t of a later call sees the first t + 1 keys of all",
        "causal-from-the-first-key",
        _rule(_from_the_first),
    )
    yield (
        "positions are compared as float32 numbers",
        "positions-in-float32-compared",
        _rule(lambda i, j, W, s: _in(np.float32, i, j, W)),
    )
    yield (
        "positions are compared as integers of 32 bits",
        "positions-in-32-bits",
        _rule(lambda i, j, W, s: _in(np.int32, i, j, W)),
    )
    yield (
        "the window is cut to 32 bits",
        "window-in-32-bits",
        _rule(lambda i, j, W, s: (j <= i) & (i - j < int(np.int64(W).astype(np.int32)))),
    )
    yield (
        "the positions of the first row are used for all rows",
        "positions-of-the-first-row",
        _rule(lambda i, j, W, s: (j[:1] <= i[:1]) & (i[:1] - j[:1] < W) & (j[:1] >= 0)),
    )
    for n in (1, 2, 3, 4, 5, 8, 16):
        yield (
            f"only the {n} largest scores of a query are kept, the other keys are not visible",
            "",
            lambda s, n=n: _largest(s, n),
        )


def _in(kind: Any, i: Array, j: Array, W: int) -> Array:
    i, j = i.astype(kind), j.astype(kind)
    return np.asarray((j >= 0) & (j <= i) & (i.astype(np.float64) - j < W))


def _by_column(s: Step, window: bool) -> Array:
    i, j, W = _places(s)
    T, S = i.shape[1], j.shape[2]
    distance = S - T + np.arange(T)[:, None] - np.arange(S)
    mask = (j <= i) & (distance < W) if window else (distance >= 0) & (i - j < W)
    return np.asarray(mask & (i >= 0) & (j >= 0))[:, None]


def _from_the_first(i: Array, j: Array, W: int, s: Step) -> Array:
    if not s.x.get("call") or i.shape[1] == 1:
        return (j <= i) & (i - j < W)
    rank = np.where(j < 0, FAR, j).argsort(axis=-1, kind="stable").argsort(axis=-1)
    return np.asarray(rank <= np.arange(i.shape[1])[:, None])


def _largest(s: Step, n: int) -> Array:
    mask = mask_of(s.x)[:, None]
    scores = np.where(mask, scores_of(s.x), -np.inf)
    at = max(0, scores.shape[-1] - n)
    return np.asarray(mask & (scores >= np.sort(scores, axis=-1)[..., at : at + 1]))


def measured_mask(s: Step) -> tuple[Array, Array]:
    """Return which keys have a weight (B, H, T, S), and where that can be told from rounding."""
    right, seen = np.broadcast_to(mask_of(s.x)[:, None], s.out.shape), s.out > 0
    shares = softmax(scores_of(s.x) * s.x["q"].shape[-1] ** -0.5, right | seen)
    clear = (seen == right) | (np.maximum(shares, s.out) > s.tolerance)
    return seen, clear & s.counts


def mask_guesses(steps: list[Step]) -> Iterator[Guess]:
    """Yield masks by their rules, then what is seen in the first wrong one."""
    for says, name, f in masks():
        yield Guess(says, lambda s, f=f: _shaped(f(s), s).astype(np.float64), name)
    s = steps[0]
    if s.out is s.right:
        return
    yield from _single_heads(s)
    b, h, t = (int(n) for n in np.argwhere(((s.out != s.right) & s.counts).any(axis=-1))[0])
    shown = [_ranges(s.x["k_positions"][b][x[b, h, t] > 0]) for x in (s.out, s.right)]
    yield Guess(
        f"in case {s.case}, call {s.call}, the query at position {s.x['q_positions'][b, t]} sees "
        f"keys {shown[0]}, it should see {shown[1]}",
        lambda s: s.out,
        last=True,
    )


def _single_heads(first: Step) -> Iterator[Guess]:
    wrong = np.flatnonzero(((first.out != first.right) & first.counts).any(axis=(0, 2, 3)))
    if 0 < len(wrong) < first.out.shape[1]:
        heads = ", ".join(map(str, wrong))
        for says, name, f in masks():
            yield Guess(
                f"in heads {heads} {says}",
                lambda s, f=f, w=wrong: np.where(
                    np.isin(np.arange(s.out.shape[1]), w)[:, None, None], _shaped(f(s), s), s.right
                ).astype(np.float64),
                name,
            )


def _shaped(mask: Array, s: Step) -> Array:
    return np.broadcast_to(mask, s.right.shape)


def _ranges(positions: Array) -> str:
    p = sorted(int(n) for n in positions if n >= 0)
    if not p:
        return "none"
    whole = p[-1] - p[0] + 1 == len(p)
    return f"{p[0]} to {p[-1]}" if whole else ", ".join(map(str, p[:12]))


# Weights: with the mask as it is

Weigh = Callable[..., Array | None]  # of a step and its mask (B, H or 1, T, S)


def _mask(s: Step) -> Array:
    mask = mask_of(s.x)
    return mask if mask.ndim == 4 else mask[:, None]


def heads() -> list[tuple[str, str, Callable[[int, int], Array]]]:
    """Return which key/value head a query head may read."""
    return [
        (
            "query head h reads key/value head h % K, not h // (H/K)",
            "tiled-heads",
            lambda H, K: np.arange(H) % K,
        ),
        (
            "query heads read key/value heads in reverse order: K - 1 - h // (H/K)",
            "",
            lambda H, K: K - 1 - np.arange(H) // (H // K),
        ),
        (
            "all query heads read key/value head 0",
            "one-head-for-all",
            lambda H, K: np.zeros(H, dtype=np.int64),
        ),
        (
            "query heads read the next key/value head, (h // (H/K) + 1) % K",
            "",
            lambda H, K: (np.arange(H) // (H // K) + 1) % K,
        ),
        (
            "all query heads read the last key/value head",
            "",
            lambda H, K: np.full(H, K - 1, dtype=np.int64),
        ),
    ]


def weighers(first: Step) -> Iterator[tuple[str, str, Weigh]]:
    """Yield ways to make weights: the heads, scales, sums; measured where there are weights."""

    def base(s: Step) -> float:
        return float(s.x["q"].shape[-1] ** -0.5)

    def scaled(f: Callable[..., float]) -> Weigh:
        return lambda s, m: softmax(scores_of(s.x) * f(s), m)

    for says, name, f in heads():
        yield (
            says,
            name,
            lambda s, m, f=f: softmax(
                scores_of(s.x, f(s.x["q"].shape[2], s.x["k"].shape[2])) * base(s), m
            ),
        )
    scales: list[tuple[str, str, Callable[..., float]]] = [
        ("the scale is 1/d, not 1/sqrt(d)", "scores-scaled-twice", lambda s: base(s) ** 2),
        ("the scale is 1: scores are not scaled", "scores-not-scaled", lambda s: 1.0),
        ("the scale is 1/sqrt(d/2)", "", lambda s: base(s) * 2**0.5),
        (
            "the scale is 1/sqrt(H·d), of the width of all heads",
            "scores-scaled-by-the-model-width",
            lambda s: (s.x["q"].shape[2] * s.x["q"].shape[-1]) ** -0.5,
        ),
        (
            "the scale is 1/sqrt(D), of the hidden size",
            "scores-scaled-by-hidden-size",
            lambda s: float(s.x.get("width", 1)) ** -0.5,
        ),
        ("the scale is d^-0.25", "", lambda s: base(s) ** 0.5),
        ("the scale is sqrt(d)", "", lambda s: 1 / base(s)),
        ("the scale has a factor ln(2): 2^x for e^x", "", lambda s: base(s) * np.log(2)),
        ("the scale has a factor log2(e) = 1.4427", "", lambda s: base(s) / np.log(2)),
        ("the scale is negative", "", lambda s: -base(s)),
    ]
    for says, name, scale in scales:
        yield says, name, scaled(scale)
    keys: list[tuple[str, str, Callable[..., dict[str, Any]]]] = [
        ("keys are not rotated", "keys-not-turned", lambda s: {"k": s.x["plain_k"]}),
        ("queries are not rotated", "queries-not-turned", lambda s: {"q": s.x["plain_q"]}),
        (
            "neither queries nor keys are rotated",
            "nothing-turned",
            lambda s: {"q": s.x["plain_q"], "k": s.x["plain_k"]},
        ),
        (
            "keys are rotated twice, by their own position",
            "keys-turned-again",
            lambda s: {"k": _again(s, "k", False)},
        ),
        (
            "keys of earlier calls are rotated twice",
            "keys-turned-again-when-read",
            lambda s: {"k": _again(s, "k", True)},
        ),
        (
            "keys of earlier calls are not rotated",
            "",
            lambda s: {"k": np.where(_old(s), s.x["plain_k"], s.x["k"])},
        ),
        ("keys are values", "", lambda s: {"k": s.x["v"]}),
        ("keys of earlier calls are 0", "", lambda s: {"k": np.where(_old(s), 0.0, s.x["k"])}),
        ("keys are rounded to bfloat16", "", lambda s: {"k": rounded(s.x["k"], "bfloat16")}),
        ("keys are rounded to float16", "", lambda s: {"k": rounded(s.x["k"], "float16")}),
    ]
    if "plain_k" in first.x:
        for says, name, other in keys:
            yield (
                says,
                name,
                lambda s, m, f=other: softmax(scores_of({**s.x, **f(s)}) * base(s), m),
            )
    sums: list[tuple[str, str, Callable[..., Array]]] = [
        (
            "1 is added to the sum of the softmax, relative to e^0",
            "",
            lambda z, m: _exps(z, m, False) / (1 + _exps(z, m, False).sum(axis=-1, keepdims=True)),
        ),
        (
            "1 is added to the sum of the softmax, after the largest score is subtracted",
            "",
            lambda z, m: _exps(z, m, True) / (1 + _exps(z, m, True).sum(axis=-1, keepdims=True)),
        ),
        (
            "weights are not divided by their sum",
            "softmax-not-divided",
            lambda z, m: _exps(z, m, True),
        ),
        (
            "weights are not divided by their sum, nor is the largest score subtracted",
            "",
            lambda z, m: _exps(z, m, False),
        ),
        ("weights are sigmoids of the scores, not a softmax", "", lambda z, m: sig(z) * m),
        ("weights are ReLUs of the scores, not a softmax", "", lambda z, m: np.maximum(z, 0) * m),
        (
            "the softmax is over queries, not over keys",
            "softmax-over-queries",
            lambda z, m: softmax(
                z.swapaxes(2, 3), np.broadcast_to(m, z.shape).swapaxes(2, 3)
            ).swapaxes(2, 3),
        ),
        (
            "the softmax is over heads, not over keys",
            "",
            lambda z, m: softmax(
                z.swapaxes(1, 3), np.broadcast_to(m, z.shape).swapaxes(1, 3)
            ).swapaxes(1, 3),
        ),
        ("the softmax is taken twice", "", lambda z, m: softmax(softmax(z, m), m)),
        ("all visible keys have the same weight", "", lambda z, m: softmax(0 * z, m)),
        (
            "keys are masked after the softmax: weights do not sum to 1",
            "masked-after-the-softmax",
            lambda z, m: softmax(z, np.ones_like(z, dtype=bool)) * m,
        ),
    ]
    for dtype in HALVES:
        sums += [
            (f"scores are rounded to {dtype}", "", lambda z, m, t=dtype: softmax(rounded(z, t), m)),
            (
                f"weights are rounded to {dtype}",
                "",
                lambda z, m, t=dtype: rounded(softmax(z, m), t),
            ),
            (
                f"the softmax is computed in {dtype}",
                "softmax-in-16-bits",
                lambda z, m, t=dtype: rounded(softmax(rounded(z, t), m), t),
            ),
        ]
    for says, name, soft in sums:
        yield says, name, lambda s, m, f=soft: f(scores_of(s.x) * base(s), m)
    yield (
        "a bias of the distance is added to the scores, as ALiBi does",
        "",
        lambda s, m: softmax(scores_of(s.x) * base(s) - _slopes(s) * _distance(s), m),
    )
    yield from _fitted(first, base)


def _fitted(first: Step, base: Callable[..., float]) -> Iterator[tuple[str, str, Weigh]]:
    """Yield a scale, a cap, slopes and heads that are measured in the first step."""
    if first.out is first.right:
        return
    z, mask = scores_of(first.x) * base(first), _mask(first)

    def error(w: Array) -> float:
        found = w if first.kind == "weights" else mixed(w, first.x["v"])
        with np.errstate(invalid="ignore"):
            return float(np.nansum(np.square(np.where(first.counts, found - first.out, 0))))

    ratio = refined(lambda r: error(softmax(z * r, mask)), np.geomspace(0.01, 30, 60))
    yield (
        f"the scale is {number(ratio)} times 1/sqrt(d), {number(ratio * base(first))} for a d of "
        f"{first.x['q'].shape[-1]}",
        "",
        lambda s, m: softmax(scores_of(s.x) * base(s) * ratio, m),
    )
    most = max(float(np.abs(np.where(np.isfinite(z), z, 0)).max(initial=0)), 1e-3)
    cap = refined(
        lambda c: error(softmax(c * np.tanh(z / c), mask)), np.geomspace(0.02 * most, 30 * most, 60)
    )
    yield (
        f"scores are capped softly at {number(cap)}: c · tanh(x / c)",
        "",
        lambda s, m: softmax(cap * np.tanh(scores_of(s.x) * base(s) / cap), m),
    )
    clip = refined(
        lambda c: error(softmax(np.clip(z, -c, c), mask)), np.geomspace(0.02 * most, most, 40)
    )
    yield (
        f"scores are clipped at {number(clip)}",
        "",
        lambda s, m: softmax(np.clip(scores_of(s.x) * base(s), -clip, clip), m),
    )
    slope = refined(
        lambda a: error(softmax(z - a * _distance(first), mask)), np.linspace(-2, 2, 81)
    )
    yield (
        f"a bias of the distance is added to the scores, {number(-slope)} for each token",
        "",
        lambda s, m: softmax(scores_of(s.x) * base(s) - slope * _distance(s), m),
    )
    H, K = first.x["q"].shape[2], first.x["k"].shape[2]
    if K == 1:
        return
    best = []
    for h in range(H):
        errors = []
        for n in range(K):
            trial = np.arange(H) // (H // K)
            trial[h] = n
            w = softmax(scores_of(first.x, trial) * base(first), mask)
            found = w if first.kind == "weights" else mixed(w, first.x["v"], trial).swapaxes(1, 2)
            out = first.out if first.kind == "weights" else first.out.swapaxes(1, 2)
            with np.errstate(invalid="ignore"):
                errors.append(float(np.nansum(np.square(found[:, h] - out[:, h]))))
        best.append(int(np.argmin(errors)))
    order = np.array(best)
    yield (
        f"query heads 0 to {H - 1} read key/value heads {', '.join(map(str, best))}",
        "",
        lambda s, m: (
            softmax(scores_of(s.x, order) * base(s), m)
            if s.x["q"].shape[2] == H and s.x["k"].shape[2] == K
            else None
        ),
    )


def _exps(z: Array, mask: Array, relative: bool) -> Array:
    z = np.where(mask, z, -np.inf)
    largest = z.max(axis=-1, keepdims=True, initial=-np.inf)
    with np.errstate(all="ignore"):
        return np.exp(z - (np.where(np.isfinite(largest), largest, 0) if relative else 0))


def _distance(s: Step) -> Array:
    i, j, _ = _places(s)
    return np.asarray((i - j)[:, None])


def _slopes(s: Step) -> Array:
    H = s.x["q"].shape[2]
    return (2.0 ** (-8 * (np.arange(H) + 1) / H))[:, None, None]


def _old(s: Step) -> Array:
    """Return which keys are of earlier calls (B, S, 1, 1)."""
    i = s.x["q_positions"]
    first = np.where(i < 0, FAR, i).min(axis=1, keepdims=True)
    return (s.x["k_positions"] < first)[..., None, None]


def _again(s: Step, name: str, old: bool, neighbours: bool = False) -> Array:
    d = s.x[name].shape[-1]
    at = s.x["k_positions"]
    found = turned(s.x[name], angles(at, s.x.get("theta", 1e4), d), neighbours)
    return np.where(_old(s) | (not old), found, s.x[name])


def weights_guesses(steps: list[Step]) -> Iterator[Guess]:
    """Yield ways to make weights of the mask as it is."""
    for says, name, weigh in weighers(steps[0]):
        yield Guess(says, lambda s, f=weigh: f(s, _mask(s)), name)


# The mix


def mix_guesses(steps: list[Step]) -> Iterator[Guess]:
    """Yield wrong values; where no weights are given also wrong masks and weights."""
    first = steps[0]

    def weights(s: Step) -> Array:
        found = s.x.get("weights")
        return (
            softmax(scores_of(s.x) * s.x["q"].shape[-1] ** -0.5, _mask(s))
            if found is None
            else found
        )

    for says, name, f in heads():
        yield Guess(
            says,
            lambda s, f=f: mixed(weights(s), s.x["v"], f(s.right.shape[2], s.x["v"].shape[2])),
            name,
        )
    H, K = first.right.shape[2], first.x["v"].shape[2]
    if K > 1 and first.out is not first.right:
        each = [mixed(weights(first), first.x["v"], np.full(H, n)) for n in range(K)]
        with np.errstate(invalid="ignore"):
            far = [np.nansum(np.square(x - first.out), axis=(0, 1, 3)) for x in each]
        order = np.argmin(far, axis=0)
        yield Guess(
            f"query heads 0 to {H - 1} mix values of heads {', '.join(map(str, order))}",
            lambda s: (
                mixed(weights(s), s.x["v"], order)
                if (s.right.shape[2], s.x["v"].shape[2]) == (H, K)
                else None
            ),
        )
    values: list[tuple[str, str, Callable[..., Array]]] = [
        ("values are rotated like keys", "values-turned", lambda s: _again(s, "v", False)),
        (
            "values are rotated, as neighbours (2m, 2m + 1)",
            "values-turned",
            lambda s: _again(s, "v", False, True),
        ),
        ("values of earlier calls are 0", "", lambda s: np.where(_old(s), 0.0, s.x["v"])),
        ("values are rounded to bfloat16", "", lambda s: rounded(s.x["v"], "bfloat16")),
        ("values are rounded to float16", "", lambda s: rounded(s.x["v"], "float16")),
        ("values are keys", "", lambda s: s.x["k"]),
        ("values are keys before their rotation", "", lambda s: s.x.get("plain_k", s.x["k"])),
        ("values are those of the token before", "", lambda s: np.roll(s.x["v"], 1, axis=1)),
    ]
    for says, name, change in values:
        yield Guess(says, lambda s, f=change: mixed(weights(s), f(s)), name)
    for dtype in HALVES:
        yield Guess(
            f"weights are rounded to {dtype} before they are multiplied with values",
            lambda s, t=dtype: mixed(rounded(weights(s), t), s.x["v"]),
        )
    if first.out is first.right:
        return
    ways = list(weighers(first))
    for says, name, mask in masks():
        yield Guess(
            says,
            lambda s, f=mask: mixed(
                softmax(scores_of(s.x) * s.x["q"].shape[-1] ** -0.5, f(s)), s.x["v"]
            ),
            name,
        )
    reads = {name: f for _, name, f in heads() if name} | {s: f for s, _, f in heads()}
    for says, name, weigh in ways:

        def make(s: Step, f: Weigh = weigh, says: str = says) -> Array | None:
            w = f(s, mask_of(s.x)[:, None])
            of = reads.get(says)
            own = None if of is None else of(s.right.shape[2], s.x["v"].shape[2])
            return None if w is None else mixed(w, s.x["v"], own)

        yield Guess(says, make, name)
    if "weights" in first.x:
        return
    for says, _, mask in masks():
        for also, _, weigh in ways:

            def both(
                s: Step, f: Weigh = weigh, m: Callable[..., Array] = mask, also: str = also
            ) -> Array | None:
                w, of = f(s, m(s)), reads.get(also)
                own = None if of is None else of(s.right.shape[2], s.x["v"].shape[2])
                return None if w is None else mixed(w, s.x["v"], own)

            yield Guess(f"{says}; {also}", both)
