"""What `tinymistral golden record` takes. What it does is in golden_record.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinymistral.commands.arguments import Parser, add_model, integer

DESCRIPTION = """\
Record golden outputs of any checkpoint: a suite like v1, for `golden check`.
The weights stay where they are; the suite says by what to know them.

  tinymistral golden record --model FOLDER --prompt "My name is" -o recorded
  tinymistral golden record --model FOLDER --ids 1 1984 16020 -o recorded \\
      --case short --stages logits 'layers.*.output' --new 40
  tinymistral golden check recorded my-dump

Each run adds a case to the suite; with --new a second one, CASE-greedy. A run
that was interrupted goes on where it was when it is given again, and comes to
the same files.
"""

AFTER = """\
Expected numbers are computed in float64, a layer at a time, from the weights
as they are stored. Along with them the text goes through in --ways other ways,
each in float32, float16 and bfloat16: the tolerance of a tensor in a dtype is
8 times the largest error of these. The checkpoint is read once, and memory is
needed for a few layers of it: 7B takes less than 4 GB, and for a short text
some 7 minutes. What is recorded is kept in OUT/.recording until a case is whole.

Without --stages or --layers all stages are recorded if they take 64 MB at most;
of a larger model, those of layer 0, the outputs of all layers, norm and logits.
"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "record",
        help="record golden outputs of any checkpoint",
        description=DESCRIPTION,
        epilog=AFTER,
    )
    add_model(parser)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--prompt", metavar="TEXT", help="the text; without it, it is standard input")
    add("--prompt-file", type=Path, metavar="FILE", help="a file with the text, in UTF-8")
    add("--ids", type=integer, nargs="+", metavar="ID", help="its tokens")
    add = parser.add_argument
    add("-o", "--out", type=Path, required=True, metavar="OUT", help="the folder of the suite")
    add("--case", default="prompt", metavar="ID", help="the case's name (default: prompt)")
    add(
        "--stages",
        nargs="+",
        metavar="STAGE",
        help="only these, such as logits, 'layers.*.output' or 'cache.*'",
    )
    add("--layers", type=integer, nargs="+", metavar="N", help="only of these layers, from 0 on")
    add(
        "--new",
        type=integer,
        default=0,
        metavar="N",
        help="record a greedy continuation of N tokens too (default: none)",
    )
    add(
        "--dtype",
        choices=("float64", "float32"),
        default="float64",
        help="what expected numbers are computed in (default: float64)",
    )
    add(
        "--ways",
        type=integer,
        metavar="N",
        help="of measuring tolerances: fewer take less time (default: 20, of a model with more "
        "than 50 million weights 6)",
    )
    add("--hash-files", action="store_true", help="note the sha256 of the checkpoint's files too")
    add("--threads", type=integer, metavar="N", help="of NumPy's linear algebra (default: all)")
