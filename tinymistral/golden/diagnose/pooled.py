"""What is seen of all wrong steps of a stage together: another weight, or what depends on what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tinymistral.golden.compare.places import ranges
from tinymistral.golden.diagnose.guess import Guess, number
from tinymistral.golden.diagnose.names import names, softmax
from tinymistral.golden.diagnose.steps import Array, Step

CLEAR = 1e-3  # of the largest number: less is rounding
SHOWN = 6  # positions or heads that a sentence lists


def pooled(first: Step, steps: Sequence[Step]) -> Iterator[Guess]:
    """Yield what many steps show, of the kind of step that `first` is."""
    if first.kind == "weights":
        yield from _scales(first, steps)
        return
    if first.kind == "linear" and first.model is not None:
        yield from _another_weight(first, steps)
    if first.kind != "mix":
        yield from _combination(first)
    if first.positions is not None:
        yield from _by_position(first, steps)


Part = Callable[[Step], tuple[Array, Array, Array]]


def _quotients(s: Step, steps: Sequence[Step], part: Part) -> tuple[Array, Array]:
    """Return keys, and for each a sum of numerators over one of denominators.

    `part` gives keys, numerators and denominators of a step, along the first axis; steps of other
    models or layers do not count.
    """
    alike = [t for t in steps if (t.model, t.layer) == (s.model, s.layer)]
    keys, over, under = (np.concatenate(x) for x in zip(*map(part, alike), strict=True))
    known, where = np.unique(keys, return_inverse=True)
    sums = [np.zeros((len(known), *x.shape[1:])) for x in (over, under)]
    for total, x in zip(sums, (over, under), strict=True):
        np.add.at(total, where, x)
    return known, sums[0] / np.where(sums[1] == 0, 1, sums[1])


def _at(s: Step, steps: Sequence[Step], part: Part, keys: Array) -> Array:
    """Return the quotients of these keys."""
    known, found = _quotients(s, steps, part)
    return np.asarray(found[np.searchsorted(known, keys).clip(0, len(known) - 1)])


def _few(known: Array) -> str:
    return ", ".join(map(str, known[:SHOWN]))


def _by_position(first: Step, steps: Sequence[Step]) -> Iterator[Guess]:
    """Yield what is added to the results of tokens, if their positions decide it."""

    def added(s: Step) -> tuple[Array, Array, Array]:
        here = s.counts.all(axis=tuple(range(2, s.out.ndim)))
        left = (s.out - s.right)[here]
        return np.asarray(s.positions)[here], left, np.ones_like(left)

    def differ(s: Step) -> bool:
        """Return whether tokens of one position have different results that are right."""
        rows = []
        for t in (t for t in steps if (t.model, t.layer) == (s.model, s.layer)):
            at, x = added(t)[0], t.right[t.counts.all(axis=tuple(range(2, t.out.ndim)))]
            rows.append(np.column_stack([at, x.reshape(len(at), -1)[:, :4].round(4)]))
        several = np.unique(np.concatenate(rows), axis=0)
        return len(several) >= 1.5 * len(np.unique(several[:, 0]))

    def made(s: Step) -> Array | None:
        at = np.asarray(s.positions)
        return s.right + _at(s, steps, added, at) if differ(s) else None

    of = next((s for s in (first, *steps) if s.positions is not None and differ(s)), None)
    if of is not None:
        known, found = _quotients(of, steps, added)
        sizes = ", ".join(number(float(np.abs(x).max())) for x in found[:SHOWN])
        says = f"what is added depends on the position alone: at {_few(known)} it is up to {sizes}"
        yield Guess(says, made, last=True)


def _scales(first: Step, steps: Sequence[Step]) -> Iterator[Guess]:
    """Yield by what scores are multiplied, or what is added for each token between, and of what.

    The logarithms of weights are regressed on scores, or what they have more on distances.
    """
    for of, word in (("head", "of heads"), ("position", "of queries at the positions")):
        for slope in (False, True):

            def keys(s: Step, of: str = of) -> Array:
                key = np.arange(s.out.shape[1])[:, None] if of == "head" else s.x["q_positions"]
                return np.broadcast_to(key if of == "head" else key[:, None], s.out.shape[:3])

            def sums(
                s: Step, slope: bool = slope, keys: Callable[[Step], Array] = keys
            ) -> tuple[Array, Array, Array]:
                seen, z = (s.out > 0) & s.counts, names(s)["z"]
                n = np.maximum(seen.sum(axis=-1, keepdims=True), 1)
                logs = np.log(np.where(seen, s.out, 1))
                both = (names(s)["distance"] + 0 * z, logs - z) if slope else (z, logs)
                x, y = (np.where(seen, a, 0.0) for a in both)
                x, y = (np.where(seen, a - a.sum(axis=-1, keepdims=True) / n, 0.0) for a in (x, y))
                return keys(s).ravel(), (x * y).sum(axis=-1).ravel(), (x * x).sum(axis=-1).ravel()

            def made(
                s: Step,
                slope: bool = slope,
                part: Part = sums,
                keys: Callable[[Step], Array] = keys,
            ) -> Array:
                found, x = _at(s, steps, part, keys(s))[..., None], names(s)
                z = x["z"] + found * x["distance"] if slope else x["z"] * found
                return softmax(z, x["mask"])

            known, found = _quotients(first, steps, sums)
            real = (known >= 0) & (found != 0)
            sizes = ", ".join(number(float(x)) for x in found[real][:SHOWN])
            says = f"the scale {word} {_few(known[real])} is {sizes} times 1/sqrt(d)"
            if slope:
                says = f"a bias of the distance is added to the scores, {word} {_few(known[real])} "
                says += f"{sizes} for each token"
            yield Guess(says, made, last=True)


def _combination(first: Step) -> Iterator[Guess]:
    """Yield the sum of earlier stages, each times a number, that came out."""
    inputs = {n: x for n, x in first.others.items() if x.shape == first.out.shape}
    inputs |= {"what it should be": first.right, "1": np.ones_like(first.right)}
    parts: dict[str, Array] = {}
    for name, x in inputs.items():  # the same stage may have two names
        if not any(np.array_equal(x, y) for y in parts.values()):
            parts[name] = x
    parts.pop(first.stage, None)
    rows = np.stack([x[first.counts] for x in parts.values()], axis=1)
    wanted = first.out[first.counts]
    if (
        len(rows) < 4 * rows.shape[1]
        or not np.isfinite(rows).all()
        or not np.isfinite(wanted).all()
    ):
        return
    found = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    factors = {n: float(f"{c:.4g}") for n, c in zip(parts, found, strict=True) if abs(c) > CLEAR}
    says = " + ".join(f"{number(c)} · {n}" for n, c in factors.items())

    def made(s: Step) -> Array:
        every = {**s.others, "what it should be": s.right, "1": np.ones_like(s.right)}
        return np.asarray(sum(c * every[n] for n, c in factors.items()))

    yield Guess(f"it is {says}", made, last=True)


def _another_weight(first: Step, steps: Sequence[Step]) -> Iterator[Guess]:
    """Yield the weight by which inputs were multiplied, where there are enough to solve for it."""
    known: dict[tuple[int, int], Array | None] = {}

    def solved(s: Step) -> Array | None:
        """Return the weight, and what is added (outputs, inputs + 1); None if it is not unique."""
        key = (id(s.model), s.layer)
        if key not in known:
            alike = [t for t in steps if (id(t.model), t.layer) == key]
            here = [t.counts.all(axis=tuple(range(2, t.out.ndim))) for t in alike]
            x = np.concatenate([names(t)["x"][h] for t, h in zip(alike, here, strict=True)])
            rows = [t.out[h].reshape(h.sum(), -1) for t, h in zip(alike, here, strict=True)]
            y = np.concatenate(rows)
            x = np.concatenate([x, np.ones_like(x[:, :1])], axis=1)
            enough = len(x) > x.shape[1] and np.isfinite(y).all()
            enough = enough and np.linalg.cond(x / np.linalg.norm(x, axis=0)) < 1e4
            known[key] = np.linalg.lstsq(x, y, rcond=None)[0].T if enough else None
        return known[key]

    def made(s: Step) -> Array | None:
        w = solved(s)
        x = names(s)["x"]
        return None if w is None else (x @ w[:, :-1].T + w[:, -1]).reshape(s.right.shape)

    of = next((s for s in (first, *steps) if s.model is not None and solved(s) is not None), None)
    if of is not None:
        w: Any = solved(of)
        yield Guess(_differs(w[:, :-1], of.x["weight"], w[:, -1]), made, last=True)


def _differs(got: Array, right: Array, added: Array) -> str:
    """Return in words how a weight (outputs, inputs) differs from the right one."""
    size = np.abs(right).max()
    left, far = got - right, CLEAR * size
    rows, columns = (np.abs(left).max(axis=axis) > far for axis in (1, 0))
    where = ranges(np.flatnonzero(columns).tolist())
    bias = f", and up to {number(float(np.abs(added).max()))} is added"
    bias = bias if np.abs(added).max() > far else ""
    if columns.any() and (np.abs(got[:, columns]) <= far).all():
        return f"inputs {where} are left out of the sum{bias}"
    if rows.any() and np.abs(left - left.mean(axis=0)).max() <= far:
        return f"the same is added to each row of the weight{bias}"
    order = np.abs(got[:, :, None] - right[:, None, :]).max(axis=0).argmin(axis=1)
    if np.abs(got - right[:, order]).max() <= far:
        return f"inputs are permuted: 0, 1, 2, ... are those of columns {_few(order)}{bias}"
    if not rows.all():
        return f"rows {ranges(np.flatnonzero(rows).tolist())} of the weight are others{bias}"
    if not columns.all():
        return f"the columns of the weight for inputs {where} are others{bias}"
    most = number(float(np.abs(left).max() / size))
    return f"the weight is another one, which differs by up to {most} of its largest number{bias}"
