"""From the entry point of a backend to the backend: imported, checked, asked, made.

Whatever a plugin raises or lacks becomes BackendUnavailable, in words of bounded length. In these
functions it does not say which backend it is about; `named` adds that. `others` are all that are
installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tinymistral import __version__
from tinymistral.backend import DTYPES, Backend, BackendUnavailable
from tinymistral.text import one_line


@dataclass(frozen=True, order=True)
class InstalledBackend:
    """A backend's name, the distribution that offers it, and its `module:Class`."""

    name: str
    distribution: str
    version: str
    entry_point: str

    @property
    def source(self) -> str:
        """The distribution and its version, to be read."""
        return f"{one_line(self.distribution, 80)} {one_line(self.version, 40)}"


BUILT_IN = InstalledBackend(
    "numpy", "tinymistral", __version__, "tinymistral.numpy_backend:NumpyBackend"
)


def make_backend(
    installed: InstalledBackend, others: Sequence[InstalledBackend], dtype: str | None
) -> Backend:
    """Make it, in its default dtype or the one asked for; ValueError unless that is supported."""
    kind, _ = open_backend(installed, others)
    dtype = kind.check_dtype(dtype)
    with _faults("making it fails", installed):
        made = kind(dtype)
    if (got := getattr(made, "dtype", None)) != dtype:
        raise _broken(f"its dtype is {one_line(got)} where {dtype} was asked for", installed)
    return made


def open_backend(
    installed: InstalledBackend, others: Sequence[InstalledBackend]
) -> tuple[type[Backend], str]:
    """Return its class, and what that computes on here."""
    kind = load_class(installed, others)
    with _faults("device() fails", installed):
        device = kind.device()
    if not isinstance(device, str) or not one_line(device):
        raise _broken(f"device() returns {one_line(repr(device))}; expected a name", installed)
    return kind, one_line(device, 60)


def load_class(installed: InstalledBackend, others: Sequence[InstalledBackend]) -> type[Backend]:
    """Import its class and check that."""
    if installed != BUILT_IN:
        _refuse_namesakes(installed, others)
    where = re.fullmatch(r"([\w.]+)\s*:\s*([\w.]+)\s*(\[.*\])?", installed.entry_point.strip())
    entry_point = f"its entry point {one_line(installed.entry_point, 80)}"
    if where is None:
        raise _broken(f"{entry_point} does not read module:Class", installed)
    with _faults("importing it fails", installed):
        kind: Any = import_module(where[1])
        for attribute in where[2].split("."):
            kind = getattr(kind, attribute)
    if not (isinstance(kind, type) and issubclass(kind, Backend)):
        raise _broken(f"{entry_point} is no subclass of tinymistral.Backend", installed)
    _check_class(kind, installed)
    return kind


def _refuse_namesakes(installed: InstalledBackend, others: Sequence[InstalledBackend]) -> None:
    if installed.name == BUILT_IN.name:
        raise BackendUnavailable(
            "the name numpy is that of the built-in backend, which nothing replaces",
            f"uninstall {one_line(installed.distribution, 80)}",
        )
    sources = [x.source for x in others if x.name == installed.name]
    if len(sources) > 1:
        raise BackendUnavailable(
            f"several backends have this name, those of {' and '.join(sources)}",
            "uninstall all but one",
        )


def _check_class(kind: type[Backend], installed: InstalledBackend) -> None:
    name, dtypes = getattr(kind, "name", None), getattr(kind, "dtypes", None)
    if name != installed.name:
        raise _broken(f"its class has the name {one_line(repr(name), 80)}", installed)
    if missing := sorted(kind.__abstractmethods__):
        raise _broken(f"its class lacks {', '.join(missing)}", installed)
    if not (isinstance(dtypes, tuple) and dtypes and all(dtype in DTYPES for dtype in dtypes)):
        raise _broken(
            f"its dtypes are {one_line(repr(dtypes), 80)}; "
            f"expected a tuple of some of {', '.join(DTYPES)}",
            installed,
        )
    for what, expected, is_right in _DECLARED:
        if not is_right(value := getattr(kind, what)):
            said = f"its {what} is {one_line(repr(value), 80)}; expected {expected}"
            raise _broken(said, installed)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_even_widths(value: Any) -> bool:
    sized = isinstance(value, Collection) and not isinstance(value, str | bytes) and len(value) > 0
    return sized and all(_is_count(width) and width % 2 == 0 for width in value)


# What else a class declares as data: its name, what is expected of it, and whether it is that.
_DECLARED: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("chunk", "a number of tokens, at least 1", _is_count),
    ("has_attention_weights", "True or False", lambda value: isinstance(value, bool)),
    ("narrow_weights", "True or False", lambda value: isinstance(value, bool)),
    (
        "head_dims",
        "None, or some even numbers",
        lambda value: value is None or _are_even_widths(value),
    ),
    (
        "unsupported",
        "a dict from the name of a law to why it does not hold",
        lambda value: (
            isinstance(value, Mapping)
            and all(isinstance(x, str) for pair in value.items() for x in pair)
        ),
    ),
)


def _broken(reason: str, installed: InstalledBackend) -> BackendUnavailable:
    distribution = one_line(installed.distribution, 80)
    return BackendUnavailable(reason, f"reinstall {distribution}, or uninstall it")


@contextmanager
def _faults(what_fails: str, installed: InstalledBackend) -> Iterator[None]:
    """Turn whatever a plugin raises into BackendUnavailable; one of its own keeps its words."""
    try:
        yield
    except BackendUnavailable as error:
        reason, remedy = one_line(error.reason), one_line(error.remedy)
        raise BackendUnavailable(reason, remedy) from error
    except (Exception, SystemExit) as error:
        said = one_line(f"{type(error).__name__}: {error}").removesuffix(":")
        raise _broken(f"{what_fails}: {said}", installed) from error


@contextmanager
def named(installed: InstalledBackend, asked_by: str) -> Iterator[None]:
    """Say of which backend an error is."""
    try:
        yield
    except BackendUnavailable as error:
        reason = f"{one_line(installed.name, 80)!r} of {installed.source} cannot run"
        raise BackendUnavailable(f"{asked_by}: {reason}: {error.reason}", error.remedy) from error
