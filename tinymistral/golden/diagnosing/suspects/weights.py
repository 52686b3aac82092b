"""Suspects about weights: those of another place, or in another order, than they should be."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

from tinymistral.checkpoint.tensors import pair_rows, rotate_halves
from tinymistral.config import MistralConfig
from tinymistral.golden.diagnosing.suspects.suspect import suspect
from tinymistral.golden.manifest import Model

Tensors = dict[str, np.ndarray]
Loaded = tuple[MistralConfig, Tensors]

QUERIES, KEYS, VALUES = "q_proj.weight", "k_proj.weight", "v_proj.weight"


def _turned(tensors: Tensors, d: int, raw: bool, *kinds: str) -> Tensors:
    turn = pair_rows if raw else rotate_halves
    return {n: turn(x, d) if n.endswith(kinds) else x for n, x in tensors.items()}


def _swapped(tensors: Tensors, one: str, other: str) -> Tensors:
    """Let two kinds of weights change places in each layer."""
    swapped = dict(tensors)
    for name in tensors:
        if name.endswith(one):
            twin = name.removesuffix(one) + other
            swapped[name], swapped[twin] = tensors[twin], tensors[name]
    return swapped


def _of_layers(tensors: Tensors, sources: list[int]) -> Tensors:
    """Give layer n the weights of layer sources[n]."""
    found = {n: x for n, x in tensors.items() if ".layers." not in n}
    for n, source in enumerate(sources):
        start = f"model.layers.{source}."
        layer = {k.removeprefix(start): x for k, x in tensors.items() if k.startswith(start)}
        found |= {f"model.layers.{n}.{name}": x for name, x in layer.items()}
    return found


@suspect(
    "raw-not-permuted",
    of="checkpoints",
    fix="Reorder the rows of each head of wq and wk, 0, 2, 4, ..., 1, 3, 5, ..., or turn "
    "neighbours (2m, 2m + 1) of a raw checkpoint.",
    common=True,
)
def raw_not_permuted(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """A raw checkpoint's wq and wk are used as if they were Hugging Face's.

    What RoPE turns together, the pairs (m, m + d/2), does not belong together there.
    """
    raw = model.layout == "raw"
    return config, _turned(tensors, config.head_dim, True, QUERIES, KEYS) if raw else tensors


@suspect(
    "raw-keys-not-permuted",
    of="checkpoints",
    fix="Reorder the rows of wk as those of wq, with the number of key/value heads.",
)
def _raw_keys_not_permuted(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """Of a raw checkpoint wq is reordered for Hugging Face's layout, but wk is not."""
    raw = model.layout == "raw"
    return config, _turned(tensors, config.head_dim, True, KEYS) if raw else tensors


@suspect(
    "permuted-twice",
    of="checkpoints",
    fix="Use q_proj and k_proj of a Hugging Face checkpoint as they are; they were reordered when "
    "it was made.",
    common=True,
)
def _permuted_twice(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """q_proj and k_proj of a Hugging Face checkpoint are reordered, as a raw one's have to be."""
    again = model.layout == "hf"
    return config, _turned(tensors, config.head_dim, False, QUERIES, KEYS) if again else tensors


@suspect(
    "pairs-of-a-raw-checkpoint",
    of="checkpoints",
    fix="Turn the pairs (m, m + d/2) with q_proj and k_proj as Hugging Face has them.",
)
def _pairs_of_a_raw_checkpoint(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """q_proj and k_proj are brought into the order of a raw checkpoint, but halves are turned."""
    return config, _turned(tensors, config.head_dim, True, QUERIES, KEYS)


@suspect(
    "gate-and-up-weights-swapped",
    of="checkpoints",
    fix="gate_proj is w1 of a raw checkpoint, up_proj is w3, down_proj is w2.",
)
def _gate_and_up(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """gate_proj and up_proj have changed places when the weights were read."""
    return config, _swapped(tensors, "gate_proj.weight", "up_proj.weight")


@suspect(
    "keys-and-values-swapped",
    of="checkpoints",
    fix="Keys are made by k_proj, values by v_proj; in a fused matrix q, k, v are in this order.",
)
def _keys_and_values(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """Keys are made by v_proj and values by k_proj, as when a fused matrix is cut wrongly."""
    return config, _swapped(tensors, KEYS, VALUES)


@suspect(
    "norms-swapped",
    of="checkpoints",
    fix="input_layernorm (attention_norm) is before attention, post_attention_layernorm "
    "(ffn_norm) before the feed-forward network.",
    common=True,
)
def _norms(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """The weights of a layer's two norms have changed places."""
    return config, _swapped(tensors, "input_layernorm.weight", "post_attention_layernorm.weight")


@suspect(
    "heads-cut-with-the-wrong-stride",
    of="checkpoints",
    fix="Row h·d + m of q_proj is number m of head h: reshape to (heads, d), not to (d, heads).",
)
def _strided_heads(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """q, k and v are cut into heads as (d, heads): each head gets numbers from all others."""
    d, found = config.head_dim, dict(tensors)
    for name, x in tensors.items():
        if name.endswith((QUERIES, KEYS, VALUES)):
            found[name] = x.reshape(d, -1, x.shape[1]).swapaxes(0, 1).reshape(x.shape)
    return config, found


@suspect(
    "heads-joined-with-the-wrong-stride",
    of="checkpoints",
    fix="Join the heads of the mix as (H, d), head by head, before o_proj.",
)
def _strided_output(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """The heads of the mix are joined as (d, H) rather than (H, d) before o_proj."""
    d, found = config.head_dim, dict(tensors)
    for name, x in tensors.items():
        if name.endswith("o_proj.weight"):
            found[name] = x.reshape(len(x), d, -1).swapaxes(1, 2).reshape(x.shape)
    return config, found


@suspect(
    "layers-in-reverse",
    of="checkpoints",
    fix="Go through the layers from 0 on; sort names by number, not as texts.",
)
def _reverse(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """The layers are gone through from the last to the first."""
    return config, _of_layers(tensors, list(range(config.num_hidden_layers))[::-1])


@suspect(
    "first-layer-repeated",
    of="checkpoints",
    fix="Take the weights of layer n in layer n.",
)
def _first_layer(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """All layers have the weights of the first."""
    return config, _of_layers(tensors, [0] * config.num_hidden_layers)


@suspect(
    "last-layer-skipped",
    of="checkpoints",
    fix="Go through all `num_hidden_layers` layers, the last one too.",
)
def _last_layer(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """The last layer is left out."""
    layers = max(1, config.num_hidden_layers - 1)
    fewer = dataclasses.replace(config, num_hidden_layers=layers)
    return fewer, _of_layers(tensors, list(range(layers)))


@suspect(
    "tied-though-it-is-not",
    of="checkpoints",
    fix="Where `tie_word_embeddings` is false the head is `lm_head.weight` (raw: output.weight).",
    common=True,
)
def _tied(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """The embedding is used as the output head, although the checkpoint has another one."""
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    return config, tensors | (head if "lm_head.weight" in tensors else {})


@suspect(
    "tied-head-forgotten",
    of="checkpoints",
    fix="Where `tie_word_embeddings` is true there is no lm_head.weight: use the embedding.",
)
def _not_tied(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """A head that is the embedding was never set: it is 0 still, and so are all logits."""
    if not config.tie_word_embeddings:
        return config, tensors
    head = {"lm_head.weight": np.zeros_like(tensors["model.embed_tokens.weight"])}
    return dataclasses.replace(config, tie_word_embeddings=False), tensors | head


def _bfloat16_alone(tensors: Tensors) -> Tensors:
    return {n: x for n, x in tensors.items() if x.dtype == ml_dtypes.bfloat16}


@suspect(
    "checkpoint-read-as-float16",
    of="checkpoints",
    fix="Read the dtype of each tensor from the file; bfloat16 is the upper half of a float32.",
)
def _as_float16(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """The bits of a checkpoint in bfloat16 are read as float16: all weights are near 2 or tiny."""
    narrow = _bfloat16_alone(tensors)
    return config, tensors | {n: x.view(np.float16) for n, x in narrow.items()}


@suspect(
    "checkpoint-widened-in-the-wrong-order",
    of="checkpoints",
    fix="On a little-endian machine the lower half of two is the first: << 16 gives the even ones.",
)
def _wrong_order(model: Model, config: MistralConfig, tensors: Tensors) -> Loaded:
    """A checkpoint in bfloat16 is widened two numbers at a time, and the two change places."""
    narrow = _bfloat16_alone(tensors)
    pairs = {n: x.reshape(*x.shape[:-1], -1, 2) for n, x in narrow.items()}
    return config, tensors | {n: x[..., ::-1].reshape(narrow[n].shape) for n, x in pairs.items()}
