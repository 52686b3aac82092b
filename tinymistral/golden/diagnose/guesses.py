"""What a wrong step may have done: mistakes of the catalogue, formulas, and what is only seen.

Where a formula has a parameter, it is searched on the first of the steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from types import CodeType
from typing import Any

import numpy as np

from tinymistral.golden.compare.places import ranges
from tinymistral.golden.diagnose import formulas
from tinymistral.golden.diagnose.guess import NO_NUMBERS, Guess, refined
from tinymistral.golden.diagnose.names import EIGHTS, FUNCTIONS, HALVES, names, rounded
from tinymistral.golden.diagnose.seen import seen
from tinymistral.golden.diagnose.steps import Array, Step, compute
from tinymistral.mistakes import FORWARD, MISTAKES, Mistake
from tinymistral.mistakes.planting import faulty
from tinymistral.numpy_backend import NumpyBackend

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
}
FUSED = REPLACED["mask"] | REPLACED["weights"] | REPLACED["mix"]


# The stages of which a kind of weight is the weight, if not that of its own name.
OF_WEIGHT = {f"{n}_proj": n for n in ("q", "k", "v", "gate", "up")}
OF_WEIGHT |= {"o_proj": "attention_output", "down_proj": "mlp_output", "lm_head": "logits"}


def of_catalogue(first: Step, wrong: Collection[str] = ()) -> Iterator[Guess]:
    """Yield the known mistakes of a kind of step, if all stages that they change are wrong."""
    fused = first.kind == "mix" and "weights" not in first.x
    kinds = FUSED if fused else REPLACED.get(first.kind, set())
    tried = [*FORWARD, *(m for m in MISTAKES if m.not_diagnosed)]
    own = {name for table in tables_of(first) for name, *_ in parsed(table)}
    tried = [m for m in tried if kinds & {what for what, _ in m.changes} and m.name not in own]
    for mistake in tried:
        if wrong and first.model is not None and mistake.replacing("checkpoint"):
            right, found = first.model.tensors, first.model.changed(mistake)
            kinds = {n.split(".")[-2] for n in right if found.get(n) is not right[n]}
            if not {OF_WEIGHT.get(kind, kind) for kind in kinds} <= set(wrong):
                continue
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
    for line in re.sub(r"\n {4}", " :: ", table.strip()).splitlines():
        text, _, formula = line.partition(" :: ")
        name, _, says = text.rpartition(" | ")
        code = compile(formula, "<formula>", "eval")
        parameter = next((n for n in formulas.GRIDS if n in code.co_names), "")
        found.append((name, says, parameter, code))
    return found


def tables_of(s: Step) -> list[str]:
    """Return the tables of formulas of a step."""
    return [formulas.TABLES[name] for name in (s.stage, s.kind) if name in formulas.TABLES]


def result(code: CodeType, s: Step, **parameter: float) -> Array:
    """Return what a formula gives of a step."""
    x = names(s)
    with np.errstate(all="ignore"):
        found = np.asarray(eval(code, FUNCTIONS, {**x, **parameter}))
    if s.kind == "mask":
        found = np.broadcast_to(found & (x["i"] >= 0) & (x["j"] >= 0), s.right.shape)
    return found.astype(np.float64)


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


def of_formulas(first: Step, any_too: bool = True) -> Iterator[Guess]:
    """Yield the formulas of a step, then other inputs of it, then what may be of any step."""
    for table in tables_of(first):
        yield from of_table(table)
    if first.kind == "mix" and "weights" not in first.x:
        for kind, table in (("mask", formulas.MASK), ("weights", formulas.WEIGHTS)):
            yield from (in_attention(kind, guess) for guess in of_table(table))
    if first.kind == "mask":
        return
    yield from of_inputs(first)
    yield from of_table(formulas.ANY) if any_too else []
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
    if first.kind in ("linear", "norm") and first.model is not None:
        for other, tensor in first.model.tensors.items():
            if tensor.shape == first.x["weight"].shape and other != first.x["name"]:
                says = other.removesuffix(".weight").removeprefix("model.")
                yield Guess(
                    f"the weight is that of {says}", lambda s, n=other: _with(s, weight=_like(s, n))
                )
        if first.stage == "post_attention_layernorm":
            yield Guess(
                "the norm is of the sum, but x alone goes on",
                lambda s: _with(s, x=s.others["hidden"] + s.others["attention_output"]),
                "residual-lost",
            )
        for other, value in first.others.items():
            if value.size == first.x["x"].size:
                yield Guess(
                    f"the input is {other}",
                    lambda s, n=other: _with(s, x=s.others[n].reshape(s.x["x"].shape)),
                )
    inputs = {n: says for n, says in INPUTS.get(first.kind, {}).items() if n in first.x}
    some = [(), *((n,) for n in inputs), *([tuple(inputs)] if len(inputs) > 1 else [])]
    for what in some:
        for result_too in (True, False) if what else (True,):
            says = " and ".join([*(inputs[n] for n in what), *["results"] * result_too])
            alone = len(what) + result_too == 1  # in 8 bits one thing is stored
            for dtype in (*HALVES, *(EIGHTS if alone else ())):
                known = says == "the weight" and dtype in HALVES
                name = f"weights-rounded-to-{dtype}" if known else ""
                make = lambda s, n=what, r=result_too, t=dtype: _rounded(s, n, r, t)  # noqa: E731
                yield Guess(f"rounded to {dtype}: {says}", make, name)


def _with(s: Step, **inputs: Array) -> Array:
    return compute(s.kind, {**s.x, **inputs})


def _like(s: Step, name: str) -> Array:
    """Return a weight of the same kind in the step's own layer: names have a layer's number."""
    assert s.model is not None
    parts = name.split(".")
    own = ".".join([*parts[:2], str(s.layer), *parts[3:]]) if len(parts) > 4 else name
    tensors = s.model.tensors
    return tensors[own if own in tensors and own != s.x["name"] else name]


def _rounded(s: Step, inputs: tuple[str, ...], result_too: bool, dtype: str) -> Array:
    found = _with(s, **{n: rounded(s.x[n], dtype) for n in inputs})
    return rounded(found, dtype) if result_too else found


# All


def guesses(first: Step, steps: Sequence[Step], wrong: Collection[str]) -> Iterator[Guess]:
    """Yield guesses for a wrong step, measured on it and on other wrong `steps` of its stage.

    `wrong` are all stages that are wrong. If some heads, rows or columns are right, guesses are
    tried on the wrong ones alone too.
    """
    yield from _rules(first, wrong)
    yield from seen(first, steps)
    for word, axis in _axes(first).items():
        here = wrong_along(first, axis)
        if here.all():
            continue
        which = ranges(np.flatnonzero(here).tolist())
        for guess in _rules(replace(first, counts=first.counts & here), wrong):
            make = lambda s, f=guess.make, n=axis: np.where(wrong_along(s, n), f(s), s.right)  # noqa: E731
            yield replace(guess, says=f"in {word} {which}: {guess.says}", make=make)


def _axes(s: Step) -> dict[str, int]:
    """Return the axes along which a part of a result may be wrong."""
    if s.kind in ("mask", "weights"):
        return {"heads": 1, "rows": 0}
    return ({"heads": 2} if s.out.ndim == 4 else {"columns": 2}) | {"rows": 0}


def wrong_along(s: Step, axis: int) -> Array:
    """Return where along an axis a result is wrong, with all its axes."""
    others = tuple(n for n in range(s.out.ndim) if n != axis)
    return np.asarray((s.errors(s.right) > s.limit).any(axis=others, keepdims=True))


def _rules(first: Step, wrong: Collection[str]) -> Iterator[Guess]:
    yield from of_catalogue(first, wrong)
    for guess in of_formulas(first):
        fitted = _fitted(guess, first)
        yield from [] if fitted is None else [fitted]
