"""A candidate's output for a case, and how near a mistake's results are to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tinymistral.golden.compare.cases import what_counts
from tinymistral.golden.compare.layouts import all_in_halves, is_raw
from tinymistral.golden.compare.tensors import own_dtype
from tinymistral.golden.compare.texts import ANSWERS, ASKED, key
from tinymistral.golden.compare.verdicts import (
    AGREES,
    DIFFERS,
    INCOMPARABLE,
    UNPROVEN,
    Compared,
    Part,
)
from tinymistral.golden.diagnose.predictions import ROUNDED, Predictions
from tinymistral.golden.rounding import FACTOR
from tinymistral.golden.shapes import axes_of
from tinymistral.golden.suite import Case, CaseArrays
from tinymistral.mistakes import Mistake
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.tap import STAGES

Numbers = Mapping[str, np.ndarray]
Answers = Mapping[str, Any]  # by name, such as "strings.3.ids"

# If errors are below this many tolerances, or a quarter of the largest number, more runs in the
# candidate's dtype show how large rounding errors are with the mistake.
NEAR = 1000.0
# Only three ways of rounding are run; the errors of others may be a few times larger.
FEW_RUNS = 4 * FACTOR

COSTS = ("operation", "sampling", "tokenizer", "chat", "model", "generate")  # the cheapest first


@dataclass(frozen=True)
class Fit:
    """How near a mistake's results are to the candidate's output for a case."""

    units: Mapping[str, float]  # the largest error of each tensor, at most 1 if it is explained
    mean: float  # the root mean square of all errors, in tolerances

    @property
    def worst(self) -> float:
        """The largest error of all."""
        return max(self.units.values(), default=0.0)

    @property
    def explains(self) -> bool:
        """Whether everything is explained."""
        return self.worst <= 1

    @property
    def reach(self) -> int:
        """The number of tensors, in the order of computation, before the first unexplained one."""
        return next((n for n, unit in enumerate(self.units.values()) if not unit <= 1), 10**9)


class Comparison:
    """A candidate's output for a case: parts in the order of computation, and their verdicts."""

    parts: Mapping[str, Part]

    @property
    def differs(self) -> bool:
        """Whether any part differs from what the suite expects."""
        return any(part.verdict == DIFFERS for part in self.parts.values())

    @property
    def first(self) -> int:
        """The place of the first part that differs."""
        verdicts = [part.verdict for part in self.parts.values()]
        return verdicts.index(DIFFERS) if self.differs else len(verdicts)


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
    def cost(self) -> tuple[int, int]:
        """The key that sorts cases by the time they take to compute."""
        return COSTS.index(self.case.kind), sum(x.size for x in self.output.values())

    def predicted(self, mistake: Mistake, predictions: Predictions) -> Numbers | None:
        """Return a mistake's results, in float64 if possible; None if there are none."""
        exact = self.finite and not mistake.of_a_dtype
        return self._of(mistake, predictions, "float64" if exact else self.dtype)

    def _of(
        self,
        mistake: Mistake,
        predictions: Predictions,
        dtype: str,
        base: type[NumpyBackend] = NumpyBackend,
    ) -> Numbers | None:
        """Return a mistake's results, in the order in which the candidate's are read."""
        found = predictions.of(mistake, self.case, dtype, self.another_length, base)
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
        errors = {name: self.errors(name, x, wanted) for name, x in self.output.items()}
        worst = {name: float(error.max(initial=0.0)) for name, error in errors.items()}
        scales = self._scales({})
        off = any(worst[name] > scale for name, scale in scales.items())
        if off and self.finite and all(self._near(n, worst[n], wanted) for n in self.parts):
            scales = self._scales(self._rounding(mistake, wanted, predictions))
        squares = [
            _mean_square(error[self.counts[name]] / (self.parts[name].tolerance or 1.0))
            for name, error in errors.items()
            if error.shape == self.counts[name].shape and self.counts[name].any()
        ]
        mean = math.sqrt(sum(squares) / max(1, len(squares)))
        return Fit({name: worst[name] / scale for name, scale in scales.items()}, mean)

    def is_far(self, mistake: Mistake, predictions: Predictions) -> bool:
        """Return whether a mistake cannot explain this, even with the largest rounding errors.

        `fit` would find the same, but this is faster: it stops at the first tensor that is far,
        beginning with the last ones, where most mistakes show.
        """
        wanted = self.predicted(mistake, predictions)
        if wanted is None:
            return False
        scales = self._scales({})
        for name in reversed(list(self.output)):
            worst = float(self.errors(name, self.output[name], wanted).max(initial=0.0))
            if worst > scales[name] and not (self.finite and self._near(name, worst, wanted)):
                return True
        return False

    def _near(self, name: str, worst: float, wanted: Numbers) -> bool:
        """Return whether the errors may come from rounding, which more runs can show."""
        near = NEAR * (self.parts[name].tolerance or 1.0)
        return worst <= near or worst <= _largest(wanted, name) / 4

    def _scales(self, rounding: Mapping[str, float]) -> dict[str, float]:
        """Return the largest accepted error of each tensor, with these rounding errors."""
        scales = {}
        for name, part in self.parts.items():
            own = rounding.get(name, 0.0)
            scales[name] = max(part.tolerance or 1.0, FEW_RUNS * own)
            if part.verdict == DIFFERS and part.tolerance:
                scales[name] = min(scales[name], part.error * _fraction(own / part.error))
        return scales

    def _rounding(
        self, mistake: Mistake, wanted: Numbers, predictions: Predictions
    ) -> dict[str, float]:
        """Return how far a mistake's results move if they are rounded at other places."""
        largest: dict[str, float] = {}
        for base in ROUNDED:
            rounded = self._of(mistake, predictions, self.dtype, base)
            for name in self.output if rounded is not None else ():
                if name in wanted and wanted[name].dtype.kind not in "iu":
                    error = float(self.errors(name, wanted[name], rounded).max(initial=0))
                    largest[name] = max(largest.get(name, 0.0), error)
        return {name: x for name, x in largest.items() if x < math.inf}

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
        with np.errstate(all="ignore"):
            x, y = (np.asarray(each, dtype=np.float64) for each in (numbers, wanted[name]))
            errors = np.abs(x - y)
        errors[(x == y) | (np.isnan(x) & np.isnan(y)) | ~counts] = 0.0
        errors[~np.isfinite(errors)] = np.inf
        return errors

    def _same_text(self, name: str, counts: np.ndarray, wanted: Numbers) -> np.ndarray:
        """Leave out log-probabilities from the first token on that is not the wanted one."""
        if name != "logprobs" or "sequences" not in self.output or "sequences" not in wanted:
            return np.ones(counts.shape, dtype=bool) if name == "logprobs" else counts
        new = counts.shape[1]
        same = self.output["sequences"][:, -new:] == wanted["sequences"][:, -new:]
        so_far = np.logical_and.accumulate(same.all(axis=0))  # one row may change the others
        return np.broadcast_to(so_far, counts.shape)


def _mean_square(errors: np.ndarray) -> float:
    return float(errors @ errors) / errors.size


def _fraction(rounding: float) -> float:
    """Return the largest error that a mistake explains, as a part of the error without it.

    It is a half as a rule, more if rounding errors, in the same unit, may be as large as that, and
    no limit in practice if they are.
    """
    return 0.5 if FACTOR * rounding < 0.5 else 0.9 if rounding < 0.5 else 2.0


def _largest(numbers: Numbers, name: str) -> float:
    """Return the largest magnitude of a tensor; 0 if it is not there, or not finite."""
    x = np.abs(numbers[name].astype(np.float64)).max(initial=0) if name in numbers else 0.0
    return float(x) if np.isfinite(x) else 0.0


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
    def cost(self) -> tuple[int, int]:
        """The key that sorts cases by the time they take to compute."""
        return COSTS.index(self.case.kind), len(self.output)

    def predicted(self, mistake: Mistake, predictions: Predictions) -> Answers | None:
        """Return a mistake's answers by name; None if there are none."""
        document = predictions.document(mistake, self.case)
        return None if document is None else _answers(self.document, document)

    def fit(self, mistake: Mistake, predictions: Predictions) -> Fit | None:
        """Return errors of 0 for a mistake's answers, inf for others; None if these are unknown."""
        wanted = self.predicted(mistake, predictions)
        known = [n for n in self.output if wanted is not None and n in wanted]
        wrong = {name for name, part in self.parts.items() if part.verdict == DIFFERS}
        if wanted is None or (wrong and not wrong & set(known)):
            return None
        units = {n: 0.0 if self.output[n] == wanted[n] else math.inf for n in known}
        return Fit(units, float(len(wrong - set(known))))

    def is_far(self, mistake: Mistake, predictions: Predictions) -> bool:
        """Return False: answers are compared exactly, which is fast."""
        return False

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
