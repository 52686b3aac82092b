"""Guesses of RoPE: pairs, directions, positions and frequencies; theta is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np

from tinymistral.golden.diagnose.guess import (
    HALVES,
    Guess,
    halves_to_pairs,
    is_known,
    number,
    pairs_to_halves,
    refined,
    rounded,
)
from tinymistral.golden.diagnose.steps import Array, Step, angles, turned

Positions = Callable[..., Array]  # of the right ones and the step
NEIGHBOURS = "neighbours (2m, 2m + 1) are rotated"


def rotated(
    s: Step, p: Array | None = None, theta: float | None = None, neighbours: bool = False
) -> Array:
    """Rotate the input by its positions and theta, or by others."""
    p = s.x["positions"] if p is None else p
    theta = s.x["theta"] if theta is None else theta
    return turned(s.x["x"], angles(p, theta, s.x["x"].shape[-1]), neighbours)


def _window(s: Step) -> int:
    return s.x.get("window") or 10**9


def _columns(p: Array, s: Step) -> Array:
    return np.broadcast_to(np.arange(p.shape[1]), p.shape)


def _from_0(p: Array, s: Step) -> Array:
    every = s.x.get("all", p)
    return p - np.where(every < 0, every.max(), every).min(axis=1, keepdims=True)


# What positions may be taken for, from the right ones.
POSITIONS: dict[str, Positions] = {
    "rope-backwards | it is rotated the other way": lambda p, s: -p,
    "it is rotated twice: by 2 times its angle": lambda p, s: 2 * p,
    "rope-counts-from-1 | positions are 1 larger than they should be": lambda p, s: p + 1,
    "positions are 1 smaller than they should be": lambda p, s: p - 1,
    "positions are 1 smaller than they should be, from 1 on": lambda p, s: p - (p > 0),
    "rope-begins-anew | positions begin at 0 in each call": _columns,
    "positions are those of columns: padding counts": lambda p, s: (
        _columns(p, s) + (s.x.get("columns") or 0)
    ),
    "positions begin at 0, whatever is given": _from_0,
    "rope-by-slot | positions are those of slots, modulo the window": lambda p, s: p % _window(s),
    "positions are limited to the window": lambda p, s: np.minimum(p, _window(s) - 1),
    "rope-of-the-first-row | all rows have the positions of the first": lambda p, s: (
        np.broadcast_to(p[:1], p.shape)
    ),
    "all positions are the same in a call": lambda p, s: np.broadcast_to(p[:, :1], p.shape),
    "positions count down within a call": lambda p, s: p[:, ::-1],
}
for _n in range(2, 5):
    POSITIONS[f"positions begin at {_n} in each call"] = lambda p, s, n=_n: _columns(p, s) + n
for _n in (8, 16, 32):
    POSITIONS[f"rope-by-slot | positions are those of slots, modulo {_n}"] = lambda p, s, n=_n: (
        p % n
    )
for _n in (1, -1, -2):
    POSITIONS[
        f"rope-by-slot | positions are those of slots, modulo W {'+' if _n > 0 else '-'} {abs(_n)}"
    ] = lambda p, s, n=_n: p % max(1, _window(s) + n)


def of_rope(steps: Sequence[Step]) -> Iterator[Guess]:
    """Yield pairs, directions, positions and frequencies; the last ones are measured."""
    first = steps[0]
    d = first.x["x"].shape[-1]
    yield Guess("it is not rotated", lambda s: s.x["x"])
    yield Guess(
        f"rope-interleaved | {NEIGHBOURS}, not the pairs (m, m + d/2)",
        lambda s: rotated(s, neighbours=True),
    )
    for text, f in POSITIONS.items():
        yield Guess(text, lambda s, f=f: rotated(s, f(s.x["positions"], s)))
    yield Guess(
        "rope-exponent-halved | the exponent is -m/d, without the factor 2",
        lambda s: rotated(s, theta=s.x["theta"] ** 0.5),
    )
    for n, speed in ((1, "slow"), (-1, "fast")):
        yield Guess(
            f"the exponent is of pair m {'+' if n > 0 else '-'} 1: all frequencies are too {speed}",
            lambda s, n=n: rotated(
                s, s.x["positions"] * s.x["theta"] ** (-2 * n / s.x["x"].shape[-1])
            ),
        )
    yield _of_theta("rope-theta-ignored | ", 1e4)
    yield _of_theta("", 1e6)
    if is_known(first):
        yield _of_theta("", _measured_theta(first, False))
        yield _of_theta("", _measured_theta(first, True), True)
    for n in sorted(range(1, d // 2), key=lambda n: (n != d // 4, n)):
        part = "half" if n == d // 4 else f"{2 * n} of the {d}"
        for what, own in (("", False), (", with frequencies of its own", True)):
            yield Guess(
                f"only the first part is rotated{what}: {part} of the numbers of a head",
                lambda s, n=n, own=own: _partial(s, n * s.x["x"].shape[-1] // d, own),
            )
    sizes = [float(np.linalg.norm(np.where(first.counts, a, 0))) for a in (first.x["x"], first.out)]
    factor = sizes[1] / max(sizes[0], 1e-300)
    yield Guess(
        f"rope-stretched | it is rotated and stretched by {number(factor)}",
        lambda s: factor * s.right,
    )
    for dtype in ("float32", *HALVES):
        for text, what in DTYPES.items():
            name, says = text.split(" | ")
            name = name if (dtype == "float32") == (name != "rope-in-16-bits") else ""
            yield Guess(
                f"{name} | {says.format(dtype)}",
                lambda s, w=what, t=dtype: _in_dtype(s, w, lambda x: rounded(x, t)),
            )
    for swap, *signs in product((False, True), *[(1, -1)] * 4):
        cos, sin = ("sin", "cos") if swap else ("cos", "sin")
        a, b, c, e = ("+" if n > 0 else "-" for n in signs)
        yield Guess(
            f"the halves become {a} first · {cos} {b} second · {sin} and {c} second · {cos} {e} "
            f"first · {sin}, not first · cos - second · sin and second · cos + first · sin",
            lambda s, w=swap, n=tuple(signs): _combined(s, w, n),
        )
    yield Guess("the numbers are rotated as pairs and moved to halves", lambda s: _moved(s, True))
    yield Guess("the numbers are rotated as halves and moved to pairs", lambda s: _moved(s, False))
    if not is_known(first):
        return
    yield from _by_head(first)
    yield from _measured(max(steps, key=lambda s: len(np.unique(s.x["positions"]))))
    for neighbours in (True, False):
        two = f"{NEIGHBOURS}; " if neighbours else ""
        for text, f in POSITIONS.items():
            says = two + text.rpartition(" | ")[2]
            if neighbours:
                yield Guess(says, lambda s, f=f: rotated(s, f(s.x["positions"], s), None, True))
            theta = _measured_theta(first, neighbours, f)
            yield Guess(
                f"{says}; theta is {number(theta)}",
                lambda s, f=f, t=theta, n=neighbours: rotated(s, f(s.x["positions"], s), t, n),
            )


def _of_theta(known: str, theta: float, neighbours: bool = False) -> Guess:
    return Guess(
        f"{known}angles are those of theta {number(theta)}{f'; {NEIGHBOURS}' * neighbours}",
        lambda s: rotated(s, None, theta, neighbours),
    )


def _measured_theta(s: Step, neighbours: bool, f: Positions = lambda p, s: p) -> float:
    """Return theta from the angle of each pair, out over in."""
    z, d = _turns(s, neighbours).sum(axis=2), s.x["x"].shape[-1]
    p = f(s.x["positions"], s).astype(np.float64)[..., None]
    m = np.arange(d // 2, dtype=np.float64)

    def error(theta: float) -> float:
        return float((np.abs(z) - (z * np.exp(-1j * p * theta ** (-2 * m / d))).real).sum())

    return refined(error, np.geomspace(1.0, 1e9, 240))


def _measured(first: Step) -> Iterator[Guess]:
    """Yield other positions, formulas, and angles of each pair or head, as they are measured."""
    positions, theta = first.x["positions"], first.x["theta"]
    z, d = _turns(first), first.x["x"].shape[-1]

    def far(p: Array) -> float:
        return float((np.abs(z) - (z * np.exp(-1j * angles(p, theta, d))).real).sum())

    more = min(range(-OFFSETS, OFFSETS + 1), key=lambda n: far(positions + n))
    which = "larger" if more > 0 else "smaller"
    yield Guess(
        f"positions are {abs(more)} {which} than they should be",
        lambda s: rotated(s, s.x["positions"] + more),
    )
    times = refined(lambda a: far(positions * a), np.geomspace(1 / 64, 64, 700))
    yield Guess(
        f"positions are times {number(times)}", lambda s: rotated(s, s.x["positions"] * times)
    )
    w, right = (a[: d // 2] for a in (_frequencies(first), theta ** (-np.arange(0, d, 2) / d)))
    shown = [", ".join(f"{x:.3g}" for x in a[:6]) for a in (w, right)]
    yield Guess(
        f"frequencies are others: pairs are rotated by {shown[0]}, ... for each token; it should "
        f"be {shown[1]}, ...",
        lambda s: turned(s.x["x"], s.x["positions"][..., None, None] * _frequencies(s)),
        last=True,
    )
    rows = [first.x["positions"][:1], _tokens(first)[:1]]
    right_ones, found = (", ".join(map(str, row[row >= 0][:8])) for row in rows)
    yield Guess(
        f"tokens at the positions {right_ones} are rotated as if at {found}, in case "
        f"{first.case}, call {first.call}",
        lambda s: rotated(s, _tokens(s)),
        last=True,
    )
    shifts = ", ".join(map(str, _shifts(first)))
    yield Guess(
        f"positions differ by head: those of heads 0, 1, ... are {shifts} larger",
        lambda s: turned(
            s.x["x"],
            angles(s.x["positions"], s.x["theta"], s.x["x"].shape[-1])
            + _shifts(s)[:, None] * angles(np.ones((1, 1)), s.x["theta"], s.x["x"].shape[-1]),
        ),
        last=True,
    )


OFFSETS = 64  # of positions, that are looked for


def _turns(s: Step, neighbours: bool = False) -> Array:
    """Return what came out times what went in, conjugate, as complex pairs (B, T, H, d/2)."""
    order = pairs_to_halves(s.out.shape[-1]) if neighbours else slice(None)
    one, two = (np.split(a[..., order], 2, axis=-1) for a in (s.x["x"], s.out))
    at = np.split(s.counts[..., order], 2, axis=-1)[0]
    return np.where(at, (two[0] + 1j * two[1]) * (one[0] - 1j * one[1]), 0)


def _combined(s: Step, swap: bool, signs: Sequence[int]) -> Array:
    angle = angles(s.x["positions"], s.x["theta"], s.x["x"].shape[-1])
    cos, sin = (np.sin(angle), np.cos(angle)) if swap else (np.cos(angle), np.sin(angle))
    (one, two), (a, b, c, e) = np.split(s.x["x"], 2, axis=-1), signs
    return np.concatenate([a * one * cos + b * two * sin, c * two * cos + e * one * sin], axis=-1)


def _frequencies(s: Step) -> Array:
    """Return by what angle each pair is rotated for each token, between -pi and pi."""
    z, p = _turns(s).sum(axis=2), s.x["positions"][..., None].astype(np.float64)
    grid = np.linspace(-np.pi, np.pi, 4096, endpoint=False)
    sums = [np.einsum("btm,btw->mw", z, np.exp(-1j * p * part)).real for part in np.split(grid, 16)]
    w = grid[np.concatenate(sums, axis=1).argmax(axis=1)]
    for _ in range(4):  # Newton's steps
        left = np.angle(z * np.exp(-1j * p * w))
        w = w + (np.abs(z) * p * left).sum((0, 1)) / np.maximum(
            (np.abs(z) * p**2).sum((0, 1)), 1e-30
        )
    return np.asarray(w)


def _tokens(s: Step) -> Array:
    """Return the positions (B, T) by which tokens are rotated, up to some more than the last."""
    every = np.arange(int(s.x["positions"].max(initial=0)) % 2**12 + OFFSETS)
    turns = np.exp(-1j * angles(every, s.x["theta"], s.x["x"].shape[-1])[:, 0])
    found = np.einsum("btm,nm->btn", _turns(s).sum(axis=2), turns).real.argmax(axis=-1)
    return np.where(s.x["positions"] >= 0, found, -1)


def _shifts(s: Step) -> Array:
    """Return how much larger the positions of each head are."""
    ones, d = np.arange(-OFFSETS, OFFSETS + 1), s.x["x"].shape[-1]
    z = (_turns(s) * np.exp(-1j * angles(s.x["positions"], s.x["theta"], d))).sum(axis=(0, 1))
    fits = np.einsum("hm,nm->hn", z, np.exp(-1j * angles(ones, s.x["theta"], d)[:, 0])).real
    return np.asarray(ones[fits.argmax(axis=1)])


def _partial(s: Step, pairs: int, own: bool) -> Array:
    """Rotate the first pairs; if `own`, the first 2 · pairs numbers as if they were a head."""
    x, p, theta = np.array(s.x["x"]), s.x["positions"], s.x["theta"]
    if own:
        x[..., : 2 * pairs] = turned(x[..., : 2 * pairs], angles(p, theta, 2 * pairs))
        return x
    half = x.shape[-1] // 2
    return turned(x, angles(p, theta, 2 * half) * (np.arange(half) < pairs))


# What is computed in a dtype, from the right function: which parts are rounded.
DTYPES = {
    "rope-angles-in-float32 | angles are in {}": "a",
    " | frequencies are in {}": "f",
    "rope-positions-in-float32 | positions are in {}": "p",
    "rope-angles-in-float32 | positions, frequencies and angles are in {}": "pfa",
    "rope-in-16-bits | cosines and sines are rounded to {}": "c",
}


def _in_dtype(s: Step, what: str, rounding: Callable[[Array], Array]) -> Array:
    """Rotate with (p)ositions, (f)requencies, (a)ngles or (c)osines rounded."""
    parts = {part: rounding if part in what else lambda x: x for part in "pfac"}
    x = s.x["x"]
    frequencies = parts["f"](angles(np.ones((1, 1)), s.x["theta"], x.shape[-1]))
    p = parts["p"](s.x["positions"].astype(np.float64))[..., None, None]
    angle = parts["a"](p * frequencies)
    cos, sin = parts["c"](np.cos(angle)), parts["c"](np.sin(angle))
    one, two = np.split(x, 2, axis=-1)
    return np.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)


def _moved(s: Step, to_halves: bool) -> Array:
    order = (pairs_to_halves if to_halves else halves_to_pairs)(s.x["x"].shape[-1])
    return rotated(s, neighbours=to_halves)[..., order]


def _by_head(first: Step) -> Iterator[Guess]:
    """Yield that some heads are rotated and others are not."""
    same, right = (
        np.abs(np.where(first.counts, first.out - x, 0)).max(axis=(0, 1, 3)) <= first.limit
        for x in (first.x["x"], first.right)
    )
    alone = np.flatnonzero(same & ~right)
    if 0 < len(alone) < len(same):
        heads = ", ".join(map(str, alone[:8]))

        def some(s: Step) -> Array:
            close = np.abs(s.out - s.x["x"]).max(axis=(0, 1, 3), keepdims=True) <= s.limit
            return np.where(close, s.x["x"], s.right)

        yield Guess(f"heads {heads} are not rotated (of {len(same)} heads)", some)
