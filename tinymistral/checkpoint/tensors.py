"""The tensors of a checkpoint: the names and shapes that its configuration calls for.

A raw checkpoint has other names, and the rows of queries and keys in another order.
Source: https://github.com/mistralai/mistral-inference, src/mistral_inference/transformer.py
"""

import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.files import CheckpointError
from tinymistral.files.safetensors import WEIGHT_DTYPES
from tinymistral.text import listed, quoted

Shapes = dict[str, tuple[int, ...]]

RAW_NAMES = {  # in Hugging Face's format -> in a raw checkpoint; of a layer, after "layers.N."
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attention.wq.weight",
    "self_attn.k_proj.weight": "attention.wk.weight",
    "self_attn.v_proj.weight": "attention.wv.weight",
    "self_attn.o_proj.weight": "attention.wo.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
}

_LAYER = re.compile(r"(?:model\.)?layers\.(0|[1-9][0-9]{0,17})\.")


def base_shapes(config: MistralConfig) -> Shapes:
    """Return the names and shapes of a base model's tensors."""
    V, D, F = config.vocab_size, config.hidden_size, config.intermediate_size
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    layer = {
        "input_layernorm.weight": (D,),
        "self_attn.q_proj.weight": (q, D),
        "self_attn.k_proj.weight": (kv, D),
        "self_attn.v_proj.weight": (kv, D),
        "self_attn.o_proj.weight": (D, q),
        "post_attention_layernorm.weight": (D,),
        "mlp.gate_proj.weight": (F, D),
        "mlp.up_proj.weight": (F, D),
        "mlp.down_proj.weight": (D, F),
    }
    shapes: Shapes = {"embed_tokens.weight": (V, D)}
    for n in range(config.num_hidden_layers):
        shapes |= {f"layers.{n}.{name}": shape for name, shape in layer.items()}
    return shapes | {"norm.weight": (D,)}


def with_head(config: MistralConfig, head: Shapes) -> Shapes:
    """Return the base model's tensors, their names after `model.`, and those of a head."""
    return {f"model.{name}": shape for name, shape in base_shapes(config).items()} | head


def causal_lm_shapes(config: MistralConfig) -> Shapes:
    """Return the tensors of a language model; a tied head is the embedding, not a tensor."""
    head: Shapes = {"lm_head.weight": (config.vocab_size, config.hidden_size)}
    return with_head(config, {} if config.tie_word_embeddings else head)


def raw_name(name: str) -> str:
    """Return the raw name of a language model's tensor, given its name in Hugging Face's format."""
    if name in RAW_NAMES:
        return RAW_NAMES[name]
    _, layers, number, rest = name.split(".", 3)
    return f"{layers}.{number}.{RAW_NAMES[rest]}"


def rotate_halves(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Copy a raw wq or wk (heads·d, D), the rows of each head in the order 0, 2, ..., 1, 3, ...

    RoPE rotates rows 2i and 2i+1 as a pair in a raw checkpoint, rows i and i + d/2 here.
    """
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def pair_rows(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Undo `rotate_halves`: copy a weight (heads·d, D) into a raw checkpoint's order."""
    halves = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def layer_count(names: Iterable[str]) -> int:
    """Return the number of layers in the names `model.layers.N.…` or `layers.N.…`.

    It is the number of different N, not the largest N plus one, so that one name cannot make a
    checkpoint seem to have a billion layers. Compare it with the config before listing all tensors
    that the config calls for.
    """
    return len({match[1] for match in map(_LAYER.match, names) if match})


def check_tensors(
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    ignorable: Callable[[str], bool] = lambda name: False,
) -> None:
    """Check that `found` has the expected names and shapes, in float64, float32 or 16 bits.

    A name that is not expected is ignored if `ignorable(name)` is true. Raises one CheckpointError
    that lists all that are missing, not expected, or of a wrong shape or type.
    """
    both = [name for name in expected if name in found]
    complaints = {
        "missing": [quoted(name) for name in expected if name not in found],
        "not expected": [
            quoted(name) for name in found if name not in expected and not ignorable(name)
        ],
        "wrong shape": [
            f"{quoted(name)} is {found[name].shape}, expected {tuple(expected[name])}"
            for name in both
            if found[name].shape != tuple(expected[name])
        ],
        "wrong type": [
            f"{quoted(name)} is {found[name].dtype}, expected float32, float16, bfloat16 or float64"
            for name in both
            if found[name].dtype not in WEIGHT_DTYPES
        ],
    }
    problems = [f"{what}: {listed(items)}" for what, items in complaints.items() if items]
    if problems:
        raise CheckpointError(
            f"the checkpoint's tensors do not fit its config: {'; '.join(problems)}"
        )
