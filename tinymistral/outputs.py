"""What a call of a model returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinymistral.cache import RollingCache


@dataclass
class ModelOutput:
    """Of `MistralModel`: NumPy arrays in the backend's dtype, None where not asked for."""

    last_hidden_state: np.ndarray  # (B, T, D), after the final norm
    past_key_values: RollingCache | None = None
    hidden_states: tuple[np.ndarray, ...] | None = None  # embedding, each layer; last one normed
    attentions: tuple[np.ndarray, ...] | None = None  # a layer: (B, H, T, tokens so far)


@dataclass
class CausalLMOutput:
    """Of `MistralForCausalLM`: NumPy arrays in the backend's dtype, None where not asked for."""

    logits: np.ndarray  # (B, T or fewer, V)
    past_key_values: RollingCache | None = None
    hidden_states: tuple[np.ndarray, ...] | None = None
    attentions: tuple[np.ndarray, ...] | None = None
