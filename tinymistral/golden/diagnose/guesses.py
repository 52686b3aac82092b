"""What a wrong step may have done: mistakes of the catalogue, formulas, and what is only seen.

Where a formula has a parameter, it is searched on the first of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from types import CodeType
from typing import Any

import numpy as np

from tinymistral.golden.diagnose import formulas
from tinymistral.golden.diagnose.names import FUNCTIONS, HALVES, names, rounded, softmax, turn
from tinymistral.golden.diagnose.steps import Array, Step, compute
from tinymistral.mistakes import FORWARD, MISTAKES, Mistake
from tinymistral.mistakes.planting import faulty
from tinymistral.numpy_backend import NumpyBackend

# What a guess raises for a step of which it is no guess: such as other heads or stages.
NO_NUMBERS = (
    ArithmeticError, AttributeError, LookupError, NameError, TypeError, ValueError,
)  # fmt: skip
Make = Callable[..., Array | None]  # the numbers of a step; None if it has none


@dataclass(frozen=True)
class Guess:
    """A sentence about a step, and the numbers that the step would give."""

    says: str
    make: Make
    name: str = ""  # of a known mistake
    last: bool = False  # it only says what is seen: it counts if no other guess fits
    parameter: str = ""  # of `make` and of the sentence, of which no value is chosen yet

    def at(self, value: float) -> Guess:
        """Return it with a value of its parameter."""
        n = self.parameter
        says = self.says.replace(f"{{{n}}}", shown(n, value))
        return replace(self, says=says, make=partial(self.make, **{n: value}), parameter="")


# The catalogue

# What a mistake replaces if it is about a kind of step.
REPLACED = {
    "embedding": {"embedding", "checkpoint"},
    "norm": {"rms_norm", "checkpoint"},
    "linear": {"linear", "checkpoint"},
    "rope": {"rope", "rope_table"},
    "mask": {"visible"},
    "weights": {"repeat", "scale", "masked_exp", "masked_softmax"},
    "mix": {"repeat", "mix"},
    "silu": {"silu_mul"},
    "sum": {"add"},
}
FUSED = REPLACED["mask"] | REPLACED["weights"] | REPLACED["mix"]


def of_catalogue(first: Step) -> Iterator[Guess]:
    """Yield the known mistakes of a kind of step."""
    fused = first.kind == "mix" and "weights" not in first.x
    kinds = FUSED if fused else REPLACED.get(first.kind, set())
    tried = [*FORWARD, *(m for m in MISTAKES if m.not_diagnosed)]
    own = {name for table in tables_of(first) for name, *_ in parsed(table)}
    tried = [m for m in tried if kinds & {what for what, _ in m.changes} and m.name not in own]
    for mistake in tried:
        yield Guess(mistake.says, lambda s, m=mistake: _mistaken(s, m), mistake.name)


def _mistaken(s: Step, mistake: Mistake) -> Array | None:
    backend = faulty(NumpyBackend, True)("float64", mistake.changes)
    backend.call, backend.ropes = (s.call if s.model else -1), int(s.stage == "k_rotated")
    x = {n: np.array(a) if isinstance(a, np.ndarray) else a for n, a in s.x.items()}
    if mistake.replacing("checkpoint"):
        if s.model is None:
            return None
        right, tensors = s.model.tensors, s.model.changed(mistake)
        kinds = {n.split(".")[-2] for n in right if tensors.get(n) is not right[n]}
        if len(kinds) > 2:  # such as of whole layers, which one step does not show
            return None
        weight = tensors.get(s.x["name"], tensors["model.embed_tokens.weight"])
        x |= {"weight": weight, "table": weight}
    return compute(s.kind, x, backend)


# Formulas

Formula = tuple[str, str, str, CodeType]  # name of a mistake or "", sentence, parameter or "", code


@lru_cache
def parsed(table: str) -> list[Formula]:
    """Return the formulas of a table."""
    found = []
    lines = table.strip().splitlines()
    for text, formula in zip(lines[::2], lines[1::2], strict=True):
        name, _, says = text.rpartition(" | ")
        code = compile(formula.strip(), "<formula>", "eval")
        parameter = next((n for n in formulas.GRIDS if n in code.co_names), "")
        found.append((name, says, parameter, code))
    return found


def tables_of(s: Step) -> list[str]:
    """Return the tables of formulas of a step, but for attention in one step."""
    f = formulas
    found = {
        "mask": [f.MASK], "weights": [f.WEIGHTS], "mix": [f.MIX], "rope": [f.ROPE],
        "norm": [f.NORM], "silu": [f.SILU], "sum": [f.SUM], "embedding": [f.EMBEDDING],
        "linear": [f.LINEAR], "cache": [f.CACHE],
    }[s.kind]  # fmt: skip
    found = [f.LOGITS] * (s.stage == "logits") + found
    found = [f.CACHED_KEYS] * (s.stage == "cache.k") + found
    return found + [f.JOINED] * (s.stage == "attention_output")


def result(code: CodeType, s: Step, **parameter: float) -> Array:
    """Return what a formula gives of a step."""
    x = names(s)
    with np.errstate(all="ignore"):
        found = np.asarray(eval(code, FUNCTIONS, {**x, **parameter}))
    if s.kind == "mask":
        found = np.broadcast_to(found & (x["i"] >= 0) & (x["j"] >= 0), s.right.shape)
    return found.astype(np.float64)


def reading(s: Step, heads: Array) -> Array:
    """Return what a step gives if query heads read these key/value heads."""
    x = names(s)
    if s.kind == "mix":
        return np.asarray(x["mix"](s.x["v"], heads))
    return softmax(x["scores"](s.x["q"], s.x["k"], heads), x["mask"])


def in_attention(kind: str, guess: Guess) -> Guess:
    """Return the mix, of a program that shows no weights, with a mask or weights of a guess."""

    def mixed(s: Step, **parameter: float) -> Array:
        found: Any = guess.make(_part(s, kind), **parameter)
        change = {"mask": found > 0} if kind == "mask" else {"weights": found}
        return compute("mix", {**s.x, **change})

    return replace(guess, make=mixed)


@lru_cache(maxsize=64)
def _part(s: Step, kind: str) -> Step:
    return replace(s, kind=kind, right=compute(kind, s.x))


def of_table(table: str) -> Iterator[Guess]:
    """Yield the formulas of a table."""
    for name, says, parameter, code in parsed(table):
        yield Guess(says, partial(result, code), name, parameter=parameter)


def of_formulas(first: Step) -> Iterator[Guess]:
    """Yield the formulas of a step, then other inputs of it, then what may be of any step."""
    if first.kind in ("weights", "mix"):
        for name, says, _, code in parsed(formulas.HEADS):
            yield Guess(says, lambda s, c=code: reading(s, eval(c, FUNCTIONS, names(s))), name)
    for table in tables_of(first):
        yield from of_table(table)
    if first.kind == "mix" and "weights" not in first.x:
        for kind, table in (("mask", formulas.MASK), ("weights", formulas.WEIGHTS)):
            yield from (in_attention(kind, guess) for guess in of_table(table))
    if first.kind == "mask":
        return
    yield from of_inputs(first)
    yield from of_table(formulas.ANY)
    if first.right.ndim == 4 and first.kind != "weights":
        yield from of_table(formulas.OF_HEADS)


def _fitted(guess: Guess, s: Step) -> Guess | None:
    """Return a guess with the value of its parameter that is nearest to what came out."""
    if not guess.parameter:
        return guess

    def error(value: float) -> float:
        try:
            with np.errstate(all="ignore"):
                left = np.where(s.counts, guess.make(s, **{guess.parameter: value}) - s.out, 0.0)
        except NO_NUMBERS:
            return math.inf
        far = float(np.square(left).sum()) if left.shape == s.out.shape else math.inf
        return far if far == far else math.inf

    value = refined(error, formulas.GRIDS[guess.parameter], guess.parameter in formulas.WHOLE)
    return None if value is None else guess.at(value)


def refined(
    error: Callable[[float], float], grid: Sequence[float], whole: bool, rounds: int = 34
) -> float | None:
    """Return where an error is smallest: the best of a grid, then between its neighbours."""
    errors = [error(value) for value in grid]
    at = int(np.argmin(errors))
    if not math.isfinite(errors[at]):
        return None
    if whole or grid[at] == 0:
        return grid[at]
    low, high = grid[max(0, at - 1)], grid[min(len(grid) - 1, at + 1)]
    f, back = (lambda t: error(math.exp(t))), math.exp
    if low > 0:
        low, high = math.log(low), math.log(high)
    else:
        f, back = error, float
    golden = (math.sqrt(5) - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    fa, fb = f(a), f(b)
    for _ in range(rounds):
        if fa < fb:
            high, b, fb = b, a, fa
            a = high - golden * (high - low)
            fa = f(a)
        else:
            low, a, fa = a, b, fb
            b = low + golden * (high - low)
            fb = f(b)
    found = back(a if fa < fb else b)
    nice = float(f"{found:.2g}")  # what somebody would have written, if it is as near
    near = abs(nice - found) <= 0.01 * abs(found)
    return nice if near and error(nice) <= 1.5 * error(found) + 1e-12 else found


def number(x: float) -> str:
    """Return a number as people write it, at most four digits."""
    if x and not 1e-3 <= abs(x) < 1e15:
        return f"{x:.3g}"
    x = float(f"{x:.4g}")
    return f"{x:,.0f}" if x == int(x) else f"{x:g}"


def shown(parameter: str, value: float) -> str:
    """Return the value of a parameter as a sentence shows it."""
    if parameter == "part":
        return str(Fraction(value).limit_denominator(9))
    return f"{'+' if value > 0 else '-'} {abs(value)}" if parameter == "n" else number(value)


# Other weights, inputs and roundings

INPUTS = {  # what may be rounded
    "norm": {"x": "the input", "weight": "the weight"},
    "linear": {"x": "the input", "weight": "the weight"},
    "rope": {"x": "the input"},
    "weights": {"q": "queries", "k": "keys"},
    "mix": {"weights": "weights", "v": "values"},
    "silu": {"gate": "gate", "up": "up"},
    "sum": {"x": "the residual", "y": "what is added to it"},
}


def of_inputs(first: Step) -> Iterator[Guess]:
    """Yield other weights and inputs of a step, and roundings of them and of the result."""

    def with_input(name: str, change: Callable[[Step], Array]) -> Make:
        return lambda s: compute(s.kind, {**s.x, name: change(s).reshape(s.x[name].shape)})

    if first.kind in ("linear", "norm") and first.model is not None:
        for other, tensor in first.model.tensors.items():
            if tensor.shape == first.x["weight"].shape and other != first.x["name"]:
                says = other.removesuffix(".weight").removeprefix("model.")
                yield Guess(
                    f"the weight is that of {says}",
                    with_input("weight", lambda s, n=other: _like(s, n)),
                )
        for other, value in first.others.items():
            if value.size == first.x["x"].size:
                make = with_input("x", lambda s, n=other: s.others[n])
                yield Guess(f"the input is {other}", make)
    inputs = {n: says for n, says in INPUTS.get(first.kind, {}).items() if n in first.x}
    some = [(), *((n,) for n in inputs), *([tuple(inputs)] if len(inputs) > 1 else [])]
    for what in some:
        for result_too in (True, False) if what else (True,):
            for dtype in HALVES:
                says = " and ".join([*(inputs[n] for n in what), *["results"] * result_too])
                name = f"weights-rounded-to-{dtype}" if says == "the weight" else ""
                make = lambda s, n=what, r=result_too, t=dtype: _rounded(s, n, r, t)  # noqa: E731
                yield Guess(f"rounded to {dtype}: {says}", make, name)


def _like(s: Step, name: str) -> Array:
    """Return a weight of the same kind in the step's own layer: names have a layer's number."""
    assert s.model is not None
    parts = name.split(".")
    own = ".".join([*parts[:2], str(s.layer), *parts[3:]]) if len(parts) > 4 else name
    tensors = s.model.tensors
    return tensors[own if own in tensors and own != s.x["name"] else name]


def _rounded(s: Step, inputs: tuple[str, ...], result_too: bool, dtype: str) -> Array:
    found = compute(s.kind, {**s.x, **{n: rounded(s.x[n], dtype) for n in inputs}})
    return rounded(found, dtype) if result_too else found


# What is only seen


def seen(first: Step) -> Iterator[Guess]:
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
        says = "pairs are rotated by other angles: by {} for each token, it should be {}"
        w = _frequencies(first)
        parts = [", ".join(f"{x:.3g}" for x in a[:6]) for a in (w, names(first)["f"])]
        make = lambda s: turn(s.x["x"], s.x["positions"][..., None, None] * _frequencies(s))  # noqa: E731
        yield Guess(says.format(*parts), make, last=True)
    if first.kind in ("weights", "mix"):
        K, H = first.x["k"].shape[2], first.x["q"].shape[2]
        each = [reading(first, np.full(H, n)) for n in range(K)]
        axis = 1 if first.kind == "weights" else 2
        far = [np.where(first.counts, np.square(x - first.out), 0) for x in each]
        sums = [np.nansum(x, axis=tuple({0, 1, 2, 3} - {axis})) for x in far]
        order = np.argmin(sums, axis=0)
        says = f"query heads 0 to {H - 1} read key/value heads {', '.join(map(str, order))}"
        yield Guess(says, lambda s: reading(s, order))
    columns = ", ".join(map(number, _factors(first, (0, 1)).ravel()[:6]))
    says = f"each result of a token is multiplied by a factor of its own: {columns}, ..."
    yield Guess(says, lambda s: s.right * _factors(s, (0, 1)), last=True)
    ratio = number(float(_factors(first, (-1,)).ravel()[first.counts.all(axis=-1).argmax()]))
    says = f"each token's result is multiplied by a factor of its own: {ratio} for the first, {at}"
    yield Guess(says, lambda s: s.right * _factors(s, (-1,)), last=True)
    rows = first.counts.all(axis=tuple(range(2, first.out.ndim)))
    if rows.sum() > 2 and first.kind != "weights":
        bias = np.median((first.out - first.right)[rows], axis=0)
        says = f"a bias is added, of up to {number(float(np.abs(bias).max(initial=0)))}"
        yield Guess(says, lambda s: s.right + bias, last=True)
        got, want = (a[rows].reshape(int(rows.sum()), -1) for a in (first.out, first.right))
        most = max(3, MATCHED // want.shape[1] ** 2)
        got, want = got[:most], want[:most]
        order = np.abs(got[:, :, None] - want[:, None, :]).max(axis=0).argmin(axis=1)
        shown = ", ".join(map(str, order[:8]))
        says = f"the order is permuted: results 0, 1, 2, ... are what {shown}, ... should be"
        yield Guess(says, lambda s: names(s)["flat"](names(s)["row"][..., order]), last=True)


MATCHED = 2**24  # distances of columns, so that memory is limited


def _factors(s: Step, axes: tuple[int, ...]) -> Array:
    """Return by what results are multiplied, the same along these axes."""
    out, right = (np.where(s.counts, x, 0.0) for x in (s.out, s.right))
    square = np.square(right).sum(axis=axes, keepdims=True)
    return np.asarray((out * right).sum(axis=axes, keepdims=True) / np.where(square, square, 1))


def _curve(s: Step) -> Callable[[Array], Array]:
    """Return the function of the gate whose product with up came out, by its values there."""
    g, u, out = (a[s.counts] for a in (s.x["gate"], s.x["up"], s.out))
    clear = np.abs(u) >= np.median(np.abs(u)) / 4
    order = np.argsort(g[clear])
    at, values = g[clear][order], (out[clear] / u[clear])[order]
    return lambda x: np.interp(x, at, values)


def _frequencies(s: Step) -> Array:
    """Return by what angle each pair is rotated for each token, between -pi and pi."""
    (one, two), (a, b) = (np.split(x, 2, axis=-1) for x in (s.x["x"], s.out))
    z = ((a + 1j * b) * (one - 1j * two)).sum(axis=2)
    z, p = np.where(s.counts.all(axis=(2, 3))[..., None], z, 0), s.x["positions"][..., None] * 1.0
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
    by = "by no query" if (_by_key(s) < s.right).any() else "by all queries"
    keys = ", ".join(map(str, np.unique(s.x["k_positions"][differs.any(axis=(1, 2))])[:12]))
    yield Guess(f"keys at the positions {keys} are seen {by}, {at}", _by_key, last=True)
    b, h, t = (int(n) for n in np.argwhere(differs.any(axis=-1))[0])
    lists = (s.x["k_positions"][b][x[b, h, t] > 0] for x in (s.out, s.right))
    saw, right = (", ".join(map(str, sorted(row)[:12])) or "none" for row in lists)
    p = s.x["q_positions"][b, t]
    says = f"{at} the query at position {p} sees keys {saw}, it should see {right}"
    yield Guess(says, lambda s: s.out, last=True)


def _by_key(s: Step) -> Array:
    """Let all queries see a key that all do see, and none a key that none sees."""
    x = names(s)
    here, saw = ((x["i"] >= 0) & (x["j"] >= 0)) & s.counts, s.out > 0
    never, always = (y.all(axis=(1, 2), keepdims=True) for y in (~(saw & here), saw | ~here))
    return np.where(never, 0.0, np.where(always & here, 1.0, s.right))


# All


def guesses(first: Step, measured: bool = True) -> Iterator[Guess]:
    """Yield guesses for a wrong step, and without `measured` not what is only seen of it.

    If some heads are right, guesses are tried on the wrong ones alone too.
    """
    yield from _of_all_heads(first, measured)
    if not measured or first.out.ndim < 4 or (here := _wrong_heads(first)).all():
        return
    heads = ", ".join(map(str, np.flatnonzero(here)))
    for guess in _of_all_heads(replace(first, counts=first.counts & here), False):
        make = lambda s, f=guess.make: np.where(_wrong_heads(s), f(s), s.right)  # noqa: E731
        yield replace(guess, says=f"in heads {heads}: {guess.says}", make=make)


def _wrong_heads(s: Step) -> Array:
    """Return which heads are wrong, with the axes of the result."""
    every = (0, 2, 3) if s.kind in ("mask", "weights") else (0, 1, 3)
    return np.asarray((s.errors(s.right) > s.limit).any(axis=every, keepdims=True))


def _of_all_heads(first: Step, measured: bool) -> Iterator[Guess]:
    yield from of_catalogue(first)
    for guess in of_formulas(first):
        fitted = _fitted(guess, first)
        yield from [] if fitted is None else [fitted]
    yield from seen(first) if measured else []
