"""What `tinymistral golden published` takes. What it does is in golden_published.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinymistral.commands.arguments import Parser, add_computation

DESCRIPTION = """\
Hold the real Mistral-7B-v0.1 to what others have published of it: logits of one
text, and greedy continuations.

  tinymistral golden published --model mistralai/Mistral-7B-v0.1
  tinymistral golden published --logits logits.npy
"""

AFTER = """\
The logits are those of the ids 1 306 4658 278 6593 310 2834 338: their mean at
each position, and the first 30 at the first, are known to 0.01. --logits holds
those of any program to that: a .npy file of shape (8, 32000) or (1, 8, 32000).

Exit code: 0 if all agrees; 1 if something differs; 2 if it cannot be compared,
such as another model, which has other numbers.
"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "published",
        help="hold the real Mistral-7B-v0.1 to published numbers",
        description=DESCRIPTION,
        epilog=AFTER,
    )
    add = parser.add_argument
    add("--model", metavar="FOLDER", help="the checkpoint, or its name on the Hugging Face hub")
    add("--logits", type=Path, metavar="FILE", help="logits that a program of yours computed")
    add("--long", action="store_true", help="with --model: texts past the window of 4096 too")
    add("--numbers", type=Path, metavar="FILE", help="of another model; see golden/published/")
    add_computation(parser)
