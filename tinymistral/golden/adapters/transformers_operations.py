"""The operations of transformers' Mistral, one by one, and its sampling."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from tinymistral.golden.adapters import CannotRun
from tinymistral.golden.adapters.counting import check_counted
from tinymistral.golden.adapters.torch_arrays import to_numpy

Arrays = dict[str, np.ndarray]


def run_operation(
    name: str, inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any], dtype: Any
) -> Arrays:
    """Compute an operation by what transformers' modules do it with."""
    import torch
    from transformers.activations import ACT2FN
    from transformers.models.mistral import modeling_mistral as mistral

    if name == "attention":
        check_seen(inputs, parameters["window"])
        check_finite(inputs)
    if name == "rope":
        check_counted(inputs["positions"])
    x = {
        n: torch.tensor(a).to(dtype) if a.dtype.kind == "f" else torch.tensor(a)
        for n, a in inputs.items()
    }
    if name == "embedding":
        found = {"out": torch.nn.functional.embedding(x["ids"], x["table"])}
    elif name == "linear":
        found = {"out": torch.nn.functional.linear(x["x"], x["weight"])}
    elif name == "rms_norm":
        norm = mistral.MistralRMSNorm(x["x"].shape[-1], parameters["eps"]).to(dtype)
        norm.weight.copy_(x["weight"])
        found = {"out": norm(x["x"])}
    elif name == "rope":
        found = {"out": _rope(mistral, x["x"], x["positions"], parameters["theta"])}
    elif name == "silu_mul":
        found = {"out": ACT2FN["silu"](x["gate"]) * x["up"]}
    else:
        found = _attention(mistral, x, parameters["window"])
    return {n: to_numpy(tensor) for n, tensor in found.items()}


def check_seen(inputs: Mapping[str, np.ndarray], window: int | None) -> None:
    """Raise CannotRun where a query that is no padding sees nothing."""
    nothing = ~seen_keys(inputs["q_positions"], inputs["k_positions"], window).any(axis=-1)
    if (nothing & (inputs["q_positions"] >= 0)).any():
        raise CannotRun(
            "a query that sees nothing gets the mean of all values there, and zeros in the suite"
        )


def check_finite(inputs: Mapping[str, np.ndarray]) -> None:
    """Raise CannotRun where a key or value is NaN or infinite, which somebody may not see."""
    if not all(np.isfinite(inputs[name]).all() for name in "kv"):
        raise CannotRun("NaN in keys and values that are hidden reaches its sums: 0 times NaN")


def seen_keys(q_positions: Any, k_positions: Any, window: int | None) -> Any:
    """Tell which keys each query sees (B, T, S), by positions (B, T) and (B, S), -1 for padding."""
    distance = q_positions[:, :, None] - k_positions[:, None, :]
    seen = (k_positions >= 0)[:, None, :] & (distance >= 0)
    return seen if window is None else seen & (distance < window)


def _rope(mistral: Any, x: Any, positions: Any, theta: float) -> Any:
    from transformers import MistralConfig

    config = MistralConfig(
        head_dim=x.shape[-1], rope_parameters={"rope_type": "default", "rope_theta": theta}
    )
    cos, sin = mistral.MistralRotaryEmbedding(config)(x, positions.clamp(min=0))
    turned, _ = mistral.apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cos, sin)
    return turned.transpose(1, 2)


def _attention(mistral: Any, x: Mapping[str, Any], window: int | None) -> dict[str, Any]:
    """Attend with a mask made here, by positions: transformers makes masks by columns alone."""
    import torch

    seen = seen_keys(x["q_positions"], x["k_positions"], window)[:, None]
    q, k, v = (x[name].transpose(1, 2) for name in "qkv")
    mask = torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, torch.finfo(q.dtype).min)
    module = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], training=False)
    mix, weights = mistral.eager_attention_forward(module, q, k, v, mask, q.shape[-1] ** -0.5)
    return {"out": mix, "weights": weights}


def run_sampling(
    inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any], dtype: Any
) -> Arrays:
    """Process logits as `_get_logits_processor` of transformers' generation/utils.py would."""
    import torch
    from transformers.generation import logits_process as process

    made = {
        "repetition_penalty": process.RepetitionPenaltyLogitsProcessor,
        "temperature": process.TemperatureLogitsWarper,
        "top_k": process.TopKLogitsWarper,
        "top_p": process.TopPLogitsWarper,
        "min_p": process.MinPLogitsWarper,
    }
    scores = torch.tensor(inputs["logits"]).to(torch.float32)  # whatever the model computes in
    for name, processor in made.items():
        if name in parameters and not (name == "top_p" and parameters[name] >= 1):
            scores = processor(parameters[name])(torch.tensor(inputs["previous_ids"]), scores)
    return {"probabilities": to_numpy(torch.softmax(scores, dim=-1).to(dtype))}
