"""Which backends are installed, and how one is chosen.

A distribution offers a backend by an entry point of the group `tinymistral.backends`: its name is
the backend's, its value `module:Class` a subclass of `Backend`. numpy is built in. No plugin is
imported before it is asked for; then everything about it is checked, and what is wrong is an
error: none is ever chosen or replaced silently.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from tinymistral.backend import Backend
from tinymistral.plugins import (
    BUILT_IN,
    InstalledBackend,
    load_class,
    make_backend,
    named,
)
from tinymistral.text import one_line

GROUP = "tinymistral.backends"
VARIABLE = "TINYMISTRAL_BACKEND"
UNNAMED = "unnamed"  # a distribution whose metadata is broken


def get_backend(backend: str | Backend | None = None, dtype: str | None = None) -> Backend:
    """Return the backend asked for: by argument, else by TINYMISTRAL_BACKEND, else numpy.

    A `Backend` object is returned as it is. Raises ValueError for a name that is not installed or
    a dtype that it does not support, and BackendUnavailable for one that cannot run here.
    """
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


def load_backend(name: str) -> type[Backend]:
    """Return the class of an installed backend; one that cannot run here can be loaded, too.

    Raises ValueError for a name that is not installed, BackendUnavailable for a broken plugin.
    """
    installed, others = _find(name, "backend")
    with named(installed, "backend"):
        return load_class(installed, others)


def default_name() -> str:
    """Return the name of the backend that computes where none is asked for by argument."""
    return os.environ.get(VARIABLE) or BUILT_IN.name


def installed_backends() -> list[InstalledBackend]:
    """Return what is installed, the built-in numpy first, then by name; no plugin is imported.

    Of a distribution that is on sys.path more than once the first counts, as it does in imports.
    A plugin that calls itself numpy is among them, but never used.
    """
    import importlib.metadata  # some 30 ms that a run on numpy need not wait for

    found: set[InstalledBackend] = set()
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        with suppress(Exception):  # broken metadata, as it may lie about in any environment
            points = [point for point in distribution.entry_points if point.group == GROUP]
            if points:
                name, version = _name_and_version(distribution)
                key = re.sub(r"[-_.]+", "-", name).lower()  # as packages' names are compared
                if key not in seen or name == UNNAMED:
                    found |= {InstalledBackend(p.name, name, version, p.value) for p in points}
                    seen.add(key)
    return [BUILT_IN, *sorted(found)]


def _name_and_version(distribution: Any) -> tuple[str, str]:
    name = version = None
    with suppress(Exception):
        fields = distribution.metadata
        name, version = fields.get("Name"), fields.get("Version")
    return name or UNNAMED, version or "without a version"


def _find(name: Any, asked_by: str) -> tuple[InstalledBackend, Sequence[InstalledBackend]]:
    """Return what has the name, and all that is installed; for numpy nothing is looked for."""
    if name == BUILT_IN.name:
        return BUILT_IN, ()
    everything = installed_backends()
    for installed in everything:
        if installed.name == name:
            return installed, everything
    have = ", ".join(one_line(have, 80) for have in dict.fromkeys(x.name for x in everything))
    raise ValueError(
        f"{asked_by}: {one_line(repr(name))} is not installed; expected one of: {have}; "
        "or install the distribution that provides it"
    )
