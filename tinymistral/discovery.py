"""Find the installed backends; choose, import, check and make one.

A distribution offers a backend by an entry point of the group `tinymistral.backends`: its name is
the backend's, its value `module:Class` a subclass of `Backend`. numpy and plain are built in. A
plugin is imported only when it is asked for; then everything about it is checked. What it raises
or lacks becomes BackendUnavailable, with a message of bounded length; no backend is ever chosen or
replaced silently.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from tinymistral import __version__
from tinymistral.backend import DTYPES, Backend, BackendUnavailable
from tinymistral.text import one_line

GROUP = "tinymistral.backends"
VARIABLE = "TINYMISTRAL_BACKEND"
UNNAMED = "unnamed"  # a distribution whose metadata is broken


@dataclass(frozen=True, order=True)
class InstalledBackend:
    """A backend's name, the distribution that offers it, and its `module:Class`."""

    name: str
    distribution: str
    version: str
    entry_point: str

    @property
    def source(self) -> str:
        """The distribution and its version, for messages."""
        return f"{one_line(self.distribution, 80)} {one_line(self.version, 40)}"


# By name; the first is the default.
BUILT_IN = {
    name: InstalledBackend(name, "tinymistral", __version__, entry_point)
    for name, entry_point in {
        "numpy": "tinymistral.numpy_backend:NumpyBackend",
        "plain": "tinymistral.operations:PlainBackend",
    }.items()
}


def get_backend(backend: str | Backend | None = None, dtype: Any = None) -> Backend:
    """Return the backend asked for: by argument, else by TINYMISTRAL_BACKEND, else numpy.

    A `Backend` object is returned as it is. `dtype` is a name, such as "float16", or a dtype of
    NumPy or PyTorch, such as np.float16. Raises ValueError for a name that is not installed or a
    dtype that it does not support, and BackendUnavailable for one that cannot run here.
    """
    if dtype is not None and not isinstance(dtype, str):
        dtype = _name_of(dtype)
    if isinstance(backend, Backend):
        if dtype not in (None, backend.dtype):
            raise ValueError(
                f"dtype {dtype!r} was asked for, but the backend given computes in "
                f"{backend.dtype!r}; leave one of the two out"
            )
        return backend
    asked_by, name = ("backend", backend) if backend is not None else (VARIABLE, default_name())
    installed, others = _find(name, asked_by)
    with named(installed, asked_by):
        return make_backend(installed, others, dtype)


def _name_of(dtype: Any) -> str:
    try:
        return np.dtype(dtype).name
    except TypeError:
        return str(dtype).removeprefix("torch.")


def load_backend(name: str) -> type[Backend]:
    """Return the class of an installed backend, even of one that cannot run here.

    Raises ValueError for a name that is not installed, BackendUnavailable for a broken plugin.
    """
    installed, others = _find(name, "backend")
    with named(installed, "backend"):
        return load_class(installed, others)


def default_name() -> str:
    """Return the name of the backend that is used if none is given as an argument."""
    return os.environ.get(VARIABLE) or next(iter(BUILT_IN))


def installed_backends() -> list[InstalledBackend]:
    """Return the installed backends, the built-in ones first, then by name; no plugin is imported.

    If a distribution is on sys.path more than once, the first one counts, as in imports. A plugin
    with the name of a built-in one is listed, but never used.
    """
    import importlib.metadata  # takes 30 ms, and a run on numpy does not need it

    found: set[InstalledBackend] = set()
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        with suppress(Exception):  # broken metadata of any distribution
            points = [point for point in distribution.entry_points if point.group == GROUP]
            if points:
                name, version = _name_and_version(distribution)
                key = re.sub(r"[-_.]+", "-", name).lower()  # as their names are compared
                if key not in seen or name == UNNAMED:
                    found |= {InstalledBackend(p.name, name, version, p.value) for p in points}
                    seen.add(key)
    return [*BUILT_IN.values(), *sorted(found)]


def _name_and_version(distribution: Any) -> tuple[str, str]:
    name = version = None
    with suppress(Exception):
        fields = distribution.metadata
        name, version = fields.get("Name"), fields.get("Version")
    return name or UNNAMED, version or "without a version"


def _find(name: Any, asked_by: str) -> tuple[InstalledBackend, Sequence[InstalledBackend]]:
    """Return the backend of this name, and all installed ones, () if it is built in."""
    if isinstance(name, str) and name in BUILT_IN:
        return BUILT_IN[name], ()
    everything = installed_backends()
    for installed in everything:
        if installed.name == name:
            return installed, everything
    have = ", ".join(one_line(have, 80) for have in dict.fromkeys(x.name for x in everything))
    raise ValueError(
        f"{asked_by}: {one_line(repr(name))} is not installed; expected one of: {have}; "
        "or install the distribution that provides it"
    )


def make_backend(
    installed: InstalledBackend, others: Sequence[InstalledBackend], dtype: str | None
) -> Backend:
    """Make a backend in a dtype, None for its default; ValueError if it is not supported."""
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
    """Return the class of a backend, and the name of its device on this machine."""
    kind = load_class(installed, others)
    with _faults("device() fails", installed):
        device = kind.device()
    if not isinstance(device, str) or not one_line(device):
        raise _broken(f"device() returns {one_line(repr(device))}; expected a name", installed)
    return kind, one_line(device, 60)


def details_of(kind: type[Backend], installed: InstalledBackend) -> str:
    """Return what a backend that can run says of how it computes here, on one line."""
    with _faults("details() fails", installed):
        details = kind.details()
    if not isinstance(details, str):
        raise _broken(f"details() returns {one_line(repr(details))}; expected a text", installed)
    return one_line(details)


def load_class(installed: InstalledBackend, others: Sequence[InstalledBackend]) -> type[Backend]:
    """Import and check the class of a backend; `others` are all that are installed."""
    if installed != BUILT_IN.get(installed.name):
        _refuse_namesakes(installed, others)
    match = re.fullmatch(r"([\w.]+)\s*:\s*([\w.]+)\s*(\[.*\])?", installed.entry_point.strip())
    entry_point = f"its entry point {one_line(installed.entry_point, 80)}"
    if match is None:
        raise _broken(f"{entry_point} does not read module:Class", installed)
    with _faults("importing it fails", installed):
        kind: Any = import_module(match[1])
        for attribute in match[2].split("."):
            kind = getattr(kind, attribute)
    if not (isinstance(kind, type) and issubclass(kind, Backend)):
        raise _broken(f"{entry_point} is no subclass of tinymistral.Backend", installed)
    _check_class(kind, installed)
    return kind


def _refuse_namesakes(installed: InstalledBackend, others: Sequence[InstalledBackend]) -> None:
    if installed.name in BUILT_IN:
        raise BackendUnavailable(
            f"the name {installed.name} is that of a built-in backend, which nothing replaces",
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
    for attribute, expected, is_right in _DECLARED:
        if not is_right(value := getattr(kind, attribute)):
            reason = f"its {attribute} is {one_line(repr(value), 80)}; expected {expected}"
            raise _broken(reason, installed)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_even_widths(value: Any) -> bool:
    sized = isinstance(value, Collection) and not isinstance(value, str | bytes) and len(value) > 0
    return sized and all(_is_count(width) and width % 2 == 0 for width in value)


# Other attributes that a class declares: name, what is expected, and the check.
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
    """Raise BackendUnavailable for any exception of a plugin; its own stays, on one line."""
    try:
        yield
    except BackendUnavailable as error:
        reason, remedy = one_line(error.reason), one_line(error.remedy)
        raise BackendUnavailable(reason, remedy) from error
    except (Exception, SystemExit) as error:
        message = one_line(f"{type(error).__name__}: {error}").removesuffix(":")
        raise _broken(f"{what_fails}: {message}", installed) from error


@contextmanager
def named(installed: InstalledBackend, asked_by: str) -> Iterator[None]:
    """Add the name of the backend to the reason of a BackendUnavailable."""
    try:
        yield
    except BackendUnavailable as error:
        reason = f"{one_line(installed.name, 80)!r} of {installed.source} cannot run"
        raise BackendUnavailable(f"{asked_by}: {reason}: {error.reason}", error.remedy) from error
