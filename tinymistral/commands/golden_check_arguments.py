"""What `tinymistral golden check` takes. What it does is in golden_check.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinymistral.commands.arguments import Parser
from tinymistral.commands.golden_arguments import add_candidate, add_suite

DESCRIPTION = """\
Compare what your program computed with what a suite expects, tensor by tensor
in the order of computation, and name the first that differs.

  tinymistral golden check v1 my-dump
  tinymistral golden check v1 my-dump --case rms-norm --verbose
  tinymistral golden check v1 my-dump --dtype bfloat16 --junit report.xml
"""

AFTER = """\
CANDIDATE holds the results for all cases or some, and of each case all tensors
or some, under the names that `tinymistral golden list --json` tells:
  FOLDER/CASE.safetensors    or
  FOLDER/CASE/NAME.npy       one tensor each, as numpy.save writes it, or
  FILE.safetensors           one file for all, with tensors CASE/NAME
  FOLDER/CASE.json           of tokenizer and chat cases, like the suite's file
Where a case has one call, the names may go without `calls.0.` before them.
Numbers are in float64, float32, float16 or bfloat16 (in .npy: as ml_dtypes'
arrays are saved), ids in any integers. What is padding is not looked at.

Shapes are in these letters: B rows, T new tokens, D width, F feed-forward
width, H query heads, K key/value heads, d head width, V vocabulary; S keys,
those of inputs.calls.N.key_positions; P cached keys, those of
inputs.calls.N.cache_positions; C the tokens of a prompt, padding too, and then
the new ones; N new tokens alone. Attention weights may also have a column for
each token of the input so far, padding too.

A tensor agrees if no number is farther off than the tolerance that the suite
has for it and the dtype: the one that the tensor is in (float64 counts as
float32), or --dtype. A program that computes in bfloat16 and writes float32
needs --dtype bfloat16. NaN and infinity are infinitely far off, but where they
are expected.

Exit code: 0 if all that is given agrees; 1 if something differs, or with
--complete is not given; 2 if nothing differs, but something cannot be compared,
such as a tensor of another shape, or a file with nothing in it.

--json prints one object, on one line:
  suite, candidate
  verdict       "agrees", "differs", "incomparable" or, with --complete,
                "incomplete"
  unknown       names that are no case -> the case that they resemble, or ""
  cases         a list of objects, all cases of the suite:
    id, kind, verdict (also "absent": nothing is given)
    first       the first tensor that differs, in the order of computation
    worst       the largest error, in units of its tolerance; null: infinite
    expected    how many tensors there are
    problem     why nothing of it can be compared
    unknown     names that are no tensor -> the one that they resemble, or ""
    layout      "raw": queries and keys are taken in the order of raw checkpoints;
                "hf"
    notes       how else than expected something is taken, in words
    parts       what is given, in the order of computation: name, verdict (also
                "unproven": other ids, in a dtype whose rounding may do that),
                dtype, tolerance, error, worst, index and where (of the largest
                error), expected and got (there), wrong and counted (numbers),
                extent (where these are), says, fits (dtypes that it agrees in)
"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "check",
        help="compare what your program computed with what is expected",
        description=DESCRIPTION,
        epilog=AFTER,
    )
    add = parser.add_argument
    add_suite(parser)
    add_candidate(parser)
    add("--case", action="append", default=[], metavar="ID", help="only this one; may be repeated")
    add(
        "--complete",
        action="store_true",
        help="every case has to be given, or every --case: for a CI",
    )
    add("--verbose", action="store_true", help="list every tensor")
    add("--json", action="store_true", help="one JSON object; see below")
    add("--junit", type=Path, metavar="FILE", help="write a report in JUnit's XML too")
