"""What `tinymistral backends` takes. What it does is in backends.py."""

from __future__ import annotations

import argparse

from tinymistral.commands.arguments import Parser

DESCRIPTION = """\
List the backends that are installed: what each computes on here, in which
dtypes, or why it cannot run and what to do about it. A star marks the one that
computes where --backend names none: TINYMISTRAL_BACKEND, else numpy.

  tinymistral backends
  tinymistral backends --json
"""

AFTER = """\
--json prints one object, on one line:
  backends            a list of objects, the built-in numpy first:
    name, distribution, version, entry_point
    default           whether it computes where --backend names none
    device, dtypes    what it computes on, and in; null if it cannot run
    reason, remedy    why it cannot run, and what to do; null if it can
  default             the name of the one marked, installed or not

A plugin is a distribution with an entry point `NAME = module:Class` in the
group tinymistral.backends, where Class is a subclass of tinymistral.Backend.
"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "backends",
        help="list the backends that are installed, and say which can run here",
        description=DESCRIPTION,
        epilog=AFTER,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object; see below")
