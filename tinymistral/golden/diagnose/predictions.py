"""The results of the reference when it makes a mistake."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.golden.models import read_model
from tinymistral.golden.run.tinymistral import open_vocabulary, run_case
from tinymistral.golden.suite import Case, CaseArrays, Suite
from tinymistral.heads import MistralForCausalLM
from tinymistral.mistakes import Mistake
from tinymistral.mistakes.inputs import Undo
from tinymistral.mistakes.planting import cache_with, faulty_for
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.tokenizer import MistralTokenizer

Inputs = Mapping[str, np.ndarray]
Results = dict[str, np.ndarray]

# With a mistake, or with two, the run may end in any of these: then there is no result.
_NO_RESULT = (ValueError, IndexError, TypeError, AttributeError)


@dataclass(frozen=True, eq=False)
class Model:
    """A model's layout, configuration and weights."""

    layout: str
    config: Any
    tensors: Inputs
    _changed: dict[str, Inputs] = field(default_factory=dict)

    def changed(self, mistake: Mistake) -> Inputs:
        """Return the weights as a mistake leaves them when they are read."""
        if mistake.name not in self._changed:
            config, tensors = self.config, dict(self.tensors)
            for change in mistake.replacing("checkpoint"):
                config, tensors = change(self.layout, config, tensors)
            self._changed[mistake.name] = tensors
        return self._changed[mistake.name]


class Predictions:
    """The results of mistakes, by mistake, case and dtype; each is computed once.

    Most are in float64; for a mistake that depends on rounding ask for the candidate's dtype.
    """

    def __init__(self, suite: Suite, vocabularies: Sequence[Path] = ()) -> None:
        """Set the suite, and files of vocabularies that do not come with tinymistral."""
        self.suite = suite
        self._vocabularies = vocabularies
        self._arrays: dict[str, CaseArrays] = {}
        self._models: dict[str, tuple[MistralConfig, Results]] = {}
        self.right: dict[str, Results] = {}  # by case: stages in float64, without a mistake
        self._wide: dict[str, Model] = {}
        self._found: dict[str, dict[tuple[Any, ...], Results | None]] = {}
        self._tokenizers: dict[str, MistralTokenizer | None] = {}
        self._documents: dict[tuple[str, str], Mapping[str, Any] | None] = {}

    def arrays(self, case: Case) -> CaseArrays:
        """Return the inputs of a case, and the expected results."""
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

        Their shapes are those that the suite expects, or with `as_run` those that the mistake
        makes, such as of a token too many. `base` computes all that the mistake does not change.
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

    def model(self, name: str) -> Model:
        """Return a model with its weights in float64."""
        if name not in self._wide:
            config, tensors = read_model(self.suite, name)
            wide = {n: x.astype(np.float64) for n, x in tensors.items()}
            self._wide[name] = Model(self.suite.manifest.models[name].layout, config, wide)
        return self._wide[name]

    def document(self, mistake: Mistake, case: Case) -> Mapping[str, Any] | None:
        """Return a mistake's answers to a case of texts; None if they are unknown."""
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
        """Free the memory of results that are not needed again."""
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
            kind = partial(cache_with(mistake.changes), model.config, backend)
            # In `generate` a prompt is one piece, whatever the chunk is.
            fixed = inputs["input_ids"].shape[1] if case.kind == "generate" else None
            vars(model)["new_cache"] = lambda rows, chunk=None: kind(rows, fixed or chunk)
        results = run_case(self.suite, case, backend, model, inputs)
        for back in () if as_run else undo:
            results = back(results)
        return results

    def _sample(self, mistake: Mistake, case: Case, inputs: Inputs) -> Results | None:
        """Return wrong probabilities; those that overflow are computed in float32."""
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
