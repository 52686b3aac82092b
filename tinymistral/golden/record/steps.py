"""Recording a text: step by step its expected numbers, and how far right programs are from them.

Step 0 is the embedding, step n layer n - 1, the last one the final norm and the logits. At each,
the numbers that count are computed once, in float64 as a rule, and then in the ways that
tolerances are measured by, in float32, float16 and bfloat16 each: with sums in other orders, all
tokens at once or in two pieces, rotary angles in float64 or float32, operations that round their
result alone or each of their steps (`eager.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.golden.calls import logprobs
from tinymistral.golden.record.layerwise import (
    Arrays,
    Tensors,
    Way,
    by_weights,
    head_tensors,
    layer_tensors,
)
from tinymistral.golden.rounding import UNIT, rounded_up

MANY, FEW = 20, 6  # ways, of models with at most SMALL weights, and of others
SMALL = 50_000_000
# A large model is tried in fewer ways than v1's are, none of which rounds everywhere or sums one
# number after the other: twice `making.tolerances.FACTOR`.
FACTOR = 8
SMALLEST = 1e-30  # a tolerance, where all numbers are 0

Errors = dict[str, dict[str, float]]  # by tensor and dtype; inf where a dtype does not hold them


@dataclass(frozen=True)
class Job:
    """What is to be computed of a text."""

    ids: tuple[int, ...]
    stages: tuple[str, ...]  # by their names, cache.layers.N.k and .v among them
    dtype: str = "float64"  # in which the expected numbers are computed
    ways: int = MANY
    new: int = 0  # of the ids, at the end: what is chosen by logits, and recorded are `scores`

    def steps(self, config: MistralConfig) -> int:
        """Count the steps."""
        return config.num_hidden_layers + 2


@dataclass
class Step:
    """What came of a step: expected numbers, and the largest error of any way on each."""

    expected: Arrays
    errors: Errors


class Walk:
    """A text on its way through the layers, in all ways; `ways[0]` is the one that counts."""

    def __init__(self, job: Job, config: MistralConfig, tensors: Tensors):
        self.job, self.config, self.tensors = job, config, tensors
        self.fed = np.array(job.ids[: len(job.ids) - (1 if job.new else 0)], dtype=np.int64)
        half = math.ceil(len(self.fed) / 2)
        self.ways = [Way(config, job.dtype)] + [
            Way(config, dtype, n, ("float64", "float32")[n % 2], (0, half)[n // 2 % 2], n % 3 == 1)
            for dtype in UNIT
            for n in range(job.ways)
        ]
        window = config.sliding_window
        kept = len(self.fed) if window is None else min(len(self.fed), window - 1)
        self._cached = slice(len(self.fed) - kept, None)

    def step(self, number: int) -> Step:
        """Take a step; all before it have been taken, or the hidden states are theirs."""
        done = Step({}, {})
        last = number == self.job.steps(self.config) - 1
        weights = layer_tensors(self.tensors, number - 1) if number else {}
        if last and (self.job.new or {"norm", "logits"} & set(self.job.stages)):
            weights = head_tensors(self.config, self.tensors)
        with np.errstate(over="ignore", invalid="ignore"):  # of float16, and seen below
            for way, arranged in by_weights(self.ways, weights):
                if not number:
                    found = self._recorded(way.embed(self.tensors, self.fed))
                elif last:
                    found = self._head(way, arranged) if arranged else {}
                else:
                    found = self._recorded(way.layer(arranged, number - 1, self._wants))
                self._note(done, way, found)
        return done

    def _wants(self, stage: str) -> bool:
        source = {"k_rotated": "k", "v": "v"}.get(stage.rpartition(".")[2])
        cached = source and f"cache.{stage.rpartition('.')[0]}.{source}"
        return stage in self.job.stages or cached in self.job.stages

    def _recorded(self, stages: Arrays) -> Arrays:
        """Return what is to be recorded: stages, and what a cache holds of them."""
        found = {name: x for name, x in stages.items() if name in self.job.stages}
        for name, x in stages.items():
            layer, _, stage = name.rpartition(".")
            cached = f"cache.{layer}.{stage.removesuffix('_rotated')}"
            if stage in ("k_rotated", "v") and cached in self.job.stages:
                found[cached] = x[:, self._cached]
        return found

    def _head(self, way: Way, weights: Tensors) -> Arrays:
        normed = way.norm(weights)
        found = way.permuted.undo({"norm": normed}) if "norm" in self.job.stages else {}
        if self.job.new:
            chosen = np.array([self.job.ids[-self.job.new :]], dtype=np.int64)
            scores = way.logits(weights, normed[:, -self.job.new :])
            found |= {"scores": scores, "logprobs": logprobs(scores, chosen)}
        elif "logits" in self.job.stages:
            found["logits"] = way.logits(weights, normed)
        return found

    def _note(self, done: Step, way: Way, found: Arrays) -> None:
        """Take the numbers as those expected, or hold them against these."""
        dtype = way.backend.dtype
        for name, numbers in found.items():
            wide = numbers.astype(np.float64)
            if way is self.ways[0]:
                if not np.isfinite(wide).all():
                    raise ValueError(
                        f"{name}: not all numbers are finite; the weights are damaged, and a new "
                        "download helps"
                    )
                done.expected[name] = wide
                continue
            error = np.abs(wide - done.expected[name]).max(initial=0)
            if name == "scores" and (wide.argmax(-1) != done.expected[name].argmax(-1)).any():
                error = np.inf  # in this dtype, rounding leads to other tokens
            by_dtype = done.errors.setdefault(name, {})
            by_dtype[dtype] = max(by_dtype.get(dtype, 0.0), float(np.nan_to_num(error, nan=np.inf)))


def tolerances(expected: Mapping[str, np.ndarray], errors: Errors) -> dict[str, dict[str, float]]:
    """Return a tolerance for each tensor and dtype, of those dtypes that hold its numbers."""
    found: dict[str, dict[str, float]] = {}
    for name, numbers in expected.items():
        largest = float(np.abs(numbers).max(initial=0))
        found[name] = {}
        for dtype, unit in UNIT.items():
            near = max(FACTOR * errors[name][dtype], unit * largest)
            if near < math.inf:
                found[name][dtype] = rounded_up(near) if near else SMALLEST
        if not found[name]:
            raise ValueError(f"{name}: no dtype of {', '.join(UNIT)} holds its numbers")
    return found
