"""What a tensor is computed from, in words: where to look if it is the first that differs."""

from __future__ import annotations

import re

from tinymistral.golden.manifest import Case

_OF_STAGES = {
    "embedding": "the rows of `embed_tokens` at the ids",
    "input_layernorm": "what goes from layer to layer (`embedding`, or `output` of the layer "
    "before), `input_layernorm.weight` and `rms_norm_eps`",
    "q": "`input_layernorm` and `q_proj.weight`, as stored (outputs, inputs), cut into (H, d)",
    "k": "`input_layernorm` and `k_proj.weight`, as stored (outputs, inputs), cut into (K, d)",
    "v": "`input_layernorm` and `v_proj.weight`, as stored (outputs, inputs), cut into (K, d)",
    "q_rotated": "`q`, the positions, `rope_theta`, and which numbers are turned together",
    "k_rotated": "`k`, the positions, `rope_theta`, and which numbers are turned together",
    "attention_weights": "`q_rotated`, `k_rotated` of this call and of the cache, the scale "
    "head_dim^-0.5, which key/value head a query head reads, and who sees whom: causality, "
    "`sliding_window`, padding",
    "attention_mix": "`attention_weights`, and `v` of this call and of the cache",
    "attention_output": "`attention_mix` joined head by head to (B, T, H·d), and `o_proj.weight`",
    "attention_residual": "the layer's input plus `attention_output`",
    "post_attention_layernorm": "`attention_residual`, `post_attention_layernorm.weight` and "
    "`rms_norm_eps`",
    "gate": "`post_attention_layernorm` and `gate_proj.weight` (w1)",
    "up": "`post_attention_layernorm` and `up_proj.weight` (w3)",
    "silu_mul": "`gate` and `up`: gate / (1 + exp(-gate)) · up",
    "mlp_output": "`silu_mul` and `down_proj.weight` (w2)",
    "output": "`attention_residual` plus `mlp_output`",
    "norm": "`output` of the last layer, `norm.weight` and `rms_norm_eps`",
    "logits": "`norm` and `lm_head.weight`, or `embed_tokens` if `tie_word_embeddings`",
    "cache.k": "`k_rotated` of each token so far: what is written to which slot, and kept",
    "cache.v": "`v` of each token so far: what is written to which slot, and kept",
}
_OF_KINDS = {
    "operation": "the inputs of this operation alone, see the case's file",
    "generate": "the logits of each step, and which of them is the largest",
    "sampling": "the logits, the previous ids and the parameters of the case",
    "tokenizer": "the text and the vocabulary",
    "chat": "the messages, the vocabulary and the chat format",
}
_NAME = re.compile(r"calls\.\d+\.(cache\.)?(?:layers\.\d+\.)?(\w+)")


def depends_on(case: Case, name: str) -> str:
    """Say what a tensor of a case is computed from."""
    match = _NAME.fullmatch(name)
    if match is None:
        return _OF_KINDS.get(case.kind, "the inputs of the case")
    return _OF_STAGES.get((match[1] or "") + match[2], "the stages before it")
