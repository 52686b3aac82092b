"""`python -m tinymistral golden run`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from tinymistral.commands.console import Progress, interruptible, write
from tinymistral.commands.golden_suites import find_suite
from tinymistral.golden.adapters import Settings, open_adapter
from tinymistral.golden.dumping import FAILED, WRITTEN, Outcome, dump
from tinymistral.golden.external import open_external
from tinymistral.plugins import one_line


class RunProgress(Progress):
    """How many cases are done, in the manner of `Progress`."""

    def __call__(self, done: int, total: int) -> None:
        """Show it in place of what was shown before."""
        if self.wanted:
            self._shown = True
            self._write(f"\r{f'cases: {done} of {total}':{self.WIDTH}}")


def run(options: argparse.Namespace) -> int:
    """Dump what a program computes of a suite; 2 if a case failed, or none was written."""
    if (options.peer is None) == (options.program is None):
        raise ValueError("expected either a PEER or --command; see tinymistral golden run --help")
    if options.backend is not None and options.peer != "tinymistral":
        raise ValueError("--backend: only tinymistral has backends")
    suite = find_suite(options.suite)
    if options.model is not None:
        suite = dataclasses.replace(suite, checkpoint=Path(options.model))
    for name in {suite.case(case).model for case in options.case or suite.manifest.cases}:
        if name is not None and suite.manifest.models[name].weights is not None:
            open_external(suite, suite.manifest.models[name])  # one error, not one a case
    settings = Settings(options.dtype, options.backend, tuple(options.vocabulary), options.program)
    adapter = open_adapter(options.peer, suite, settings)
    progress, outcomes = RunProgress(sys.stderr.isatty()), []
    total = len(options.case) or len(suite.manifest.cases)
    with interruptible():
        try:
            progress(0, total)
            for outcome in dump(suite, adapter, options.out, options.case):
                outcomes.append(outcome)
                progress(len(outcomes), total)
        finally:
            progress.clear()
    write(as_text(outcomes, options.out))
    failed = any(outcome.what == FAILED for outcome in outcomes)
    return 0 if not failed and any(outcome.what == WRITTEN for outcome in outcomes) else 2


def as_text(outcomes: list[Outcome], out: Path) -> str:
    """List the cases that were not written, by reason, and count all."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        if outcome.what != WRITTEN:
            reasons.setdefault((outcome.what, outcome.says), []).append(outcome.case.id)
    lines = [
        f"{what}: {one_line(', '.join(cases), 500)}\n    {one_line(says, 500)}\n"
        for (what, says), cases in reasons.items()
    ]
    written = sum(outcome.what == WRITTEN for outcome in outcomes)
    return f"{''.join(lines)}{written} of {len(outcomes)} cases written to {out}\n"
