"""Running a program over a suite: its dump, a file for each case, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinymistral.files import make_folder
from tinymistral.golden.adapters import Adapter, CannotRun, Results
from tinymistral.golden.manifest import TEXTS
from tinymistral.golden.recording.parts import write_text
from tinymistral.golden.suite import Case, Suite
from tinymistral.golden.tensor_files import write_arrays
from tinymistral.golden.vectors.documents import as_text

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
        write_text(out / f"{case.id}.json", as_text(results))
        return
    known = {name: np.asarray(x) for name, x in results.items() if name in (case.expected or {})}
    if not known:
        raise CannotRun("it computes no tensor that is expected")
    write_arrays(out / f"{case.id}.safetensors", known)
