"""A law: what holds for every right backend, on every case; and how a failure is reported.

A law is written as a function of a backend and a case; the decorator `law` makes a test of it that
draws the cases. A case is a few small numbers, one of them the seed of its arrays. So its repr,
in the snippet that a failure prints, is enough to reproduce the failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

import tinymistral.conformance
from tinymistral.backend import DTYPES, Backend
from tinymistral.conformance import BEFORE_SNIPPET, cases

SETTINGS = settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,  # the snippet replaces it
    report_multiple_bugs=False,  # a group of failures would have no snippet
    phases=[phase for phase in Phase if phase is not Phase.explain],  # slow, and no help here
)

Check = Callable[[Any, Any], None]  # (backend, case), raises AssertionError


@dataclass(frozen=True)
class Law:
    """A law, and the backends that it applies to."""

    name: str
    says: str  # the law in one line
    check: Check
    needs_weights: bool  # it is about `attention_weights`
    dtypes: tuple[str, ...]  # in which its bounds are narrow enough to show a mistake
    real_sizes: bool  # its few cases are large

    def not_for(self, backend: Backend) -> str | None:
        """Return why the law does not apply to a backend, or None if it does."""
        for key in (self.name, f"{self.name}[{backend.dtype}]"):
            if key in backend.unsupported:
                return f"declared as unsupported: {backend.unsupported[key]}"
        if self.needs_weights and not backend.has_attention_weights:
            return "has_attention_weights is False"
        if self.real_sizes and cases.SMALL_ONLY:
            return "--tinymistral-small leaves out real sizes"
        if backend.dtype not in self.dtypes:
            return f"its bounds are narrow enough only in {' and '.join(self.dtypes)}"
        return None


def law(
    drawn: Callable[[Backend], st.SearchStrategy[Any]],
    *,
    needs_weights: bool = False,
    dtypes: tuple[str, ...] = DTYPES,
    real_sizes: bool = False,
) -> Callable[[Check], Any]:
    """Make a test of a law. `drawn` returns the strategy of its cases for a backend.

    The test takes the backend. Its attribute `tinymistral_law` is the `Law`.
    """

    def decorate(check: Check) -> Any:
        says = " ".join((check.__doc__ or "").partition("\n\n")[0].split())
        name = check.__name__.removeprefix("test_")
        law = Law(name, says, check, needs_weights, dtypes, real_sizes)

        def on_drawn_cases(backend: Backend, data: st.DataObject) -> None:
            case = data.draw(drawn(backend))
            note(snippet(law, backend, case))
            check(backend, case)

        on_drawn_cases.__name__ = on_drawn_cases.__qualname__ = check.__name__
        on_drawn_cases.__doc__, on_drawn_cases.__module__ = check.__doc__, check.__module__
        test: Any = SETTINGS(given(data=st.data())(on_drawn_cases))
        test.tinymistral_law = law
        return test

    return decorate


def snippet(law: Law, backend: Backend, case: Any) -> str:
    """Return lines of Python that check the law on this case alone."""
    kind = type(backend)
    home = kind.__qualname__.partition(".")[0]
    return (
        f"{BEFORE_SNIPPET}\n\n"
        "from math import inf, nan\n"
        f"from {kind.__module__} import {home}\n"
        "from tinymistral.conformance.cases import *\n"
        "from tinymistral.conformance.models import *\n"
        f"from {law.check.__module__} import test_{law.name} as test\n"
        f"test.tinymistral_law.check({kind.__qualname__}({backend.dtype!r}), {case!r})\n"
    )


def all_laws() -> Iterator[Any]:
    """Return the test of every law."""
    for module in iter_modules(tinymistral.conformance.__path__):
        if module.name.startswith("test_"):
            home = import_module(f"tinymistral.conformance.{module.name}")
            yield from (test for test in vars(home).values() if hasattr(test, "tinymistral_law"))
