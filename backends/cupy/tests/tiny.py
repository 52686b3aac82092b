"""A model of a few thousand weights, all of its widths different."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinymistral import MistralConfig, MistralForCausalLM
from tinymistral.backend import Backend


def tiny_config(**changes: Any) -> MistralConfig:
    """Two layers, a window of 5, two key/value heads for four query heads."""
    fields: dict[str, Any] = {
        "vocab_size": 29,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 5,
        "bos_token_id": None,
        "eos_token_id": None,
        "initializer_range": 0.3,  # so that tokens matter, as in a trained model
    }
    return MistralConfig(**(fields | changes))


def tiny_model(backend: str | Backend, dtype: str | None = None, **changes: Any) -> Any:
    """Make a tiny model, with the same weights each time."""
    return MistralForCausalLM(tiny_config(**changes), seed=3, backend=backend, dtype=dtype)


def ids(*shape: int, seed: int = 0) -> np.ndarray:
    """Draw token ids."""
    return np.random.default_rng(seed).integers(0, 29, shape)
