"""The signatures of cupy's functions, also of those written in Cython.

`inspect` knows the Python functions. Cython puts a signature on the docstring's first line:
`_ndarray_base.take(self, indices, axis=None, out=None) -> _ndarray_base`; one that takes `*args`
may show a second one below, which says more. Operators (`__add__`) have neither. Defaults are
given as their source text.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

PARAMETER = re.compile(r"(\*{0,2})(?:[\w.]+ )?(\w+)(?:=(.*))?")


def signature(thing: Any, *, method: bool = False) -> inspect.Signature | None:
    """Return the signature (a method's without `self`), None if it is unknown."""
    shown = _shown(thing)
    if shown is None:
        try:
            shown = inspect.signature(thing)
        except (TypeError, ValueError):
            return None
    parameters = [p.replace(default=_written(p.default)) for p in shown.parameters.values()]
    if method and parameters and parameters[0].name == "self":
        parameters = parameters[1:]
    return shown.replace(parameters=parameters)


def _written(default: Any) -> Any:
    if default is inspect.Parameter.empty or isinstance(default, _Text):
        return default
    return _Text(getattr(default, "__name__", repr(default)))


class _Text(str):
    """A default, as its text in a docstring."""


def _shown(thing: Any) -> inspect.Signature | None:
    """Return the last signature in the first three lines of a docstring that can be parsed."""
    name = getattr(thing, "__name__", "").strip("_") or r"\w+"
    found = None
    for line in (getattr(thing, "__doc__", None) or "").strip().splitlines()[:3]:
        match = re.match(rf"\s*(?:[\w.]*\.)?_*(?:{name}|init)_*\((.*)\)(?: ->.*)?$", line)
        if match:
            found = _parsed(match[1].replace("\\", "")) or found
    return found


def _parsed(text: str) -> inspect.Signature | None:
    parameters, keywords = [], False
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part == "/":
            parameters = [p.replace(kind=p.POSITIONAL_ONLY) for p in parameters]
            continue
        if part == "*":
            keywords = True
            continue
        match = PARAMETER.fullmatch(part)
        if match is None:
            return None
        kind = {
            "*": inspect.Parameter.VAR_POSITIONAL,
            "**": inspect.Parameter.VAR_KEYWORD,
            "": inspect.Parameter.KEYWORD_ONLY
            if keywords
            else inspect.Parameter.POSITIONAL_OR_KEYWORD,
        }[match[1]]
        keywords = keywords or match[1] == "*"
        default = _Text(match[3]) if match[3] else inspect.Parameter.empty
        parameters.append(inspect.Parameter(match[2], kind, default=default))
    return inspect.Signature(parameters)
