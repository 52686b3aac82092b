"""Recording a text step by step: expected numbers, and the errors of variants of the computation.

Step 0 is the embedding, step n layer n - 1, the last one the final norm and the logits. Each step
computes the expected numbers once, in float64 as a rule, and then in the variants that tolerances
are measured by, in float32, float16 and bfloat16 each: with sums in other orders, all tokens at
once or in two pieces, rotary angles in float64 or float32, operations that round their result
alone or each of their steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.golden.calls import logprobs
from tinymistral.golden.files import Arrays
from tinymistral.golden.record.layerwise import (
    Variant,
    by_weights,
    head_tensors,
    layer_tensors,
)
from tinymistral.golden.rounding import UNIT, rounded_up

MANY, FEW = 20, 6  # variants, of models with at most SMALL weights, and of others
SMALL = 50_000_000
# A large model is tried in fewer variants than v1's are, none of which rounds everywhere or sums
# one number after the other: twice `rounding.FACTOR`.
FACTOR = 8
SMALLEST = 1e-30  # a tolerance, where all numbers are 0

Errors = dict[str, dict[str, float]]  # by tensor and dtype; inf where a dtype does not hold them


@dataclass(frozen=True)
class Job:
    """What to compute of a text."""

    ids: tuple[int, ...]
    stages: tuple[str, ...]  # by their names, cache.layers.N.k and .v among them
    dtype: str = "float64"  # of the expected numbers
    ways: int = MANY  # number of variants in each dtype
    new: int = 0  # so many ids at the end are a continuation, whose `scores` are recorded

    def steps(self, config: MistralConfig) -> int:
        """Return the number of steps."""
        return config.num_hidden_layers + 2


@dataclass
class Step:
    """The results of a step: expected numbers, and the largest error of any variant on each."""

    expected: Arrays
    errors: Errors


class Walk:
    """A text on its way through the layers; `variants[0]` computes the expected numbers."""

    def __init__(self, job: Job, config: MistralConfig, tensors: Mapping[str, np.ndarray]):
        self.job, self.config, self.tensors = job, config, tensors
        self.ids = np.array(job.ids[: len(job.ids) - (1 if job.new else 0)], dtype=np.int64)
        half = math.ceil(len(self.ids) / 2)
        self.variants = [Variant(config, job.dtype)] + [
            Variant(
                config, dtype, n, ("float64", "float32")[n % 2], (0, half)[n // 2 % 2], n % 3 == 1
            )
            for dtype in UNIT
            for n in range(job.ways)
        ]
        window = config.sliding_window
        cached = len(self.ids) if window is None else min(len(self.ids), window - 1)
        self._cached = slice(len(self.ids) - cached, None)

    def step(self, number: int) -> Step:
        """Compute a step; the hidden states are those after the step before."""
        done = Step({}, {})
        last = number == self.job.steps(self.config) - 1
        weights = layer_tensors(self.tensors, number - 1) if number else {}
        if last and (self.job.new or {"norm", "logits"} & set(self.job.stages)):
            weights = head_tensors(self.config, self.tensors)
        with np.errstate(over="ignore", invalid="ignore"):  # of float16; checked in `_note`
            for variant, arranged in by_weights(self.variants, weights):
                if not number:
                    found = self._recorded(variant.embed(self.tensors, self.ids))
                elif last:
                    found = self._head(variant, arranged) if arranged else {}
                else:
                    found = self._recorded(variant.layer(arranged, number - 1, self._wants))
                self._note(done, variant, found)
        return done

    def _wants(self, stage: str) -> bool:
        return stage in self.job.stages or _cached_name(stage) in self.job.stages

    def _recorded(self, stages: Arrays) -> Arrays:
        """Return the stages to record, and the cached keys and values among them."""
        found = {name: x for name, x in stages.items() if name in self.job.stages}
        for name, x in stages.items():
            if (cached := _cached_name(name)) in self.job.stages:
                found[cached] = x[:, self._cached]
        return found

    def _head(self, variant: Variant, weights: Arrays) -> Arrays:
        normed = variant.norm(weights)
        found = variant.permuted.undo({"norm": normed}) if "norm" in self.job.stages else {}
        if self.job.new:
            chosen = np.array([self.job.ids[-self.job.new :]], dtype=np.int64)
            scores = variant.logits(weights, normed[:, -self.job.new :])
            found |= {"scores": scores, "logprobs": logprobs(scores, chosen)}
        elif "logits" in self.job.stages:
            found["logits"] = variant.logits(weights, normed)
        return found

    def _note(self, done: Step, variant: Variant, found: Arrays) -> None:
        """Take the numbers as those expected, or their errors."""
        for name, numbers in found.items():
            wide = numbers.astype(np.float64)
            if variant is self.variants[0]:
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
            by_dtype, dtype = done.errors.setdefault(name, {}), variant.backend.dtype
            by_dtype[dtype] = max(by_dtype.get(dtype, 0.0), float(np.nan_to_num(error, nan=np.inf)))


def _cached_name(stage: str) -> str:
    """Return the name that a stage has as cached keys or values; "" if it is not cached."""
    layer, _, name = stage.rpartition(".")
    cached = {"k_rotated": "k", "v": "v"}.get(name)
    return f"cache.{layer}.{cached}" if cached else ""


def tolerances(expected: Mapping[str, np.ndarray], errors: Errors) -> dict[str, dict[str, float]]:
    """Return a tolerance for each tensor and each dtype that holds its numbers."""
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
