"""What is given of a case of texts or conversations, and whether a suspect's answers are the same.

Nothing is near here: ids are the same, or they are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinymistral.golden.compare.texts import ANSWERS, ASKED, key
from tinymistral.golden.compare.verdicts import DIFFERS, Compared, Part
from tinymistral.golden.diagnosing.evidence import COSTS, Fit
from tinymistral.golden.diagnosing.judged import Judged
from tinymistral.golden.diagnosing.predicting import Predictions
from tinymistral.golden.diagnosing.suspects.suspect import Suspect
from tinymistral.golden.suite import Case

Answers = Mapping[str, Any]  # by name, such as "strings.3.ids"


@dataclass(frozen=True)
class TextEvidence(Judged):
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

    def predicted(self, suspect: Suspect, predictions: Predictions) -> Answers | None:
        """Return a suspect's answers by name, those that can be told; None if none of them can."""
        document = predictions.document(suspect, self.case)
        return None if document is None else _answers(self.document, document)

    def fit(self, suspect: Suspect, predictions: Predictions) -> Fit | None:
        """Tell whether the answers are a suspect's; None if that cannot be told."""
        wanted = self.predicted(suspect, predictions)
        told = [n for n in self.given if wanted is not None and n in wanted]
        wrong = {name for name, part in self.parts.items() if part.verdict == DIFFERS}
        if wanted is None or (wrong and not wrong & set(told)):
            return None
        units = {n: 0.0 if self.given[n] == wanted[n] else math.inf for n in told}
        return Fit(units, float(len(wrong - set(told))))

    def is_far(self, suspect: Suspect, predictions: Predictions) -> bool:
        """Nothing is near or far here: see `fit`."""
        return False

    def agree(self, one: Answers, other: Answers) -> bool:
        """Tell whether two suspects' answers are the same, as far as both can be told."""
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
