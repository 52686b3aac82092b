"""What a suspect is: a mistake by name, and how it changes what a case is computed from.

Suspects add up: `a & b` makes both mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from tinymistral.backend import DTYPES
from tinymistral.cache import RollingCache
from tinymistral.config import MistralConfig
from tinymistral.golden.manifest import Case, Model
from tinymistral.numpy_backend import NumpyBackend

Arrays = Mapping[str, np.ndarray]
Results = dict[str, np.ndarray]
Undo = Callable[[Results], Results]  # brings results into the shapes that the suite expects
Retell = Callable[[Case, Arrays], "tuple[Arrays, Undo] | None"]  # None: no idea what comes of it
Sample = Callable[[np.ndarray, np.ndarray, Mapping[str, Any]], np.ndarray]
Write = Callable[[Mapping[str, Any], Any], "dict[str, Any] | None"]
Reload = Callable[[Model, MistralConfig, Results], "tuple[MistralConfig, Results]"]


@dataclass(frozen=True)
class Suspect:
    """A mistake by name; what is wrong, and how it is right.

    `backends` and `caches` stand in the place of the right ones; `checkpoints` give another
    configuration and other weights for those of a model, `texts` other inputs for those of a case.
    `sampling` returns the probabilities after logits, previous ids and parameters; `answers` a
    document such as a case's, by a tokenizer if there is one.
    """

    name: str
    says: str
    fix: str
    backends: tuple[type[NumpyBackend], ...] = ()
    caches: tuple[type[RollingCache], ...] = ()
    checkpoints: tuple[Reload, ...] = ()
    texts: tuple[Retell, ...] = ()
    sampling: Sample | None = None
    answers: Write | None = None
    dtypes: tuple[str, ...] = DTYPES  # in which it shows
    # It lies in rounding, or in the range of a dtype: to be computed in the candidate's own.
    of_a_dtype: bool = False
    common: bool = False  # often made, so tried together with others
    pair: bool = False  # two others

    def __and__(self, other: Suspect) -> Suspect:
        """Make both mistakes."""
        return Suspect(
            f"{self.name} and {other.name}",
            f"{self.says} And: {other.says}",
            f"{self.fix} {other.fix}",
            self.backends + other.backends,
            self.caches + other.caches,
            self.checkpoints + other.checkpoints,
            self.texts + other.texts,
            dtypes=tuple(dtype for dtype in self.dtypes if dtype in other.dtypes),
            of_a_dtype=self.of_a_dtype or other.of_a_dtype,
            pair=True,
        )


FOUND: list[Suspect] = []


Thing = TypeVar("Thing")


def suspect(
    name: str,
    *,
    fix: str,
    of: str = "backends",
    common: bool = False,
    **more: Any,
) -> Callable[[Thing], Thing]:
    """Enter a class or a function into the list, as one `of` the fields of `Suspect`.

    Its docstring is what the suspect says; `more` are other fields.
    """

    def enter(thing: Thing) -> Thing:
        says = " ".join((thing.__doc__ or "").split())
        change: dict[str, Any] = {of: (thing,), **more}
        FOUND.append(Suspect(name, says, fix, common=common, **change))
        return thing

    return enter
