"""Holding what somebody computed against what is expected, case by case.

A case is compared tensor by tensor in the order of computation: the first that differs is the
nearest to the mistake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tinymistral.golden.compare.candidate import Candidate, Given
from tinymistral.golden.compare.layouts import all_columns, halves, in_pairs, pairs
from tinymistral.golden.compare.places import axes_of, in_order
from tinymistral.golden.compare.tensors import (
    Tensor,
    compare_tensor,
    counted,
    differences,
    own_dtype,
)
from tinymistral.golden.compare.texts import compare_texts
from tinymistral.golden.compare.verdicts import AGREES, DIFFERS, INCOMPARABLE, Compared, Part
from tinymistral.golden.manifest import TEXTS
from tinymistral.golden.suite import Arrays, Case, Suite
from tinymistral.text import one_line


def check(
    suite: Suite,
    candidate: Candidate,
    only: Sequence[str] = (),
    dtype: str | None = None,
    complete: bool = False,
) -> Iterator[Compared]:
    """Compare a candidate with the cases of a suite, or with `only` these, one after the other.

    `dtype` says whose tolerances count: float32 (which float64 is taken for), float16 or bfloat16;
    without it they are those of the dtype that each tensor is in. Raises ValueError for a case that
    is not there, unless it is to be told of as absent: `complete`.
    """
    for name in only:
        if suite.case(name).id not in candidate.cases and not complete:
            there = one_line(", ".join(candidate.cases), 400)
            raise ValueError(f"{candidate.path}: nothing there is of case {name}, but of {there}")
    for case in suite.manifest.cases.values():
        if only and case.id not in only:
            continue
        if case.id not in candidate.cases:
            yield Compared(case, names=tuple(case.expected or ()))
            continue
        arrays = None if case.kind in TEXTS else suite.read(case)
        try:
            given = (
                candidate.read(case, arrays.expected, arrays.inputs)
                if arrays
                else candidate.read(case)
            )
        except ValueError as error:
            yield Compared(case, names=tuple(case.expected or ()), problem=one_line(error, 500))
            continue
        yield compare_case(suite, case, given, dtype, arrays)


def compare_case(
    suite: Suite,
    case: Case,
    given: Given | Mapping[str, np.ndarray],
    dtype: str | None = None,
    arrays: Arrays | None = None,
) -> Compared:
    """Compare what is given of a case, such as what `run_case` returns, with what is expected.

    `arrays` are those of the case, if they have been read.
    """
    given = given if isinstance(given, Given) else Given(dict(given))
    if case.kind in TEXTS:
        return compare_texts(case, suite.document(case), given.document)
    arrays = suite.read(case) if arrays is None else arrays
    expected = case.expected or {}
    names = sorted(expected, key=lambda name: not expected[name].exact)  # ids, then logprobs
    if case.kind == "model":
        names = in_order(suite.manifest.stages, names)
    counts = what_counts(case, arrays, given.arrays)
    exact_dtype = dtype or own_dtype(given.arrays.values())
    parts = []
    for name in names:
        if name in given.problems:
            parts.append(Part(name, INCOMPARABLE, says=given.problems[name]))
        elif name in given.arrays:
            axes = axes_of(case, suite.manifest.stages, name, arrays.expected[name].ndim)
            tensor = Tensor(case, arrays.inputs, name, axes, arrays.expected[name], counts[name])
            got = given.arrays[name]
            by = exact_dtype if expected[name].exact else dtype or own_dtype([got])
            by = "float32" if by == "float64" else by
            part = compare_tensor(tensor, got, expected[name], by)
            if part.verdict == DIFFERS and in_pairs(case, name):
                raw = given.layout == "raw"
                other = pairs(got) if raw else halves(got)
                if compare_tensor(tensor, other, expected[name], by).verdict == AGREES:
                    layout = "hf" if raw else "raw"
                    part = replace(part, says=f"it agrees in the order of --layout {layout}")
            if part.verdict == DIFFERS and all_columns(case, arrays.inputs, name) is not None:
                part = replace(part, says="its columns are inputs.calls.N.key_positions")
            parts.append(part)
    seen = any(part.counted or part.verdict == INCOMPARABLE for part in parts)
    problem = "" if seen or not parts else "what is given has no numbers, or padding alone"
    return Compared(
        case, tuple(parts), tuple(names), given.unknown, problem, given.layout, given.notes
    )


def what_counts(
    case: Case, arrays: Arrays, given: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Tell for each expected tensor which of its numbers count: a mask like it.

    Of a continuation, padding does not; and log-probabilities do as long as the tokens are those
    expected, for only then are they of the same text.
    """
    expected = arrays.expected
    counts = {n: counted(case, arrays.inputs, n, x.shape) for n, x in expected.items()}
    if case.kind == "generate" and "sequences" in counts:
        prompt = arrays.inputs["attention_mask"] == 1
        counts["sequences"][:, : prompt.shape[1]] &= prompt
        found = given.get("sequences")
        if found is not None and found.shape == expected["sequences"].shape:
            same = ~(differences(found, expected["sequences"]) & counts["sequences"])
            so_far = np.logical_and.accumulate(same, axis=1)
            if "logprobs" in counts:
                counts["logprobs"] &= so_far[:, prompt.shape[1] :]
    return counts
