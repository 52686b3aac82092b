"""The diagnosis: what is measured step by step, and if that is not enough, a search.

A step whose input and result are given is judged by itself, see `measure.py`. Otherwise the
reference is run with every known mistake, and with those supposed in `supposed.py`. Each explains a
share of what differs; those that explain most of the cheapest case are run on more cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tinymistral.golden.compare.candidate import Candidate, CaseDump
from tinymistral.golden.compare.cases import check
from tinymistral.golden.compare.verdicts import Compared
from tinymistral.golden.diagnose.evidence import AnyEvidence, Evidence, Fit, TextEvidence
from tinymistral.golden.diagnose.measure import Finding, measure
from tinymistral.golden.diagnose.predictions import Predictions
from tinymistral.golden.diagnose.steps import all_steps
from tinymistral.golden.diagnose.supposed import Supposed, supposed
from tinymistral.golden.manifest import TEXT_KINDS
from tinymistral.mistakes import Mistake

LARGEST = 20_000_000  # weights of a model that can be diagnosed

# How many are run on a few more cases, and on all of them; how many are reported.
ON_SOME, ON_ALL, REPORTED = 20, 6, 3
CHEAP = 4  # cases, of which the clearest is the first
SOME = 3  # more cases that differ, and as many that agree
LEAST = 0.1  # of what differs: nobody is helped by less

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
                f"case {case.id}: its model has {size} weights and would be run many "
                f"hundred times; up to {LARGEST} can be diagnosed: dump and diagnose v1 instead"
            )
    evidence: list[AnyEvidence] = []

    def keep(compared: Compared, given: CaseDump) -> Compared:
        case = compared.case
        found: AnyEvidence | None
        if case.kind in TEXT_KINDS:
            found = TextEvidence.of(compared, suite.document(case))
        else:
            arrays, every = predictions.arrays(case), {**given.arrays, **given.longer}
            raw = given.layout == "raw"
            found = Evidence.of(compared, every, arrays, dtype, suite.manifest.stages, raw)
            if found is not None and found.another_length:
                rest = (part for part in compared.parts if part.name not in found.parts)
                compared = replace(compared, parts=(*found.parts.values(), *rest))
        evidence.extend([] if found is None else [found])
        return compared

    return evidence, list(check(suite, candidate, only, dtype, keep=keep))


@dataclass(frozen=True)
class Explanation:
    """A mistake, or several that the output does not distinguish, the nearest first."""

    mistakes: tuple[Mistake, ...]
    fits: Fits  # of the first one, in the cases for which it has results
    explained: tuple[str, ...]  # the cases whose difference it explains
    broken: tuple[str, ...]  # the cases that agree, but would differ with it
    share: float  # how much of what differs it explains, over all cases that differ

    @property
    def complete(self) -> bool:
        """Whether it explains everything."""
        return not self.broken and all(fit.explains for fit in self.fits.values())


@dataclass(frozen=True)
class Diagnosis:
    """What is measured, and explanations, ranked."""

    evidence: tuple[AnyEvidence, ...]
    findings: tuple[Finding, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    tried: int = 0  # mistakes

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
    """Measure what went wrong in each step; if that is unknown, find mistakes that explain it."""
    search = Search(evidence, predictions, progress)
    if not search.differing:
        return Diagnosis(search.evidence)
    findings = tuple(measure(all_steps(search.evidence, predictions)))
    if findings and all(finding.says for finding in findings):
        return Diagnosis(search.evidence, findings)
    dtypes = {getattr(each, "dtype", "float32") for each in search.differing}
    relevant = [mistake for mistake in mistakes if dtypes & set(mistake.shows_in)]
    found = search.explanations(relevant, not findings)
    if findings:  # what may be supposed of a step has been tried on it already
        found = tuple(explanation for explanation in found if explanation.complete)
    return Diagnosis(search.evidence, findings, found, search.tried)


class Search:
    """The comparison of many mistakes with the same evidence."""

    def __init__(
        self, evidence: Iterable[AnyEvidence], predictions: Predictions, progress: Progress
    ) -> None:
        self.evidence = tuple(sorted(evidence, key=self._order))
        self.differing = [each for each in self.evidence if each.differs]
        self.agreeing = [each for each in self.evidence if not each.differs]
        quick = tuple(each for each in self.evidence if each.case.kind != "generate")
        self.ranked = quick if any(each.differs for each in quick) else self.evidence
        self.predictions, self._progress = predictions, progress
        self.tried = 0
        self._fits: dict[tuple[int, str], Fit | None] = {}
        self._kept: list[Mistake] = []  # so that no other one gets the id of one of them

    @staticmethod
    def _order(each: AnyEvidence) -> tuple[bool, tuple[int, int, int]]:
        """Return the sort key: slow continuations last, then by cost."""
        return each.case.kind == "generate", each.cost

    def explanations(
        self, mistakes: Sequence[Mistake], suppose: bool = True
    ) -> tuple[Explanation, ...]:
        """Return those that explain most, ranked; with `suppose` also mistakes that are unknown."""
        # Mistakes are measured on the clearest of a few cheap cases: rounding blurs some.
        of_model = [e for e in self.differing if e.case.kind == "model"]
        of_model = [e for e in of_model if e.case.calls == of_model[0].case.calls][:CHEAP]
        first = max(of_model or self.differing[:1], key=lambda e: e.first.worst)
        some = [first, *[e for e in self.differing if e is not first][:SOME], *self.agreeing[:SOME]]
        pools: list[Callable[[], Iterable[Mistake]]] = [lambda: mistakes]
        if isinstance(first, Evidence) and of_model and suppose and not first.another_length:
            pools.append(lambda: supposed(first, self.predictions, LEAST))
        near: list[Mistake] = []
        for pool in pools:
            if near and self._is_complete(near[0]):
                break
            near += self._best(pool(), [first], ON_SOME)
            near = self._best(near, some, ON_SOME)
            near = self._best(near, self.ranked, ON_ALL)
        found = self._grouped([m for m in near if self._rank(m, self.ranked) >= LEAST])
        complete = tuple(explanation for explanation in found if explanation.complete)
        return complete or found[:REPORTED]

    def _is_complete(self, mistake: Mistake) -> bool:
        fits = [(each, self.fit(mistake, each)) for each in self.ranked]
        return all(f is None or (f.explains if e.differs else f.share) for e, f in fits)

    def _best(
        self, every: Iterable[Mistake], cases: Sequence[AnyEvidence], most: int
    ) -> list[Mistake]:
        """Return those that explain most of some cases, the best first."""
        pool, ranks = list(every), []
        if len(cases) == 1:
            self.tried += len(pool)
        for n, mistake in enumerate(pool):
            ranks.append((-self._rank(mistake, cases), n))
            self._progress(n + 1, len(pool))
        return [pool[n] for rank, n in sorted(ranks)[:most] if rank < 0]

    def _rank(self, mistake: Mistake, cases: Sequence[AnyEvidence]) -> float:
        """Return the share that is explained, less the part of agreeing cases that would differ."""
        good: list[float] = []
        bad: list[float] = []
        for each in cases:
            fit = self.fit(mistake, each)
            if fit is not None:
                (good if each.differs else bad).append(fit.share)
        if not good:
            return 0.0
        share = sum(good) / len(good) - (1 - sum(bad) / len(bad) if bad else 0.0)
        return round(share, 3)  # of those that are as good the first counts

    def fit(self, mistake: Mistake, each: AnyEvidence) -> Fit | None:
        """Return how much of a case a mistake explains; computed once."""
        key = (id(mistake), each.case.id)
        if key not in self._fits:
            self._kept.append(mistake)
            self._fits[key] = each.fit(mistake, self.predictions)
        return self._fits[key]

    def _grouped(self, found: Sequence[Mistake]) -> tuple[Explanation, ...]:
        """Group mistakes that the evidence does not distinguish, in their order."""
        groups: list[list[Mistake]] = []
        for mistake in found:
            for group in groups:
                if self._same(mistake, group[0]):
                    group.append(mistake)
                    break
            else:
                groups.append([mistake])
        return tuple(self._explanation(group) for group in groups)

    def _same(self, one: Mistake, other: Mistake) -> bool:
        for each in (e for e in self.ranked if e.differs):
            a, b = (each.predicted(mistake, self.predictions) for mistake in (one, other))
            if a is not None and b is not None and not each.agree(a, b):
                return False
        return True

    def _explanation(self, group: Sequence[Mistake]) -> Explanation:
        fits = {e.case.id: fit for e in self.evidence if (fit := self.fit(group[0], e))}
        differ = {each.case.id for each in self.differing}
        explained = tuple(n for n, fit in fits.items() if n in differ and fit.explains)
        broken = tuple(n for n, fit in fits.items() if n not in differ and not fit.share)
        named = [m for m in group if not isinstance(m, Supposed)]  # they have a remedy
        rest = [m for m in group if isinstance(m, Supposed)]
        suspects = tuple(named or rest[:1])
        share = [fit.share for n, fit in fits.items() if n in differ]
        return Explanation(suspects, fits, explained, broken, sum(share) / max(1, len(share)))
