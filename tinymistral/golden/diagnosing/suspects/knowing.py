"""A backend that knows more than one has to: which weight is which, and which call it is."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.golden.calls import calls_of
from tinymistral.heads import MistralForCausalLM
from tinymistral.numpy_backend import NumpyBackend


class Knowing(NumpyBackend):
    """The same as `NumpyBackend`; what it knows is for mistakes that an operation cannot make.

    Without a model, as in cases of one operation, it knows nothing.
    """

    config: MistralConfig | None = None
    call = -1  # the number of the call, of the piece in `generate`
    mask = np.zeros((0, 0), dtype=bool)  # (B, columns of all calls), false for padding
    first = np.zeros(0, dtype=np.int64)  # (B,) the first position of each row
    width = 0  # columns of this call
    stop = 0  # columns up to the end of this call

    def know(self, model: MistralForCausalLM, inputs: Mapping[str, np.ndarray]) -> None:
        """Learn the names of a model's weights, and what the case is given."""
        self.config = model.config
        self._names = {id(_found(model.weights, name)): name for name in model.tensors}
        if calls := calls_of(inputs):
            positions = np.concatenate([call["positions"] for call in calls], axis=1)
            self.mask = positions >= 0
            self.first = np.where(self.mask, positions, positions.max()).min(axis=1)

    def name_of(self, weight: np.ndarray) -> str:
        """Return the name of a weight, such as "model.layers.0.mlp.up_proj"; "" if unknown."""
        return getattr(self, "_names", {}).get(id(weight), "").removesuffix(".weight")

    def is_a(self, weight: np.ndarray, *kinds: str) -> bool:
        """Tell whether the last word of a weight's name is one of these."""
        return self.name_of(weight).rpartition(".")[2] in kinds

    def embedding(self, table: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Count the call that begins."""
        self.call, self.width = self.call + 1, ids.shape[1]
        self.stop += self.width
        return super().embedding(table, ids)


def _found(weights: Any, name: str) -> Any:
    for part in name.split("."):
        weights = weights[int(part)] if part.isdigit() else attrgetter(part)(weights)
    return weights
