"""Programs that compute the cases of a suite: each module makes one program's dump.

An adapter is a function of a case that returns its results, arrays by the names of `expected` or a
JSON document, or raises `CannotRun`, whose message says why the program does not compute this case.
A module has `open_peer`, which returns such a function. Copy one for a program of your own in
Python; for any other program there is `template.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tinymistral.golden.suite import Case, Suite

PEERS = ("tinymistral", "transformers", "llama-cpp")  # each in the module of its name

Results = dict[str, Any]  # arrays by name, or of a tokenizer or chat case a document
Adapter = Callable[[Case], Results]


class CannotRun(ValueError):  # noqa: N818, as it is read after `raise`
    """A program does not compute a case, and why."""


@dataclass(frozen=True)
class Settings:
    """What a program is to compute with."""

    dtype: str = "float32"
    backend: str | None = None  # of tinymistral
    vocabularies: tuple[Path, ...] = ()  # for cases of kind tokenizer and chat
    command: str | None = None  # of `template.py`


def open_adapter(peer: str | None, suite: Suite, settings: Settings) -> Adapter:
    """Return the adapter of a peer, or of the command in `settings`; ValueError if it is absent."""
    name = "template" if peer is None else peer.replace("-", "_")
    module = import_module(f"{__name__}.{name}")
    adapter: Adapter = module.open_peer(suite, settings)
    return adapter


def missing(peer: str, error: ImportError, extra: str) -> ValueError:
    """Return the error that says how a peer that cannot be imported is installed."""
    return ValueError(
        f"{peer} cannot be imported ({error}); install it: pip install 'tinymistral[{extra}]'"
    )
