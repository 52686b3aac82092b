"""What a wrong step may have done, by its kind, and what may have happened to any result.

Where a mistake has a parameter, it is measured from a step's input and result. The order is from
simple to complex: of guesses that fit as well, the first counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from tinymistral.golden.diagnose.attention import mix_guesses, weights_guesses
from tinymistral.golden.diagnose.formulas import of_caches, of_embedding, of_norms, of_silu, of_sums
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
from tinymistral.golden.diagnose.masks import mask_guesses
from tinymistral.golden.diagnose.projections import of_linear
from tinymistral.golden.diagnose.rope import of_rope
from tinymistral.golden.diagnose.steps import Array, Step, compute

KINDS: dict[str, Callable[[list[Step]], Iterator[Guess]]] = {
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
# What may be rounded in each kind of step, by name, and how to say it.
INPUTS = {
    "norm": {"x": "the input", "weight": "the weight"},
    "linear": {"x": "the input", "weight": "the weight"},
    "rope": {"x": "the input"},
    "weights": {"q": "queries", "k": "keys"},
    "mix": {"weights": "weights", "v": "values"},
    "silu": {"gate": "gate", "up": "up"},
    "sum": {"x": "the residual", "y": "what is added to it"},
}

MATCHED = 2**24  # distances of columns, so that memory is limited


def guesses(steps: list[Step]) -> Iterator[Guess]:
    """Yield guesses for wrong steps of one stage; parameters are measured on the first."""
    first = steps[0]
    yield from KINDS[first.kind](steps)
    if first.kind != "mask":
        yield from _roundings(first)
        yield Guess("results are 0", lambda s: np.zeros_like(s.right))
        if is_known(first):
            yield from _of_results(first)


def _roundings(first: Step) -> Iterator[Guess]:
    """Yield that some inputs, or results, are rounded to 16 bits."""
    inputs = {n: says for n, says in INPUTS.get(first.kind, {}).items() if n in first.x}
    some: list[tuple[str, ...]] = [(), *((n,) for n in inputs)]
    some += [tuple(inputs)] if len(inputs) > 1 else []
    for names in some:
        for result in (True, False):
            for dtype in HALVES if names or result else ():
                what = [*(inputs[n] for n in names), *(["results"] if result else [])]
                known = f"weights-rounded-to-{dtype} | " if names == ("weight",) else ""
                yield Guess(
                    f"{known * (not result)}rounded to {dtype}: {' and '.join(what)}",
                    lambda s, n=names, r=result, t=dtype: _rounded(s, n, r, t),
                )


def _rounded(s: Step, names: tuple[str, ...], result: bool, dtype: str) -> Array:
    found = compute(s.kind, {**s.x, **{n: rounded(s.x[n], dtype) for n in names}})
    return rounded(found, dtype) if result else found


def _of_results(first: Step) -> Iterator[Guess]:
    """Yield results that are scaled, shifted, capped, of another token or permuted; measured."""
    out, right = (np.where(first.counts, x, 0.0).ravel() for x in (first.out, first.right))
    if not (np.isfinite(out).all() and np.isfinite(right).all()):
        return
    factor = float(out @ right) / max(float(right @ right), 1e-300)
    if abs(factor - 1) > 1e-3:
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
    for n, token in ((1, "before"), (-1, "after")):
        yield Guess(
            f"each token has the result of the one {token} it",
            lambda s, n=n: np.roll(s.right, n, 1),
        )
    yield Guess(
        "all rows of the batch have the results of the first",
        lambda s: np.broadcast_to(s.right[:1], s.right.shape),
    )
    if first.kind == "weights":
        return
    for by in (1, 2, 3, -1, -2, -3, 0):
        says = f"results are shifted by {by}" if by else "the halves of the results are exchanged"
        yield Guess(
            f"the order is wrong: {says}",
            lambda s, by=by: _flat(s, lambda x: np.roll(x, by or x.shape[-1] // 2, axis=-1)),
        )
    yield Guess(
        "the order is wrong: results are reversed", lambda s: _flat(s, lambda x: x[..., ::-1])
    )
    rows = first.counts.any(axis=tuple(range(2, first.out.ndim)))
    if rows.sum() < 2:
        return
    shown = ", ".join(map(number, _of_columns(first).ravel()[:6]))
    yield Guess(
        f"each result of a token is multiplied by a factor of its own: {shown}, ...",
        lambda s: s.right * _of_columns(s),
        last=True,
    )
    bias = np.median((first.out - first.right)[rows], axis=0)
    yield Guess(
        f"a bias is added, of up to {number(float(np.abs(bias).max(initial=0)))}",
        lambda s: s.right + bias if s.right.shape[2:] == bias.shape else None,
    )
    yield from _permuted(first)


def _of_columns(s: Step) -> Array:
    """Return by what each result of a token is multiplied, the same for all tokens."""
    out, right = (np.where(s.counts, x, 0.0) for x in (s.out, s.right))
    square = np.square(right).sum(axis=(0, 1))
    return np.asarray((out * right).sum(axis=(0, 1)) / np.where(square, square, 1))


def _flat(s: Step, f: Callable[[Array], Array]) -> Array:
    """Change the results of each token as one vector."""
    return f(s.right.reshape(*s.right.shape[:2], -1)).reshape(s.right.shape)


def _permuted(first: Step) -> Iterator[Guess]:
    """Match columns, that is what each token has at one place, with those that should come out."""
    if first.out.ndim == 4:
        orders: dict[str, Callable[[Array], Array]] = {
            "heads are in reverse order": lambda x: x[:, :, ::-1],
            "numbers of a head are in the order of pairs (0, d/2, 1, ...)": lambda x: x[
                ..., halves_to_pairs(x.shape[-1])
            ],
            "numbers of a head are in the order of halves (0, 2, ..., 1, 3, ...)": lambda x: x[
                ..., pairs_to_halves(x.shape[-1])
            ],
            "heads are cut with stride H: (d, H) is read as (H, d)": lambda x: x.reshape(
                *x.shape[:2], *x.shape[:1:-1]
            ).swapaxes(2, 3),
        }
        for says, f in orders.items():
            yield Guess(f"{says}: the order is wrong", lambda s, f=f: f(s.right))
    rows = first.counts.all(axis=tuple(range(2, first.out.ndim)))
    got, want = (x[rows].reshape(int(rows.sum()), -1) for x in (first.out, first.right))
    width = want.shape[1]
    most = MATCHED // width**2
    got, want = got[:most], want[:most]
    if len(got) < 3 or width == 1:
        return
    order = np.abs(got[:, :, None] - want[:, None, :]).max(axis=0).argmin(axis=1)
    if len(set(order.tolist())) > 1:
        shown = ", ".join(map(str, order[:8]))
        yield Guess(
            f"the order is permuted: results 0, 1, 2, ... are what {shown}, ... should be",
            lambda s: (
                _flat(s, lambda x: x[..., order]) if math.prod(s.right.shape[2:]) == width else None
            ),
        )
