"""`python -m tinymistral golden check`."""

from __future__ import annotations

import argparse
import shlex

from tinymistral.commands.console import write
from tinymistral.commands.golden_suites import find_suite
from tinymistral.golden.checking.candidate import open_candidate
from tinymistral.golden.checking.comparing import check
from tinymistral.golden.checking.machine_reports import as_json, write_junit
from tinymistral.golden.checking.reporting import as_table
from tinymistral.golden.checking.verdicts import exit_code


def run(options: argparse.Namespace) -> int:
    """Compare a candidate with a suite, and tell; the exit code says what came of it."""
    suite = find_suite(options.suite)
    candidate = open_candidate(options.candidate, suite, options.layout)
    results = list(check(suite, candidate, options.case, options.dtype))
    if options.junit is not None:
        write_junit(options.junit, suite.manifest.suite, results)
    if options.json:
        name = str(options.candidate)
        write(as_json(suite.manifest.suite, name, results, candidate.unknown))
    else:
        write(as_table(results, candidate.unknown, options.verbose))
    code = exit_code(results)
    if code == 1 and not options.json:
        words = ["tinymistral", "golden", "diagnose", options.suite, str(options.candidate)]
        words += ["--layout", "raw"] * (options.layout == "raw")
        words += ["--dtype", options.dtype] if options.dtype else []
        write(f"for the mistake that makes such numbers: {shlex.join(words)}\n")
    return code
