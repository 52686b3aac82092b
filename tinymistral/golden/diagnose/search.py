"""The search for a known mistake that makes the candidate's numbers.

The reference is run with every known mistake, and its results are compared with the candidate's, in
units of the tolerances. The cheapest case that differs comes first, and a mistake that does not fit
there is dropped; the others have to explain all other cases too, also those that agree. If none
does, likely pairs are tried in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice

from tinymistral.golden.compare.candidate import Candidate
from tinymistral.golden.compare.cases import compare_case
from tinymistral.golden.compare.verdicts import Compared
from tinymistral.golden.diagnose.evidence import AnyEvidence, Evidence, Fit, TextEvidence
from tinymistral.golden.diagnose.predictions import Predictions
from tinymistral.golden.manifest import TEXT_KINDS
from tinymistral.golden.suite import Case
from tinymistral.mistakes import Mistake
from tinymistral.text import one_line

LARGEST = 20_000_000  # weights of a model that can be diagnosed

# If no mistake explains everything: on how many differing cases each is tried, how many of those
# that explain a part are paired with every other one, and how many are reported.
TRIED_IN_PART, PAIRED, REPORTED = 12, 6, 3

Fits = dict[str, Fit]  # by case id
Progress = Callable[[int, int], None]


def gather(
    candidate: Candidate,
    predictions: Predictions,
    only: Sequence[str] = (),
    dtype: str | None = None,
) -> tuple[list[AnyEvidence], list[Compared]]:
    """Compare a candidate with its suite -> the cases that can be compared, and all results.

    `only` and `dtype` are those of `compare.cases.check`.
    """
    suite = candidate.suite
    for case in map(suite.case, only or candidate.cases):
        weights = None if case.model is None else suite.manifest.models[case.model].weights
        size = 0 if weights is None else weights["parameters"]
        if size > LARGEST:
            raise ValueError(
                f"case {case.id}: its model has {size} weights and would be run more than a "
                f"hundred times; up to {LARGEST} can be diagnosed: dump and diagnose v1 instead"
            )
    for name in only:
        if suite.case(name).id not in candidate.cases:
            there = one_line(", ".join(candidate.cases), 400)
            raise ValueError(f"{candidate.path}: no output of case {name}, only of {there}")
    evidence: list[AnyEvidence] = []
    results: list[Compared] = []
    for name in only or candidate.cases:
        case = suite.case(name)
        try:
            results.append(compare_one(candidate, predictions, case, dtype, evidence))
        except ValueError as error:
            problem = one_line(error, 500)
            results.append(Compared(case, names=tuple(case.expected or ()), problem=problem))
    return evidence, results


def compare_one(
    candidate: Candidate,
    predictions: Predictions,
    case: Case,
    dtype: str | None,
    evidence: list[AnyEvidence],
) -> Compared:
    """Compare one case, and if anything can be compared add it to the evidence."""
    suite = candidate.suite
    found: AnyEvidence | None
    if case.kind in TEXT_KINDS:
        given = candidate.read(case)
        compared = compare_case(suite, case, given)
        found = TextEvidence.of(compared, suite.document(case))
    else:
        arrays = predictions.arrays(case)
        given = candidate.read(case, arrays)
        compared = compare_case(suite, case, given, dtype, arrays)
        every, raw = {**given.arrays, **given.longer}, given.layout == "raw"
        found = Evidence.of(compared, every, arrays, dtype, suite.manifest.stages, raw)
        if found is not None and found.another_length:
            rest = (part for part in compared.parts if part.name not in found.parts)
            compared = replace(compared, parts=(*found.parts.values(), *rest))
    evidence += [] if found is None else [found]
    return compared


@dataclass(frozen=True)
class Explanation:
    """A mistake, or several that the output does not distinguish, the nearest first."""

    mistakes: tuple[Mistake, ...]
    fits: Fits  # of the first one, in the cases for which it has results
    explained: tuple[str, ...]  # the cases whose difference it explains
    broken: tuple[str, ...]  # the cases that agree, but would differ with it
    decided: tuple[str, str]  # the first stage that it changes, and the case in which it does

    @property
    def worst(self) -> float:
        """The largest error in the cases that are explained, in tolerances."""
        return max((self.fits[name].worst for name in self.explained), default=0.0)


@dataclass(frozen=True)
class Diagnosis:
    """Explanations of everything, ranked, or else of a part of it."""

    evidence: tuple[AnyEvidence, ...]
    explanations: tuple[Explanation, ...] = ()
    partial: tuple[Explanation, ...] = ()
    tried: int = 0  # mistakes and pairs

    @property
    def differing(self) -> tuple[AnyEvidence, ...]:
        """The evidence that differs."""
        return tuple(each for each in self.evidence if each.differs)


def diagnose(
    evidence: Iterable[AnyEvidence],
    mistakes: Sequence[Mistake],
    predictions: Predictions,
    progress: Progress = lambda done, total: None,
) -> Diagnosis:
    """Find the mistakes, or pairs of them, that explain the evidence."""
    search = Search(evidence, predictions, progress)
    if not search.differing:
        return Diagnosis(search.evidence)
    dtypes = {getattr(each, "dtype", "float32") for each in search.differing}
    relevant = [mistake for mistake in mistakes if dtypes & set(mistake.shows_in)]
    found = search.explaining(dict.fromkeys(relevant, search.differing[0]))
    partial: list[tuple[Mistake, Fits]] = []
    if not found:
        partial = search.in_part(relevant)
        found = search.explaining(search.pairs(partial[:PAIRED], relevant))
    explanations = search.grouped(sorted(found, key=lambda pair: nearness(pair[1])))
    rest = () if explanations else search.grouped(partial[:REPORTED])
    part = tuple(explanation for explanation in rest if explanation.explained)
    return Diagnosis(search.evidence, explanations, part, search.tried)


def nearness(fits: Fits) -> float:
    """Return the mean square error over the cases, which ranks explanations."""
    return sum(fit.mean**2 for fit in fits.values()) / max(1, len(fits))


class Search:
    """The comparison of many mistakes with the same evidence."""

    def __init__(
        self, evidence: Iterable[AnyEvidence], predictions: Predictions, progress: Progress
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
    def _order(each: AnyEvidence) -> tuple[bool, bool, tuple[int, int]]:
        """Return the sort key: slow continuations last, then what differs first, then by cost."""
        return each.case.kind == "generate", not each.differs, each.cost

    def explaining(self, mistakes: Mapping[Mistake, AnyEvidence]) -> list[tuple[Mistake, Fits]]:
        """Return the mistakes that explain all the evidence, with their fits.

        `mistakes` has with each the case to try it on first.
        """
        self._total += len(mistakes)
        found = []
        for mistake, first in mistakes.items():
            fits = self._fits(mistake, first)
            if fits is not None:
                found.append((mistake, fits))
            elif mistake.pair:
                self.predictions.drop(mistake)
            self.tried += 1
            self._step()
        return found

    def _fits(self, mistake: Mistake, first: AnyEvidence) -> Fits | None:
        fits: Fits = {}
        for each in (first, *(each for each in self.evidence if each is not first)):
            if each.is_far(mistake, self.predictions):
                return None
            fit = each.fit(mistake, self.predictions)
            if fit is not None and not fit.explains:
                return None
            fits |= {} if fit is None else {each.case.id: fit}
        return fits if any(each.case.id in fits for each in self.differing) else None

    def pairs(
        self, partial: Sequence[tuple[Mistake, Fits]], mistakes: Sequence[Mistake]
    ) -> dict[Mistake, AnyEvidence]:
        """Pair those that explain a part with all others, then the common ones with each other.

        With each comes the case to try it on first: the cheapest that is not explained yet. Pairs
        that show only in a continuation are left out, since they would take too long.
        """
        found: dict[frozenset[str], tuple[Mistake, AnyEvidence]] = {}
        for one, fits in partial:
            rest = (e for e in self.short if e.case.id not in fits or not fits[e.case.id].explains)
            for first in islice(rest, 1):
                for other in mistakes:
                    if one is not other:
                        found.setdefault(frozenset((one.name, other.name)), (one & other, first))
        common = [mistake for mistake in mistakes if mistake.common]
        for one, other in combinations(common if self.short else [], 2):
            found.setdefault(frozenset((one.name, other.name)), (one & other, self.short[0]))
        return dict(found.values())

    def in_part(self, mistakes: Sequence[Mistake]) -> list[tuple[Mistake, Fits]]:
        """Return those that explain the first difference of some case, the best first."""
        cases = (self.short or self.differing)[:TRIED_IN_PART]
        self._total += len(mistakes)
        found = []
        for mistake in mistakes:
            fits = {each.case.id: each.fit(mistake, self.predictions) for each in cases}
            known = {name: fit for name, fit in fits.items() if fit is not None}
            gained = [known[e.case.id].reach - e.first for e in cases if e.case.id in known]
            if any(gain > 0 for gain in gained):
                explained = sum(fit.explains for fit in known.values())
                further = sum(gain > 0 for gain in gained) - sum(gain < 0 for gain in gained)
                found.append(((-explained, -further, nearness(known)), mistake, known))
            self._step()
        found.sort(key=lambda entry: entry[0])
        return [(mistake, fits) for _, mistake, fits in found]

    def grouped(self, found: Sequence[tuple[Mistake, Fits]]) -> tuple[Explanation, ...]:
        """Group mistakes that the evidence does not distinguish, in their order."""
        groups: list[list[tuple[Mistake, Fits]]] = []
        for mistake, fits in found:
            for group in groups:
                if self._same(mistake, group[0][0]):
                    group.append((mistake, fits))
                    break
            else:
                groups.append([(mistake, fits)])
        return tuple(self._explanation(group) for group in groups)

    def _same(self, one: Mistake, other: Mistake) -> bool:
        for each in self.evidence:
            a, b = (each.predicted(mistake, self.predictions) for mistake in (one, other))
            if a is not None and b is not None and not each.agree(a, b):
                return False
        return True

    def _explanation(self, group: Sequence[tuple[Mistake, Fits]]) -> Explanation:
        mistake = group[0][0]
        fits: Fits = {}
        for each in self.evidence:
            fit = each.fit(mistake, self.predictions)
            fits |= {} if fit is None else {each.case.id: fit}
        differ = {each.case.id for each in self.differing}
        explained = tuple(n for n, fit in fits.items() if n in differ and fit.explains)
        broken = tuple(n for n, fit in fits.items() if n not in differ and not fit.explains)
        names = tuple(mistake for mistake, _ in group)
        return Explanation(names, fits, explained, broken, self._decided(mistake))

    def _decided(self, mistake: Mistake) -> tuple[str, str]:
        """Return the first stage that a mistake changes, dumped or not, and the case."""
        suite = self.predictions.suite
        for each in self.differing:
            if isinstance(each, Evidence):
                found = each.predicted(mistake, self.predictions) or {}
                arrays = self.predictions.arrays(each.case)
                first = compare_case(suite, each.case, found, None, arrays).first
                if first is not None:
                    return first.name, each.case.id
        return "", ""
