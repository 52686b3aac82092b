"""What is seen of the results of a wrong step, which need not be a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tinymistral.golden.diagnose.guess import Guess, number
from tinymistral.golden.diagnose.names import names, softmax, turn
from tinymistral.golden.diagnose.pooled import pooled
from tinymistral.golden.diagnose.steps import Array, Step

MATCHED = 2**24  # distances of columns, so that memory is limited


def seen(first: Step, steps: Sequence[Step]) -> Iterator[Guess]:
    """Yield what is seen of the results, which need not be a rule."""
    at = f"in case {first.case}, call {first.call}"
    if first.kind == "mask":
        yield from _seen_keys(first, at)
        return
    if first.kind == "silu":
        curve = _curve(first)
        points = ", ".join(number(float(y)) for y in curve(np.array([-1.0, 0.0, 1.0])))
        says = f"it is f(gate) · up, of another curve: f(-1), f(0), f(1) are {points}"
        yield Guess(says, lambda s: curve(s.x["gate"]) * s.x["up"], last=True)
    if first.kind == "rope":
        yield from _angles(first, at)
    if first.kind in ("weights", "mix"):
        yield _heads(first)
    if first.kind == "cache":
        yield from _slots(first, at)
    if first.kind == "embedding":
        yield _rows(first, steps)
    if first.kind != "weights":
        columns = ", ".join(map(number, _factors(first, (0, 1)).ravel()[:6]))
        says = f"each result of a token is multiplied by a factor of its own: {columns}, ..."
        make = lambda s: s.right * _factors(s, (0, 1)) if _several(s) else None  # noqa: E731
        yield Guess(says, make, last=True)
    ratio = number(float(_factors(first, (-1,)).ravel()[first.counts.all(axis=-1).argmax()]))
    says = f"each token's result is multiplied by a factor of its own: {ratio} for the first, {at}"
    if first.kind == "weights":
        says = f"weights are multiplied by a factor for each query: the first sum to {ratio}, {at}"
    yield Guess(says, lambda s: s.right * _factors(s, (-1,)), last=True)
    rows = np.asarray(first.counts.all(axis=tuple(range(2, first.out.ndim))))
    if rows.sum() > 2 and first.kind != "weights":
        bias = number(float(np.abs(_bias(first)).max(initial=0)))
        says = f"a bias is added, of up to {bias}"
        make = lambda s: s.right + _bias(s) if _several(s) else None  # noqa: E731
        yield Guess(says, make, last=True)
        yield from _permuted(first, rows)
    yield from pooled(first, steps)


def _permuted(first: Step, rows: Array) -> Iterator[Guess]:
    """Match the columns of what came out with those that should."""
    got, want = (a[rows].reshape(int(rows.sum()), -1) for a in (first.out, first.right))
    most = MATCHED // want.shape[1] ** 2
    if most < 3:
        return
    order = np.abs(got[:most, :, None] - want[:most, None, :]).max(axis=0).argmin(axis=1)
    shown = ", ".join(map(str, order[:8]))
    says = f"the order is permuted: results 0, 1, 2, ... are what {shown}, ... should be"
    yield Guess(says, lambda s: names(s)["flat"](names(s)["row"][..., order]), last=True)


def _angles(first: Step, at: str) -> Iterator[Guess]:
    """Yield the angles by which pairs are rotated, and the positions by which tokens are."""
    says = "pairs are rotated by other angles: by {} for each token, it should be {}"
    w = _frequencies(first)
    parts = [", ".join(f"{x:.3g}" for x in a[:6]) for a in (w, names(first)["f"])]
    yield Guess(
        says.format(*parts),
        lambda s: turn(s.x["x"], s.x["positions"][..., None, None] * _frequencies(s)),
        last=True,
    )
    b = int(((first.x["positions"] != _tokens(first)) & first.counts[:, :, 0, 0]).sum(1).argmax())
    tokens = (a[b] for a in (first.x["positions"], _tokens(first)))
    right, found = (", ".join(map(number, row[row >= 0][:8])) for row in tokens)
    says = f"tokens at the positions {right} are rotated as if at {found}, {at}"
    angle = lambda s: _tokens(s)[..., None, None] * names(s)["f"]  # noqa: E731
    yield Guess(says, lambda s: turn(s.x["x"], angle(s)), last=True)


def _slots(first: Step, at: str) -> Iterator[Guess]:
    """Yield which tokens lie in the slots of a cache."""

    def nearest(s: Step) -> Array:
        flat = (x.reshape(*x.shape[:2], 1, -1) for x in (s.out, s.x["past"]))
        one, every = (x[..., 0, :] for x in flat)
        return np.abs(one[:, :, None] - every[:, None]).max(axis=-1).argmin(axis=-1)

    def held(s: Step) -> Array:
        return np.take_along_axis(s.x["past"], nearest(s)[..., None, None], axis=1)

    right, found = first.x["positions"], np.take_along_axis(first.x["past_at"], nearest(first), 1)
    b = int((right != found).any(axis=1).argmax())
    rows = (x[b][right[b] != found[b]][:8] for x in (right, found))
    one, other = (", ".join(map(str, row)) for row in rows)
    yield Guess(f"slots of the positions {one} hold what belongs to {other}, {at}", held, last=True)


def _rows(first: Step, steps: Sequence[Step]) -> Guess:
    """Return which rows of the table the ids get; -1 stands for zeros."""

    def row(s: Step) -> Array:
        table = np.concatenate([s.x["table"], np.zeros_like(s.x["table"][:1])])
        return np.abs(s.out[:, :, None] - table).max(axis=-1).argmin(axis=-1)

    def made(s: Step) -> Array:
        return np.concatenate([s.x["table"], np.zeros_like(s.x["table"][:1])])[row(s)]

    pairs = set()
    for s in steps:
        here, V = s.counts[..., 0], len(s.x["table"])
        found = np.where(row(s) < V, row(s), -1)[here]
        pairs |= set(zip(s.x["ids"][here].tolist(), found.tolist(), strict=True))
    other = sorted(pair for pair in pairs if pair[0] != pair[1])[:8]
    one, two = (", ".join(str(pair[n]) for pair in other) for n in (0, 1))
    return Guess(f"ids {one} get the rows {two} of the table (-1: zeros)", made, last=True)


def _heads(first: Step) -> Guess:
    """Return which key/value heads are read."""
    K, H = first.x["k"].shape[2], first.x["q"].shape[2]
    each = [_reading(first, np.full(H, n)) for n in range(K)]
    axis = 1 if first.kind == "weights" else 2
    far = [np.where(first.counts, np.square(x - first.out), 0) for x in each]
    sums = [np.nansum(x, axis=tuple({0, 1, 2, 3} - {axis})) for x in far]
    heads = np.argmin(sums, axis=0)
    says = f"query heads 0 to {H - 1} read key/value heads {', '.join(map(str, heads))}"
    return Guess(says, lambda s: _reading(s, heads))


def _reading(s: Step, heads: Array) -> Array:
    """Return what a step gives if query heads read these key/value heads."""
    x = names(s)
    if s.kind == "mix":
        return np.asarray(x["mix"](s.x["v"], heads))
    return softmax(x["scores"](s.x["q"], s.x["k"], heads), x["mask"])


def _factors(s: Step, axes: tuple[int, ...]) -> Array:
    """Return by what results are multiplied, the same along these axes."""
    out, right = (np.where(s.counts, x, 0.0) for x in (s.out, s.right))
    square = np.square(right).sum(axis=axes, keepdims=True)
    return np.asarray((out * right).sum(axis=axes, keepdims=True) / np.where(square, square, 1))


def _several(s: Step) -> bool:
    """Return whether a step has so many tokens that what they have in common is no chance."""
    return bool(s.counts.all(axis=tuple(range(2, s.out.ndim))).sum() > 2)


def _bias(s: Step) -> Array:
    """Return what is added to the results of every token."""
    rows = s.counts.all(axis=tuple(range(2, s.out.ndim)))
    added = (s.out - s.right)[rows]
    return np.median(added, axis=0) if len(added) else np.zeros(s.out.shape[2:])


def _curve(s: Step) -> Callable[[Array], Array]:
    """Return the function of the gate whose product with up came out, by its values there."""
    g, u, out = (a[s.counts] for a in (s.x["gate"], s.x["up"], s.out))
    clear = np.abs(u) >= np.median(np.abs(u)) / 4
    order = np.argsort(g[clear])
    at, values = g[clear][order], (out[clear] / u[clear])[order]
    return lambda x: np.interp(x, at, values)


def _turns(s: Step) -> Array:
    """Return what came out times what went in, conjugate, as complex pairs (B, T, d/2)."""
    (one, two), (a, b) = (np.split(x, 2, axis=-1) for x in (s.x["x"], s.out))
    every = np.asarray(s.counts.all(axis=(2, 3)))
    return np.where(every[..., None], ((a + 1j * b) * (one - 1j * two)).sum(axis=2), 0)


def _tokens(s: Step) -> Array:
    """Return the positions (B, T) by which tokens are rotated, up to some more than the last."""
    most = int(s.x["positions"].max(initial=0)) % 2**12 + 64
    every = np.arange(0, most, 1 if most > 2**9 else 1 / 8)
    turns = np.exp(-1j * every[:, None] * names(s)["f"])
    found = every[np.einsum("btm,nm->btn", _turns(s), turns).real.argmax(axis=-1)]
    return np.where(s.x["positions"] >= 0, found, -1)


def _frequencies(s: Step) -> Array:
    """Return by what angle each pair is rotated for each token, between -pi and pi."""
    z, p = _turns(s), s.x["positions"][..., None] * 1.0
    grid = np.linspace(-np.pi, np.pi, 4096, endpoint=False)
    sums = [np.einsum("btm,btw->mw", z, np.exp(-1j * p * part)).real for part in np.split(grid, 16)]
    w = grid[np.concatenate(sums, axis=1).argmax(axis=1)]
    size = np.abs(z)
    for _ in range(4):  # Newton's steps
        left = np.angle(z * np.exp(-1j * p * w))
        w = w + (size * p * left).sum((0, 1)) / np.maximum((size * p**2).sum((0, 1)), 1e-30)
    return np.asarray(w)


def _seen_keys(s: Step, at: str) -> Iterator[Guess]:
    """Yield at which distances, and at which positions, keys are seen."""
    differs = (s.out != s.right) & s.counts

    def distances(s: Step) -> Array:
        far = names(s)["distance"] + 0 * s.out
        return np.unique(far[(s.out > 0) & s.counts]).astype(int)

    says = f"a query sees keys at the distances {', '.join(map(str, distances(s)[:12]))}, {at}"

    def by_distance(s: Step) -> Array:
        x = names(s)
        there = (x["i"] >= 0) & (x["j"] >= 0) & np.isin(x["distance"], distances(s))
        return there + 0.0 * s.right

    yield Guess(says, by_distance, last=True)

    def windowed(s: Step) -> Array:
        x = names(s)
        seen = (x["distance"] >= 0) & (x["distance"] < _windows(s)) & (x["i"] >= 0) & (x["j"] >= 0)
        return seen + 0.0 * s.right

    widths = ", ".join(map(str, _windows(s).ravel()))
    says = f"queries of heads 0, 1, 2, ... see {widths} keys; W is {s.x['window']}, {at}"
    yield Guess(says, windowed, last=True)
    by = "by no query" if (_by_key(s) < s.right).any() else "by all queries"
    keys = ", ".join(map(str, np.unique(s.x["k_positions"][differs.any(axis=(1, 2))])[:12]))
    yield Guess(f"keys at the positions {keys} are seen {by}, {at}", _by_key, last=True)
    b, h, t = (int(n) for n in np.argwhere(differs.any(axis=-1))[0])
    lists = (s.x["k_positions"][b][x[b, h, t] > 0] for x in (s.out, s.right))
    saw, right = (", ".join(map(str, sorted(row)[:12])) or "none" for row in lists)
    p = s.x["q_positions"][b, t]
    says = f"{at} the query at position {p} sees keys {saw}, it should see {right}"
    yield Guess(says, lambda s: s.out, last=True)


def _windows(s: Step) -> Array:
    """Return how many keys each head sees at most (H, 1, 1)."""
    far = np.where((s.out > 0) & s.counts, names(s)["distance"], -1)
    return np.asarray(far.max(axis=(0, 2, 3), initial=-1)[:, None, None] + 1)


def _by_key(s: Step) -> Array:
    """Let all queries see a key that all do see, and none a key that none sees."""
    x = names(s)
    here, saw = ((x["i"] >= 0) & (x["j"] >= 0)) & s.counts, s.out > 0
    never, always = (y.all(axis=(1, 2), keepdims=True) for y in (~(saw & here), saw | ~here))
    return np.where(never, 0.0, np.where(always & here, 1.0, s.right))
