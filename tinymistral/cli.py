"""The command line. Nothing here imports NumPy before `--threads` has been read."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tinymistral import __version__

DEMO = Path(__file__).parent / "demo"

DESCRIPTION = """\
Mistral in readable NumPy.

  python -m tinymistral generate "Once upon a time"
      tells a story with the small demo model that comes with the package
  python -m tinymistral generate --model FOLDER --max-new-tokens 100 "My favourite condiment is"
      opens any Mistral checkpoint in Hugging Face format, or one in the local hub cache by name
  python -m tinymistral tokenize "Once upon a time"
      shows how a text is cut into tokens
"""

THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line rather than the whole usage."""
        _say(f"error: {message}; see {self.prog} --help")
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a user's error, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        _set_threads(options.threads)
        if options.command == "generate":
            from tinymistral.commands.generate import run
        else:
            from tinymistral.commands.tokenize import run
        run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has left. What is still buffered must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, OSError, MemoryError) as error:
        _say(f"error: {error or type(error).__name__}")
        return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = _Parser(
        prog="tinymistral",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tinymistral {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_generate(commands)
    _add_tokenize(commands)
    return parser


def _add_generate(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="continue a text",
        description="Continue a text, and print it as it comes. What is not asked for is as the "
        "model's generation_config.json says, else greedy.",
    )
    add = parser.add_argument
    add("prompt", nargs="?", help="the text to continue; else --prompt-file, else standard input")
    add("--prompt-file", type=Path, metavar="FILE", help="read the prompt from a UTF-8 file")
    _add_model(parser)
    add("--backend", metavar="NAME", help="what computes: numpy (default), or one installed")
    add("--dtype", metavar="TYPE", help="float32 (default), float64, float16 or bfloat16")
    add("--threads", type=int, metavar="N", help="of the linear algebra library; default: all")

    group = parser.add_argument_group("how far")
    add = group.add_argument
    add("--max-new-tokens", type=int, metavar="N", help="at most so many (default 200)")
    add("--stop", action="append", metavar="TEXT", help="end where this text comes; repeatable")
    add("--ignore-eos", action="store_true", help="do not end where the model ends the text")

    group = parser.add_argument_group("which token", "any of the first four turns sampling on")
    add = group.add_argument
    add("--temperature", type=float, metavar="X", help="below 1 safer, above 1 wilder; 0 is greedy")
    add("--top-k", type=int, metavar="K", help="draw from the K likeliest only; 0: from all")
    add("--top-p", type=float, metavar="P", help="from the likeliest that together reach P")
    add("--min-p", type=float, metavar="P", help="from those at least P times as likely as the top")
    add("--repetition-penalty", type=float, metavar="X", help="above 1: repeat less")
    add("--seed", type=int, metavar="N", help="draw the same again")
    add("--greedy", action="store_true", help="always take the likeliest")

    group = parser.add_argument_group("what is printed")
    add = group.add_argument
    add("--no-prompt", action="store_true", help="print the continuation alone")
    add("--json", action="store_true", help="one object: text, ids, counts, timings")
    add("--stats", action="store_true", help="speed and memory, on standard error")


def _add_tokenize(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "tokenize",
        help="show how a text is cut into tokens, or turn ids back into text",
        description="Print the id and the piece of every token of a text, one a line; in a piece "
        "'\u2581' is a space and <0x0A> a byte. With --decode: the text of ids.",
    )
    add = parser.add_argument
    add("text", nargs="?", help="the text; else standard input")
    add("--decode", nargs="+", type=int, metavar="ID", help="print the text of these ids instead")
    add("--no-bos", action="store_true", help="leave out <s>, which begins every sequence")
    add("--json", action="store_true", help="one object: ids and pieces, or text")
    _add_model(parser)
    parser.set_defaults(threads=None)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=DEMO,
        metavar="FOLDER",
        help="a checkpoint's folder, or its hub name if it is in the local Hugging Face cache; "
        "default: the demo model that comes with the package",
    )


def _set_threads(threads: int | None) -> None:
    """Tell whichever library NumPy multiplies with; it reads this once, when it is loaded."""
    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"--threads: expected at least 1, got {threads}")
    if "numpy" in sys.modules:
        raise ValueError("--threads: NumPy has started already; set OMP_NUM_THREADS before it")
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)


def _say(message: str) -> None:
    print(f"tinymistral: {' '.join(str(message).split())}", file=sys.stderr)
