"""Results of a text that is a token longer or shorter than the one that was given.

They cannot be compared with those expected, but with what comes of a text with a token too many,
or too few. Only cases without padding are looked at: where a token would stand beside padding is
anybody's choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tinymistral.golden.compare.places import axes_of
from tinymistral.golden.compare.verdicts import DIFFERS, INCOMPARABLE, Compared, Part
from tinymistral.golden.suite import Case, CaseArrays

Numbers = Mapping[str, np.ndarray]

SAYS = {1: "it is of a token too many", -1: "it is of a token too few"}


def of_another_length(
    compared: Compared, found: Numbers, arrays: CaseArrays, stages: Mapping[str, str], dtype: str
) -> dict[str, Part]:
    """Return the parts that are of a text of another length, as parts that differ; {} if none is.

    All that is told of them is that they do, and what they may be off by.
    """
    case = compared.case
    if not _without_padding(case, arrays.inputs):
        return {}
    shapes = {n: x.shape for n, x in found.items() if n in arrays.expected and ".cache." not in n}
    for step, says in SAYS.items():
        wanted = {n: _shape(case, stages, n, arrays.expected[n].shape, step) for n in shapes}
        those = {n for n, shape in shapes.items() if shape == wanted[n]}
        if any(p.verdict == INCOMPARABLE and p.name in those for p in compared.parts):
            part = Part("", DIFFERS, dtype, error=math.inf, wrong=1, counted=1, where=says)
            expected = case.expected or {}
            return {
                p.name: replace(
                    part, name=p.name, tolerance=expected[p.name].tolerance.get(dtype, 0.0)
                )
                for p in compared.parts
                if p.name in those
            }
    return {}


def _without_padding(case: Case, inputs: Numbers) -> bool:
    if case.kind == "generate":
        return bool((inputs["attention_mask"] == 1).all())
    return case.kind == "model" and all(
        (x >= 0).all() for name, x in inputs.items() if name.endswith(".positions")
    )


def _shape(
    case: Case, stages: Mapping[str, str], name: str, shape: tuple[int, ...], step: int
) -> tuple[int, ...]:
    """Return the shape of a tensor if the first call, or the prompt, has so many tokens more."""
    longer = {"S", "C"} | ({"T"} if name.startswith("calls.0.") else set())
    axes = axes_of(case, stages, name, len(shape))
    return tuple(n + step * (axis in longer) for n, axis in zip(shape, axes, strict=True))
