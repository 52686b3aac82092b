"""What a call of a model returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from tinymistral.cache import RollingCache


@dataclass(kw_only=True)
class Output:
    """What all models return: NumPy arrays in the backend's dtype, None if not asked for."""

    past_key_values: RollingCache | None = None
    hidden_states: tuple[np.ndarray, ...] | None = None  # embedding, layers; the last one normed
    attentions: tuple[np.ndarray, ...] | None = None  # each layer's (B, H, T, tokens so far)

    def __getitem__(self, index: object) -> NoReturn:
        names = [name for name, value in vars(self).items() if value is not None]
        raise TypeError(
            f"output[{index!r}]: results have names; write output.{' or output.'.join(names)}"
        )


@dataclass(kw_only=True)
class ModelOutput(Output):
    """What `MistralModel` returns."""

    last_hidden_state: np.ndarray  # (B, T, D), after the final norm


@dataclass(kw_only=True)
class CausalLMOutput(Output):
    """What `MistralForCausalLM` returns."""

    logits: np.ndarray  # (B, T or fewer, V)
    loss: np.floating | None = None  # with labels; float32 or float64, as in all losses


@dataclass(kw_only=True)
class ClassifierOutput(Output):
    """What the heads for sequence and token classification return."""

    logits: np.ndarray  # (B, num_labels); of tokens (B, T, num_labels)
    loss: np.floating | None = None


@dataclass(kw_only=True)
class QuestionAnsweringOutput(Output):
    """What `MistralForQuestionAnswering` returns."""

    start_logits: np.ndarray  # (B, T)
    end_logits: np.ndarray  # (B, T)
    loss: np.floating | None = None
