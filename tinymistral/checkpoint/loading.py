"""The tensors of a checkpoint, exactly those that a model of its configuration has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinymistral.checkpoint.checking import check_tensors, layer_count
from tinymistral.checkpoint.errors import CheckpointError
from tinymistral.checkpoint.reading import read_tensors
from tinymistral.config import MistralConfig

if TYPE_CHECKING:
    from tinymistral.pretrained import PreTrainedModel


def load_tensors(
    folder: Path, config: MistralConfig, model: type[PreTrainedModel]
) -> dict[str, np.ndarray]:
    """Map the tensors of the checkpoint in `folder` that `model` has, under its own names.

    A base model opens the checkpoint of a language model too, and the reverse where the head is
    tied. Missing, extra, misshapen or wrongly typed tensors are one CheckpointError.
    """
    found = read_tensors(folder)
    # Before the expected names are listed: a configuration may claim any number of layers.
    layers = layer_count(found)
    if layers != config.num_hidden_layers:
        raise CheckpointError(
            f"{folder}: config.json says num_hidden_layers is {config.num_hidden_layers}, "
            f"the checkpoint has {layers} layers; the two do not belong together"
        )
    expected = model.parameter_shapes(config)
    prefixed = any(name.startswith("model.") for name in expected)
    if prefixed and not any(name.startswith("model.") for name in found):
        found = {f"model.{name}": array for name, array in found.items()}
    if not prefixed and any(name.startswith("model.") for name in found):
        found = {name.removeprefix("model."): array for name, array in found.items()}

    def harmless(name: str) -> bool:
        """Old checkpoints store the rotary frequencies; a head not wanted, or tied, is unused."""
        return name.endswith("rotary_emb.inv_freq") or (
            name == "lm_head.weight" and name not in expected
        )

    try:
        check_tensors(found, expected, harmless)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return {name: found[name] for name in expected}
