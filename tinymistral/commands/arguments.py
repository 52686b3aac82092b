"""The parser of the command line, and arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from tinymistral.commands.console import write
from tinymistral.demo import DEMO

DESCRIPTION = """\
Mistral in readable NumPy.

  tinymistral generate "Once upon a time"
      tells a story, with the small demo model that comes with the package
  tinymistral generate --model mistralai/Mistral-7B-v0.1 "My name is"
      opens a checkpoint: a folder in Hugging Face format, or a model's name on
      the Hugging Face hub, if it has been downloaded
  tinymistral tokenize "Once upon a time"
      shows how a text is cut into tokens

`python -m tinymistral` is the same as `tinymistral`. All text is UTF-8.
"""

# Each with its arguments in NAME_arguments.py.
COMMANDS = ("generate", "chat", "score", "convert", "tokenize", "backends", "golden")


class Parser(argparse.ArgumentParser):
    """Raises ValueError, which the command line tells in one line, rather than print its usage."""

    def __init__(self, **settings: Any) -> None:
        # No abbreviations: --prompt would be --prompt-file.
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the help is."""
        raise ValueError(f"{message}; see {self.prog} --help")

    def print_help(self, file: Any = None) -> None:
        """Print it as all output; argparse would not notice that nobody reads it."""
        write(self.format_help())

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is left over here, where the command is known."""
        options, left = super().parse_known_args(args, namespace)
        if left:
            self.error(_left_over(left))
        return options, left


def _left_over(left: Sequence[str]) -> str:
    text = " ".join(left)
    hint = ""
    if not left[0].startswith("-"):
        hint = "; put a text of several words in quotes"
    elif not left[0].startswith("--"):
        hint = "; a text that begins with - goes last, after --"
    return f"unknown argument {text if len(text) <= 60 else f'{text[:57]}...'}{hint}"


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = Parser(prog="tinymistral", description=DESCRIPTION)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", prog="tinymistral"
    )
    for name in COMMANDS:
        import_module(f"tinymistral.commands.{name}_arguments").add_command(commands)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add which checkpoint it is."""
    parser.add_argument(
        "--model",
        default=DEMO,
        metavar="FOLDER",
        help="a checkpoint's folder, or its name on the Hugging Face hub if it is in the local "
        "cache (default: the demo model)",
    )


def add_computation(parser: argparse.ArgumentParser) -> None:
    """Add what says how a model computes."""
    add = parser.add_argument
    add(
        "--backend",
        metavar="NAME",
        help="what computes, one of those that `tinymistral backends` lists (default: the "
        "environment variable TINYMISTRAL_BACKEND, else numpy)",
    )
    add("--dtype", metavar="TYPE", help="float32 (default), float64, float16 or bfloat16")
    add("--threads", type=integer, metavar="N", help="of NumPy's linear algebra (default: all)")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add what says how the next token is chosen."""
    add = parser.add_argument_group(
        "which token", "Temperature, top-k, top-p, min-p or a seed turns sampling on."
    ).add_argument
    add(
        "--temperature",
        type=number,
        metavar="X",
        help="below 1 tamer, above 1 wilder, 0 as --greedy (default: 1)",
    )
    add(
        "--top-k",
        type=integer,
        metavar="K",
        help="draw from the K likeliest, 0: from all (default: 50)",
    )
    add(
        "--top-p",
        type=number,
        metavar="P",
        help="draw from the likeliest that together have probability P (default: 1)",
    )
    add(
        "--min-p",
        type=number,
        metavar="P",
        help="draw from those at least P times as likely as the likeliest (default: off)",
    )
    add("--seed", type=integer, metavar="N", help="draw the same each time (default: another)")
    add("--greedy", action="store_true", help="always take the likeliest token (default)")
    add(
        "--repetition-penalty",
        type=number,
        metavar="X",
        help="above 1: repeat the text so far less (default: 1)",
    )


def integer(text: str) -> int:
    """Read an integer of the command line."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, got {text[:40]!r}") from None


def number(text: str) -> float:
    """Read a number of the command line."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text[:40]!r}") from None
