"""Comparing what a program computed with what is expected, case by case.

A case is compared tensor by tensor in the order of computation: the first that differs is the
nearest to the mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tinymistral.golden.compare.candidate import Candidate, CaseDump
from tinymistral.golden.compare.layouts import all_columns, halves, in_pairs, pairs
from tinymistral.golden.compare.places import in_order
from tinymistral.golden.compare.tensors import (
    Tensor,
    compare_tensor,
    counted,
    differences,
    own_dtype,
)
from tinymistral.golden.compare.texts import compare_texts
from tinymistral.golden.compare.verdicts import AGREES, DIFFERS, INCOMPARABLE, Compared, Part
from tinymistral.golden.manifest import TEXT_KINDS
from tinymistral.golden.shapes import axes_of
from tinymistral.golden.suite import Case, CaseArrays, Suite
from tinymistral.text import one_line


def check(
    suite: Suite,
    candidate: Candidate,
    only: Sequence[str] = (),
    dtype: str | None = None,
    complete: bool = False,
    keep: Callable[[Compared, CaseDump], Compared] = lambda compared, given: compared,
) -> Iterator[Compared]:
    """Compare a candidate with the cases of a suite, or with `only` these, one after the other.

    `dtype` says whose tolerances apply: float32 (also for float64), float16 or bfloat16; by default
    those of the dtype that each tensor has. Raises ValueError if a case in `only` is not given,
    unless absent cases are to be reported: `complete`. `keep` is shown each comparison with what
    was given, and returns what counts.
    """
    for name in only:
        if suite.case(name).id not in candidate.cases and not complete:
            there = one_line(", ".join(candidate.cases), 400)
            raise ValueError(f"{candidate.path}: no output of case {name}, only of {there}")
    for case in suite.manifest.cases.values():
        if only and case.id not in only:
            continue
        names = tuple(case.expected or ())
        if case.id not in candidate.cases:
            yield Compared(case, names=names)
            continue
        arrays = None if case.kind in TEXT_KINDS else suite.read(case)
        try:
            given = candidate.read(case, arrays)
        except ValueError as error:
            yield Compared(case, names=names, problem=one_line(error, 500))
            continue
        yield keep(compare_case(suite, case, given, dtype, arrays), given)


def compare_case(
    suite: Suite,
    case: Case,
    given: CaseDump | Mapping[str, np.ndarray],
    dtype: str | None = None,
    arrays: CaseArrays | None = None,
) -> Compared:
    """Compare what is given of a case, such as what `run_case` returns, with what is expected.

    `arrays` are those of the case, if they have been read.
    """
    given = given if isinstance(given, CaseDump) else CaseDump(dict(given))
    if case.kind in TEXT_KINDS:
        return compare_texts(case, suite.document(case), given.document)
    arrays = suite.read(case) if arrays is None else arrays
    expected, stages = case.expected or {}, suite.manifest.stages
    names = sorted(expected, key=lambda name: not expected[name].exact)  # ids, then logprobs
    if case.kind == "model":
        names = in_order(stages, names)
    counts = what_counts(case, arrays, given.arrays)
    exact_dtype = dtype or own_dtype(given.arrays.values())
    parts = []
    for name in names:
        if name in given.problems:
            parts.append(Part(name, INCOMPARABLE, says=given.problems[name]))
        elif name in given.arrays:
            got, numbers, how = given.arrays[name], arrays.expected[name], expected[name]
            axes = axes_of(case, stages, name)
            tensor = Tensor(case, arrays.inputs, name, axes, numbers, counts[name])
            by = exact_dtype if how.exact else dtype or own_dtype([got])
            by = "float32" if by == "float64" else by
            part = compare_tensor(tensor, got, how, by)
            if part.verdict == DIFFERS and in_pairs(case, name):
                raw = given.layout == "raw"
                other = pairs(got) if raw else halves(got)
                if compare_tensor(tensor, other, how, by).verdict == AGREES:
                    layout = "hf" if raw else "raw"
                    part = replace(part, says=f"it agrees in the order of --layout {layout}")
            if part.verdict == DIFFERS and all_columns(case, arrays.inputs, name) is not None:
                part = replace(part, says="its columns are inputs.calls.N.key_positions")
            parts.append(part)
    compared = any(part.counted or part.verdict == INCOMPARABLE for part in parts)
    problem = "" if compared or not parts else "what is given has no numbers, or padding alone"
    return Compared(
        case, tuple(parts), tuple(names), given.unknown, problem, given.layout, given.notes
    )


def what_counts(
    case: Case, arrays: CaseArrays, given: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return for each expected tensor a mask of the numbers that are compared.

    Of a continuation, padding is not; log-probabilities are as long as the tokens before and at
    them are those expected, since only then do they belong to the same text.
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
