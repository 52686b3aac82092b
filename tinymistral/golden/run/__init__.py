"""Programs that compute the cases of a suite, and writing what they compute: a dump.

Each module here is an adapter for one program: `open_peer` returns a function of a case that
returns its results, or raises `CannotRun` with the reason. Copy one for a program of your own in
Python; for any other program there is `template.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tinymistral.files import make_folder
from tinymistral.golden.files import document_text, write_arrays, write_text
from tinymistral.golden.manifest import TEXT_KINDS
from tinymistral.golden.suite import Case, Suite
from tinymistral.text import one_line

Results = dict[str, Any]  # arrays by the names of `expected`; of a tokenizer or chat case, its JSON
Adapter = Callable[[Case], Results]

WRITTEN, NOT_RUN, FAILED = "written", "not run", "failed"


class CannotRun(ValueError):  # noqa: N818, as it is read after `raise`
    """A program does not compute a case; the message says why."""


@dataclass(frozen=True)
class Settings:
    """What a program is to compute with."""

    dtype: str = "float32"
    backend: str | None = None  # of tinymistral
    vocabularies: tuple[Path, ...] = ()  # for cases of kind tokenizer and chat
    command: str | None = None  # of `template.py`
    timeout: float = 3600.0  # seconds that the command may take for a case


@dataclass(frozen=True)
class Outcome:
    """How running a case ended."""

    case: Case
    what: str  # WRITTEN, NOT_RUN or FAILED
    says: str = ""  # why


def open_adapter(peer: str | None, suite: Suite, settings: Settings) -> Adapter:
    """Return the adapter of a peer, or of the command in `settings`; ValueError if unavailable."""
    name = "template" if peer is None else peer.replace("-", "_")
    adapter: Adapter = import_module(f"{__name__}.{name}").open_peer(suite, settings)
    return adapter


def not_installed(peer: str, error: ImportError, extra: str) -> ValueError:
    """Return the error that says how to install a peer that cannot be imported."""
    return ValueError(
        f"{peer} cannot be imported ({error}); install it: pip install 'tinymistral[{extra}]'"
    )


def check_counted(positions: np.ndarray) -> None:
    """Raise CannotRun for positions that float32 angles cannot count."""
    if positions.max(initial=0) > 2**24:
        raise CannotRun("its angles are float32, which cannot count positions past 2^24")


def dump(
    suite: Suite,
    adapter: Adapter,
    out: Path,
    only: Sequence[str] = (),
    unavailable: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Outcome]:
    """Compute the cases of a suite, or `only` these; write a file for each as soon as it is done.

    `unavailable` has the models whose cases are not run, and why. An earlier file of a case is
    removed first, so that a dump never mixes the results of two programs. Raises ValueError for
    an unknown case, or a folder that cannot be made.
    """
    cases = [suite.case(name) for name in only] or list(suite.manifest.cases.values())
    make_folder(out)
    for case in cases:
        for suffix in (".safetensors", ".json"):
            (out / f"{case.id}{suffix}").unlink(missing_ok=True)
        try:
            if case.model is not None and case.model in unavailable:
                raise CannotRun(unavailable[case.model])
            write(out, case, adapter(case))
        except CannotRun as error:
            yield Outcome(case, NOT_RUN, str(error))
        except Exception as error:  # anything, from another program; the next case may work
            yield Outcome(case, FAILED, f"{type(error).__name__}: {error}")
        else:
            yield Outcome(case, WRITTEN)


def write(out: Path, case: Case, results: Results) -> None:
    """Write the results of a case: a document, or those tensors that are expected."""
    if case.kind in TEXT_KINDS:
        write_text(out / f"{case.id}.json", document_text(results))
        return
    known = {name: np.asarray(x) for name, x in results.items() if name in (case.expected or {})}
    if not known:
        raise CannotRun("it computes no tensor that is expected")
    write_arrays(out / f"{case.id}.safetensors", known)


def outcomes_text(outcomes: Sequence[Outcome], out: Path) -> str:
    """List the cases that were not written, by reason, and count all."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        if outcome.what != WRITTEN:
            reasons.setdefault((outcome.what, outcome.says), []).append(outcome.case.id)
    lines = [
        f"{what}: {one_line(', '.join(cases), 500)}\n    {one_line(says, 500)}\n"
        for (what, says), cases in reasons.items()
    ]
    written = sum(outcome.what == WRITTEN for outcome in outcomes)
    return f"{''.join(lines)}{written} of {len(outcomes)} cases written to {out}\n"
