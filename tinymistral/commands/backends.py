"""`python -m tinymistral backends`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from tinymistral.backend import BackendUnavailable
from tinymistral.commands.console import say, write
from tinymistral.discovery import (
    BUILT_IN,
    VARIABLE,
    InstalledBackend,
    default_name,
    installed_backends,
    open_backend,
)
from tinymistral.text import one_line

HEADER = ("", "name", "distribution", "version", "device", "dtypes")
INDENT = " " * 7  # of what stands below a row


def run(options: argparse.Namespace) -> None:
    """Print what is installed, and whether it can run here."""
    everything = installed_backends()
    rows = [describe(installed, everything) for installed in everything]
    if options.json:
        fields = {"backends": rows, "default": default_name()}
        write(f"{json.dumps(fields, ensure_ascii=False)}\n")
    else:
        write(as_table(rows))
    if not any(row["default"] for row in rows):
        say(
            f"tinymistral: warning: {VARIABLE} names {one_line(repr(default_name()), 80)}, which "
            "is not installed; without --backend every command will refuse to compute"
        )


def describe(installed: InstalledBackend, everything: Sequence[InstalledBackend]) -> dict[str, Any]:
    """Return what there is to say of a backend, as --json prints it."""
    never = installed.name in BUILT_IN and installed != BUILT_IN[installed.name]
    row: dict[str, Any] = {
        "name": one_line(installed.name, 80),
        "distribution": one_line(installed.distribution, 80),
        "version": one_line(installed.version, 40),
        "entry_point": one_line(installed.entry_point, 80),
        "default": installed.name == default_name() and not never,
        **dict.fromkeys(("device", "dtypes", "reason", "remedy")),
    }
    try:
        kind, row["device"] = open_backend(installed, everything)
        row["dtypes"] = list(kind.dtypes)
    except BackendUnavailable as error:
        row["reason"], row["remedy"] = error.reason, error.remedy
    return row


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay the backends out in columns; why one cannot run stands on lines below it."""
    cells = [HEADER] + [
        (
            "*" if row["default"] else "",
            *(row[column] for column in HEADER[1:4]),
            row["device"] or "",
            ", ".join(row["dtypes"] or ()),
        )
        for row in rows
    ]
    widths = [max(1, *map(len, column)) for column in zip(*cells, strict=True)]
    text = ""
    for line, row in zip(cells, [None, *rows], strict=True):
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        text += "  ".join(padded).rstrip() + "\n"
        if row and row["reason"]:
            text += f"{INDENT}cannot run: {row['reason']}\n{INDENT}{row['remedy']}\n"
    return text
