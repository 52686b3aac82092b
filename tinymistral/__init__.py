"""tinymistral: Mistral-7B in readable NumPy.

Names are imported when first used, so that `python -m tinymistral --help` need not wait for
NumPy, and `--threads` can be set before it starts.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; importing it from typing would take 10 ms
if TYPE_CHECKING:
    from typing import Any

    from tinymistral.backend import Backend, BackendUnavailable
    from tinymistral.cache import RollingCache
    from tinymistral.config import MistralConfig
    from tinymistral.demo import DEMO
    from tinymistral.discovery import get_backend, installed_backends, load_backend
    from tinymistral.heads import (
        MistralForCausalLM,
        MistralForQuestionAnswering,
        MistralForSequenceClassification,
        MistralForTokenClassification,
        MistralModel,
    )
    from tinymistral.streaming import StopStrings, StreamDecoder
    from tinymistral.tokenizer import MistralTokenizer

__version__ = "0.1.0"

_HOMES = {
    "DEMO": "demo",
    "Backend": "backend",
    "BackendUnavailable": "backend",
    "MistralConfig": "config",
    "MistralForCausalLM": "heads",
    "MistralForQuestionAnswering": "heads",
    "MistralForSequenceClassification": "heads",
    "MistralForTokenClassification": "heads",
    "MistralModel": "heads",
    "MistralTokenizer": "tokenizer",
    "RollingCache": "cache",
    "StopStrings": "streaming",
    "StreamDecoder": "streaming",
    "get_backend": "discovery",
    "installed_backends": "discovery",
    "load_backend": "discovery",
}

__all__ = [
    "DEMO",
    "Backend",
    "BackendUnavailable",
    "MistralConfig",
    "MistralForCausalLM",
    "MistralForQuestionAnswering",
    "MistralForSequenceClassification",
    "MistralForTokenClassification",
    "MistralModel",
    "MistralTokenizer",
    "RollingCache",
    "StopStrings",
    "StreamDecoder",
    "get_backend",
    "installed_backends",
    "load_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tinymistral' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"tinymistral.{_HOMES[name]}"), name)
