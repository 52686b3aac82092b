"""Findings: each wrong step, and what it did by the measurement of its input and result."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tinymistral.golden.compare.places import ranges
from tinymistral.golden.diagnose.guess import NO_NUMBERS, Guess
from tinymistral.golden.diagnose.guesses import guesses
from tinymistral.golden.diagnose.names import softmax
from tinymistral.golden.diagnose.steps import Array, Step, compute, mask_of, scores_of
from tinymistral.tap import STAGES

SAMPLE = 6  # wrong steps of a stage on which every guess is tried
ROUNDS = 4  # different mistakes in one stage that are told apart
NEAR = 40  # guesses that fit a sample equally, and are tried on all wrong steps
UNDERFLOW = 80  # exp(-80) is about the smallest number of float32
MOST = 1 / 20  # of the error may remain unexplained, as a root mean square


@dataclass(frozen=True)
class Finding:
    """What one stage, or several, did in some of the wrong steps."""

    stages: tuple[str, ...]
    says: str  # "" if it is unknown
    name: str  # of a known mistake, or ""
    steps: tuple[Step, ...]  # in which it did this
    wrong: int  # so many steps of these stages are wrong
    where: str  # in which layers and calls, "" if in all

    @property
    def first(self) -> Step:
        """The first of its steps."""
        return self.steps[0]


def in_two(steps: Iterable[Step]) -> Iterator[Step]:
    """Yield steps; attention weights as two: which keys have a weight, and how large it is."""
    steps = list(steps)
    if not any(s.kind == "weights" and s.wrong for s in steps):
        yield from steps
        return
    for s in steps:
        if s.kind != "weights":
            yield s
            continue
        mask, clear = _seen(s)
        right = compute("mask", s.x)
        half = replace(s, kind="mask", out=mask.astype(np.float64), right=right)
        yield replace(half, tolerance=0.5, counts=clear)
        x = {**s.x, "mask": mask}
        yield replace(s, x=x, right=compute("weights", x))


def _seen(s: Step) -> tuple[Array, Array]:
    """Return which keys have a weight (B, H, T, S), and where that can be told from rounding.

    Where scores may differ by more than float32 has exponents, a weight of 0 shows no mask.
    """
    right, seen, z = mask_of(s.x), s.out > 0, scores_of(s.x)
    sizes = [np.linalg.norm(np.nan_to_num(s.x[n]), axis=-1) for n in "qk"]
    most = sizes[0].swapaxes(1, 2)[..., None] * sizes[1].max(initial=0.0)
    near = 2 * s.x["q"].shape[-1] ** -0.5 * most < UNDERFLOW
    shown = np.maximum(softmax(z, right | seen), s.out) > s.tolerance
    clear = ((seen == right) | shown) & (seen | near) & s.counts
    return np.where(seen | near, seen, right), clear


def measure(steps: Iterable[Step]) -> list[Finding]:
    """Return what is found of each stage, in the order of computation; the same said once."""
    groups: dict[tuple[str, str], list[Step]] = {}
    for step in in_two(steps):
        if set(step.filled) - {f"calls.{step.call}.layers.{step.layer}.attention_weights"}:
            continue  # it is not known which of these stages is wrong
        kind = "mask" if step.kind == "mask" else ""
        groups.setdefault((step.stage, kind), []).append(step)
    wrong = {stage for (stage, _), group in groups.items() if any(s.wrong for s in group)}
    found = [finding for group in groups.values() for finding in _of_stage(group, wrong)]
    merged: dict[tuple[str, str], Finding] = {}
    for f in found:
        key = (f.says or str(f.stages), f.where)
        if (old := merged.get(key)) is not None:
            stages = old.stages if set(f.stages) <= set(old.stages) else old.stages + f.stages
            steps = old.steps + f.steps
            f = replace(old, stages=stages, steps=steps, wrong=old.wrong + f.wrong)
        merged[key] = f
    order = {name.rpartition(".")[2]: n for n, name in enumerate(STAGES)}
    return sorted(merged.values(), key=lambda f: order.get(f.stages[0], -1))


def _of_stage(group: Sequence[Step], stages: Collection[str]) -> Iterator[Finding]:
    with np.errstate(all="ignore"):
        wrong = [s for s in group if s.wrong]
        rest = wrong
        for _ in range(ROUNDS):
            if not rest:
                return
            best, explained = _best(group, rest, stages)
            where = _where(group, explained, best) if explained else ""
            if where.endswith("steps") and 2 * len(explained) < len(rest):
                # A few steps without a pattern: by chance. Say only what is seen, if that is more.
                best, explained = _best(group, rest, stages, only_seen=True)
                where = _where(group, explained, best) if explained else ""
                best = best if 2 * len(explained) >= len(rest) else None
            if best is None:
                break
            rest = [s for s in rest if s not in explained]
            stage = (explained[0].stage,)
            yield Finding(stage, best.says, best.name, tuple(explained), len(wrong), where)
        if rest:
            where = _where(group, rest, None)
            yield Finding((rest[0].stage,), "", "", tuple(rest), len(wrong), where)


def _best(
    group: Sequence[Step], wrong: list[Step], stages: Collection[str], only_seen: bool = False
) -> tuple[Guess | None, list[Step]]:
    """Return the guess that explains most, and what it explains; of the nearest the simplest."""
    sample = _sample(wrong)
    tried: list[tuple[int, float, Guess]] = []
    for guess in guesses(_largest(sample), wrong, stages):
        left = [remains(s, guess) for s in sample]
        count = sum(x <= 1 for x in left)
        if count:
            rate = float(np.mean([min(x, 1.0) for x in left]))
            tried.append((count, rate, guess))
            if count == len(sample) and rate < 1e-3 and not guess.last and sample[0].kind != "mask":
                break
    tried = [entry for entry in tried if entry[2].last] if only_seen else tried
    rules = [entry for entry in tried if not entry[2].last and 2 * entry[0] >= len(sample)] or tried
    most = max((count for count, _, _ in rules), default=0)
    least = min((rate for count, rate, _ in rules if count == most), default=0.0)
    best: tuple[Guess | None, list[Step]] = (None, [])
    # What is only seen counts too if it is far nearer than a rule, which then only comes near.
    seen = [e for e in tried if e[2].last and e[0] == most and 100 * e[1] < least]
    rules, least = (seen, min(rate for _, rate, _ in seen)) if seen else (rules, least)
    near = [g for n, rate, g in rules if n == most and rate <= 2 * least + 1e-4][:NEAR]
    right = [s for s in group if not s.wrong] if len(near) > 1 else []
    highest = 0.0
    for guess in near:
        explained = [s for s in wrong if remains(s, guess) <= 1]
        against = sum(_shows(s, guess) for s in right)
        score = len(explained) - 0.5 * against / max(1, len(right))
        if explained and score > highest:
            best, highest = (guess, explained), score
    return best


def _sample(wrong: list[Step]) -> list[Step]:
    """Return a few, clearly wrong and of different cases if possible; the clearest first."""
    clear = sorted(wrong, key=lambda s: -min(s.off(s.right) / s.limit, 1e12))
    by_case = {s.case: s for s in reversed(clear)}
    some = sorted(by_case.values(), key=lambda s: -min(s.off(s.right) / s.limit, 1e12))[:SAMPLE]
    rest = [s for s in clear if s not in some]
    return (some + rest[: SAMPLE - len(some)])[:SAMPLE]


def _largest(sample: list[Step]) -> Step:
    """Return the step with most wrong numbers, to measure parameters with; of rotations a near one.

    Far positions make many angles of almost the same frequency.
    """
    if sample[0].kind == "rope":
        near = [s for s in sample if 4 <= s.x["positions"].max(initial=0) < 64]
        sample = near or sample
    return max(sample, key=lambda s: (s.errors(s.right) > s.limit).sum())


def remains(s: Step, guess: Guess) -> float:
    """Return how much of the error a guess leaves, in units of what may remain: 1 is the most."""
    try:
        found = guess.make(s)
    except NO_NUMBERS:
        return np.inf
    errors, before = s.errors(found), s.errors(s.right)
    worst, most = float(errors.max(initial=0.0)), float(before.max(initial=0.0))
    if not np.isfinite(worst) or not np.isfinite(most):
        return 0.0 if worst <= s.limit else np.inf
    if worst >= most * 0.9 and worst > s.limit / 100:
        return np.inf
    ratio = float(np.sqrt(np.square(errors).mean() / max(np.square(before).mean(), 1e-300)))
    return ratio / MOST if ratio <= MOST or worst > s.limit else max(ratio, 0.0)


def _where(group: Sequence[Step], steps: Sequence[Step], guess: Guess | None) -> str:
    """Return in which layers, calls or cases it is, where it could be in others but is not."""
    inside = {id(s) for s in steps}
    others = [s for s in group if id(s) not in inside]
    if guess is not None and not guess.last:  # those in which it would show
        others = [s for s in others if _shows(s, guess)]
    if not others:
        return ""
    layers, free = {s.layer for s in steps}, {s.layer for s in others}
    if not layers & free and -1 not in layers:
        return f"in layer{'s' * (len(layers) > 1)} {ranges(sorted(layers))}"
    calls, free = {s.call for s in steps}, {s.call for s in others}
    if not calls & free:
        later = calls and 0 not in calls
        return "in calls after the first" if later else f"in call {ranges(sorted(calls))} of a case"
    kind, free_kind = ({s.out.shape[1] == 1 for s in x} for x in (steps, others))
    if not kind & free_kind:
        return "in calls of a single token" if True in kind else "in calls of several tokens"
    cases, free_cases = sorted({s.case for s in steps}), {s.case for s in others}
    if not set(cases) & free_cases:
        some = ", ".join(cases[:3]) + (f" and {len(cases) - 3} others" if len(cases) > 3 else "")
        return f"in case{'s' * (len(cases) > 1)} {some}"
    return f"in {len(steps)} of {len(steps) + len(others)} steps"


def _shows(s: Step, guess: Guess) -> bool:
    """Return whether a guess would change a step."""
    try:
        found = guess.make(s)
    except NO_NUMBERS:
        return False
    return found is not None and s.off(found) > (1 if s.kind == "mask" else 4) * s.limit
