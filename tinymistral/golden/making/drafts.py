"""What is to become a case of the suite: its inputs and what is said of it, or all it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinymistral.golden.manifest import Case


@dataclass(frozen=True)
class Draft:
    """A case of kind model, operation or generate that wants its expected numbers."""

    id: str
    kind: str
    says: str
    catches: tuple[str, ...]  # names of `conformance.mistakes`: those that the case is about
    inputs: Mapping[str, np.ndarray]
    model: str | None = None
    operation: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    # Positions are past 2^24, so angles that are made in float32 are a mistake there.
    exact_angles: bool = False

    @property
    def case(self) -> Case:
        """The case, before it has a file."""
        return Case(
            self.id,
            self.kind,
            self.says,
            self.catches,
            file="",
            sha256="",
            model=self.model,
            operation=self.operation,
            parameters=self.parameters,
        )


@dataclass(frozen=True)
class Vector:
    """A case that needs no model: its entry in the manifest, without a file, and its content."""

    entry: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] | None = None  # inputs.NAME and expected.NAME
    document: Mapping[str, Any] | None = None  # or a JSON object
