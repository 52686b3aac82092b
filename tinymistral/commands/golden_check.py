"""`python -m tinymistral golden check`."""

from __future__ import annotations

import argparse
import shlex

from tinymistral.commands.console import write
from tinymistral.commands.golden_suites import find_suite
from tinymistral.golden.compare.candidate import open_candidate
from tinymistral.golden.compare.cases import check
from tinymistral.golden.compare.verdicts import DIFFERS, exit_code, verdict_of_all
from tinymistral.golden.report import as_json, as_table, not_given, write_junit


def run(options: argparse.Namespace) -> int:
    """Compare a candidate with a suite, and tell; the exit code says what came of it."""
    suite = find_suite(options.suite)
    candidate = open_candidate(options.candidate, suite, options.layout)
    results = list(check(suite, candidate, options.case, options.dtype, options.complete))
    if options.junit is not None:
        write_junit(options.junit, suite.manifest.suite, results, options.complete)
    if options.json:
        name = str(options.candidate)
        unknown = candidate.unknown
        write(as_json(suite.manifest.suite, name, results, unknown, options.complete))
    else:
        write(as_table(results, candidate.unknown, options.verbose))
        if options.complete and (missing := not_given(results)):
            write(f"{missing}\n")
    if verdict_of_all(results) == DIFFERS and not options.json:
        words = ["tinymistral", "golden", "diagnose", options.suite, str(options.candidate)]
        words += ["--layout", options.layout] if options.layout != "auto" else []
        words += ["--dtype", options.dtype] if options.dtype else []
        write(f"for the mistake that makes such numbers: {shlex.join(words)}\n")
    return exit_code(results, options.complete)
