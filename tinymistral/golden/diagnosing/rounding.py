"""Right programs of another's making, to see how far rounding leads beside a mistake.

A mistake may bring a model to where it is sensitive, such as to attention that is nearly a tie.
"""

from __future__ import annotations

import numpy as np

from tinymistral.golden.diagnosing.suspects.suspect import Suspect
from tinymistral.golden.rounding import CHOICES, TRANSFORMERS, RoundingBackend
from tinymistral.numpy_backend import NUMPY_DTYPES


class Everywhere(RoundingBackend):
    """The numpy backend that rounds each step of an operation."""

    def __init__(self, dtype: str | None = None):
        super().__init__(dtype or "float32", choices=CHOICES)


class AsTransformers(RoundingBackend):
    """The numpy backend that rounds where transformers does, and makes angles in float32.

    But not of positions past 2^24, where that is a mistake of its own.
    """

    def __init__(self, dtype: str | None = None):
        super().__init__(dtype or "float32", "float32", choices=TRANSFORMERS)

    def rope_table(
        self, positions: np.ndarray, theta: float, d: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make angles in what can count the positions."""
        exact = positions.max(initial=0) >= 2**24
        self._angles = NUMPY_DTYPES["float64" if exact else "float32"]
        return super().rope_table(positions, theta, d)


# To be added to a suspect, whose own operations come first.
ROUNDED = (
    Suspect("rounded-everywhere", "", "", backends=(Everywhere,)),
    Suspect("as-transformers", "", "", backends=(AsTransformers,)),
)
