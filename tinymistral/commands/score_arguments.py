"""What `tinymistral score` takes. What it does is in score.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinymistral.commands.arguments import Parser, add_computation, add_model

DESCRIPTION = """\
Tell how likely a model finds a text: the log-probability of each of its
tokens, given those before it. Texts may be longer than any window.

  tinymistral score story.txt
  tinymistral score --model FOLDER --json story.txt
  echo "Once upon a time" | tinymistral score

A sane model of a language has a perplexity of some 5 to 50 on plain prose in
it; one whose weights are mixed up, one in the thousands.
"""

AFTER = """\
--json prints one object, on one line:
  text, ids, pieces   the text and its tokens, with <s> first
  logprobs            natural logarithms, of all tokens but <s>
  logprob             their sum
  perplexity          exp(-logprob / number of tokens); null: past all bounds
  bits_per_byte       -logprob / ln 2 / bytes of the text in UTF-8, which does
                      not depend on the tokenizer
"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "score",
        help="tell how likely a model finds a text",
        description=DESCRIPTION,
        epilog=AFTER,
    )
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="the text, in UTF-8; without it, it is standard input",
    )
    add_model(parser)
    add_computation(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object; see below")
