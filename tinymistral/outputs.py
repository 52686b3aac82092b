"""What a call of a model returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinymistral.cache import RollingCache


@dataclass(kw_only=True)
class Output:
    """What all models return: NumPy arrays in the backend's dtype, None where not asked for."""

    past_key_values: RollingCache | None = None
    hidden_states: tuple[np.ndarray, ...] | None = None  # embedding, each layer; last one normed
    attentions: tuple[np.ndarray, ...] | None = None  # a layer: (B, H, T, tokens so far)


@dataclass(kw_only=True)
class ModelOutput(Output):
    """Of `MistralModel`."""

    last_hidden_state: np.ndarray  # (B, T, D), after the final norm


@dataclass(kw_only=True)
class CausalLMOutput(Output):
    """Of `MistralForCausalLM`."""

    logits: np.ndarray  # (B, T or fewer, V)
    loss: np.floating | None = None  # where there are labels; here and below float32 or float64


@dataclass(kw_only=True)
class ClassifierOutput(Output):
    """Of `MistralForSequenceClassification` and `MistralForTokenClassification`."""

    logits: np.ndarray  # (B, num_labels); of tokens (B, T, num_labels)
    loss: np.floating | None = None


@dataclass(kw_only=True)
class QuestionAnsweringOutput(Output):
    """Of `MistralForQuestionAnswering`."""

    start_logits: np.ndarray  # (B, T)
    end_logits: np.ndarray  # (B, T)
    loss: np.floating | None = None
