"""What `tinymistral golden` takes: its subcommands, each in golden_NAME_arguments.py."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from tinymistral.commands.arguments import Parser

# What each does is in golden_NAME.py.
SUBCOMMANDS = ("list", "check", "diagnose", "run", "record", "published")

DESCRIPTION = """\
Hold your own Mistral against golden outputs: small models, inputs, and what
must come out of every stage, with a tolerance for each tensor and dtype.

  tinymistral golden list
      what there is
  tinymistral golden check v1 FOLDER
      compares what your program computed with what is expected, and names the
      first stage that differs
"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command, and its subcommands, to the parser."""
    parser = commands.add_parser(
        "golden", help="hold your own Mistral against golden outputs", description=DESCRIPTION
    )
    parser.set_defaults(print_help=parser.print_help)
    subcommands = parser.add_subparsers(
        dest="subcommand", metavar="SUBCOMMAND", title="subcommands", prog="tinymistral golden"
    )
    for name in SUBCOMMANDS:
        import_module(f"tinymistral.commands.golden_{name}_arguments").add_command(subcommands)


def add_suite(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """Add which suite it is."""
    parser.add_argument(
        "suite",
        metavar="SUITE",
        nargs="?" if optional else None,
        default="v1",
        help="v1, which comes with tinymistral, or the folder of a suite"
        + (" (default: v1)" if optional else ""),
    )


def add_candidate(parser: argparse.ArgumentParser) -> None:
    """Add what a program wrote, and how that is to be read."""
    add = parser.add_argument
    add("candidate", type=Path, metavar="CANDIDATE", help="what your program wrote; see below")
    add(
        "--dtype",
        choices=("float64", "float32", "float16", "bfloat16"),
        help="what your program computes in (default: what each tensor is in)",
    )
    add(
        "--layout",
        choices=("auto", "hf", "raw"),
        default="auto",
        help="the order of the numbers of each head in q, k, q_rotated, k_rotated and cached keys: "
        "hf, where rotary embeddings turn i and i + d/2; raw, that of raw checkpoints, where they "
        "turn 2i and 2i+1 together; auto (default): hf, and of a case whose model is a raw "
        "checkpoint either, whichever agrees",
    )
