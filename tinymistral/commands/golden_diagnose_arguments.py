"""What `tinymistral golden diagnose` takes. What it does is in golden_diagnose.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinymistral.commands.arguments import Parser
from tinymistral.commands.golden_arguments import add_candidate, add_suite

DESCRIPTION = """\
Say which known mistake makes exactly the numbers that your program computed:
the reference is run with each of more than a hundred, and likely pairs of them,
and what comes of it is held against your output.

  tinymistral golden diagnose v1 my-dump
  tinymistral golden diagnose v1 my-dump --dtype bfloat16 --json
"""

AFTER = """\
CANDIDATE is what `golden check` takes. The more of it, the better: all stages
tell mistakes apart of which logits alone show the same. An explanation has to
hold for all that is given, also for the cases that agree. Those that nothing
given tells apart are named together.

Some mistakes do not show in some tensors, and then they are not found: a
position that begins at 1 changes `q_rotated`, `k_rotated` and what is cached,
never the logits; in 16 bits, whatever is smaller than rounding.

Exit code: 0 if nothing differs; 1 if something does, whether the mistake is
known or not; 2 if nothing can be compared.

--json prints one object, on one line:
  suite, candidate
  diagnoses       a list, of "forward", "sampling", "tokenizer" and "chat" those
                  that something is given of:
    about, cases, differ (ids), tried (how many mistakes, and pairs)
    explanations  ranked; each has suspects (name, says, fix; several that
                  cannot be told apart), worst (the largest error in units of
                  its tolerance), explains and contradicts (ids of cases), decided
                  (the first stage that it changes, and the case)
    partial_explanations   the same, where nothing explains all
    first         the first tensor that differs: case, name, worst, where,
                  computed_from
  not_compared    a list of case and why
"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "diagnose",
        help="say which known mistake makes the numbers that your program computed",
        description=DESCRIPTION,
        epilog=AFTER,
    )
    add = parser.add_argument
    add_suite(parser)
    add_candidate(parser)
    add("--case", action="append", default=[], metavar="ID", help="only this one; may be repeated")
    add(
        "--vocabulary",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a tokenizer.model that tokenizer and chat cases are made with; may be repeated "
        "(without it less can be told of them)",
    )
    add("--model", metavar="FOLDER", help="the checkpoint that a recorded suite was made from")
    add("--json", action="store_true", help="one JSON object; see below")
