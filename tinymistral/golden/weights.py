"""The models of a suite, opened on a backend: in either layout, or with something changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from tinymistral.backend import Backend
from tinymistral.checkpoint.tensors import check_tensors, layer_count, raw_name, rotate_halves
from tinymistral.config import MistralConfig
from tinymistral.golden.external import open_external
from tinymistral.golden.suite import Suite
from tinymistral.model import MistralForCausalLM

Tensors = dict[str, np.ndarray]


def read_model(suite: Suite, name: str) -> tuple[MistralConfig, Tensors]:
    """Return a model's configuration, and its weights by the names of Hugging Face's layout.

    Those of a raw one get their names, and queries and keys their order, as in any raw checkpoint.
    """
    model = suite.manifest.models[name]
    if model.weights is not None:
        return open_external(suite, model)
    tensors = suite.tensors(model)
    where = f"{suite.folder / model.file}: model {name}"
    try:
        if model.layout == "raw":
            tied = "output.weight" not in tensors
            config = MistralConfig.from_params(model.config)
            config = dataclasses.replace(config, tie_word_embeddings=tied)
        else:
            config = MistralConfig.from_dict(model.config)
        # Before the expected names are listed: a configuration may claim any number of layers.
        if layer_count(tensors) != config.num_hidden_layers:
            raise ValueError(
                f"the config says {config.num_hidden_layers} layers, the file has "
                f"{layer_count(tensors)}; the two do not belong together"
            )
        shapes = MistralForCausalLM.parameter_shapes(config)
        stored = {raw_name(n) if model.layout == "raw" else n: n for n in shapes}
        check_tensors(tensors, {there: shapes[n] for there, n in stored.items()})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    named = {n: tensors[there] for there, n in stored.items()}
    if model.layout == "raw":
        for n in named:
            if n.endswith(("q_proj.weight", "k_proj.weight")):
                named[n] = rotate_halves(named[n], config.head_dim)
    return config, named


def open_model(
    suite: Suite,
    name: str,
    backend: Backend,
    config: MistralConfig | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> MistralForCausalLM:
    """Make a model of a suite on a backend; with another configuration, or other weights, if given.

    Weights are named as in Hugging Face's layout, and must be those that the configuration calls
    for.
    """
    own_config, own_tensors = read_model(suite, name)
    return MistralForCausalLM(
        own_config if config is None else config,
        backend=backend,
        tensors=own_tensors if tensors is None else tensors,
    )
