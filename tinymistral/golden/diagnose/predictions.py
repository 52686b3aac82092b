"""What a program would compute that makes a mistake: the reference, run with the mistake."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.golden.models import read_model
from tinymistral.golden.rounding import CHOICES, TRANSFORMERS, RoundingBackend
from tinymistral.golden.run.tinymistral import open_vocabulary, run_case
from tinymistral.golden.suite import Case, CaseArrays, Suite
from tinymistral.heads import MistralForCausalLM
from tinymistral.mistakes import Mistake
from tinymistral.mistakes.inputs import Undo, positions_of
from tinymistral.mistakes.planting import cache_with, faulty_for
from tinymistral.numpy_backend import NUMPY_DTYPES, NumpyBackend
from tinymistral.tokenizer import MistralTokenizer

Inputs = Mapping[str, np.ndarray]
Results = dict[str, np.ndarray]

# A mistake may end in any of these, two together above all: then there is no result.
_NO_RESULT = (ValueError, IndexError, TypeError, AttributeError)


class RoundedEverywhere(RoundingBackend):
    """The numpy backend that rounds each step of an operation."""

    def __init__(self, dtype: str | None = None):
        super().__init__(dtype or "float32", choices=CHOICES)


class AsTransformers(RoundingBackend):
    """The numpy backend that rounds where transformers does, and makes angles in float32.

    But not of positions past 2^24, where that is a mistake of its own.
    """

    def __init__(self, dtype: str | None = None):
        super().__init__(dtype or "float32", "float32", choices=TRANSFORMERS)

    def rope_table(
        self, positions: np.ndarray, theta: float, d: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make angles in a dtype that can count the positions."""
        exact = positions.max(initial=0) >= 2**24
        self._angles = NUMPY_DTYPES["float64" if exact else "float32"]
        return super().rope_table(positions, theta, d)


# Right programs that round at several places: how far rounding leads beside a mistake, which may
# bring a model to where it is sensitive, such as to attention that is nearly a tie.
ROUNDED: tuple[type[NumpyBackend], ...] = (NumpyBackend, RoundedEverywhere, AsTransformers)


class Predictions:
    """The results of mistakes, by mistake, case and dtype; each is computed once.

    In float64, but for mistakes that lie in rounding: these in the dtype that is asked for.
    """

    def __init__(self, suite: Suite, vocabularies: Sequence[Path] = ()) -> None:
        """Take a suite, and the files of vocabularies that do not come with tinymistral."""
        self.suite = suite
        self._vocabularies = vocabularies
        self._arrays: dict[str, CaseArrays] = {}
        self._models: dict[str, tuple[MistralConfig, Results]] = {}
        self._found: dict[str, dict[tuple[Any, ...], Results | None]] = {}
        self._tokenizers: dict[str, MistralTokenizer | None] = {}
        self._documents: dict[tuple[str, str], Mapping[str, Any] | None] = {}

    def arrays(self, case: Case) -> CaseArrays:
        """Return the inputs of a case, and what is expected of it."""
        if case.id not in self._arrays:
            self._arrays[case.id] = self.suite.read(case)
        return self._arrays[case.id]

    def of(
        self,
        mistake: Mistake,
        case: Case,
        dtype: str = "float64",
        as_run: bool = False,
        base: type[NumpyBackend] = NumpyBackend,
    ) -> Results | None:
        """Return the results for a case; None if there are none.

        In the shapes that the suite expects, or `as_run`: with those of a token too many. `base`
        is the backend that computes what the mistake leaves alone.
        """
        found = self._found.setdefault(mistake.name, {})
        key = (case.id, dtype, as_run, base)
        if key not in found:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    found[key] = self._run(mistake, case, dtype, as_run, base)
                except _NO_RESULT:
                    found[key] = None
        return found[key]

    def document(self, mistake: Mistake, case: Case) -> Mapping[str, Any] | None:
        """Return what would be answered to a case of texts; None if nothing can be said."""
        key = (mistake.name, case.id)
        if key not in self._documents:
            whole, tokenizer = self.suite.document(case), self.tokenizer(case)
            answers: dict[str, Any] = {}
            can_answer = tokenizer is not None or not mistake.needs_vocabulary
            for part, answer in mistake.changes if can_answer else ():
                for entry in whole.get(part, ()):
                    answered = answer(entry, tokenizer)
                    if answered is not None:
                        asked = {
                            name: entry[name] for name in ("text", "messages") if name in entry
                        }
                        answers.setdefault(part, []).append({**asked, **answered})
            self._documents[key] = answers or None
        return self._documents[key]

    def tokenizer(self, case: Case) -> MistralTokenizer | None:
        """Return the tokenizer of a case, if its vocabulary is there."""
        if case.id not in self._tokenizers:
            self._tokenizers[case.id] = None
            for path in (None, *self._vocabularies):
                with suppress(ValueError):
                    self._tokenizers[case.id] = open_vocabulary(case, path)
        return self._tokenizers[case.id]

    def drop(self, mistake: Mistake) -> None:
        """Free the memory of results that are not asked for again."""
        self._found.pop(mistake.name, None)

    def _run(
        self, mistake: Mistake, case: Case, dtype: str, as_run: bool, base: type[NumpyBackend]
    ) -> Results | None:
        inputs: Inputs = {name: x.copy() for name, x in self.arrays(case).inputs.items()}
        if case.kind == "sampling":
            return self._sample(mistake, case, inputs)
        undo: list[Undo] = []
        for change in mistake.replacing("inputs"):
            changed = change(inputs)
            if changed is None:
                return None
            inputs = changed[0]
            undo.insert(0, changed[1])
        backend = faulty_for(mistake.changes, base)(dtype, mistake.changes)
        model = None
        if case.model is not None:
            model = self._model(mistake, case.model, backend)
            backend.know(model, positions_of(self.arrays(case).inputs)[0])
            kind = partial(cache_with(mistake.changes), model.config, backend)
            # In `generate` a prompt goes through at once, whatever chunk is asked for.
            fixed = inputs["input_ids"].shape[1] if case.kind == "generate" else None
            vars(model)["new_cache"] = lambda rows, chunk=None: kind(rows, fixed or chunk)
        results = run_case(self.suite, case, backend, model, inputs)
        for back in () if as_run else undo:
            results = back(results)
        return results

    def _sample(self, mistake: Mistake, case: Case, inputs: Inputs) -> Results | None:
        """Sampling is done in float32 whatever the dtype, so what overflows does so there."""
        for probabilities in mistake.replacing("sampling"):
            logits = inputs["logits"].astype(np.float32 if mistake.of_a_dtype else np.float64)
            found = probabilities(logits, inputs["previous_ids"], case.parameters or {})
            return {"probabilities": found}
        return None

    def _model(self, mistake: Mistake, name: str, backend: NumpyBackend) -> MistralForCausalLM:
        if name not in self._models:
            self._models[name] = read_model(self.suite, name)
        config, tensors = self._models[name]
        for change in mistake.replacing("checkpoint"):
            layout = self.suite.manifest.models[name].layout
            config, tensors = change(layout, config, tensors)
        return MistralForCausalLM(config, backend=backend, tensors=tensors)
