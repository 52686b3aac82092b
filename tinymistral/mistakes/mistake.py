"""The class `Mistake`, and the decorator that adds a function to the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from unittest.mock import patch

import numpy as np

from tinymistral.backend import DTYPES
from tinymistral.cache import RollingCache
from tinymistral.mistakes.planting import Change, Faulty, cache_with, faulty_for
from tinymistral.pretrained import PreTrainedModel

HALVES = ("float16", "bfloat16")
BUT_FLOAT64 = ("float32", *HALVES)
ROUNDING = "it is within the tolerances of rounding, so nothing differs"


@dataclass(eq=False)
class Mistake:
    """A mistake: its name, what is wrong, how to fix it, and the functions that make it.

    Each of `changes` is the name of what is replaced, and the wrong function. Its parameters:

        an operation of a backend, `add`, or a part of attention (`planting.py`):
            (backend, right function, its arguments)
        cache.NAME: (cache, right method of RollingCache, its arguments), or for a property
            (cache, right value)
        checkpoint: (layout "hf" or "raw", configuration, tensors) -> (configuration, tensors)
        inputs: (inputs of a case) -> (inputs, function that brings the results into the expected
            shapes), or None if the mistake cannot be made there
        sampling: (logits (B, V), previous ids (B, n), parameters) -> probabilities (B, V)
        strings, decodings, conversations: (an entry of a case, tokenizer or None) -> the wrong
            answers, or None if they are unknown
    """

    name: str
    says: str
    fix: str
    changes: tuple[Change, ...] = ()
    law: str | None = None  # of the conformance suite; None if no law can catch it
    dtypes: tuple[str, ...] = DTYPES  # in which the law catches it; without a law, `shows_in`
    # If it depends on rounding or on a dtype's range: the dtypes in which it shows in a suite.
    of_a_dtype: tuple[str, ...] = ()
    not_diagnosed: str = ""  # why `golden diagnose` does not try it
    needs_vocabulary: bool = False  # its answers are unknown without
    where: tuple[str, str] = ("", "")  # module and name of the function

    @property
    def shows_in(self) -> tuple[str, ...]:
        """The dtypes in which it shows in a suite."""
        return self.of_a_dtype or (DTYPES if self.law else self.dtypes)

    def results(self, each: Any, predictions: Any, dtype: str) -> Any:
        """Return the results of `each`, evidence of a diagnosis, with this mistake."""
        return predictions.of(self, each.case, dtype, each.another_length)

    def answers(self, case: Any, predictions: Any) -> Any:
        """Return the answers to a case of texts with this mistake."""
        return predictions.document(self, case)

    def replacing(self, name: str) -> list[Callable[..., Any]]:
        """Return the wrong functions that replace `name`."""
        return [wrong for what, wrong in self.changes if what == name]

    def also(self, replaces: str) -> Callable[[Callable[..., Any]], Any]:
        """Decorate a function that replaces something else too."""

        def enter(wrong: Callable[..., Any]) -> Any:
            self.changes += ((replaces, wrong),)
            return wrong

        return enter

    @cached_property
    def backend(self) -> type[Faulty]:
        """The class of backends that make the mistake."""
        module, name = self.where
        home = {"__module__": module, "__qualname__": f"{name}.backend"}
        return type("backend", (faulty_for(self.changes),), {"changes": self.changes, **home})

    @cached_property
    def cache(self) -> type[RollingCache]:
        """The class of caches that make the mistake; RollingCache if it is not about caches."""
        return cache_with(self.changes)

    @contextmanager
    def planted(self, dtype: str) -> Iterator[Faulty]:
        """Yield a backend that makes the mistake; meanwhile the caches of all models make it too.

        NumPy's warnings of the resulting NaN and infinities are off.
        """

        def new_cache(model: PreTrainedModel, rows: int, chunk: int | None = None) -> RollingCache:
            return self.cache(model.config, model.backend, rows, chunk)

        with patch.object(PreTrainedModel, "new_cache", new_cache), np.errstate(all="ignore"):
            yield self.backend(dtype)


ENTRIES: list[Mistake] = []


def mistake(*replaces: str, name: str = "", **more: Any) -> Callable[[Callable[..., Any]], Mistake]:
    """Add the decorated function, which replaces `replaces`, to the catalogue.

    Its name, with hyphens, is the mistake's. Its docstring says what is wrong, and after "Fix:"
    what is right. `more` are other fields of `Mistake`.
    """

    def enter(wrong: Callable[..., Any]) -> Mistake:
        says, _, fix = " ".join((wrong.__doc__ or "").split()).partition(" Fix: ")
        entry = Mistake(
            name or wrong.__name__.replace("_", "-"),
            says,
            fix,
            changes=tuple((what, wrong) for what in replaces),
            where=(wrong.__module__, wrong.__name__),
            **more,
        )
        ENTRIES.append(entry)
        return entry

    return enter
