"""What a mistake is: a wrong backend or a wrong cache, what to say of it, and who catches it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from unittest.mock import patch

import numpy as np

from tinymistral.backend import DTYPES
from tinymistral.cache import RollingCache
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.pretrained import PreTrainedModel

HALVES = ("float16", "bfloat16")

Kind = TypeVar("Kind", bound=type[NumpyBackend] | type[RollingCache])


@dataclass(frozen=True)
class Mistake:
    """A mistake by name; what is wrong, and how it is right; the law that catches it."""

    name: str
    says: str
    fix: str
    law: str
    dtypes: tuple[str, ...] = DTYPES  # in which it shows
    backend: type[NumpyBackend] = NumpyBackend
    cache: type[RollingCache] = RollingCache

    @contextmanager
    def planted(self, dtype: str) -> Iterator[NumpyBackend]:
        """Give a backend that makes the mistake; meanwhile all models make caches that do.

        NumPy does not warn of the NaN and infinities that come of it.
        """

        def new_cache(model: PreTrainedModel, rows: int, chunk: int | None = None) -> RollingCache:
            return self.cache(model.config, model.backend, rows, chunk)

        with patch.object(PreTrainedModel, "new_cache", new_cache), np.errstate(all="ignore"):
            yield self.backend(dtype)


FOUND: list[Mistake] = []


def mistake(
    name: str, *, law: str, fix: str, dtypes: tuple[str, ...] = DTYPES
) -> Callable[[Kind], Kind]:
    """Enter a class into the catalogue. Its docstring is what the mistake says."""

    def enter(kind: Kind) -> Kind:
        says = " ".join((kind.__doc__ or "").split())
        if issubclass(kind, NumpyBackend):
            FOUND.append(Mistake(name, says, fix, law, dtypes, backend=kind))
        else:
            FOUND.append(Mistake(name, says, fix, law, dtypes, cache=kind))
        return kind

    return enter
