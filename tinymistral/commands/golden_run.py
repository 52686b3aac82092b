"""`python -m tinymistral golden run`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from tinymistral.commands.console import Progress, interruptible, write
from tinymistral.commands.golden_suites import find_suite
from tinymistral.golden.models import open_external
from tinymistral.golden.run import (
    FAILED,
    WRITTEN,
    Adapter,
    CannotRun,
    Outcome,
    Results,
    Settings,
    dump,
    open_adapter,
)
from tinymistral.golden.suite import Case, Model, Suite
from tinymistral.text import one_line


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
    unavailable = models_elsewhere(suite, options.case or suite.manifest.cases)
    settings = Settings(options.dtype, options.backend, tuple(options.vocabulary), options.program)
    adapter = leaving_out(unavailable, open_adapter(options.peer, suite, settings))
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


def models_elsewhere(suite: Suite, cases: Iterable[str]) -> dict[str, str]:
    """Return of which models the checkpoint is not the one that the suite was given, and why.

    Raises ValueError, once and not for each case, if it is none of the models'.
    """
    names = sorted({suite.case(case).model or "" for case in cases} - {""})
    models = [suite.manifest.models[name] for name in names]
    problems = {model.id: problem(suite, model) for model in models if model.weights is not None}
    found = {name: says for name, says in problems.items() if says}
    if found and len(found) == len(problems):
        raise ValueError(next(iter(found.values())))
    return found


def problem(suite: Suite, model: Model) -> str:
    """Say why a model whose weights are no part of the suite cannot be opened; "" if it can be."""
    try:
        open_external(suite, model)
    except ValueError as error:
        return str(error)
    return ""


def leaving_out(models: Mapping[str, str], adapter: Adapter) -> Adapter:
    """Return an adapter that does not run the cases of these models, and says why."""

    def run(case: Case) -> Results:
        if case.model is not None and case.model in models:
            raise CannotRun(models[case.model])
        return adapter(case)

    return run


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
