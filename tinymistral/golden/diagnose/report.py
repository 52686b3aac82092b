"""A diagnosis as text or as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tinymistral.golden.compare.places import in_order
from tinymistral.golden.compare.tensors import DTYPES
from tinymistral.golden.compare.texts import shown
from tinymistral.golden.compare.verdicts import Part, finite
from tinymistral.golden.diagnose.evidence import AnyEvidence, TextEvidence
from tinymistral.golden.diagnose.search import Diagnosis, Explanation
from tinymistral.golden.manifest import Case

Stages = Mapping[str, str]

# What a stage is computed from: where to look if it is the first that differs.
_OF_STAGES = {
    "embedding": "the rows of `embed_tokens` at the ids",
    "input_layernorm": "the residual stream (`embedding`, or `output` of the layer before), "
    "`input_layernorm.weight` and `rms_norm_eps`",
    "q": "`input_layernorm` and `q_proj.weight`, as stored (outputs, inputs), cut into (H, d)",
    "k": "`input_layernorm` and `k_proj.weight`, as stored (outputs, inputs), cut into (K, d)",
    "v": "`input_layernorm` and `v_proj.weight`, as stored (outputs, inputs), cut into (K, d)",
    "q_rotated": "`q`, the positions, `rope_theta`, and which numbers are a pair",
    "k_rotated": "`k`, the positions, `rope_theta`, and which numbers are a pair",
    "attention_weights": "`q_rotated`, `k_rotated` of this call and of the cache, the scale "
    "head_dim^-0.5, which key/value head a query head reads, and the mask: causality, "
    "`sliding_window`, padding",
    "attention_mix": "`attention_weights`, and `v` of this call and of the cache",
    "attention_output": "`attention_mix` joined head by head to (B, T, H·d), and `o_proj.weight`",
    "attention_residual": "the layer's input plus `attention_output`",
    "post_attention_layernorm": "`attention_residual`, `post_attention_layernorm.weight` and "
    "`rms_norm_eps`",
    "gate": "`post_attention_layernorm` and `gate_proj.weight` (w1)",
    "up": "`post_attention_layernorm` and `up_proj.weight` (w3)",
    "silu_mul": "`gate` and `up`: gate / (1 + exp(-gate)) · up",
    "mlp_output": "`silu_mul` and `down_proj.weight` (w2)",
    "output": "`attention_residual` plus `mlp_output`",
    "norm": "`output` of the last layer, `norm.weight` and `rms_norm_eps`",
    "logits": "`norm` and `lm_head.weight`, or `embed_tokens` if `tie_word_embeddings`",
    "cache.k": "`k_rotated` of each token so far, their slots, and which are evicted",
    "cache.v": "`v` of each token so far, their slots, and which are evicted",
}
_OF_KINDS = {
    "operation": "the inputs of this operation alone, see the case's file",
    "generate": "the logits of each step, and which of them is the largest",
    "sampling": "the logits, the previous ids and the parameters of the case",
    "tokenizer": "the text and the vocabulary",
    "chat": "the messages, the vocabulary and the chat format",
}
_NAME = re.compile(r"calls\.\d+\.(cache\.)?(?:layers\.\d+\.)?(\w+)")


def as_text(diagnosis: Diagnosis, stages: Stages) -> Iterator[str]:
    """Yield the lines of a diagnosis in which something differs."""
    cases, differing = len(diagnosis.evidence), len(diagnosis.differing)
    yield f"{differing} of {cases} case{'s' * (cases != 1)} differ{'s' * (differing == 1)}"
    if diagnosis.explanations:
        yield ""
        yield "Your output is what you get with"
        for place, explanation in enumerate(diagnosis.explanations, 1):
            yield from _explanation(diagnosis, explanation, f"{place}. ")
        return
    yield f"No known mistake, and no likely pair, makes this output ({diagnosis.tried} tried)."
    yield ""
    each, part = first(diagnosis, stages)
    yield f"What differs first is {part.name}, in case {each.case.id}{_how_far(part)}."
    yield f"It is computed from {depends_on(each.case, part.name)}."
    yield from _before(each, part, stages)
    for dtype in fitting(diagnosis):
        yield f"With the tolerances of {dtype} all of it agrees: if you compute in it, use --dtype."
    if diagnosis.partial:
        yield ""
        yield "Part of your output is what you get with"
        for place, explanation in enumerate(diagnosis.partial, 1):
            yield from _explanation(diagnosis, explanation, f"{place}. ")


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
    found = {each.case.id: list(each.parts.values())[each.first] for each in diagnosis.differing}
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
    yield f"{bullet}{best.name}: {best.says}"
    yield f"{indent}{agreement(diagnosis, explanation)}"
    stage, case = explanation.decided
    if stage:
        yield f"{indent}It first shows in {place(diagnosis, stage, case)}."
    yield f"{indent}Fix: {best.fix}"
    if others:
        yield f"{indent}Your output does not distinguish it from"
        for other in others:
            yield f"{indent}- {other.name}: {other.says}"
            yield f"{indent}  Fix: {other.fix}"


def agreement(diagnosis: Diagnosis, explanation: Explanation) -> str:
    """Return a sentence: how much a mistake explains, and how exactly."""
    texts = isinstance(diagnosis.evidence[0], TextEvidence)
    near = "exactly" if texts else f"within {explanation.worst:.1g} tolerances"
    differing, cases = len(diagnosis.differing), len(diagnosis.evidence)
    if len(explanation.explained) == differing and not explanation.broken:
        all_ = f"all of your output for {cases} case{'s' * (cases != 1)}"
        return f"It explains {all_}, {near}."
    text = f"It explains {len(explanation.explained)} of the {differing} cases that differ, {near}"
    if explanation.broken:
        text += f", but it would make {len(explanation.broken)} differ that agree"
    return f"{text}."


def place(diagnosis: Diagnosis, stage: str, case: str) -> str:
    """Return the stage or operation that a mistake changes first, and the case."""
    kinds = {each.case.id: each.case for each in diagnosis.evidence}
    operation = kinds[case].operation if case in kinds else None
    where = f"the operation {operation}" if operation else stage
    return f"{where} (case {case})"


def as_fields(diagnosis: Diagnosis, stages: Stages) -> dict[str, Any]:
    """Return a diagnosis for JSON."""
    fields: dict[str, Any] = {
        "cases": [each.case.id for each in diagnosis.evidence],
        "differ": [each.case.id for each in diagnosis.differing],
        "tried": diagnosis.tried,
        "explanations": [_fields(explanation) for explanation in diagnosis.explanations],
        "partial_explanations": [_fields(explanation) for explanation in diagnosis.partial],
        "first": None,
    }
    if diagnosis.differing:
        each, part = first(diagnosis, stages)
        fields["first"] = {
            "case": each.case.id,
            "name": part.name,
            "worst": finite(part.worst),
            "where": part.where,
            "computed_from": depends_on(each.case, part.name),
        }
    return fields


def _fields(explanation: Explanation) -> dict[str, Any]:
    stage, case = explanation.decided
    suspects: Sequence[dict[str, str]] = [
        {"name": mistake.name, "says": mistake.says, "fix": mistake.fix}
        for mistake in explanation.mistakes
    ]
    return {
        "suspects": suspects,
        "worst": finite(explanation.worst),
        "explains": list(explanation.explained),
        "contradicts": list(explanation.broken),
        "decided": {"stage": stage, "case": case} if stage else None,
    }


def depends_on(case: Case, name: str) -> str:
    """Return what a tensor of a case is computed from, in words."""
    match = _NAME.fullmatch(name)
    if match is None:
        return _OF_KINDS.get(case.kind, "the inputs of the case")
    return _OF_STAGES.get((match[1] or "") + match[2], "the stages before it")
