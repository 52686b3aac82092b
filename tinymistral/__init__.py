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
        AutoModelForCausalLM,
        MistralForCausalLM,
        MistralForQuestionAnswering,
        MistralForSequenceClassification,
        MistralForTokenClassification,
        MistralModel,
    )
    from tinymistral.streaming import StopStrings, StreamDecoder
    from tinymistral.tokenizer import AutoTokenizer, MistralTokenizer

__version__ = "0.1.0"

_HOMES = {
    "DEMO": "demo",
    "AutoModelForCausalLM": "heads",
    "AutoTokenizer": "tokenizer",
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
    "AutoModelForCausalLM",
    "AutoTokenizer",
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
    from importlib import import_module
    from importlib.util import find_spec

    if name in _HOMES:
        return getattr(import_module(f"tinymistral.{_HOMES[name]}"), name)
    if not name.startswith("_") and find_spec(f"tinymistral.{name}"):
        return import_module(f"tinymistral.{name}")
    from tinymistral.renamed import how

    raise AttributeError(f"module 'tinymistral' has no attribute {name!r}{how(name)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
