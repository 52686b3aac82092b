"""A candidate's output for a case, and how near a mistake's results are to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tinymistral.golden.compare.cases import what_counts
from tinymistral.golden.compare.layouts import all_in_halves, is_raw
from tinymistral.golden.compare.tensors import errors_of, own_dtype
from tinymistral.golden.compare.texts import ANSWERS, ASKED, key
from tinymistral.golden.compare.verdicts import (
    AGREES,
    DIFFERS,
    INCOMPARABLE,
    UNPROVEN,
    Compared,
    Part,
)
from tinymistral.golden.diagnose.predictions import Predictions
from tinymistral.golden.shapes import axes_of
from tinymistral.golden.suite import Case, CaseArrays
from tinymistral.mistakes import Mistake
from tinymistral.tap import STAGES

Numbers = Mapping[str, np.ndarray]
Answers = Mapping[str, Any]  # by name, such as "strings.3.ids"

MOST = 1e6  # tolerances, of one number: an error that is larger counts as this
# So much of the squared differences is all of it: the rest may be rounding, of which 16 bits have
# more. GELU, for SiLU, explains more than 0.99 of what its approximations do.
ALL = {"float32": 0.9999, "float16": 0.99, "bfloat16": 0.99}
WITHIN = 2.0  # tolerances, of what a mistake makes of a case that agrees

COSTS = ("operation", "sampling", "tokenizer", "chat", "model", "generate")  # the cheapest first


@dataclass(frozen=True)
class Fit:
    """How much of what differs in a case a mistake explains."""

    share: float  # of the squared differences, by tensor: 1 is all; where nothing differs 1 or 0
    worst: float  # the largest error that is left, in tolerances
    enough: float = 1.0  # a share that is all

    @property
    def explains(self) -> bool:
        """Whether it is all explained, except for rounding."""
        return self.worst <= 1 or self.share >= self.enough


class Comparison:
    """A candidate's output for a case: parts in the order of computation, and their verdicts."""

    parts: Mapping[str, Part]

    @property
    def differs(self) -> bool:
        """Whether any part differs from what the suite expects."""
        return any(part.verdict == DIFFERS for part in self.parts.values())

    @property
    def first(self) -> Part:
        """The first part that differs."""
        return next(part for part in self.parts.values() if part.verdict == DIFFERS)


@dataclass(frozen=True)
class Evidence(Comparison):
    """The tensors of a case that the candidate has and that can be compared."""

    case: Case
    output: Numbers  # by name, in the order of computation
    parts: Mapping[str, Part]  # how they compare with the expected ones
    counts: Numbers  # which of their numbers are compared
    dtype: str  # in which they were computed
    finite: bool = field(default=True)
    another_length: bool = False  # a token too many or too few, see `of_another_length`
    raw: bool = False  # it is in the order of a raw checkpoint, see `compare/layouts.py`

    @classmethod
    def of(
        cls,
        compared: Compared,
        found: Numbers,
        arrays: CaseArrays,
        dtype: str | None,
        stages: Mapping[str, str] = STAGES,
        raw: bool = False,
    ) -> Evidence | None:
        """Return the evidence of a compared case; None if nothing can be compared."""
        verdicts = (AGREES, DIFFERS, UNPROVEN)
        own = own_dtype(found.values()) if dtype in (None, "float64") else dtype
        other = of_another_length(compared, found, arrays, stages, own or "float32")
        parts = other or {p.name: p for p in compared.parts if p.verdict in verdicts}
        if not parts:
            return None
        output = {name: found[name] for name in parts}
        dtype = own_dtype(output.values()) if dtype in (None, "float64") else dtype
        wide = {n: x if x.dtype.kind in "iu" else x.astype(np.float64) for n, x in output.items()}
        if other:
            counts = {name: np.ones(x.shape, dtype=bool) for name, x in wide.items()}
        else:
            every = what_counts(compared.case, arrays, output)
            counts = {name: every[name] for name in parts}
        finite = all(np.isfinite(x[counts[n]]).all() for n, x in wide.items())
        own = dtype or "float32"
        return cls(compared.case, wide, parts, counts, own, finite, bool(other), raw)

    @property
    def cost(self) -> tuple[int, int, int]:
        """The key that sorts cases by the time they take to compute."""
        size = sum(x.size for x in self.output.values())
        return COSTS.index(self.case.kind), self.case.calls, size

    def predicted(self, mistake: Mistake, predictions: Predictions) -> Numbers | None:
        """Return a mistake's results, in float64 if possible; None if there are none."""
        exact = self.finite and not mistake.of_a_dtype
        found = mistake.results(self, predictions, "float64" if exact else self.dtype)
        if found is None or not self.raw:
            return found
        output = {name: found[name] for name in self.output if name in found}
        raw = is_raw(self.case, predictions.arrays(self.case), output)
        return all_in_halves(self.case, found) if raw else found

    def fit(self, mistake: Mistake, predictions: Predictions) -> Fit | None:
        """Return how near a mistake's results are; None if it has none."""
        wanted = self.predicted(mistake, predictions)
        if wanted is None:
            return None
        expected = predictions.arrays(self.case).expected
        shares, worst = [], 0.0
        for name, x in self.output.items():
            left = self._units(name, x, wanted)
            worst = max(worst, float(left.max(initial=0.0)))
            if self.parts[name].verdict == DIFFERS:
                before = self._units(name, x, expected)
                ids = [
                    y[name] for y in (wanted, expected) if name in y and y[name].shape == x.shape
                ]
                if len(ids) == 2 and not self.parts[name].tolerance:  # also in 16 bits
                    left, before = (1.0 * (x != y) for y in ids)
                squares = float(np.square(before).sum())
                shares.append(1 - float(np.square(left).sum()) / squares if squares else 1.0)
        if not shares or self.another_length:  # then errors are as large as can be
            return Fit(float(worst <= WITHIN), worst)
        return Fit(max(0.0, sum(shares) / len(shares)), worst, ALL[self.dtype])

    def _units(self, name: str, numbers: np.ndarray, wanted: Numbers) -> np.ndarray:
        """Return errors in tolerances, at most MOST."""
        errors = self.errors(name, numbers, wanted) / (self.parts[name].tolerance or 1.0)
        return np.minimum(errors, MOST)

    def agree(self, one: Numbers, other: Numbers) -> bool:
        """Return whether two results are equal within the tolerances of what can be compared."""
        return all(
            name in one
            and float(self.errors(name, one[name], other).max(initial=0.0))
            <= self.parts[name].tolerance
            for name in self.output
        )

    def errors(self, name: str, numbers: np.ndarray, wanted: Numbers | None) -> np.ndarray:
        """Return how far numbers are from the wanted ones; 0 where they are not compared."""
        shape = self.output[name].shape
        if wanted is None or name not in wanted:
            return np.full(shape, np.inf)
        if wanted[name].shape != shape or numbers.shape != shape:
            return np.full(shape, np.inf)
        counts = self.counts[name]
        if self.case.kind == "generate":
            counts = self._same_text(name, counts, wanted)
        if self.parts[name].tolerance == 0:  # ids, which rounding to 16 bits may change
            differ = counts & (numbers != wanted[name]) & (self.dtype == "float32")
            return np.where(differ, np.inf, 0.0)
        return np.where(counts, errors_of(numbers, wanted[name].astype(np.float64)), 0.0)

    def _same_text(self, name: str, counts: np.ndarray, wanted: Numbers) -> np.ndarray:
        """Leave out log-probabilities from the first token on that is not the wanted one."""
        if name != "logprobs" or "sequences" not in self.output or "sequences" not in wanted:
            return np.ones(counts.shape, dtype=bool) if name == "logprobs" else counts
        new = counts.shape[1]
        same = self.output["sequences"][:, -new:] == wanted["sequences"][:, -new:]
        so_far = np.logical_and.accumulate(same.all(axis=0))  # one row may change the others
        return np.broadcast_to(so_far, counts.shape)


# Results for a text with one token more or fewer

SAYS = {1: "it has a token too many", -1: "it has a token too few"}


def of_another_length(
    compared: Compared, found: Numbers, arrays: CaseArrays, stages: Mapping[str, str], dtype: str
) -> dict[str, Part]:
    """Return the parts with the shapes of a text of another length, as differing; {} if none.

    They can be compared with the results of mistakes that add or leave out one token. Cases with
    padding are left out: there such a token has no definite place.
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
    """Return a tensor's shape if the first call, or the prompt, has `step` more tokens."""
    longer = {"S", "C"} | ({"T"} if name.startswith("calls.0.") else set())
    axes = axes_of(case, stages, name)
    return tuple(n + step * (axis in longer) for n, axis in zip(shape, axes, strict=True))


# Texts and conversations


@dataclass(frozen=True)
class TextEvidence(Comparison):
    """The candidate's answers to a case of texts or conversations."""

    case: Case
    document: Mapping[str, Any]  # the suite's
    output: Answers
    parts: Mapping[str, Part]  # how they compare with the expected ones

    @classmethod
    def of(cls, compared: Compared, document: Mapping[str, Any]) -> TextEvidence | None:
        """Return the evidence of a compared case; None if nothing can be compared."""
        parts = {part.name: part for part in compared.parts}
        right = _answers(document, document)
        output = {n: p.got if p.verdict == DIFFERS else right[n] for n, p in parts.items()}
        return cls(compared.case, document, output, parts) if parts else None

    @property
    def cost(self) -> tuple[int, int, int]:
        """The key that sorts cases by the time they take to compute."""
        return COSTS.index(self.case.kind), 0, len(self.output)

    def predicted(self, mistake: Mistake, predictions: Predictions) -> Answers | None:
        """Return a mistake's answers by name; None if there are none."""
        document = mistake.answers(self.case, predictions)
        return None if document is None else _answers(self.document, document)

    def fit(self, mistake: Mistake, predictions: Predictions) -> Fit | None:
        """Return how many of the wrong answers are a mistake's; None if these are unknown."""
        wanted = self.predicted(mistake, predictions)
        known = [n for n in self.output if wanted is not None and n in wanted]
        wrong = {name for name, part in self.parts.items() if part.verdict == DIFFERS}
        if wanted is None or (wrong and not wrong & set(known)):
            return None
        left = {n for n in known if self.output[n] != wanted[n]} | (wrong - set(known))
        share = 1 - len(left) / len(wrong) if wrong else float(not left)
        return Fit(max(0.0, share), math.inf if left & set(known) else 0.0)

    def agree(self, one: Answers, other: Answers) -> bool:
        """Return whether two mistakes have the same answers to what the candidate answers."""
        return all(one.get(name) == other.get(name) for name in self.output)


def _answers(document: Mapping[str, Any], found: Mapping[str, Any]) -> Answers:
    """Return the answers of a document by name, numbered as the entries of the suite's are."""
    answers: dict[str, Any] = {}
    for kind, asked in ASKED.items():
        by_question = {key(entry[asked]): entry for entry in found.get(kind, [])}
        for n, entry in enumerate(document.get(kind, [])):
            same = by_question.get(key(entry[asked]), {})
            names = [answer for answer in ANSWERS if answer != asked and answer in same]
            answers |= {f"{kind}.{n}.{answer}": same[answer] for answer in names}
    return answers


AnyEvidence = Evidence | TextEvidence
