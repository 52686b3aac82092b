"""Suspects about padding that later calls no longer know of."""

# ruff: noqa: D102 (textbook.py says what the methods do)

from __future__ import annotations

import numpy as np

from tinymistral.conformance.mistakes.textbook import Textbook
from tinymistral.golden.diagnosing.suspects.knowing import Knowing
from tinymistral.golden.diagnosing.suspects.suspect import suspect
from tinymistral.golden.diagnosing.suspects.texts import (
    Arrays,
    Told,
    columns,
    renumbered,
    text_of,
    unchanged,
    without_padding,
)
from tinymistral.golden.manifest import Case


def padding_shown(case: Case, inputs: Arrays) -> Told | None:
    """Give padding positions; it is for a backend to hide it."""
    if case.kind == "generate":
        return None
    if case.kind != "model":
        return inputs, unchanged
    return renumbered(inputs, columns(inputs)), without_padding(inputs)


def padding_counted(case: Case, inputs: Arrays) -> Told:
    """Let positions after the first call count padding; `generate` counts on by its cache."""
    if case.kind != "model":
        return inputs, unchanged
    _, positions, (first, *_) = text_of(inputs)
    new = np.where(positions >= 0, columns(inputs), -1)
    new[:, :first] = positions[:, :first]
    return renumbered(inputs, new), unchanged


@suspect(
    "mask-forgotten-later",
    texts=(padding_shown,),
    fix="Keep the mask of all tokens so far beside the cache, or their positions.",
    common=True,
)
class MaskForgottenLater(Knowing, Textbook):
    """The attention mask of the first call is not kept.

    In later calls the padding of the first one is seen like any token, and counted in positions.
    """

    def sees(self, i: np.ndarray, j: np.ndarray, window: int | None) -> np.ndarray:
        seen = super().sees(i, j, window)
        return seen & self._real(i) & self._real(j) if self.call == 0 else seen

    def rope_table(
        self, positions: np.ndarray, theta: float, d: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.call == 0:  # what comes in are columns
            real = self.mask[:, : positions.shape[1]]
            positions = self.first[:, None] + np.maximum(np.cumsum(real, axis=1) - 1, 0)
        return super().rope_table(positions, theta, d)

    def _real(self, columns: np.ndarray) -> np.ndarray:
        """Tell where there is a token, not padding: columns (B, T, 1) or (B, 1, S)."""
        real = np.zeros(columns.shape, dtype=bool)
        for b, row in enumerate(columns):
            real[b] = (row >= 0) & self.mask[b][np.maximum(row - self.first[b], 0)]
        return real
