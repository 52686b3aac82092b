"""What is given of a case, and how near a mistake's results come to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tinymistral.golden.compare.cases import what_counts
from tinymistral.golden.compare.layouts import all_in_halves, is_raw
from tinymistral.golden.compare.places import axes_of
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
from tinymistral.golden.suite import Case, CaseArrays
from tinymistral.mistakes import Mistake
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.tap import STAGES

Numbers = Mapping[str, np.ndarray]
Answers = Mapping[str, Any]  # by name, such as "strings.3.ids"

# Fewer tolerances off than this, or a quarter of the numbers, and it is worth more runs in the
# candidate's dtype, to see how large errors of rounding are where numbers are not the right ones.
NEAR = 1000.0
# These are three ways of rounding, and the largest error of others may be some times theirs.
FEW_RUNS = 4 * FACTOR

COSTS = ("operation", "sampling", "tokenizer", "chat", "model", "generate")  # the cheapest first


@dataclass(frozen=True)
class Fit:
    """How near results come to what is given of a case."""

    units: Mapping[str, float]  # of each tensor the largest error, at most 1 if it is explained
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
        """Count the tensors, in the order of computation, before one that is not explained."""
        return next((n for n, unit in enumerate(self.units.values()) if not unit <= 1), 10**9)


class Comparison:
    """What is given of a case: parts in the order of computation, compared with the suite's."""

    parts: Mapping[str, Part]

    @property
    def differs(self) -> bool:
        """Whether it is not what the suite expects."""
        return any(part.verdict == DIFFERS for part in self.parts.values())

    @property
    def first(self) -> int:
        """The place of the first part that differs."""
        verdicts = [part.verdict for part in self.parts.values()]
        return verdicts.index(DIFFERS) if self.differs else len(verdicts)


@dataclass(frozen=True)
class Evidence(Comparison):
    """The numbers that are given of a case, as far as they can be compared."""

    case: Case
    given: Numbers  # by name, in the order of computation
    parts: Mapping[str, Part]  # how they compare with those expected
    counts: Numbers  # which of them are looked at
    dtype: str  # that they were computed in
    finite: bool = field(default=True)
    another_length: bool = False  # it is of a token too many or too few, see `of_another_length`
    raw: bool = False  # it was given in the order of a raw checkpoint, see `compare/layouts.py`

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
        """Take what is given of a case, and how it compares; None if nothing can be."""
        verdicts = (AGREES, DIFFERS, UNPROVEN)
        own = own_dtype(found.values()) if dtype in (None, "float64") else dtype
        other = of_another_length(compared, found, arrays, stages, own or "float32")
        parts = other or {p.name: p for p in compared.parts if p.verdict in verdicts}
        if not parts:
            return None
        given = {name: found[name] for name in parts}
        dtype = own_dtype(given.values()) if dtype in (None, "float64") else dtype
        wide = {n: x if x.dtype.kind in "iu" else x.astype(np.float64) for n, x in given.items()}
        if other:
            counts = {name: np.ones(x.shape, dtype=bool) for name, x in wide.items()}
        else:
            every = what_counts(compared.case, arrays, given)
            counts = {name: every[name] for name in parts}
        finite = all(np.isfinite(x[counts[n]]).all() for n, x in wide.items())
        own = dtype or "float32"
        return cls(compared.case, wide, parts, counts, own, finite, bool(other), raw)

    @property
    def cost(self) -> tuple[int, int]:
        """What sorts cases by how long it takes to compute them."""
        return COSTS.index(self.case.kind), sum(x.size for x in self.given.values())

    def predicted(self, mistake: Mistake, predictions: Predictions) -> Numbers | None:
        """Return a mistake's results, in float64 if nothing forbids it; None if there are none."""
        exact = self.finite and not mistake.of_a_dtype
        return self._of(mistake, predictions, "float64" if exact else self.dtype)

    def _of(
        self,
        mistake: Mistake,
        predictions: Predictions,
        dtype: str,
        base: type[NumpyBackend] = NumpyBackend,
    ) -> Numbers | None:
        """Return a mistake's results, read in whichever order the candidate's would be."""
        found = predictions.of(mistake, self.case, dtype, self.another_length, base)
        if found is None or not self.raw:
            return found
        given = {name: found[name] for name in self.given if name in found}
        raw = is_raw(self.case, predictions.arrays(self.case), given)
        return all_in_halves(self.case, found) if raw else found

    def fit(self, mistake: Mistake, predictions: Predictions) -> Fit | None:
        """Return how near a mistake comes; None if it has no results."""
        wanted = self.predicted(mistake, predictions)
        if wanted is None:
            return None
        errors = {name: self.errors(name, x, wanted) for name, x in self.given.items()}
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
        """Return whether a mistake cannot explain this, however rounding changes its results.

        `fit` would say the same; this stops at the first tensor that is far, beginning with the
        last ones, where most mistakes show.
        """
        wanted = self.predicted(mistake, predictions)
        if wanted is None:
            return False
        scales = self._scales({})
        for name in reversed(list(self.given)):
            worst = float(self.errors(name, self.given[name], wanted).max(initial=0.0))
            if worst > scales[name] and not (self.finite and self._near(name, worst, wanted)):
                return True
        return False

    def _near(self, name: str, worst: float, wanted: Numbers) -> bool:
        """Return whether errors may be of rounding, which more runs can show."""
        near = NEAR * (self.parts[name].tolerance or 1.0)
        return worst <= near or worst <= _largest(wanted, name) / 4

    def _scales(self, rounding: Mapping[str, float]) -> dict[str, float]:
        """Return the largest error to accept, given the errors of rounding beside a mistake."""
        scales = {}
        for name, part in self.parts.items():
            own = rounding.get(name, 0.0)
            scales[name] = max(part.tolerance or 1.0, FEW_RUNS * own)
            if part.verdict == DIFFERS and part.tolerance:
                scales[name] = min(scales[name], part.error * _share(own / part.error))
        return scales

    def _rounding(
        self, mistake: Mistake, wanted: Numbers, predictions: Predictions
    ) -> dict[str, float]:
        """Return how far from a mistake's results those are that are rounded at other places."""
        largest: dict[str, float] = {}
        for base in ROUNDED:
            rounded = self._of(mistake, predictions, self.dtype, base)
            for name in self.given if rounded is not None else ():
                if name in wanted and wanted[name].dtype.kind not in "iu":
                    error = float(self.errors(name, wanted[name], rounded).max(initial=0))
                    largest[name] = max(largest.get(name, 0.0), error)
        return {name: x for name, x in largest.items() if x < math.inf}

    def agree(self, one: Numbers, other: Numbers) -> bool:
        """Return whether what is given here cannot tell two results apart."""
        return all(
            name in one
            and float(self.errors(name, one[name], other).max(initial=0.0))
            <= self.parts[name].tolerance
            for name in self.given
        )

    def errors(self, name: str, numbers: np.ndarray, wanted: Numbers | None) -> np.ndarray:
        """Return how far numbers are from those wanted; 0 where nothing is looked at."""
        shape = self.given[name].shape
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
        """Leave out log-probabilities of other tokens, and what comes after the first of them."""
        if name != "logprobs" or "sequences" not in self.given or "sequences" not in wanted:
            return np.ones(counts.shape, dtype=bool) if name == "logprobs" else counts
        new = counts.shape[1]
        same = self.given["sequences"][:, -new:] == wanted["sequences"][:, -new:]
        so_far = np.logical_and.accumulate(same.all(axis=0))  # rows may bear on each other
        return np.broadcast_to(so_far, counts.shape)


def _mean_square(errors: np.ndarray) -> float:
    return float(errors @ errors) / errors.size


def _share(rounding: float) -> float:
    """Return how near to a mistake one has to be, in units of the distance from what is right.

    Nearer by half to it than to that, as a rule. Where rounding beside the mistake, in the same
    units, may lead so far, only nearer; and where it has led there, little can be said.
    """
    return 0.5 if FACTOR * rounding < 0.5 else 0.9 if rounding < 0.5 else 2.0


def _largest(numbers: Numbers, name: str) -> float:
    """Return the largest magnitude of a tensor; 0 if it is not there, or not finite."""
    x = np.abs(numbers[name].astype(np.float64)).max(initial=0) if name in numbers else 0.0
    return float(x) if np.isfinite(x) else 0.0


# Results of a text that is a token longer or shorter

SAYS = {1: "it is of a token too many", -1: "it is of a token too few"}


def of_another_length(
    compared: Compared, found: Numbers, arrays: CaseArrays, stages: Mapping[str, str], dtype: str
) -> dict[str, Part]:
    """Return the parts that are of a text of another length, as parts that differ; {} if none is.

    They cannot be compared with those expected, but with those of a text with a token too many, or
    too few. Only cases without padding are looked at: beside padding such a token has no definite
    place.
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


# Texts and conversations


@dataclass(frozen=True)
class TextEvidence(Comparison):
    """The answers that are given of a case."""

    case: Case
    document: Mapping[str, Any]  # the suite's
    given: Answers
    parts: Mapping[str, Part]  # how they compare with those expected

    @classmethod
    def of(cls, compared: Compared, document: Mapping[str, Any]) -> TextEvidence | None:
        """Take what is given of a case, and how it compares; None if nothing can be."""
        parts = {part.name: part for part in compared.parts}
        right = _answers(document, document)
        given = {n: p.got if p.verdict == DIFFERS else right[n] for n, p in parts.items()}
        return cls(compared.case, document, given, parts) if parts else None

    @property
    def cost(self) -> tuple[int, int]:
        """What sorts cases by how long it takes to compute them."""
        return COSTS.index(self.case.kind), len(self.given)

    def predicted(self, mistake: Mistake, predictions: Predictions) -> Answers | None:
        """Return a mistake's answers by name; None if there are none."""
        document = predictions.document(mistake, self.case)
        return None if document is None else _answers(self.document, document)

    def fit(self, mistake: Mistake, predictions: Predictions) -> Fit | None:
        """Return whether the answers are a mistake's: the same, or not; None if unknown."""
        wanted = self.predicted(mistake, predictions)
        known = [n for n in self.given if wanted is not None and n in wanted]
        wrong = {name for name, part in self.parts.items() if part.verdict == DIFFERS}
        if wanted is None or (wrong and not wrong & set(known)):
            return None
        units = {n: 0.0 if self.given[n] == wanted[n] else math.inf for n in known}
        return Fit(units, float(len(wrong - set(known))))

    def is_far(self, mistake: Mistake, predictions: Predictions) -> bool:
        """Return False: nothing is near or far here."""
        return False

    def agree(self, one: Answers, other: Answers) -> bool:
        """Return whether two mistakes' answers are the same, where both have any."""
        return all(one.get(name) == other.get(name) for name in self.given)


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
