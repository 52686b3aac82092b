"""What `tinymistral golden run` takes. What it does is in golden_run.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinymistral.commands.arguments import Parser

PEERS = ("tinymistral", "transformers", "llama-cpp")

DESCRIPTION = """\
Let a program compute the cases of a suite, and write its dump for `golden check`:
tinymistral itself on one of its backends, another implementation that is
installed, or a command of your own.

  tinymistral golden run tinymistral --backend cupy -o dump
  tinymistral golden run transformers --dtype bfloat16 -o dump
  tinymistral golden run --command "python mine.py {case} {out}" -o dump
  tinymistral golden check v1 dump
"""

AFTER = """\
A command is run once for each case: {case} is a folder with case.json,
inputs.safetensors (of tokenizer and chat cases inputs.json) and, where the case
has a model, model/, a checkpoint. It writes what it computed of the case into
the folder {out}: NAME.npy, or all of it in results.safetensors (results.json).
If it writes nothing, the case is not run; golden/run/template.py has ten
lines to begin with.

Each case has a file of its own in OUT, which is there whole or not at all.
Exit code: 0; 2 if a case failed, or nothing was written.
"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "run",
        help="let a program compute the cases of a suite",
        description=DESCRIPTION,
        epilog=AFTER,
    )
    add = parser.add_argument
    add("peer", nargs="?", choices=PEERS, metavar="PEER", help=f"one of {', '.join(PEERS)}")
    add("--command", dest="program", metavar="COMMAND", help="in the place of PEER; see below")
    add("-o", "--out", type=Path, required=True, metavar="OUT", help="the folder of the dump")
    add("--suite", default="v1", metavar="SUITE", help="v1 (default), or the folder of a suite")
    add("--case", action="append", default=[], metavar="ID", help="only this one; may be repeated")
    add(
        "--dtype",
        choices=("float64", "float32", "float16", "bfloat16"),
        default="float32",
        help="what a PEER computes in (default: float32)",
    )
    add("--backend", metavar="NAME", help="of tinymistral (default: numpy)")
    add("--model", metavar="FOLDER", help="the checkpoint that a recorded suite was made from")
    add(
        "--vocabulary",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a tokenizer.model, for tokenizer and chat cases; may be repeated",
    )
