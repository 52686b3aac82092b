"""What `tinymistral tokenize` takes. What it does is in tokenize.py."""

from __future__ import annotations

import argparse

from tinymistral.commands.arguments import Parser, add_model

DESCRIPTION = """\
Print the id and the piece of every token of a text, one token a line. In a
piece '\u2581' is a space, and <0x0A> a byte. Or turn ids back into text.

  tinymistral tokenize "Once upon a time"
  tinymistral tokenize --decode 1734 661 261 511
  tinymistral tokenize "Hi" | awk '{print $1}' | tinymistral tokenize --decode
"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "tokenize",
        help="show how a text is cut into tokens, or turn ids back into text",
        description=DESCRIPTION,
    )
    add = parser.add_argument
    add("text", nargs="?", help="the text; without it, it is standard input")
    add(
        "--decode",
        nargs="*",
        metavar="ID",
        help="print the text of these ids, or of ids on standard input; special tokens such as "
        "<s> have none",
    )
    add("--no-bos", action="store_true", help="leave out <s>, which begins every sequence")
    add("--json", action="store_true", help="one JSON object: text, ids and pieces")
    add_model(parser)
