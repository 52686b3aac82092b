"""`python -m tinymistral golden`: each subcommand in golden_NAME.py."""

from __future__ import annotations

import argparse
from importlib import import_module


def run(options: argparse.Namespace) -> int | None:
    """Run a subcommand and return its exit code; print the help if there is none."""
    if options.subcommand is None:
        options.print_help()
        return None
    code: int | None = import_module(f"tinymistral.commands.golden_{options.subcommand}").run(
        options
    )
    return code
