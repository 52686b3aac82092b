"""Seeing every stage of a transformers Mistral: hooks on its modules, and around its attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Seen = dict[str, Any]  # the stages of the latest call, by name


def watch(model: Any, head_dim: int) -> Seen:
    """Let every module of a MistralForCausalLM tell what goes in or comes out of it."""
    seen: Seen = {}
    _out(model.model.embed_tokens, "embedding", seen)
    for n, layer in enumerate(model.model.layers):
        at, attention, mlp = f"layers.{n}.", layer.self_attn, layer.mlp
        attention.golden_seen = seen  # for `watched_attention`
        _out(layer.input_layernorm, f"{at}input_layernorm", seen)
        for name in "qkv":
            _out(getattr(attention, f"{name}_proj"), at + name, seen, (-1, head_dim))
        _out(attention.o_proj, f"{at}attention_output", seen)
        _into(layer.post_attention_layernorm, f"{at}attention_residual", seen)
        _out(layer.post_attention_layernorm, f"{at}post_attention_layernorm", seen)
        _out(mlp.gate_proj, f"{at}gate", seen)
        _out(mlp.up_proj, f"{at}up", seen)
        _into(mlp.down_proj, f"{at}silu_mul", seen)
        _out(mlp, f"{at}mlp_output", seen)
        _out(layer, f"{at}output", seen)
    _out(model.model.norm, "norm", seen)
    _out(model.lm_head, "logits", seen)
    return seen


def watched_attention(eager: Callable[..., Any]) -> str:
    """Register transformers' eager attention, watched; return the name that it goes by."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    def attend(module: Any, q: Any, k: Any, v: Any, mask: Any, **how: Any) -> Any:
        """Attend with q (B, H, T, d), k and v (B, K, S, d)."""
        mix, weights = eager(module, q, k, v, mask, scaling=how["scaling"], dropout=0.0)
        at, seen = f"layers.{module.layer_idx}.", module.golden_seen
        seen[f"{at}q_rotated"] = q.transpose(1, 2)
        seen[f"{at}k_rotated"] = k[:, :, -q.shape[2] :].transpose(1, 2)
        seen[f"{at}attention_weights"] = weights
        seen[f"{at}attention_mix"] = mix
        return mix, weights

    AttentionInterface.register("golden", attend)
    AttentionMaskInterface.register("golden", eager_mask)
    return "golden"


def _out(module: Any, name: str, seen: Seen, heads: tuple[int, ...] = ()) -> None:
    def see(module: Any, given: Any, result: Any) -> None:
        seen[name] = result.reshape(*result.shape[:2], *heads) if heads else result

    module.register_forward_hook(see)


def _into(module: Any, name: str, seen: Seen) -> None:
    module.register_forward_pre_hook(lambda module, given: seen.update({name: given[0]}))
