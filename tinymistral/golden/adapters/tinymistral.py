"""tinymistral itself, on any of its backends: what a backend of your own is held by."""

from __future__ import annotations

from tinymistral.discovery import get_backend
from tinymistral.golden.adapters import Adapter, CannotRun, Results, Settings
from tinymistral.golden.hashing import sha256_of
from tinymistral.golden.manifest import TEXTS
from tinymistral.golden.running import run_case
from tinymistral.golden.suite import Case, Suite
from tinymistral.golden.vectors import run_vectors
from tinymistral.golden.vectors.running import open_vocabulary
from tinymistral.numpy_backend import NUMPY_DTYPES


def open_peer(suite: Suite, settings: Settings) -> Adapter:
    """Return what computes a case on the backend that is asked for."""
    backend = get_backend(settings.backend, settings.dtype)
    known = {sha256_of(path): path for path in settings.vocabularies}

    def run(case: Case) -> Results:
        if case.kind in TEXTS:
            path = known.get((case.vocabulary or {}).get("sha256", ""))
            try:
                return run_vectors(suite, case, open_vocabulary(case, path))
            except ValueError as error:
                raise CannotRun(f"{error}: --vocabulary") from None
        if case.kind == "sampling":
            return run_vectors(suite, case)
        results = run_case(suite, case, backend)
        if case.kind == "generate":  # its log-probabilities are float64, of logits in the dtype
            results["logprobs"] = results["logprobs"].astype(NUMPY_DTYPES[backend.dtype])
        return results

    return run
