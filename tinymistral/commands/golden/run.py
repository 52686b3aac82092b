"""Let a program compute the cases of a suite.

It writes a dump for `golden check`. The program is tinymistral itself on one of
its backends, another implementation that is installed, or a command of yours.

  tinymistral golden run tinymistral --backend cupy -o dump
  tinymistral golden run transformers --dtype bfloat16 -o dump
  tinymistral golden run --command "python mine.py {case} {out}" -o dump
  tinymistral golden check v1 dump
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tinymistral.commands import arguments, golden
from tinymistral.commands.console import Progress, interruptible, write

# Each has the module of its name in golden/run.
PEERS = ("tinymistral", "transformers", "llama-cpp")
MOST_SECONDS = 1_000_000

EPILOG = """\
A command is run once for each case: {case} is a folder with case.json,
inputs.safetensors (in tokenizer and chat cases inputs.json) and, where the case
has a model, model/, a checkpoint. It writes what it computed of the case into
the folder {out}: NAME.npy, or all of it in results.safetensors (results.json).
If it writes nothing, the case counts as not run; golden/run/template.py
has ten lines to begin with. After --timeout, or 100 MB of error output, the
case has failed. What a command has started ends with it.

Each case has a file of its own in OUT, which is complete or not there.
Exit code: 0; 2 if a case failed, or nothing was written.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("peer", nargs="?", choices=PEERS, metavar="PEER", help=f"one of {', '.join(PEERS)}")
    add("--command", dest="program", metavar="COMMAND", help="instead of PEER; see below")
    text = "how long the command may take for a case (default: 3600)"
    add("--timeout", type=arguments.integer, metavar="SECONDS", help=text)
    add("-o", "--out", type=Path, required=True, metavar="OUT", help="the folder of the dump")
    add("--suite", default="v1", metavar="SUITE", help="v1 (default), or the folder of a suite")
    golden.add_case(parser)
    text = "what a PEER computes in (default: float32)"
    add("--dtype", choices=golden.DTYPES, help=text)
    add("--backend", metavar="NAME", help="of tinymistral (default: numpy)")
    golden.add_recorded_model(parser)
    text = "a tokenizer.model, for tokenizer and chat cases; may be repeated"
    golden.add_vocabulary(parser, text)


def run(options: argparse.Namespace) -> int:
    """Dump what a program computes of a suite; 2 if a case failed, or none was written."""
    from tinymistral.golden.models import unavailable_models
    from tinymistral.golden.run import FAILED, WRITTEN, Settings, dump, open_adapter, outcomes_text

    if (options.peer is None) == (options.program is None):
        raise ValueError("expected either a PEER or --command; see tinymistral golden run --help")
    if options.backend is not None and options.peer != "tinymistral":
        raise ValueError("--backend: only tinymistral has backends")
    for name, whose, given in (("dtype", "a PEER", "peer"), ("timeout", "--command", "program")):
        if getattr(options, name) is not None and getattr(options, given) is None:
            raise ValueError(f"--{name}: has no effect without {whose}; leave it out")
    timeout = 3600 if options.timeout is None else options.timeout
    arguments.check_range("--timeout", timeout, 1, MOST_SECONDS)
    suite = golden.find_suite(options.suite, options.model)
    unavailable = unavailable_models(suite, options.case or suite.manifest.cases)
    settings = Settings(
        options.dtype or "float32",
        options.backend,
        tuple(options.vocabulary),
        options.program,
        timeout,
    )
    adapter = open_adapter(options.peer, suite, settings)
    outcomes = []
    total = len(options.case) or len(suite.manifest.cases)
    with interruptible(), Progress("cases: {} of {}") as progress:
        progress(0, total)
        for outcome in dump(suite, adapter, options.out, options.case, unavailable):
            outcomes.append(outcome)
            progress(len(outcomes), total)
    write(outcomes_text(outcomes, options.out))
    found = {outcome.what for outcome in outcomes}
    return 0 if WRITTEN in found and FAILED not in found else 2
