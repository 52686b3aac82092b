"""tinymistral-jax: the backend `jax`, and the classes of transformers' Flax page.

`FlaxMistralForCausalLM` and its kin compile a whole model; the backend, each operation.
"""

from tinymistral_jax.backend import JaxBackend
from tinymistral_jax.models import (
    FlaxMistralForCausalLM,
    FlaxMistralForSequenceClassification,
    FlaxMistralModel,
)

__all__ = [
    "FlaxMistralForCausalLM",
    "FlaxMistralForSequenceClassification",
    "FlaxMistralModel",
    "JaxBackend",
]
