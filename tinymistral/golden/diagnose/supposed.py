"""Mistakes supposed in some steps of the reference, where a dump has only logits or few stages.

What a step may do wrong is that of `guesses.py`. It is made in each place where it may be: queries
and keys or one of them, all layers or every second, one norm or all. Parameters are searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from tinymistral.golden.diagnose.attention import HEADS, mixed_by, scaled, seen
from tinymistral.golden.diagnose.evidence import Evidence
from tinymistral.golden.diagnose.guess import NO_NUMBERS, Guess, Make, number, refined, sig
from tinymistral.golden.diagnose.guesses import guesses
from tinymistral.golden.diagnose.masks import distance
from tinymistral.golden.diagnose.predictions import Predictions
from tinymistral.golden.diagnose.rope import rotated
from tinymistral.golden.diagnose.steps import Array, Step, compute, results_with, softmax


@dataclass(frozen=True)
class Place:
    """Where a mistake is: the kind of step, its stages or all, 0 or 1 for every second layer."""

    kind: str
    stages: tuple[str, ...] = ()
    parity: int | None = None

    def has(self, kind: str, stage: str, layer: int) -> bool:
        """Return whether a step is here."""
        here = kind == self.kind and (not self.stages or stage in self.stages)
        return here and (self.parity is None or layer % 2 == self.parity)


@dataclass(frozen=True, eq=False)
class Supposed:
    """A mistake that is supposed: a sentence, and what is wrong at some places."""

    says: str
    changes: tuple[tuple[Place, Make], ...]
    name: str = ""
    fix: str = ""
    of_a_dtype: tuple[str, ...] = ()

    def results(
        self, each: Evidence, predictions: Predictions, dtype: str
    ) -> Mapping[str, Array] | None:
        """Return the numbers of a case with it, in float64; None if there are none."""
        if each.case.kind != "model" or each.another_length:
            return None
        with np.errstate(all="ignore"):
            try:
                return results_with(each, predictions, self._plant, self._touches)
            except NO_NUMBERS:
                return None

    def answers(self, case: Any, predictions: Predictions) -> None:
        """Return None: it is not about texts."""

    def _touches(self, kind: str, stage: str, layer: int) -> bool:
        return any(place.has(kind, stage, layer) for place, _ in self.changes)

    def _plant(self, s: Step) -> Array | None:
        found = None
        for place, make in self.changes:
            if place.has(s.kind, s.stage, s.layer):
                wrong = make(s)
                if wrong is None:
                    raise ValueError("there is no such result")
                found, s = wrong, replace(s, right=wrong)
        return found


NORMS = ("input_layernorm", "post_attention_layernorm", "norm")
SUMS = ("attention_residual", "output")


def supposed(each: Evidence, predictions: Predictions) -> Iterator[Supposed]:
    """Yield all that may be wrong in the steps of a case; without parameters."""
    steps: dict[tuple[str, str], Step] = {}

    def note(s: Step) -> None:
        steps[s.kind, s.stage] = s

    results_with(each, predictions, note)
    done: set[str] = set()
    for (kind, stage), step in steps.items():
        if kind == "cache" or (kind in ("rope", "norm", "sum") and kind in done):
            continue
        done.add(kind)
        for guess in guesses([step]):
            if guess.last:
                continue
            for what, place in _places(kind, stage, guess):
                says = f"{what}: {guess.says}" if what else guess.says
                changes = ((place, guess.make),)
                if kind == "weights" and guess.text in HEADS:  # values are read as keys are
                    make: Make = lambda s, g=guess.text: mixed_by(g, s, s.x["weights"])  # noqa: E731
                    yield Supposed(says, (*changes, (Place("mix"), make)), guess.name)
                    says = f"keys alone: {guess.says}"
                yield Supposed(says, changes, guess.name)


WHOLE = {"rope": "RoPE", "mask": "", "norm": "norms", "sum": "both sums"}
PARTS: dict[str, dict[str, Place]] = {
    "rope": {f"RoPE of {n}": Place("rope", (f"{n[0]}_rotated",)) for n in ("queries", "keys")},
    "mask": {f"in layers {n}, {n + 2}, ...": Place("mask", (), n) for n in (0, 1)},
    "norm": {n: Place("norm", (n,)) for n in NORMS},
    "sum": {n: Place("sum", (n,)) for n in SUMS},
}


def _places(kind: str, stage: str, guess: Guess) -> Iterator[tuple[str, Place]]:
    """Yield where a guess may be true; what is true of a dtype, or of any window, is everywhere."""
    everywhere = any(x in guess.says for x in ("float", "whatever the window", "the halves become"))
    if kind == "linear":
        if stage == "q":
            yield "q, k, v", Place(kind, ("q", "k", "v"))
            if everywhere:
                yield "all projections", Place(kind)
        if not everywhere or guess.name:
            yield stage, Place(kind, (stage,))
    elif kind == "sum" and stage in guess.says:
        yield "", Place(kind, (stage,))
    elif kind in WHOLE:
        yield WHOLE[kind], Place(kind)
        yield from () if everywhere else PARTS[kind].items()
    else:
        yield {"silu": "silu_mul", "mix": "attention_mix"}.get(kind, ""), Place(kind, (stage,))


# Parameters


class Family(NamedTuple):
    """Mistakes with a parameter: where, the numbers of a step with it, and a coarse grid."""

    place: Place
    makes: Callable[[float, Step], Array]
    grid: Array


def _factor(a: float, s: Step) -> Array:
    return a * s.right


SPREAD = np.geomspace(1 / 32, 32, 21)
WEIGHTS, LOGITS = Place("weights"), Place("linear", ("logits",))
FAMILIES = {
    "RoPE: angles are those of theta {}": Family(
        Place("rope"), lambda a, s: rotated(s, theta=a), np.geomspace(2, 1e9, 36)
    ),
    "RoPE: positions are multiplied by {}": Family(
        Place("rope"), lambda a, s: rotated(s, s.x["positions"] * a), SPREAD
    ),
    "norms: epsilon is {}": Family(
        Place("norm"), lambda a, s: compute("norm", {**s.x, "eps": a}), np.geomspace(1e-12, 1, 25)
    ),
    "attention_weights: the scale is {} times 1/sqrt(d)": Family(
        WEIGHTS, lambda a, s: softmax(a * scaled(s), seen(s)), SPREAD
    ),
    "attention_weights: scores are capped softly at {}: c · tanh(x / c)": Family(
        WEIGHTS,
        lambda a, s: softmax(a * np.tanh(scaled(s) / a), seen(s)),
        np.geomspace(0.05, 60, 21),
    ),
    "attention_weights: a bias of the distance is added to the scores, {} for each token": Family(
        WEIGHTS, lambda a, s: softmax(scaled(s) + a * distance(s), seen(s)), np.linspace(-1, 1, 21)
    ),
    "silu_mul: the activation is x · sigmoid({} x)": Family(
        Place("silu"), lambda a, s: s.x["gate"] * sig(a * s.x["gate"]) * s.x["up"], SPREAD
    ),
    "logits are {} times what they should be": Family(LOGITS, _factor, SPREAD),
    "logits are capped softly at {}: c · tanh(x / c)": Family(
        LOGITS, lambda a, s: a * np.tanh(s.right / a), SPREAD * 3
    ),
    "embeddings are multiplied by {}": Family(Place("embedding"), _factor, SPREAD),
    "attention_output is {} times what it should be": Family(
        Place("linear", ("attention_output",)), _factor, SPREAD
    ),
    "mlp_output is {} times what it should be": Family(
        Place("linear", ("mlp_output",)), _factor, SPREAD
    ),
    "the residual is multiplied by {} in both sums": Family(
        Place("sum"), lambda a, s: a * s.x["x"] + s.x["y"], SPREAD
    ),
}


def with_parameters(each: Evidence, predictions: Predictions, least: float) -> Iterator[Supposed]:
    """Yield each mistake that has a parameter, with the value that explains most of a case.

    A family of which no value of the coarse grid explains as much as `least` is left out.
    """
    for says, (place, makes, grid) in FAMILIES.items():

        def made(a: float, place: Place = place, f: Any = makes, says: str = says) -> Supposed:
            return Supposed(says.format(number(a)), ((place, lambda s: f(a, s)),))

        def left(a: float, m: Any = made) -> float:
            fit = each.fit(m(a), predictions)
            return 1.0 if fit is None else 1 - fit.share

        known = {float(a): left(float(a)) for a in grid}
        if min(known.values()) < 1 - least:
            yield made(refined(lambda a, k=known, f=left: k[a] if a in k else f(a), known, 20))
