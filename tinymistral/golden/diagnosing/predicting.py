"""What a program would compute that makes a mistake: the reference, run with a suspect."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from tinymistral.cache import RollingCache
from tinymistral.config import MistralConfig
from tinymistral.golden.diagnosing.rounding import ROUNDED
from tinymistral.golden.diagnosing.suspects.knowing import Knowing
from tinymistral.golden.diagnosing.suspects.suspect import Suspect, Undo
from tinymistral.golden.models import read_model
from tinymistral.golden.run.tinymistral import open_vocabulary, run_case
from tinymistral.golden.suite import Case, CaseArrays, Suite
from tinymistral.heads import MistralForCausalLM
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.tokenizer import MistralTokenizer

Inputs = Mapping[str, np.ndarray]
Results = dict[str, np.ndarray]

# A mistake may end in any of these, two together above all: then nothing comes of it.
_NO_RESULT = (ValueError, IndexError, TypeError, AttributeError)


class Predictions:
    """The results of suspects, by suspect, case and dtype; each is computed once.

    In float64, but for suspects that lie in rounding: these in the dtype that is asked for.
    """

    def __init__(self, suite: Suite, vocabularies: Sequence[Path] = ()) -> None:
        """Take a suite, and the files of vocabularies that do not come with tinymistral."""
        self.suite = suite
        self._vocabularies = vocabularies
        self._arrays: dict[str, CaseArrays] = {}
        self._models: dict[str, tuple[MistralConfig, Results]] = {}
        self._found: dict[str, dict[tuple[str, str, bool], Results | None]] = {}
        self._tokenizers: dict[str, MistralTokenizer | None] = {}
        self._documents: dict[tuple[str, str], Mapping[str, Any] | None] = {}

    def arrays(self, case: Case) -> CaseArrays:
        """Return the inputs of a case, and what is expected of it."""
        if case.id not in self._arrays:
            self._arrays[case.id] = self.suite.read(case)
        return self._arrays[case.id]

    def of(
        self, suspect: Suspect, case: Case, dtype: str = "float64", as_run: bool = False
    ) -> Results | None:
        """Return what comes of a case; None if that cannot be told.

        In the shapes that the suite expects, or `as_run`: with what a token too many comes to.
        """
        found = self._found.setdefault(suspect.name, {})
        what = (case.id, dtype, as_run)
        if what not in found:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    found[what] = self._run(suspect, case, dtype, as_run)
                except _NO_RESULT:
                    found[what] = None
        return found[what]

    def document(self, suspect: Suspect, case: Case) -> Mapping[str, Any] | None:
        """Return what would be answered to a case of texts; None if that cannot be told."""
        key = (suspect.name, case.id)
        if key not in self._documents:
            found = None
            if suspect.answers is not None:
                found = suspect.answers(self.suite.document(case), self.tokenizer(case))
            self._documents[key] = found
        return self._documents[key]

    def tokenizer(self, case: Case) -> MistralTokenizer | None:
        """Return the tokenizer of a case, if its vocabulary is there."""
        if case.id not in self._tokenizers:
            self._tokenizers[case.id] = None
            for path in (None, *self._vocabularies):
                with suppress(ValueError):
                    self._tokenizers[case.id] = open_vocabulary(case, path)
        return self._tokenizers[case.id]

    def forget(self, suspect: Suspect) -> None:
        """Make room: drop what has come of one that is not asked for again."""
        for name in (suspect.name, *((suspect & rounded).name for rounded in ROUNDED)):
            self._found.pop(name, None)

    def _run(self, suspect: Suspect, case: Case, dtype: str, as_run: bool) -> Results | None:
        inputs: Inputs = {name: x.copy() for name, x in self.arrays(case).inputs.items()}
        if case.kind == "sampling":
            return self._sample(suspect, case, inputs)
        undo: list[Undo] = []
        for retell in suspect.texts:
            told = retell(case, inputs)
            if told is None:
                return None
            inputs = told[0]
            undo.insert(0, told[1])
        backend = backend_of(suspect.backends)(dtype)
        model = None if case.model is None else self._model(suspect, case.model, backend)
        if model is not None:
            chunk = inputs["input_ids"].shape[1] if case.kind == "generate" else None
            of = cache_of(suspect.caches)
            vars(model)["new_cache"] = _maker(of, model, chunk)
            if knows(backend):
                backend.know(model, self.arrays(case).inputs)
        results = run_case(self.suite, case, backend, model, inputs)
        for back in () if as_run else undo:
            results = back(results)
        return results

    def _sample(self, suspect: Suspect, case: Case, inputs: Inputs) -> Results | None:
        """Sampling is done in float32 whatever the dtype, so what overflows does so there."""
        if suspect.sampling is None:
            return None
        logits = inputs["logits"].astype(np.float32 if suspect.of_a_dtype else np.float64)
        found = suspect.sampling(logits, inputs["previous_ids"], case.parameters or {})
        return {"probabilities": found}

    def _model(self, suspect: Suspect, name: str, backend: NumpyBackend) -> MistralForCausalLM:
        if name not in self._models:
            self._models[name] = read_model(self.suite, name)
        config, tensors = self._models[name]
        for reload in suspect.checkpoints:
            config, tensors = reload(self.suite.manifest.models[name], config, tensors)
        return MistralForCausalLM(config, backend=backend, tensors=tensors)


def _maker(of: type[RollingCache], model: MistralForCausalLM, fixed: int | None) -> Any:
    """Return what makes the caches of a model; `fixed` is their chunk whatever is asked for."""

    def new_cache(rows: int, chunk: int | None = None) -> RollingCache:
        return of(model.config, model.backend, rows, fixed or chunk)

    return new_cache


def knows(backend: NumpyBackend) -> TypeGuard[Knowing]:
    """Tell whether a backend wants to know the model."""
    return is_a(type(backend), Knowing)


def is_a(kind: type[Any], parent: type[Any]) -> bool:
    """Tell whether a class inherits from another.

    `issubclass` of abstract classes asks all classes that are made here, of which each pair of
    suspects adds one.
    """
    return parent in kind.__mro__


@cache
def backend_of(kinds: tuple[type[NumpyBackend], ...]) -> type[NumpyBackend]:
    """Return a backend that makes the mistakes of all these."""
    knowing_first = tuple(sorted(dict.fromkeys(kinds), key=lambda kind: not is_a(kind, Knowing)))
    return _all_of(knowing_first, NumpyBackend)


@cache
def cache_of(kinds: tuple[type[RollingCache], ...]) -> type[RollingCache]:
    """Return a cache that makes the mistakes of all these."""
    return _all_of(tuple(dict.fromkeys(kinds)), RollingCache)


def _all_of(kinds: tuple[type[Any], ...], base: type[Any]) -> type[Any]:
    """Return a class that inherits from all kinds, none of which is another one's parent."""
    least = [k for k in kinds if not any(k is not o and is_a(o, k) for o in kinds)]
    return least[0] if len(least) == 1 else type("Both", tuple(least) or (base,), {})
