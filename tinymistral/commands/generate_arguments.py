"""What `tinymistral generate` takes. What it does is in generate.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinymistral.commands.arguments import (
    Parser,
    add_computation,
    add_model,
    add_sampling,
    integer,
)

DESCRIPTION = """\
Continue a text, and print it as it comes.

  tinymistral generate "Once upon a time" --seed 7
  tinymistral generate --model FOLDER --greedy --prompt-file letter.txt
  echo "The King said" | tinymistral generate --stop "." --json

The defaults stated below are for a model that does not bring its own in
generation_config.json. The demo model does: it samples, with temperature 0.7
and top-k 40.
"""

AFTER = """\
--json prints one object, on one line:
  text, ids           prompt and continuation (the text, with --chat: the
                      answer alone)
  prompt, prompt_ids
  continuation        without the stop text
  continuation_ids    all that were generated, of the stop text and </s> too
  logprobs            for each of them: the natural logarithm of the
                      probability that the model itself gives it
  finish_reason       "length", "eos" (the model ended the text) or "stop"
  seed                null where nothing is drawn
  counts              prompt_tokens, new_tokens
  timings             load_seconds, prefill_seconds (to the first new token),
                      decode_seconds (from there to the last)

Exit codes: 0; 2 for a mistake in what was given; 130 after Ctrl-C, which
leaves the text so far.
"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "generate",
        help="continue a text",
        description=DESCRIPTION,
        epilog=AFTER,
    )
    source = parser.add_mutually_exclusive_group()
    add = source.add_argument
    add("prompt", nargs="?", help="the text to continue; without it, it is standard input")
    add(
        "--prompt-file",
        type=Path,
        metavar="FILE",
        help="read the prompt from a file; a newline at its end is left out",
    )
    add_model(parser)
    add_computation(parser)
    add = parser.add_argument
    add("--chat", action="store_true", help="the prompt is a message to an Instruct model")
    add("--system", metavar="TEXT", help="with --chat: a system prompt, said before the message")

    add = parser.add_argument_group("how far").add_argument
    add("--max-new-tokens", type=integer, metavar="N", help="at most N tokens (default: 200)")
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be given several times",
    )
    add("--ignore-eos", action="store_true", help="go on where the model ends the text")

    add_sampling(parser)

    group = parser.add_argument_group("what is printed")
    group.add_argument("--stats", action="store_true", help="speed and memory, on standard error")
    add = group.add_mutually_exclusive_group().add_argument
    add("--no-prompt", action="store_true", help="the continuation alone")
    add("--json", action="store_true", help="one JSON object, at the end; see below")
