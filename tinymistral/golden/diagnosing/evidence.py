"""What is given of a case, and how near a suspect's results come to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tinymistral.golden.checking.closeness import own_dtype
from tinymistral.golden.checking.comparing import what_counts
from tinymistral.golden.checking.verdicts import AGREES, DIFFERS, UNPROVEN, Compared, Part
from tinymistral.golden.diagnosing.predicting import Predictions
from tinymistral.golden.diagnosing.suspects.suspect import Suspect
from tinymistral.golden.making.tolerances import FACTOR
from tinymistral.golden.suite import Arrays, Case

Numbers = Mapping[str, np.ndarray]

# Fewer tolerances off than this, and it is worth a second run in the candidate's dtype, to see how
# large the errors of rounding are where numbers are other than they should be.
NEAR = 1000.0

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
class Evidence:
    """The numbers that are given of a case, as far as they can be compared."""

    case: Case
    given: Numbers  # by name, in the order of computation
    parts: Mapping[str, Part]  # how they compare with those expected
    counts: Numbers  # which of them are looked at
    dtype: str  # that they were computed in
    finite: bool = field(default=True)

    @classmethod
    def of(
        cls, compared: Compared, found: Numbers, arrays: Arrays, dtype: str | None
    ) -> Evidence | None:
        """Take what is given of a case, and how it compares; None if nothing can be."""
        verdicts = (AGREES, DIFFERS, UNPROVEN)
        parts = {p.name: p for p in compared.parts if p.verdict in verdicts}
        if not parts:
            return None
        given = {name: found[name] for name in parts}
        dtype = own_dtype(given.values()) if dtype in (None, "float64") else dtype
        wide = {n: x if x.dtype.kind in "iu" else x.astype(np.float64) for n, x in given.items()}
        every = what_counts(compared.case, arrays, given)
        counts = {name: every[name] for name in parts}
        finite = all(np.isfinite(x[counts[n]]).all() for n, x in wide.items())
        return cls(compared.case, wide, parts, counts, dtype or "float32", finite)

    @property
    def differs(self) -> bool:
        """Tell whether it is not what the suite expects."""
        return any(part.verdict == DIFFERS for part in self.parts.values())

    @property
    def first(self) -> int:
        """The place, in the order of computation, of the first tensor that differs."""
        verdicts = [part.verdict for part in self.parts.values()]
        return verdicts.index(DIFFERS) if self.differs else len(verdicts)

    @property
    def cost(self) -> tuple[int, int]:
        """What sorts cases by how long it takes to compute them."""
        return COSTS.index(self.case.kind), sum(x.size for x in self.given.values())

    def predicted(self, suspect: Suspect, predictions: Predictions) -> Numbers | None:
        """Return a suspect's results, in float64 if nothing forbids it; None if there are none."""
        exact = self.finite and not suspect.of_a_dtype
        return predictions.of(suspect, self.case, "float64" if exact else self.dtype)

    def fit(self, suspect: Suspect, predictions: Predictions) -> Fit | None:
        """Tell how near a suspect comes; None if what comes of it cannot be told."""
        wanted = self.predicted(suspect, predictions)
        if wanted is None:
            return None
        errors = {name: self.errors(name, x, wanted) for name, x in self.given.items()}
        worst = {name: float(error.max(initial=0.0)) for name, error in errors.items()}
        scales = {name: part.tolerance or 1.0 for name, part in self.parts.items()}
        off = max((worst[name] / scale for name, scale in scales.items()), default=0.0)
        if 1 < off <= NEAR and self.finite and not suspect.of_a_dtype:
            rounded = predictions.of(suspect, self.case, self.dtype)
            for name in scales if rounded is not None else ():
                if name in wanted and wanted[name].dtype.kind == "f":
                    own = FACTOR * float(self.errors(name, wanted[name], rounded).max(initial=0))
                    scales[name] = max(scales[name], own if own < math.inf else 0.0)
        for name, part in self.parts.items():  # nearer to this than to what is right
            if part.verdict == DIFFERS and part.tolerance:
                scales[name] = min(scales[name], part.error / 2)
        squares = [
            float(np.square(error[self.counts[name]] / (self.parts[name].tolerance or 1.0)).mean())
            for name, error in errors.items()
            if error.shape == self.counts[name].shape and self.counts[name].any()
        ]
        mean = math.sqrt(sum(squares) / max(1, len(squares)))
        return Fit({name: worst[name] / scale for name, scale in scales.items()}, mean)

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
            x, y = numbers.astype(np.float64), wanted[name].astype(np.float64)
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
