"""GGUF, llama.cpp's format, as a checkpoint: its metadata as a configuration, its tensors' names.

Both directions are read from the same tables: `open_gguf` for `convert`, `write_gguf` for what lets
llama.cpp compute a model. In llama.cpp, Mistral is the architecture `llama`, and rows of queries
and keys are in pairs, as in a raw checkpoint.
Source: https://github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py, src/llama-model.cpp
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.checkpoint.gguf_tokenizer import special_id, tokenizer_files
from tinymistral.checkpoint.loading import check_layers
from tinymistral.checkpoint.tensors import (
    causal_lm_shapes,
    check_tensors,
    pair_rows,
)
from tinymistral.config import MistralConfig
from tinymistral.files import CheckpointError, whole_file
from tinymistral.files.gguf import QuantizedTensor, read_gguf
from tinymistral.text import listed, quoted, short

ARCHITECTURES = ("llama", "mistral3")  # of one computation, where the metadata names no other

FIELDS = {  # key of the metadata, after the architecture -> field of a configuration
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
}
SAME = {"attention.value_length": "head_dim", "rope.dimension_count": "head_dim"}  # or refused
NEEDED = ("embedding_length", "feed_forward_length", "block_count", "attention.head_count")
HARMLESS: dict[str, tuple[Any, ...]] = {  # other keys that may be there, with these values
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scale_linear": (0, 1),
    "rope.scaling.factor": (0, 1),
    "rope.scaling.type": ("none", "linear"),  # linear is by the factor
    "tensor_data_layout": ("Meta AI original pth",),
}

TENSORS = {  # in Hugging Face's format -> in GGUF; of a layer, after "model.layers.N." and "blk.N."
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_LAYER = re.compile(r"(model\.layers|blk)\.(0|[1-9][0-9]{0,17})\.(.*)")
_PAIRED = ("q_proj.weight", "k_proj.weight")


@dataclass(frozen=True)
class OpenGGUF:
    """An open GGUF file: a configuration, and the tensors and tokenizer that belong to it."""

    config: MistralConfig  # its dtype is that of the tensors once they are read
    tensors: Mapping[str, QuantizedTensor]  # under Hugging Face's names
    tokenizer_files: Mapping[str, bytes]  # names and contents; none of a file without a vocabulary

    def placeholders(self) -> dict[str, np.ndarray]:
        """Return for each tensor an array of its shape and dtype that takes no memory."""
        zero = np.zeros((), dtype=self.config.dtype)
        return {name: np.broadcast_to(zero, t.shape) for name, t in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """Return a tensor, dequantized; the rows of queries and keys are in pairs, as stored."""
        try:
            with np.errstate(over="raise", invalid="ignore"):
                return self.tensors[name].dequantize(self.config.dtype)
        except FloatingPointError:
            raise CheckpointError(
                f"{quoted(name)} has weights that are too large for {self.config.dtype}; "
                "give --dtype bfloat16 or float32"
            ) from None

    def save_tokenizer(self, folder: Path) -> None:
        """Write the files of the tokenizer."""
        for name, content in self.tokenizer_files.items():
            with whole_file(folder / name) as temporary:
                temporary.write_bytes(content)


def open_gguf(path: Path, dtype: str = "bfloat16") -> OpenGGUF:
    """Open a GGUF file, one of several or whole; `dtype` is what its tensors are read as.

    Raises CheckpointError for what is damaged, unknown, or no Mistral model.
    """
    metadata, stored = read_gguf(path)
    tensors = {_renamed(name, _HF_NAMES, "model.layers"): t for name, t in stored.items()}
    try:
        config = config_of(metadata, tensors)
        if "rope_freqs.weight" in stored:
            raise ValueError("'rope_freqs.weight': RoPE scaling is not supported")
        check_layers(tensors, config, "block_count is")
        config = dataclasses.replace(config, dtype=dtype)
        opened = OpenGGUF(config, tensors, tokenizer_files(metadata, config.vocab_size, path))
        check_tensors(opened.placeholders(), causal_lm_shapes(config))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return opened


def config_of(metadata: Mapping[str, Any], tensors: Mapping[str, QuantizedTensor]) -> MistralConfig:
    """Return the configuration that the metadata of a GGUF file describes.

    What is absent is as in llama.cpp; the tensors decide whether the head is tied. ValueError for a
    key that may change what is computed, and is not known, or has another value than expected.
    """
    architecture = str(metadata.get("general.architecture"))
    kind = str(metadata.get("general.type", "model"))
    if architecture not in ARCHITECTURES or kind != "model":
        raise ValueError(
            f"general.architecture is {short(architecture)}, general.type {short(kind)}; expected "
            f"a model of {' or '.join(ARCHITECTURES)}, which is what Mistral is in GGUF"
        )
    prefix = f"{architecture}."
    own = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    for key, value in own.items():
        one = not isinstance(value, np.ndarray | list)
        if not one or (key not in (*FIELDS, *SAME) and value not in HARMLESS.get(key, ())):
            expected = (
                "one value" if not one else " or ".join(map(str, HARMLESS.get(key, ["none"])))
            )
            raise ValueError(
                f"{prefix}{key}: {short(value)} is not supported, as it changes what "
                f"is computed; expected {expected}"
            )
    if missing := [f"{prefix}{key}" for key in NEEDED if key not in own]:
        raise ValueError(f"{listed(missing)} is missing from the metadata; take another file")
    fields: dict[str, Any] = {"num_key_value_heads": None, "sliding_window": None}
    if "model.embed_tokens.weight" in tensors:
        fields["vocab_size"] = tensors["model.embed_tokens.weight"].shape[0]
    fields |= {field: own[key] for key, field in FIELDS.items() if key in own}
    fields["sliding_window"] = fields["sliding_window"] or None  # 0 is none, too
    fields |= token_ids(metadata)
    try:
        config = MistralConfig(**fields, tie_word_embeddings="lm_head.weight" not in tensors)
    except ValueError as error:
        message = str(error)
        for key, field in FIELDS.items():
            message = re.sub(rf"\b{field}\b", prefix + key, message)
        raise ValueError(message) from None
    for key, field in SAME.items():
        if own.get(key, getattr(config, field)) != getattr(config, field):
            raise ValueError(
                f"{prefix}{key}: {short(own[key])} is not supported; expected the "
                f"width of a head, {getattr(config, field)}"
            )
    return config


def token_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the special ids; a text ends at each that llama.cpp takes as an end."""
    ends = [special_id(metadata, name) for name in ("eos", "eot", "eom")]
    known = sorted({i for i in ends if isinstance(i, int)})
    return {
        "bos_token_id": special_id(metadata, "bos"),
        "pad_token_id": special_id(metadata, "padding"),
        "eos_token_id": known if len(known) > 1 else next(iter(known), None),
    }


def write_gguf(
    path: Path, config: MistralConfig, tensors: Mapping[str, np.ndarray], kind: str = "F32"
) -> None:
    """Write a language model as llama.cpp reads it, without a vocabulary.

    kind: the type of the matrices in GGUF, such as Q8_0, one that the package `gguf` quantizes to.
    """
    import gguf

    file = gguf.GGUFWriter(path, "llama")
    for key, field in (FIELDS | SAME).items():
        if (value := getattr(config, field)) is not None:
            add = file.add_float32 if isinstance(value, float) else file.add_uint32
            add(f"llama.{key}", value)
    file.add_tokenizer_model("none")
    for name, tensor in tensors.items():
        if name.endswith(_PAIRED):
            tensor = pair_rows(tensor, config.head_dim)
        stored = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
        content = gguf.quantize(tensor.astype(np.float32), stored)
        file.add_tensor(gguf_name(name), content, raw_dtype=stored)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def gguf_name(name: str) -> str:
    """Return the name that a tensor of Hugging Face's format has in a GGUF file."""
    return _renamed(name, TENSORS, "blk")


def _renamed(name: str, names: Mapping[str, str], layers: str) -> str:
    """Return a name in the other format, or as it is if it is not known there."""
    layer = _LAYER.fullmatch(name)
    if layer and layer[3] in names:
        return f"{layers}.{layer[2]}.{names[layer[3]]}"
    return name if layer else names.get(name, name)


_HF_NAMES = {gguf: hf for hf, gguf in TENSORS.items()}
