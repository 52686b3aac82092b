"""The arguments of each command, and their help."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tinymistral.commands import helptexts
from tinymistral.commands.console import write

DEMO = Path(__file__).parent.parent / "demo"


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
    parser = Parser(prog="tinymistral", description=helptexts.DESCRIPTION)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", prog="tinymistral"
    )
    _add_generate(commands)
    _add_tokenize(commands)
    return parser


def _add_generate(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="continue a text",
        description=helptexts.GENERATE,
        epilog=helptexts.GENERATE_END,
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
    add = parser.add_argument
    _add_model(parser)
    add(
        "--backend",
        metavar="NAME",
        help="what computes (default: the environment variable TINYMISTRAL_BACKEND, else numpy)",
    )
    add("--dtype", metavar="TYPE", help="float32 (default), float64, float16 or bfloat16")
    add("--threads", type=integer, metavar="N", help="of NumPy's linear algebra (default: all)")

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

    add = parser.add_argument_group(
        "which token", "Each of the first five turns sampling on."
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

    group = parser.add_argument_group("what is printed")
    group.add_argument("--stats", action="store_true", help="speed and memory, on standard error")
    add = group.add_mutually_exclusive_group().add_argument
    add("--no-prompt", action="store_true", help="the continuation alone")
    add("--json", action="store_true", help="one JSON object, at the end; see below")


def _add_tokenize(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "tokenize",
        help="show how a text is cut into tokens, or turn ids back into text",
        description=helptexts.TOKENIZE,
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
    _add_model(parser)
    parser.set_defaults(threads=None)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=DEMO,
        metavar="FOLDER",
        help="a checkpoint's folder, or its name on the Hugging Face hub if it is in the local "
        "cache (default: the demo model)",
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
