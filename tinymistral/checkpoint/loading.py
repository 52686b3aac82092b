"""Opening a checkpoint: its configuration, and exactly the tensors that a model of it has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinymistral.checkpoint.checking import check_tensors, layer_count
from tinymistral.checkpoint.errors import CheckpointError, listed
from tinymistral.checkpoint.raw import is_raw, read_raw
from tinymistral.checkpoint.reading import read_tensors
from tinymistral.config import MistralConfig

if TYPE_CHECKING:
    from tinymistral.pretrained import PreTrainedModel

HEADS = ("lm_head.weight", "score.weight", "score.bias", "qa_outputs.weight", "qa_outputs.bias")


def load_checkpoint(
    folder: Path, model: type[PreTrainedModel]
) -> tuple[MistralConfig, dict[str, np.ndarray]]:
    """Read a checkpoint, Hugging Face's or raw: the configuration and the tensors of `model`.

    The tensors have `model`'s own names. A base model opens the checkpoint of any head too,
    and the reverse where the head is tied; a head that is not there is not made up. Missing, extra,
    misshapen or wrongly typed tensors are one CheckpointError.
    """
    if is_raw(folder):
        config, found = read_raw(folder)
    else:
        config, found = MistralConfig.from_pretrained(folder), read_tensors(folder)
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
        unused = name in HEADS[: 1 if prefixed else None] and name not in expected
        return name.endswith("rotary_emb.inv_freq") or unused

    missing = [name for name in expected if name not in found]
    if missing and all(name in HEADS for name in missing):
        raise CheckpointError(
            f"{folder}: the head of {model.__name__} is missing ({listed(missing)}), and none is "
            "made up; open the checkpoint with the class that saved it, or MistralModel"
        )
    if config.tie_word_embeddings and prefixed and "lm_head.weight" in found:
        check_tied(folder, found["lm_head.weight"], found.get("model.embed_tokens.weight"))
    try:
        check_tensors(found, expected, harmless)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return config, {name: found[name] for name in expected}


def check_tied(folder: Path, head: np.ndarray, embedding: np.ndarray | None) -> None:
    """Raise a CheckpointError if a tied head is stored, and is not the embedding bit by bit."""
    rows = 1024  # at once: neither is to be copied whole
    if (
        embedding is None
        or (head.shape, head.dtype) != (embedding.shape, embedding.dtype)
        or any(
            head[n : n + rows].tobytes() != embedding[n : n + rows].tobytes()
            for n in range(0, len(head), rows)
        )
    ):
        raise CheckpointError(
            f"{folder}: config.json says that word embeddings are tied, but lm_head.weight is not "
            "the embedding; set tie_word_embeddings to false"
        )
