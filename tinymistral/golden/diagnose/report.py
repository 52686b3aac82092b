"""A diagnosis as text or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tinymistral.golden.compare.places import in_order
from tinymistral.golden.compare.tensors import DTYPES
from tinymistral.golden.compare.texts import shown
from tinymistral.golden.compare.verdicts import Part, finite
from tinymistral.golden.diagnose.evidence import AnyEvidence
from tinymistral.golden.diagnose.measure import Finding
from tinymistral.golden.diagnose.search import Diagnosis, Explanation
from tinymistral.mistakes import MISTAKES, Mistake

Stages = Mapping[str, str]
_KNOWN = {mistake.name: mistake for mistake in MISTAKES}


def as_text(diagnosis: Diagnosis, stages: Stages) -> Iterator[str]:
    """Yield the lines of a diagnosis in which something differs."""
    cases, differing = len(diagnosis.evidence), len(diagnosis.differing)
    yield f"{differing} of {cases} case{'s' * (cases != 1)} differ{'s' * (differing == 1)}"
    found, explanations = diagnosis.findings, diagnosis.explanations
    if found:
        yield ""
        yield "Of each step by itself, from its input in your output:"
        for number, finding in enumerate(found, 1):
            yield from _finding(finding, f"{number}. ")
    if explanations:
        yield ""
        yield (
            "Your output is what you get with"
            if explanations[0].complete
            else ("Nothing that was tried explains all of your output. A part is what you get with")
        )
        for place, explanation in enumerate(explanations, 1):
            yield from _explanation(diagnosis, explanation, f"{place}. ")
    if (found and all(f.says for f in found)) or (explanations and explanations[0].complete):
        return
    if not explanations:
        yield f"Unknown: nothing explains a tenth of what differs ({diagnosis.tried} tried)."
    yield ""
    each, part = first(diagnosis, stages)
    yield f"What differs first is {part.name}, in case {each.case.id}{_how_far(part)}."
    if part.extent:
        yield f"It differs in {part.extent}."
    yield from _before(each, part, stages)
    for dtype in fitting(diagnosis):
        yield f"With the tolerances of {dtype} all of it agrees: if you compute in it, use --dtype."


def sentence(finding: Finding) -> str:
    """Return what was found, in one sentence with numbers."""
    stages = ", ".join(finding.stages)
    where = f" {finding.where}" if finding.where else ""
    name = f"{finding.name}, in " if finding.name else ""
    how_many = f"{len(finding.steps)} of {finding.wrong} wrong steps"
    says = finding.says or "it is wrong, and nothing that was tried makes these numbers"
    step, window = finding.first, finding.first.x.get("window")
    if step.kind == "mask" and window and "W" in says:
        says += f"; W is {window} in case {step.case}"
    return f"{name}{stages}{where}: {says.rstrip('.')} ({how_many})."


def _finding(finding: Finding, bullet: str) -> Iterator[str]:
    indent, step = " " * len(bullet), finding.first
    yield f"{bullet}{sentence(finding)}"
    worst = step.off(step.right) / step.tolerance
    at = f"call {step.call}" + (f", layer {step.layer}" if step.layer >= 0 else "")
    yield f"{indent}First in case {step.case}, {at}: off by {worst:.2g} tolerances."
    if finding.name:
        yield f"{indent}Fix: {_KNOWN[finding.name].fix}"


def _before(each: AnyEvidence, part: Part, stages: Stages) -> Iterator[str]:
    """Say how many tensors before the first that differs agree, and how many are missing."""
    names = in_order(stages, each.case.expected or {}) if each.case.kind == "model" else []
    before = names[: names.index(part.name)] if names else []
    present = [name for name in before if name in each.parts]
    if present:
        yield f"Tensors before it that agree: {len(present)}, the last of them {present[-1]}."
    if len(present) < len(before):
        missing = len(before) - len(present)
        yield f"Tensors before it that are missing: {missing}. Dump them to see where it begins."


def first(diagnosis: Diagnosis, stages: Stages) -> tuple[AnyEvidence, Part]:
    """Return the first part that differs: of an operation if there is one, else of a model.

    That is the first in the order of computation, in the cheapest case in which it differs.
    """
    found = {each.case.id: each.first for each in diagnosis.differing}
    by_case = {each.case.id: each for each in diagnosis.differing}
    kinds = {each.case.kind for each in diagnosis.differing}
    if "operation" in kinds or "model" not in kinds:
        return diagnosis.differing[0], found[diagnosis.differing[0].case.id]
    of_models = {case: part for case, part in found.items() if by_case[case].case.kind == "model"}
    name = in_order(stages, {part.name for part in of_models.values()})[0]
    case = next(case for case, part in of_models.items() if part.name == name)
    return by_case[case], found[case]


def fitting(diagnosis: Diagnosis) -> list[str]:
    """Return the finest dtype with whose tolerances everything agrees, in a list; [] if none."""
    parts = [part for each in diagnosis.evidence for part in each.parts.values()]
    return [dtype for dtype in DTYPES if all(dtype in part.fits for part in parts)][:1]


def _how_far(part: Part) -> str:
    if part.tolerance and part.got is None:
        return f": {part.where}"
    if part.tolerance:
        return f": off by {part.worst:.2g} tolerances at {part.where}"
    return f": {part.where}: expected {shown(part.expected)}, got {shown(part.got)}"


def _explanation(diagnosis: Diagnosis, explanation: Explanation, bullet: str) -> Iterator[str]:
    best, *others = explanation.mistakes
    indent = " " * len(bullet)
    yield f"{bullet}{_named(best)}"
    yield f"{indent}{agreement(diagnosis, explanation)}"
    if best.fix:
        yield f"{indent}Fix: {best.fix}"
    if others:
        yield f"{indent}Your output does not distinguish it from"
        for other in others:
            yield f"{indent}- {_named(other)}"
            if other.fix:
                yield f"{indent}  Fix: {other.fix}"


def _named(suspect: Mistake) -> str:
    return f"{suspect.name}: {suspect.says}" if suspect.name else suspect.says


def agreement(diagnosis: Diagnosis, explanation: Explanation) -> str:
    """Return a sentence: how much a mistake explains, and what contradicts it."""
    differing, cases = len(diagnosis.differing), len(diagnosis.evidence)
    if explanation.complete:
        return f"It explains all of your output for {cases} case{'s' * (cases != 1)}."
    text = (
        f"It explains {100 * explanation.share:.0f}% of what differs, all of it in "
        f"{len(explanation.explained)} of the {differing} cases that differ"
    )
    if explanation.broken:
        text += f", but it would make {len(explanation.broken)} differ that agree"
        text += f" ({', '.join(explanation.broken[:3])})"
    return f"{text}."


def as_fields(diagnosis: Diagnosis, stages: Stages) -> dict[str, Any]:
    """Return a diagnosis for JSON."""
    fields: dict[str, Any] = {
        "cases": [each.case.id for each in diagnosis.evidence],
        "differ": [each.case.id for each in diagnosis.differing],
        "tried": diagnosis.tried,
        "findings": [_found(finding) for finding in diagnosis.findings],
        "explanations": [_fields(explanation) for explanation in diagnosis.explanations],
        "first": None,
    }
    if diagnosis.differing:
        each, part = first(diagnosis, stages)
        fields["first"] = {
            "case": each.case.id,
            "name": part.name,
            "worst": finite(part.worst),
            "where": part.where,
        }
    return fields


def _found(finding: Finding) -> dict[str, Any]:
    known, step = _KNOWN.get(finding.name), finding.first
    return {
        "stages": list(finding.stages),
        "says": finding.says,
        "where": finding.where,
        "name": finding.name,
        "fix": known.fix if known else "",
        "steps": len(finding.steps),
        "wrong": finding.wrong,
        "first": {"case": step.case, "call": step.call, "layer": step.layer},
    }


def _fields(explanation: Explanation) -> dict[str, Any]:
    suspects: Sequence[dict[str, str]] = [
        {"name": mistake.name, "says": mistake.says, "fix": mistake.fix}
        for mistake in explanation.mistakes
    ]
    return {
        "suspects": suspects,
        "share": explanation.share,
        "explains": list(explanation.explained),
        "contradicts": list(explanation.broken),
    }
