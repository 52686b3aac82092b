"""Opening a checkpoint: its configuration, and exactly the tensors that a model of it has."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from tinymistral.checkpoint.tensors import (
    Shapes,
    causal_lm_shapes,
    check_tensors,
    layer_count,
    raw_name,
    rotate_halves,
)
from tinymistral.config import MistralConfig
from tinymistral.files import CheckpointError, mapped_files
from tinymistral.files.consolidated import CONFIG_FILE, PARAMS_FILE, is_raw
from tinymistral.files.recognition import refuse_tensors
from tinymistral.files.safetensors import read_tensors
from tinymistral.text import listed

HEADS = ("lm_head.weight", "score.weight", "score.bias", "qa_outputs.weight", "qa_outputs.bias")


def load_checkpoint(
    folder: Path,
    shapes: Callable[[MistralConfig], Shapes] = causal_lm_shapes,
    model_name: str = "MistralForCausalLM",
) -> tuple[MistralConfig, dict[str, np.ndarray]]:
    """Read a checkpoint, Hugging Face's or raw: its configuration, and the tensors of a model.

    `shapes(config)` are the names and shapes of the model's tensors, by default those of a
    language model; `model_name` is what errors call it. The tensors have the model's own names: a
    base model opens the checkpoint of any head too, and a model with a tied head that of a base
    model. A missing head is an error, never random. One CheckpointError lists all tensors that
    are missing, not expected, or of a wrong shape or type.
    """
    if is_raw(folder):
        config, found = read_raw(folder)
        ignorable = ignorable_names(shapes(config))
    else:
        config = MistralConfig.from_pretrained(folder)
        # Of one layer, since a configuration may claim a billion.
        ignorable = ignorable_names(shapes(dataclasses.replace(config, num_hidden_layers=1)))
        found = read_tensors(folder, ignorable)
        refuse_tensors(folder, found)
        check_layers(found, config, f"{folder}: {CONFIG_FILE} says num_hidden_layers is")
    expected = shapes(config)
    prefixed = any(name.startswith("model.") for name in expected)
    if prefixed and not any(name.startswith("model.") for name in found):
        found = {f"model.{name}": array for name, array in found.items()}
    if not prefixed and any(name.startswith("model.") for name in found):
        found = {name.removeprefix("model."): array for name, array in found.items()}
    embedding = "model.embed_tokens.weight" if prefixed else "embed_tokens.weight"
    if config.tie_word_embeddings and embedding not in found and "lm_head.weight" in found:
        # Of two tensors that are one, transformers too takes the one that is stored.
        found[embedding] = found.pop("lm_head.weight")
    missing = [name for name in expected if name not in found]
    if missing and all(name in HEADS for name in missing):
        others = [name for name in HEADS if name in found and name not in expected]
        instead = f"it has {listed(others)}: " if others else ""
        raise CheckpointError(
            f"{folder}: the head of {model_name} is missing ({listed(missing)}), and not "
            f"drawn at random; {instead}open the checkpoint with the class that saved it, or "
            "MistralModel"
        )
    if config.tie_word_embeddings and prefixed and "lm_head.weight" in found:
        check_tied(folder, found["lm_head.weight"], found.get("model.embed_tokens.weight"))
    try:
        check_tensors(found, expected, ignorable)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return config, {name: found[name] for name in expected}


def ignorable_names(expected: Shapes) -> Callable[[str], bool]:
    """Return a function that says whether a model with these tensors has no use for a name.

    It has none for rotary frequencies, which old checkpoints store, and for heads of other models.
    """
    prefixed = any(name.startswith("model.") for name in expected)
    heads = [name for name in HEADS[: 1 if prefixed else None] if name not in expected]
    return lambda name: name in heads or name.endswith("rotary_emb.inv_freq")


def check_tied(folder: Path, head: np.ndarray, embedding: np.ndarray | None) -> None:
    """Raise a CheckpointError if a tied head is stored that is not bitwise the embedding."""
    rows = 1024  # compared at once, so that neither array is copied completely
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


def read_raw(folder: Path) -> tuple[MistralConfig, dict[str, np.ndarray]]:
    """Read a raw checkpoint: its configuration, and its tensors under Hugging Face's names.

    The tensors are mapped, except for the weights of queries and keys: `rotate_halves` copies
    these into Hugging Face's order. Raises ValueError, and CheckpointError if the tensors are not
    those that params.json calls for.
    """
    config, tensors = read_raw_unpermuted(folder)
    for name in tensors:
        for mapped in mapped_files([tensors[name]]):
            mapped.check()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensors[name] = rotate_halves(tensors[name], config.head_dim)
    return config, tensors


def read_raw_unpermuted(folder: Path) -> tuple[MistralConfig, dict[str, np.ndarray]]:
    """Read a raw checkpoint as `read_raw` does, but with all weights in the order of the file."""
    config, tensors = MistralConfig.from_raw(folder)
    refuse_tensors(folder, tensors)
    check_layers(tensors, config, f"{folder}: {PARAMS_FILE} says n_layers is")
    shapes = causal_lm_shapes(config)
    names = {raw_name(name): name for name in shapes}  # raw name -> Hugging Face's
    try:
        expected = {raw: shapes[name] for raw, name in names.items()}
        check_tensors(tensors, expected, ignorable=lambda name: name == "rope.freqs")
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return config, {name: tensors[raw] for raw, name in names.items()}


def check_layers(names: Iterable[str], config: MistralConfig, claim: str) -> None:
    """Raise a CheckpointError unless the tensors have as many layers as the configuration.

    This comes before the expected names are listed: a file may claim any number of layers.
    """
    layers = layer_count(names)
    if layers != config.num_hidden_layers:
        raise CheckpointError(
            f"{claim} {config.num_hidden_layers}, the checkpoint has {layers} layers; "
            "the two do not belong together"
        )
