"""List the installed backends, and which of them can run here.

Each has its device and dtypes, and what else it says of itself, or why it
cannot run and what to do. A star marks the default, which is used without
--backend: TINYMISTRAL_BACKEND, else numpy.

  tinymistral backends
  tinymistral backends --json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tinymistral.commands import arguments
from tinymistral.commands.console import print_json, say, write
from tinymistral.text import one_line, table

if TYPE_CHECKING:
    from tinymistral.discovery import InstalledBackend

EPILOG = """\
--json prints one object, on one line:
  backends            a list of objects, the built-in numpy first:
    name, distribution, version, entry_point
    default           whether it is used without --backend
    device, dtypes    what it computes on, and in; null if it cannot run
    details           what else it says of itself, or null
    reason, remedy    why it cannot run, and what to do; null if it can
  default             the name of the default, installed or not

A plugin is a distribution with an entry point `NAME = module:Class` in the
group tinymistral.backends, where Class is a subclass of tinymistral.Backend.
"""

HEADER = ("", "name", "distribution", "version", "device", "dtypes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Print the installed backends."""
    from tinymistral.discovery import VARIABLE, default_name, installed_backends

    everything = installed_backends()
    rows = [describe(installed, everything) for installed in everything]
    if options.json:
        print_json({"backends": rows, "default": default_name()})
    else:
        write(as_table(rows))
    if not any(row["default"] for row in rows):
        say(
            f"tinymistral: warning: {VARIABLE} names {one_line(repr(default_name()), 80)}, which "
            "is not installed; without --backend every command will refuse to compute"
        )


def describe(installed: InstalledBackend, everything: Sequence[InstalledBackend]) -> dict[str, Any]:
    """Return what --json prints of a backend."""
    from tinymistral.backend import BackendUnavailable
    from tinymistral.discovery import BUILT_IN, default_name, details_of, open_backend

    never = installed.name in BUILT_IN and installed != BUILT_IN[installed.name]
    row: dict[str, Any] = {
        "name": one_line(installed.name, 80),
        "distribution": one_line(installed.distribution, 80),
        "version": one_line(installed.version, 40),
        "entry_point": one_line(installed.entry_point, 80),
        "default": installed.name == default_name() and not never,
        **dict.fromkeys(("device", "dtypes", "details", "reason", "remedy")),
    }
    try:
        kind, device = open_backend(installed, everything)
        details = details_of(kind, installed) or None
        row |= {"device": device, "dtypes": list(kind.dtypes), "details": details}
    except BackendUnavailable as error:
        row["reason"], row["remedy"] = error.reason, error.remedy
    return row


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows in columns; details, or why a backend cannot run, are on lines below."""
    cells = [HEADER]
    for row in rows:
        columns = (row[column] for column in HEADER[1:4])
        dtypes = ", ".join(row["dtypes"] or ())
        cells.append(("*" if row["default"] else " ", *columns, row["device"] or "", dtypes))
    text = ""
    for line, row in zip(table(cells), [{}, *rows], strict=True):
        text += f"{line}\n"
        if row.get("details"):
            text += f"       {row['details']}\n"
        if row.get("reason"):
            text += f"       cannot run: {row['reason']}\n       {row['remedy']}\n"
    return text
