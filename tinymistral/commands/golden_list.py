"""`python -m tinymistral golden list`."""

from __future__ import annotations

import argparse
import json

from tinymistral.commands.console import write
from tinymistral.commands.golden_suites import find_suite
from tinymistral.golden.compare.places import in_order
from tinymistral.text import one_line


def run(options: argparse.Namespace) -> None:
    """Print the cases of a suite."""
    suite = find_suite(options.suite)
    cases = suite.manifest.cases.values()
    if options.json:
        stages = suite.manifest.stages
        rows = [
            {
                "id": case.id,
                "kind": case.kind,
                "says": case.says,
                "catches": case.catches,
                "model": case.model,
                "file": case.file,
                "expected": None if case.expected is None else in_order(stages, case.expected),
            }
            for case in cases
        ]
        fields = {"suite": suite.manifest.suite, "folder": str(suite.folder), "cases": rows}
        write(f"{json.dumps(fields, allow_nan=False)}\n")
        return
    width = max((len(case.id) for case in cases), default=0)
    lines = [f"{case.id:{width}}  {case.kind:9}  {one_line(case.says)}\n" for case in cases]
    write(f"{''.join(lines)}\n{len(cases)} cases, in {suite.folder}\n")
