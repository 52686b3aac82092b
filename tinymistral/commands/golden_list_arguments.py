"""What `tinymistral golden list` takes. What it does is in golden_list.py."""

from __future__ import annotations

import argparse

from tinymistral.commands.arguments import Parser
from tinymistral.commands.golden_arguments import add_suite

DESCRIPTION = """\
List the cases of a suite: the id, the kind, and what each is about.

  tinymistral golden list
  tinymistral golden list --json
"""

AFTER = """\
--json prints one object, on one line:
  suite     its name
  folder    where it is: manifest.json there says how its files are to be read
  cases     a list of objects: id, kind, says, catches (mistakes that it tells),
            model, file, expected (the names of its tensors, in the order in
            which they are computed; null where the file is JSON)
"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "list", help="list the cases of a suite", description=DESCRIPTION, epilog=AFTER
    )
    add_suite(parser, optional=True)
    parser.add_argument("--json", action="store_true", help="one JSON object; see below")
