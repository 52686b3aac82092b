"""Mistakes about weights: in the wrong place, or in the wrong order."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

from tinymistral.checkpoint.tensors import pair_rows, rotate_halves
from tinymistral.config import MistralConfig
from tinymistral.mistakes.mistake import mistake

Tensors = dict[str, np.ndarray]
Loaded = tuple[MistralConfig, Tensors]

QUERIES, KEYS, VALUES = "q_proj.weight", "k_proj.weight", "v_proj.weight"


def _reordered(tensors: Tensors, d: int, raw: bool, *kinds: str) -> Tensors:
    """Reorder these weights from a raw checkpoint's order to Hugging Face's, or if `raw` back."""
    reorder = pair_rows if raw else rotate_halves
    return {n: reorder(x, d) if n.endswith(kinds) else x for n, x in tensors.items()}


def _swapped(tensors: Tensors, one: str, other: str) -> Tensors:
    """Swap two kinds of weights in each layer."""
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


@mistake("checkpoint")
def raw_not_permuted(layout, config, tensors):
    """A raw checkpoint's wq and wk are used as if they were Hugging Face's. The pairs (m, m + d/2)
    that RoPE rotates are not pairs there.
    Fix: Reorder the rows of each head of wq and wk, 0, 2, 4, ..., 1, 3, 5, ..., or rotate
    neighbours (2m, 2m + 1) of a raw checkpoint."""
    raw = layout == "raw"
    return config, _reordered(tensors, config.head_dim, True, QUERIES, KEYS) if raw else tensors


@mistake("checkpoint")
def raw_keys_not_permuted(layout, config, tensors):
    """A raw checkpoint's wq is reordered for Hugging Face's layout, but wk is not.
    Fix: Reorder the rows of wk like those of wq, with the number of key/value heads."""
    return config, _reordered(tensors, config.head_dim, True, KEYS) if layout == "raw" else tensors


@mistake("checkpoint")
def permuted_twice(layout, config, tensors):
    """q_proj and k_proj of a Hugging Face checkpoint are reordered as if they were raw.
    Fix: Use q_proj and k_proj of a Hugging Face checkpoint as they are; they are reordered
    already."""
    again = layout == "hf"
    return config, _reordered(tensors, config.head_dim, False, QUERIES, KEYS) if again else tensors


@mistake("checkpoint")
def pairs_of_a_raw_checkpoint(layout, config, tensors):
    """q_proj and k_proj are in the order of a raw checkpoint, but RoPE rotates (m, m + d/2).
    Fix: Rotate the pairs (m, m + d/2) with q_proj and k_proj in Hugging Face's order."""
    return config, _reordered(tensors, config.head_dim, True, QUERIES, KEYS)


@mistake("checkpoint")
def gate_and_up_weights_swapped(layout, config, tensors):
    """gate_proj and up_proj were swapped when the weights were read.
    Fix: gate_proj is w1 of a raw checkpoint, up_proj is w3, down_proj is w2."""
    return config, _swapped(tensors, "gate_proj.weight", "up_proj.weight")


@mistake("checkpoint")
def keys_and_values_swapped(layout, config, tensors):
    """k_proj and v_proj are swapped, for example because a fused matrix is split wrongly.
    Fix: k_proj makes the keys, v_proj the values; the order in a fused matrix is q, k, v."""
    return config, _swapped(tensors, KEYS, VALUES)


@mistake("checkpoint")
def norms_swapped(layout, config, tensors):
    """The weights of a layer's two norms are swapped.
    Fix: input_layernorm (attention_norm) is before attention, post_attention_layernorm (ffn_norm)
    before the feed-forward network."""
    return config, _swapped(tensors, "input_layernorm.weight", "post_attention_layernorm.weight")


@mistake("checkpoint")
def heads_cut_with_the_wrong_stride(layout, config, tensors):
    """q, k and v are reshaped to heads as (d, heads): each head gets numbers of all others.
    Fix: Row h·d + m of q_proj is number m of head h: reshape to (heads, d), not to (d, heads)."""
    d, found = config.head_dim, dict(tensors)
    for name, x in tensors.items():
        if name.endswith((QUERIES, KEYS, VALUES)):
            found[name] = x.reshape(d, -1, x.shape[1]).swapaxes(0, 1).reshape(x.shape)
    return config, found


@mistake("checkpoint")
def layers_in_reverse(layout, config, tensors):
    """The layers run from the last to the first.
    Fix: Run the layers from 0 on; sort names by number, not as texts."""
    return config, _of_layers(tensors, list(range(config.num_hidden_layers))[::-1])


@mistake("checkpoint")
def first_layer_repeated(layout, config, tensors):
    """All layers have the weights of the first.
    Fix: Use the weights of layer n in layer n."""
    return config, _of_layers(tensors, [0] * config.num_hidden_layers)


@mistake("checkpoint")
def last_layer_skipped(layout, config, tensors):
    """The last layer is left out.
    Fix: Run all `num_hidden_layers` layers, the last one too."""
    layers = max(1, config.num_hidden_layers - 1)
    fewer = dataclasses.replace(config, num_hidden_layers=layers)
    return fewer, _of_layers(tensors, list(range(layers)))


@mistake("checkpoint")
def tied_though_it_is_not(layout, config, tensors):
    """The embedding is used as the output head, although the checkpoint has another one.
    Fix: Where `tie_word_embeddings` is false the head is `lm_head.weight` (raw: output.weight)."""
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    return config, tensors | (head if "lm_head.weight" in tensors else {})


@mistake("checkpoint")
def tied_head_forgotten(layout, config, tensors):
    """A head that should be the embedding was never set: it is 0, and so are all logits.
    Fix: Where `tie_word_embeddings` is true there is no lm_head.weight: use the embedding."""
    if not config.tie_word_embeddings:
        return config, tensors
    head = {"lm_head.weight": np.zeros_like(tensors["model.embed_tokens.weight"])}
    return dataclasses.replace(config, tie_word_embeddings=False), tensors | head


def _only_bfloat16(tensors: Tensors) -> Tensors:
    return {n: x for n, x in tensors.items() if x.dtype == ml_dtypes.bfloat16}


@mistake("checkpoint")
def checkpoint_read_as_float16(layout, config, tensors):
    """The bits of a checkpoint in bfloat16 are read as float16: all weights are near 2 or tiny.
    Fix: Read the dtype of each tensor from the file; bfloat16 is the upper half of a float32."""
    return config, tensors | {n: x.view(np.float16) for n, x in _only_bfloat16(tensors).items()}


@mistake("checkpoint")
def checkpoint_widened_in_the_wrong_order(layout, config, tensors):
    """A checkpoint in bfloat16 is widened two numbers at a time, and the two are swapped.
    Fix: In a little-endian pair the lower half is the first number: << 16 gives the even ones."""
    narrow = _only_bfloat16(tensors)
    pairs = {n: x.reshape(*x.shape[:-1], -1, 2) for n, x in narrow.items()}
    return config, tensors | {n: x[..., ::-1].reshape(narrow[n].shape) for n, x in pairs.items()}
