"""What is given of a case, and how near a suspect's results come to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tinymistral.golden.compare.cases import what_counts
from tinymistral.golden.compare.layouts import all_in_halves, is_raw
from tinymistral.golden.compare.tensors import own_dtype
from tinymistral.golden.compare.verdicts import AGREES, DIFFERS, UNPROVEN, Compared, Part
from tinymistral.golden.diagnosing.judged import Judged
from tinymistral.golden.diagnosing.lengths import of_another_length
from tinymistral.golden.diagnosing.predicting import Predictions
from tinymistral.golden.diagnosing.rounding import ROUNDED
from tinymistral.golden.diagnosing.suspects.suspect import Suspect
from tinymistral.golden.rounding import FACTOR
from tinymistral.golden.suite import Case, CaseArrays
from tinymistral.tap import STAGES

Numbers = Mapping[str, np.ndarray]

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
        """Tell whether everything is explained."""
        return self.worst <= 1

    @property
    def reach(self) -> int:
        """Count the tensors, in the order of computation, before one that is not explained."""
        return next((n for n, unit in enumerate(self.units.values()) if not unit <= 1), 10**9)


@dataclass(frozen=True)
class Evidence(Judged):
    """The numbers that are given of a case, as far as they can be compared."""

    case: Case
    given: Numbers  # by name, in the order of computation
    parts: Mapping[str, Part]  # how they compare with those expected
    counts: Numbers  # which of them are looked at
    dtype: str  # that they were computed in
    finite: bool = field(default=True)
    another_length: bool = False  # it is of a token too many or too few, see `lengths.py`
    raw: bool = False  # it was given in the order of a raw checkpoint, see `checking/orders.py`

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

    def predicted(self, suspect: Suspect, predictions: Predictions) -> Numbers | None:
        """Return a suspect's results, in float64 if nothing forbids it; None if there are none."""
        exact = self.finite and not suspect.of_a_dtype
        return self._of(suspect, predictions, "float64" if exact else self.dtype)

    def _of(self, suspect: Suspect, predictions: Predictions, dtype: str) -> Numbers | None:
        """Return a suspect's results, read in whichever order the candidate's would be."""
        found = predictions.of(suspect, self.case, dtype, self.another_length)
        if found is None or not self.raw:
            return found
        given = {name: found[name] for name in self.given if name in found}
        raw = is_raw(self.case, predictions.arrays(self.case), given)
        return all_in_halves(self.case, found) if raw else found

    def fit(self, suspect: Suspect, predictions: Predictions) -> Fit | None:
        """Tell how near a suspect comes; None if what comes of it cannot be told."""
        wanted = self.predicted(suspect, predictions)
        if wanted is None:
            return None
        errors = {name: self.errors(name, x, wanted) for name, x in self.given.items()}
        worst = {name: float(error.max(initial=0.0)) for name, error in errors.items()}
        scales = self._scales({})
        off = any(worst[name] > scale for name, scale in scales.items())
        if off and self.finite and all(self._near(n, worst[n], wanted) for n in self.parts):
            scales = self._scales(self._rounding(suspect, wanted, predictions))
        squares = [
            _mean_square(error[self.counts[name]] / (self.parts[name].tolerance or 1.0))
            for name, error in errors.items()
            if error.shape == self.counts[name].shape and self.counts[name].any()
        ]
        mean = math.sqrt(sum(squares) / max(1, len(squares)))
        return Fit({name: worst[name] / scale for name, scale in scales.items()}, mean)

    def is_far(self, suspect: Suspect, predictions: Predictions) -> bool:
        """Tell whether a suspect cannot explain this, whatever comes of rounding beside it.

        It is what `fit` comes to, found at the first tensor that is far; the last ones come first,
        as most mistakes show there.
        """
        wanted = self.predicted(suspect, predictions)
        if wanted is None:
            return False
        scales = self._scales({})
        for name in reversed(list(self.given)):
            worst = float(self.errors(name, self.given[name], wanted).max(initial=0.0))
            if worst > scales[name] and not (self.finite and self._near(name, worst, wanted)):
                return True
        return False

    def _near(self, name: str, worst: float, wanted: Numbers) -> bool:
        """Tell whether errors may have come of rounding, which more runs can tell."""
        near = NEAR * (self.parts[name].tolerance or 1.0)
        return worst <= near or worst <= _largest(wanted, name) / 4

    def _scales(self, rounding: Mapping[str, float]) -> dict[str, float]:
        """Return how near one has to come, given how far rounding has led beside a suspect."""
        scales = {}
        for name, part in self.parts.items():
            own = rounding.get(name, 0.0)
            scales[name] = max(part.tolerance or 1.0, FEW_RUNS * own)
            if part.verdict == DIFFERS and part.tolerance:
                scales[name] = min(scales[name], part.error * _share(own / part.error))
        return scales

    def _rounding(
        self, suspect: Suspect, wanted: Numbers, predictions: Predictions
    ) -> dict[str, float]:
        """Return how far from a suspect's results those may be that are computed otherwise."""
        largest: dict[str, float] = {}
        for way in (suspect, *(suspect & rounded for rounded in ROUNDED)):
            rounded = self._of(way, predictions, self.dtype)
            for name in self.given if rounded is not None else ():
                if name in wanted and wanted[name].dtype.kind not in "iu":
                    error = float(self.errors(name, wanted[name], rounded).max(initial=0))
                    largest[name] = max(largest.get(name, 0.0), error)
        return {name: x for name, x in largest.items() if x < math.inf}

    def agree(self, one: Numbers, other: Numbers) -> bool:
        """Tell whether two results could not be told apart by what is given here."""
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
            told = counts & (numbers != wanted[name]) & (self.dtype == "float32")
            return np.where(told, np.inf, 0.0)
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
    """Return how near to a suspect one has to be, in units of the distance from what is right.

    Nearer by half to it than to that, as a rule. Where rounding beside the mistake, in the same
    units, may lead so far, only nearer; and where it has led there, little can be told.
    """
    return 0.5 if FACTOR * rounding < 0.5 else 0.9 if rounding < 0.5 else 2.0


def _largest(numbers: Numbers, name: str) -> float:
    """Return the largest magnitude of a tensor; 0 if it is not there, or not finite."""
    x = np.abs(numbers[name].astype(np.float64)).max(initial=0) if name in numbers else 0.0
    return float(x) if np.isfinite(x) else 0.0
