"""What a diagnosis says, as text or as JSON."""

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
    "input_layernorm": "what goes from layer to layer (`embedding`, or `output` of the layer "
    "before), `input_layernorm.weight` and `rms_norm_eps`",
    "q": "`input_layernorm` and `q_proj.weight`, as stored (outputs, inputs), cut into (H, d)",
    "k": "`input_layernorm` and `k_proj.weight`, as stored (outputs, inputs), cut into (K, d)",
    "v": "`input_layernorm` and `v_proj.weight`, as stored (outputs, inputs), cut into (K, d)",
    "q_rotated": "`q`, the positions, `rope_theta`, and which numbers are rotated together",
    "k_rotated": "`k`, the positions, `rope_theta`, and which numbers are rotated together",
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
    "cache.k": "`k_rotated` of each token so far: what is written to which slot, and kept",
    "cache.v": "`v` of each token so far: what is written to which slot, and kept",
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
    """Give the lines of a diagnosis of something that differs."""
    cases, differing = len(diagnosis.evidence), len(diagnosis.differing)
    yield f"{differing} of {cases} case{'s' * (cases != 1)} differ{'s' * (differing == 1)}"
    if diagnosis.whole:
        yield ""
        yield "Your output is what you get with"
        for place, explanation in enumerate(diagnosis.whole, 1):
            yield from _explanation(diagnosis, explanation, f"{place}. ")
        return
    yield f"No known mistake, and no pair of them, makes this output ({diagnosis.tried} tried)."
    yield ""
    each, part = first(diagnosis, stages)
    yield f"What differs first is {part.name}, in case {each.case.id}{_how_far(part)}."
    yield f"It is computed from {depends_on(each.case, part.name)}."
    yield from _before(each, part, stages)
    for dtype in fitting(diagnosis):
        yield f"By the tolerances of {dtype} all of it is right: if you compute so, give --dtype."
    if diagnosis.partial:
        yield ""
        yield "A part of it is what you get with"
        for place, explanation in enumerate(diagnosis.partial, 1):
            yield from _explanation(diagnosis, explanation, f"{place}. ")


def _before(each: AnyEvidence, part: Part, stages: Stages) -> Iterator[str]:
    """Say what comes before the first tensor that differs: what agrees, and what is not given."""
    names = in_order(stages, each.case.expected or {}) if each.case.kind == "model" else []
    before = names[: names.index(part.name)] if names else []
    given = [name for name in before if name in each.parts]
    if given:
        yield f"Before it agree {len(given)} tensors, the last of them {given[-1]}."
    if len(given) < len(before):
        missing = len(before) - len(given)
        yield f"{missing} before it are not given: dump them, to see where it begins."


def first(diagnosis: Diagnosis, stages: Stages) -> tuple[AnyEvidence, Part]:
    """Return the first tensor that differs: an operation's by itself, else in order of computation.

    Of several cases in which it is the same one, the smallest.
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
    """Return the dtypes, the finest first, by whose tolerances everything is right."""
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
        yield f"{indent}It is decided in {place(diagnosis, stage, case)}."
    yield f"{indent}Right is: {best.fix}"
    if others:
        yield f"{indent}Nothing that is given tells it from"
        for other in others:
            yield f"{indent}- {other.name}: {other.says}"
            yield f"{indent}  Right is: {other.fix}"


def agreement(diagnosis: Diagnosis, explanation: Explanation) -> str:
    """Say how much is explained, and how well."""
    texts = isinstance(diagnosis.evidence[0], TextEvidence)
    near = "exactly" if texts else f"within {explanation.worst:.1g} tolerances"
    differing, cases = len(diagnosis.differing), len(diagnosis.evidence)
    if len(explanation.explained) == differing and not explanation.broken:
        all_ = f"all that is given of {cases} case{'s' * (cases != 1)}"
        return f"It agrees with {all_}, {near}."
    text = f"It explains {len(explanation.explained)} of the {differing} cases that differ, {near}"
    if explanation.broken:
        text += f", but with it {len(explanation.broken)} would differ that agree"
    return f"{text}."


def place(diagnosis: Diagnosis, stage: str, case: str) -> str:
    """Say where a mistake first changes something."""
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
        "explanations": [_fields(explanation) for explanation in diagnosis.whole],
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
    """Say what a tensor of a case is computed from."""
    match = _NAME.fullmatch(name)
    if match is None:
        return _OF_KINDS.get(case.kind, "the inputs of the case")
    return _OF_STAGES.get((match[1] or "") + match[2], "the stages before it")
