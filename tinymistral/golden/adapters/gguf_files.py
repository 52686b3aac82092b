"""Writing a model as a GGUF file of the `llama` architecture, in F32 and without a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tinymistral.checkpoint.tensors import pair_rows
from tinymistral.config import MistralConfig

TENSORS = {
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


def write_gguf(path: Path, config: MistralConfig, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a model as llama.cpp reads it, without a vocabulary."""
    import gguf

    file = gguf.GGUFWriter(path, "llama")
    file.add_vocab_size(config.vocab_size)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_key_length(config.head_dim)
    file.add_value_length(config.head_dim)
    file.add_rope_dimension_count(config.head_dim)
    file.add_rope_freq_base(config.rope_theta)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_tokenizer_model("none")
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = pair_rows(tensor, config.head_dim)
        file.add_tensor(gguf_name(name), tensor.astype(np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def gguf_name(name: str) -> str:
    """Return the name that a tensor of Hugging Face's layout has in a GGUF file."""
    if name in TENSORS:
        return TENSORS[name]
    n, rest = name.removeprefix("model.layers.").split(".", 1)
    return f"blk.{n}.{TENSORS[rest]}"
