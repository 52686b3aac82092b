"""What `tinymistral chat` takes. What it does is in chat.py."""

from __future__ import annotations

import argparse

from tinymistral.commands.arguments import (
    Parser,
    add_computation,
    add_model,
    add_sampling,
    integer,
)

DESCRIPTION = """\
Talk to an Instruct model. Each line is a message; the answer comes as it is
drawn, and Ctrl-C stops it, not the program. Ctrl-D or /quit leaves.

  tinymistral chat --model mistralai/Mistral-7B-Instruct-v0.1
  tinymistral chat --model FOLDER --system "Answer in one sentence."
  echo "What is a window?" | tinymistral chat --model FOLDER
"""

AFTER = """\
While talking:
  /reset              begin again, with the same system prompt
  /system TEXT        begin again, with this one; without TEXT: with none
  /save FILE          write the messages so far, as JSON
  /stats              tokens so far, memory, the speed of the last answer
  /help, /quit

A turn costs only its own tokens: all before it are in the cache. So an answer
stays in the conversation as the tokens that were drawn, not as its text would
be cut into tokens again.
"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "chat", help="talk to an Instruct model", description=DESCRIPTION, epilog=AFTER
    )
    add_model(parser)
    add_computation(parser)
    add = parser.add_argument
    add("--system", metavar="TEXT", help="a system prompt, said before the first message")
    add("--max-new-tokens", type=integer, metavar="N", help="of an answer (default: 500)")
    add_sampling(parser)
