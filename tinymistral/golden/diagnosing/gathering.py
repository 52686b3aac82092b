"""What a candidate gives of a suite, as evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tinymistral.golden.compare.candidate import Candidate
from tinymistral.golden.compare.cases import compare_case
from tinymistral.golden.compare.verdicts import Compared
from tinymistral.golden.diagnosing.evidence import Evidence
from tinymistral.golden.diagnosing.evidence_of_texts import TextEvidence
from tinymistral.golden.diagnosing.predicting import Predictions
from tinymistral.golden.manifest import TEXT_KINDS
from tinymistral.golden.suite import Case
from tinymistral.text import one_line

LARGEST = 20_000_000  # weights of a model


def gather(
    candidate: Candidate,
    predictions: Predictions,
    only: Sequence[str] = (),
    dtype: str | None = None,
) -> tuple[list[Evidence | TextEvidence], list[Compared]]:
    """Compare a candidate with its suite, case by case: what can be compared, and how it does.

    `only` these cases, if any are named, in the tolerances of `dtype`, as in `comparing.check`.
    """
    suite = candidate.suite
    for case in map(suite.case, only or candidate.cases):
        weights = None if case.model is None else suite.manifest.models[case.model].weights
        size = 0 if weights is None else weights["parameters"]
        if size > LARGEST:
            raise ValueError(
                f"case {case.id}: its model has {size} weights and would be run more than a "
                f"hundred times; up to {LARGEST} can be diagnosed: dump and diagnose v1 instead"
            )
    for name in only:
        if suite.case(name).id not in candidate.cases:
            there = one_line(", ".join(candidate.cases), 400)
            raise ValueError(f"{candidate.path}: nothing there is of case {name}, but of {there}")
    evidence: list[Evidence | TextEvidence] = []
    results: list[Compared] = []
    for name in only or candidate.cases:
        case = suite.case(name)
        try:
            results.append(one(candidate, predictions, case, dtype, evidence))
        except ValueError as error:
            problem = one_line(error, 500)
            results.append(Compared(case, names=tuple(case.expected or ()), problem=problem))
    return evidence, results


def one(
    candidate: Candidate,
    predictions: Predictions,
    case: Case,
    dtype: str | None,
    evidence: list[Evidence | TextEvidence],
) -> Compared:
    """Compare one case, and add what can be compared to the evidence."""
    suite = candidate.suite
    found: Evidence | TextEvidence | None
    if case.kind in TEXT_KINDS:
        given = candidate.read(case)
        compared = compare_case(suite, case, given)
        found = TextEvidence.of(compared, suite.document(case))
    else:
        arrays = predictions.arrays(case)
        given = candidate.read(case, arrays)
        compared = compare_case(suite, case, given, dtype, arrays)
        every, raw = {**given.arrays, **given.longer}, given.layout == "raw"
        found = Evidence.of(compared, every, arrays, dtype, suite.manifest.stages, raw)
        if found is not None and found.another_length:
            rest = (part for part in compared.parts if part.name not in found.parts)
            compared = replace(compared, parts=(*found.parts.values(), *rest))
    evidence += [] if found is None else [found]
    return compared
