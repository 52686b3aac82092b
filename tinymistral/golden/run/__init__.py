"""Programs that compute the cases of a suite: each module makes one program's dump.

An adapter is a function of a case that returns its results, arrays by the names of `expected` or a
JSON document, or raises `CannotRun`, whose message says why the program does not compute this case.
A module has `open_peer`, which returns such a function. Copy one for a program of your own in
Python; for any other program there is `template.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.files import make_folder
from tinymistral.golden.files import document_text, write_arrays, write_text
from tinymistral.golden.manifest import TEXTS
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


WRITTEN, NOT_RUN, FAILED = "written", "not run", "failed"


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    case: Case
    what: str  # WRITTEN, NOT_RUN or FAILED
    says: str = ""  # why


def dump(suite: Suite, adapter: Adapter, out: Path, only: Sequence[str] = ()) -> Iterator[Outcome]:
    """Compute the cases of a suite, or `only` these, and write each when it is done.

    What an earlier run wrote of a case is removed first: a dump never holds results of two
    programs. Raises ValueError for a case that is not there, or a folder that is none.
    """
    cases = [suite.case(name) for name in only] or list(suite.manifest.cases.values())
    make_folder(out)
    for case in cases:
        for suffix in (".safetensors", ".json"):
            (out / f"{case.id}{suffix}").unlink(missing_ok=True)
        try:
            write(out, case, adapter(case))
        except CannotRun as error:
            yield Outcome(case, NOT_RUN, str(error))
        except Exception as error:  # whatever another's program raises: the next case may do
            yield Outcome(case, FAILED, f"{type(error).__name__}: {error}")
        else:
            yield Outcome(case, WRITTEN)


def write(out: Path, case: Case, results: Results) -> None:
    """Write the results of a case: those tensors that are expected, or a document."""
    if case.kind in TEXTS:
        write_text(out / f"{case.id}.json", document_text(results))
        return
    known = {name: np.asarray(x) for name, x in results.items() if name in (case.expected or {})}
    if not known:
        raise CannotRun("it computes no tensor that is expected")
    write_arrays(out / f"{case.id}.safetensors", known)


def check_counted(positions: np.ndarray) -> None:
    """Raise CannotRun where float32, in which angles are made there, cannot count positions."""
    if positions.max(initial=0) > 2**24:
        raise CannotRun("its angles are float32, which cannot count positions past 2^24")
