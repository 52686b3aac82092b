"""Suspects: the mistakes that `golden diagnose` holds a program's numbers against.

Those of the conformance suite that show in a forward pass, and others of configuration, weights,
positions and structure, which are no backend's.
"""

from tinymistral.golden.diagnosing.suspects import (
    constants,  # noqa: F401
    forgotten,  # noqa: F401
    narrow,  # noqa: F401
    seeing,  # noqa: F401
    structure,  # noqa: F401
    texts,  # noqa: F401
    turning,  # noqa: F401
    weights,  # noqa: F401
)
from tinymistral.golden.diagnosing.suspects.catalogue import suspects as catalogued
from tinymistral.golden.diagnosing.suspects.sampled import suspects as of_sampling
from tinymistral.golden.diagnosing.suspects.suspect import FOUND, Suspect
from tinymistral.golden.diagnosing.suspects.written import suspects as of_texts

__all__ = ["FORWARD", "SAMPLING", "TEXTS", "Suspect"]

FORWARD: tuple[Suspect, ...] = (*catalogued(), *FOUND)  # of what a backend computes
SAMPLING: tuple[Suspect, ...] = tuple(of_sampling())
TEXTS: tuple[Suspect, ...] = tuple(of_texts())
