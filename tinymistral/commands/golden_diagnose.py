"""`python -m tinymistral golden diagnose`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tinymistral.commands.console import Progress, interruptible, write
from tinymistral.commands.golden_suites import find_suite
from tinymistral.golden.compare.candidate import open_candidate
from tinymistral.golden.compare.verdicts import INCOMPARABLE, Compared, exit_code
from tinymistral.golden.diagnose.predictions import Predictions
from tinymistral.golden.diagnose.report import as_fields, as_text
from tinymistral.golden.diagnose.search import Diagnosis, diagnose, gather
from tinymistral.golden.manifest import TEXTS as TEXT_KINDS
from tinymistral.golden.run.tinymistral import open_vocabulary
from tinymistral.golden.suite import Suite
from tinymistral.mistakes import FORWARD, SAMPLING, TEXTS
from tinymistral.text import one_line

# What is diagnosed by itself: the kinds of cases, and the mistakes.
ABOUT = {
    "forward": (("operation", "model", "generate"), FORWARD),
    "sampling": (("sampling",), SAMPLING),
    "tokenizer": (("tokenizer",), TEXTS),
    "chat": (("chat",), TEXTS),
}


class MistakesProgress(Progress):
    """How many mistakes were tried, in the manner of `Progress`."""

    def __call__(self, done: int, total: int) -> None:
        """Show it in place of what was shown before."""
        if self.wanted:
            self._shown = True
            self._write(f"\r{f'mistakes tried: {done} of {total}':{self.WIDTH}}")


def run(options: argparse.Namespace) -> int:
    """Diagnose a candidate, and tell; the exit code says whether anything differs."""
    suite = find_suite(options.suite)
    if options.model is not None:
        suite = dataclasses.replace(suite, checkpoint=Path(options.model))
    check_vocabularies(suite, options.vocabulary)
    candidate = open_candidate(options.candidate, suite, options.layout)
    predictions = Predictions(suite, options.vocabulary)
    evidence, results = gather(candidate, predictions, options.case, options.dtype)
    problems = not_compared(results)
    if not evidence:
        why = "; ".join(f"{name}: {says}" for name, says in problems[:1])
        raise ValueError(f"{options.candidate}: nothing can be compared{why and f'; {why}'}")
    progress = MistakesProgress(sys.stderr.isatty())
    diagnoses: dict[str, Diagnosis] = {}
    with interruptible():
        try:
            for about, (kinds, mistakes) in ABOUT.items():
                given = [each for each in evidence if each.case.kind in kinds]
                if given:
                    diagnoses[about] = diagnose(given, mistakes, predictions, progress)
        finally:
            progress.clear()
    stages = suite.manifest.stages
    if options.json:
        fields = {
            "suite": suite.manifest.suite,
            "candidate": str(options.candidate),
            "diagnoses": [{"about": name} | as_fields(d, stages) for name, d in diagnoses.items()],
            "not_compared": [{"case": name, "why": why} for name, why in problems],
        }
        write(f"{json.dumps(fields, ensure_ascii=False, allow_nan=False)}\n")
    else:
        lines = [line for name, d in diagnoses.items() for line in report(name, d, stages)]
        lines += [f"not compared: {name}: {one_line(why, 200)}" for name, why in problems]
        lines += without_vocabulary(diagnoses, predictions)
        write("".join(f"{line}\n" for line in lines))
    return exit_code(results)


def check_vocabularies(suite: Suite, paths: Sequence[Path]) -> None:
    """Raise a ValueError for a file that is not the vocabulary of any case."""
    cases = [case for case in suite.manifest.cases.values() if case.kind in TEXT_KINDS]
    for path in paths:
        for case in cases:
            with suppress(ValueError):
                open_vocabulary(case, path)
                break
        else:
            raise ValueError(f"--vocabulary: {path} is not what any case of the suite is made with")


def not_compared(results: Sequence[Compared]) -> list[tuple[str, str]]:
    """Return what is given and cannot be compared, by case, and why."""
    found = []
    for result in results:
        if result.problem:
            found.append((result.case.id, result.problem))
        parts = [part for part in result.parts if part.verdict == INCOMPARABLE]
        found += [(result.case.id, f"{part.name}: {part.says}") for part in parts]
    return found


def report(about: str, diagnosis: Diagnosis, stages: Mapping[str, str]) -> Iterator[str]:
    """Give the lines that tell a diagnosis."""
    cases = len(diagnosis.evidence)
    if not diagnosis.differing:
        yield f"{about}: nothing differs in {cases} case{'s' * (cases != 1)}"
        return
    head, *rest = as_text(diagnosis, stages)
    yield f"{about}: {head}"
    yield from (f"  {line}".rstrip() for line in rest)
    yield ""


def without_vocabulary(diagnoses: Mapping[str, Diagnosis], predictions: Predictions) -> list[str]:
    """Say of which cases less was told than could be."""
    lines = []
    for diagnosis in diagnoses.values():
        for each in () if diagnosis.whole else diagnosis.differing:
            case = each.case
            if case.kind in TEXT_KINDS and predictions.tokenizer(case) is None:
                name = (case.vocabulary or {}).get("name")
                lines.append(
                    f"{case.id}: with its vocabulary more can be told: --vocabulary FILE, "
                    f"the path of {one_line(name, 100)}"
                )
    return lines
