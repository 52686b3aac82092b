"""Compare what your program computed with what a suite expects.

That is done tensor by tensor in the order of computation, and the first that
differs is named.

  tinymistral golden check v1 my-dump
  tinymistral golden check v1 my-dump --case rms-norm --verbose
  tinymistral golden check v1 my-dump --dtype bfloat16 --junit report.xml
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tinymistral.commands import arguments, golden
from tinymistral.commands.console import write

EPILOG = """\
CANDIDATE holds the results for all cases or some, and of each case all tensors
or some, under the names that `tinymistral golden list --json` prints:
  FOLDER/CASE.safetensors    or
  FOLDER/CASE/NAME.npy       one tensor each, as numpy.save writes it, or
  FILE.safetensors           one file for all, with tensors CASE/NAME
  FOLDER/CASE.json           of tokenizer and chat cases, like the suite's file
Where a case has one call, `calls.0.` may be left out of the names.
Numbers are in float64, float32, float16 or bfloat16 (in .npy: as ml_dtypes'
arrays are saved), ids in any integers. Padding is not compared.

Shapes are in these letters: B rows, T new tokens, D width, F feed-forward
width, H query heads, K key/value heads, d head width, V vocabulary; S keys,
those of inputs.calls.N.key_positions; P cached keys, those of
inputs.calls.N.cache_positions; C the tokens of a prompt, with padding, and the
new ones; N new tokens alone. Attention weights may also have a column for each
token of the input so far, with padding.

A tensor agrees if no error is larger than the tolerance that the suite has for
it and the dtype: the one that the tensor is in (float64 counts as float32), or
--dtype. A program that computes in bfloat16 and writes float32 needs --dtype
bfloat16. NaN and infinity are infinite errors, except where they are expected.

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
    notes       in which other layout or order something was compared
    parts       what is given, in the order of computation: name, verdict (also
                "unproven": other ids, in a dtype whose rounding may do that),
                dtype, tolerance, error, worst, index and where (of the largest
                error), expected and got (there), wrong and counted (numbers),
                extent (where these are), says, fits (dtypes that it agrees in)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    golden.add_candidate(parser)
    add = parser.add_argument
    add("--complete", action="store_true", help="require every case, or every --case: for a CI")
    add("--verbose", action="store_true", help="list every tensor")
    arguments.add_json(parser)
    add("--junit", type=Path, metavar="FILE", help="write a report in JUnit's XML too")


def run(options: argparse.Namespace) -> int:
    """Compare a candidate with a suite, print the result, and return its exit code."""
    import shlex

    from tinymistral.golden.compare.candidate import open_candidate
    from tinymistral.golden.compare.cases import check
    from tinymistral.golden.compare.verdicts import DIFFERS, exit_code, verdict_of_all
    from tinymistral.golden.report import as_json, as_table, not_given, write_junit

    suite = golden.find_suite(options.suite)
    name = suite.manifest.suite
    candidate = open_candidate(options.candidate, suite, options.layout)
    results = list(check(suite, candidate, options.case, options.dtype, options.complete))
    if options.junit is not None:
        write_junit(options.junit, name, results, options.complete)
    if options.json:
        unknown = candidate.unknown
        write(as_json(name, str(options.candidate), results, unknown, options.complete))
    else:
        write(as_table(results, candidate.unknown, options.verbose))
        if options.complete and (missing := not_given(results)):
            write(f"{missing}\n")
        if verdict_of_all(results) == DIFFERS:
            words = ["tinymistral", "golden", "diagnose", options.suite, str(options.candidate)]
            words += ["--layout", options.layout] if options.layout != "auto" else []
            words += ["--dtype", options.dtype] if options.dtype else []
            write(f"for the mistake that makes such numbers: {shlex.join(words)}\n")
    return exit_code(results, options.complete)
