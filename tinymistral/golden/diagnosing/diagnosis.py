"""Which known mistake makes exactly these numbers.

The reference is run with every suspect, and what comes of it is held against what is given, in
units of the tolerances. The cheapest case that differs comes first, and who does not fit there is
dropped; who is left has to explain all the other cases too, those that agree among them. If nobody
does, likely pairs are tried in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

from tinymistral.golden.compare.cases import compare_case
from tinymistral.golden.diagnosing.evidence import Evidence, Fit
from tinymistral.golden.diagnosing.evidence_of_texts import TextEvidence
from tinymistral.golden.diagnosing.predicting import Predictions
from tinymistral.golden.diagnosing.suspects.suspect import Suspect

# Where no suspect explains everything, all are tried on so many of the cases that differ; so many
# of those that explain a part are tried together with every other one; and so many are told of.
TRIED_IN_PART, PAIRED, TOLD = 12, 6, 3

Given = Evidence | TextEvidence
Fits = dict[str, Fit]  # by case id
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Explanation:
    """A suspect, or several that nothing given tells apart, the nearest first."""

    suspects: tuple[Suspect, ...]
    fits: Fits  # of the first one, in the cases in which it can be told
    explained: tuple[str, ...]  # the cases that differ, and so would with it
    broken: tuple[str, ...]  # the cases that agree, and would not with it
    decided: tuple[str, str]  # the first stage that it changes, and the case in which it does

    @property
    def worst(self) -> float:
        """The largest error in the cases that are explained, in tolerances."""
        return max((self.fits[name].worst for name in self.explained), default=0.0)


@dataclass(frozen=True)
class Diagnosis:
    """What came of it: explanations of everything, ranked, or else of a part of it."""

    evidence: tuple[Given, ...]
    whole: tuple[Explanation, ...] = ()
    partial: tuple[Explanation, ...] = ()
    tried: int = 0  # suspects and pairs

    @property
    def differing(self) -> tuple[Given, ...]:
        """What differs of the evidence."""
        return tuple(each for each in self.evidence if each.differs)


def diagnose(
    evidence: Iterable[Given],
    suspects: Sequence[Suspect],
    predictions: Predictions,
    progress: Progress = lambda done, total: None,
) -> Diagnosis:
    """Find the suspects, or pairs of them, that explain what is given."""
    search = Search(evidence, predictions, progress)
    if not search.differing:
        return Diagnosis(search.evidence)
    dtypes = {getattr(each, "dtype", "float32") for each in search.differing}
    relevant = [suspect for suspect in suspects if dtypes & set(suspect.dtypes)]
    found = search.explaining(dict.fromkeys(relevant, search.differing[0]))
    partial: list[tuple[Suspect, Fits]] = []
    if not found:
        partial = search.in_part(relevant)
        found = search.explaining(search.pairs(partial[:PAIRED], relevant))
    whole = search.grouped(sorted(found, key=lambda pair: nearness(pair[1])))
    rest = () if whole else search.grouped(partial[:TOLD])
    part = tuple(explanation for explanation in rest if explanation.explained)
    return Diagnosis(search.evidence, whole, part, search.tried)


def nearness(fits: Fits) -> float:
    """Return what sorts those that explain the same: the mean error of all cases."""
    return sum(fit.mean**2 for fit in fits.values()) / max(1, len(fits))


class Search:
    """Suspects held against evidence."""

    def __init__(
        self, evidence: Iterable[Given], predictions: Predictions, progress: Progress
    ) -> None:
        self.evidence = tuple(sorted(evidence, key=self._order))
        self.differing = [each for each in self.evidence if each.differs]
        self.short = [each for each in self.differing if each.case.kind != "generate"]
        self.predictions, self._progress = predictions, progress
        self.tried = self._done = self._total = 0

    def _step(self) -> None:
        self._done += 1
        self._progress(self._done, self._total)

    @staticmethod
    def _order(each: Given) -> tuple[bool, bool, tuple[int, int]]:
        """Sort evidence: continuations last, for they take long; what differs first; by cost."""
        return each.case.kind == "generate", not each.differs, each.cost

    def explaining(self, suspects: Mapping[Suspect, Given]) -> list[tuple[Suspect, Fits]]:
        """Return those that explain all the evidence, with how near they come.

        With each suspect goes the case to try it on first.
        """
        self._total += len(suspects)
        found = []
        for suspect, first in suspects.items():
            fits = self._everywhere(suspect, first)
            if fits is not None:
                found.append((suspect, fits))
            elif suspect.pair:
                self.predictions.forget(suspect)
            self.tried += 1
            self._step()
        return found

    def _everywhere(self, suspect: Suspect, first: Given) -> Fits | None:
        fits: Fits = {}
        for each in (first, *(each for each in self.evidence if each is not first)):
            if each.is_far(suspect, self.predictions):
                return None
            fit = each.fit(suspect, self.predictions)
            if fit is not None and not fit.explains:
                return None
            fits |= {} if fit is None else {each.case.id: fit}
        return fits if any(each.case.id in fits for each in self.differing) else None

    def pairs(
        self, partial: Sequence[tuple[Suspect, Fits]], suspects: Sequence[Suspect]
    ) -> dict[Suspect, Given]:
        """Pair those that explain a part with all others, then the common ones with each other.

        With each goes the case to try it on first: the cheapest that is not explained yet. Pairs
        that only a continuation could tell of are left out, for they would take too long.
        """
        found: dict[frozenset[str], tuple[Suspect, Given]] = {}
        for one, fits in partial:
            rest = (e for e in self.short if e.case.id not in fits or not fits[e.case.id].explains)
            for first in islice(rest, 1):
                for other in suspects:
                    if one is not other:
                        found.setdefault(frozenset((one.name, other.name)), (one & other, first))
        common = [suspect for suspect in suspects if suspect.common]
        for one, other in combinations(common if self.short else [], 2):
            found.setdefault(frozenset((one.name, other.name)), (one & other, self.short[0]))
        return dict(found.values())

    def in_part(self, suspects: Sequence[Suspect]) -> list[tuple[Suspect, Fits]]:
        """Return those that explain some cases, or more of the first stages, the best first."""
        cases = (self.short or self.differing)[:TRIED_IN_PART]
        self._total += len(suspects)
        found = []
        for suspect in suspects:
            fits = {each.case.id: each.fit(suspect, self.predictions) for each in cases}
            told = {name: fit for name, fit in fits.items() if fit is not None}
            gained = [told[e.case.id].reach - e.first for e in cases if e.case.id in told]
            if any(gain > 0 for gain in gained):
                explained = sum(fit.explains for fit in told.values())
                further = sum(gain > 0 for gain in gained) - sum(gain < 0 for gain in gained)
                found.append(((-explained, -further, nearness(told)), suspect, told))
            self._step()
        found.sort(key=lambda entry: entry[0])
        return [(suspect, fits) for _, suspect, fits in found]

    def grouped(self, found: Sequence[tuple[Suspect, Fits]]) -> tuple[Explanation, ...]:
        """Put together those of whom nothing given tells one from the other; in their order."""
        groups: list[list[tuple[Suspect, Fits]]] = []
        for suspect, fits in found:
            for group in groups:
                if self._same(suspect, group[0][0]):
                    group.append((suspect, fits))
                    break
            else:
                groups.append([(suspect, fits)])
        return tuple(self._explanation(group) for group in groups)

    def _same(self, one: Suspect, other: Suspect) -> bool:
        for each in self.evidence:
            a, b = (each.predicted(suspect, self.predictions) for suspect in (one, other))
            if a is not None and b is not None and not each.agree(a, b):
                return False
        return True

    def _explanation(self, group: Sequence[tuple[Suspect, Fits]]) -> Explanation:
        suspect = group[0][0]
        fits: Fits = {}
        for each in self.evidence:
            fit = each.fit(suspect, self.predictions)
            fits |= {} if fit is None else {each.case.id: fit}
        differ = {each.case.id for each in self.differing}
        explained = tuple(n for n, fit in fits.items() if n in differ and fit.explains)
        broken = tuple(n for n, fit in fits.items() if n not in differ and not fit.explains)
        names = tuple(suspect for suspect, _ in group)
        return Explanation(names, fits, explained, broken, self._decided(suspect))

    def _decided(self, suspect: Suspect) -> tuple[str, str]:
        """Return the first stage that a suspect changes, given or not, and in which case."""
        suite = self.predictions.suite
        for each in self.differing:
            if isinstance(each, Evidence):
                found = each.predicted(suspect, self.predictions) or {}
                arrays = self.predictions.arrays(each.case)
                first = compare_case(suite, each.case, found, None, arrays).first
                if first is not None:
                    return first.name, each.case.id
        return "", ""
