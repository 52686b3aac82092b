"""What a mistake is: what it replaces, what to say of it, and which law catches it."""

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
ROUNDING = "it is within what rounding may do, so nothing differs"


@dataclass(eq=False)
class Mistake:
    """A mistake by name: what is wrong, what is right, and what it replaces by what.

    Each of `changes` is the name of what is replaced, and a function that takes its place:

        an operation of a backend, `add`, or a part of attention (`planting.py`), of
            (backend, what it replaces, arguments)
        cache.NAME: a method of RollingCache, of (cache, what it replaces, arguments), or a
            property, of (cache, its value)
        checkpoint: of (layout "hf" or "raw", configuration, tensors) -> (configuration, tensors)
        inputs: of (inputs of a case) -> (inputs, what brings the results into the shapes that
            are expected), or None where nothing can be said
        sampling: of (logits (B, V), previous ids (B, n), parameters) -> probabilities (B, V)
        strings, decodings, conversations: of (an entry of a case, tokenizer or None) -> what is
            answered to it, or None where nothing can be said
    """

    name: str
    says: str
    fix: str
    changes: tuple[Change, ...] = ()
    law: str | None = None  # of the conformance suite; None where no law can catch it
    dtypes: tuple[str, ...] = DTYPES  # in which the law catches it; without a law, `shows_in`
    # It lies in rounding or in the range of a dtype: the dtypes in which it shows in a suite.
    of_a_dtype: tuple[str, ...] = ()
    common: bool = False  # often made, so it is tried together with others
    not_diagnosed: str = ""  # why `golden diagnose` does not try it
    needs_vocabulary: bool = False  # its answers cannot be told without
    where: tuple[str, str] = ("", "")  # module and name of the function
    pair: bool = False  # two mistakes

    def __and__(self, other: Mistake) -> Mistake:
        """Return both mistakes as one."""
        dtypes = tuple(dtype for dtype in self.shows_in if dtype in other.shows_in)
        return Mistake(
            f"{self.name} and {other.name}",
            f"{self.says} And: {other.says}",
            f"{self.fix} {other.fix}",
            self.changes + other.changes,
            dtypes=dtypes,
            of_a_dtype=dtypes if self.of_a_dtype or other.of_a_dtype else (),
            pair=True,
        )

    @property
    def shows_in(self) -> tuple[str, ...]:
        """The dtypes in which it shows in a suite."""
        return self.of_a_dtype or (DTYPES if self.law else self.dtypes)

    def replacing(self, name: str) -> list[Callable[..., Any]]:
        """Return what takes the place of this."""
        return [wrong for what, wrong in self.changes if what == name]

    def also(self, replaces: str) -> Callable[[Callable[..., Any]], Any]:
        """Replace something else, too, by the function that follows."""

        def enter(wrong: Callable[..., Any]) -> Any:
            self.changes += ((replaces, wrong),)
            return wrong

        return enter

    @cached_property
    def backend(self) -> type[Faulty]:
        """A backend that makes the mistake."""
        module, name = self.where
        home = {"__module__": module, "__qualname__": f"{name}.backend"}
        return type("backend", (faulty_for(self.changes),), {"changes": self.changes, **home})

    @cached_property
    def cache(self) -> type[RollingCache]:
        """A cache that makes it; the right one if it is not about caches."""
        return cache_with(self.changes)

    @contextmanager
    def planted(self, dtype: str) -> Iterator[Faulty]:
        """Give a backend that makes the mistake; meanwhile all models make caches that do.

        NumPy does not warn of the NaN and infinities that come of it.
        """

        def new_cache(model: PreTrainedModel, rows: int, chunk: int | None = None) -> RollingCache:
            return self.cache(model.config, model.backend, rows, chunk)

        with patch.object(PreTrainedModel, "new_cache", new_cache), np.errstate(all="ignore"):
            yield self.backend(dtype)


FOUND: list[Mistake] = []


def mistake(*replaces: str, name: str = "", **more: Any) -> Callable[[Callable[..., Any]], Mistake]:
    """Enter a function into the catalogue, as what takes the place of `replaces`.

    Its name, with hyphens, is the mistake's; its docstring is what that says, and after "Fix:" how
    it is put right. `more` are other fields of `Mistake`.
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
        FOUND.append(entry)
        return entry

    return enter
