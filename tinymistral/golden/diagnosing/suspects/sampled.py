"""Suspects about sampling: those that the cases of sampling were made to tell."""

from __future__ import annotations

from collections.abc import Iterator

from tinymistral.golden.diagnosing.suspects.suspect import Suspect
from tinymistral.golden.vectors.mistakes import MISTAKES


def suspects() -> Iterator[Suspect]:
    """Give all of them; one that overflows does so in float32, whatever the candidate's dtype."""
    for mistake in MISTAKES:
        overflows = mistake.name == "sampling-softmax-overflows"
        yield Suspect(
            mistake.name,
            mistake.says,
            mistake.fix,
            sampling=mistake.probabilities,
            of_a_dtype=overflows,
        )
