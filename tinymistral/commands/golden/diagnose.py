"""Measure what your program does in each step, and name its mistake.

Where all stages are given, each step is judged by its own input in your output,
and what a wrong one did is measured. With logits alone the reference is run with
hundreds of mistakes, and those that explain most of your output are told.

  tinymistral golden diagnose v1 my-dump
  tinymistral golden diagnose v1 my-dump --dtype bfloat16 --json
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tinymistral.commands import arguments, golden
from tinymistral.commands.console import Progress, interruptible, print_json, write
from tinymistral.text import one_line

if TYPE_CHECKING:
    from tinymistral.golden.compare.verdicts import Compared
    from tinymistral.golden.diagnose.predictions import Predictions
    from tinymistral.golden.diagnose.search import Diagnosis
    from tinymistral.golden.suite import Suite

EPILOG = """\
CANDIDATE is what `golden check` takes. The more it has, the better: with all
stages every wrong step is found, also two at once. From logits alone a mistake
is told with the share of what differs that it explains, and what contradicts it.
Mistakes that cannot be told apart are named together.

A mistake is not found if it does not change what is given: a position that
begins at 1 changes `q_rotated`, `k_rotated` and what is cached, never the
logits; in 16 bits some changes are smaller than rounding.

Exit code: 0 if nothing differs; 1 if something does, whether the mistake is
known or not; 2 if nothing can be compared.

--json prints one object, on one line:
  suite, candidate
  diagnoses       a list: "forward", "sampling", "tokenizer" and "chat", where
                  something of it is given:
    about, cases, differ (ids), tried (how many mistakes)
    findings      wrong steps: stages, says ("" if unknown), where (layers,
                  calls), name and fix of a known mistake, steps of the wrong
                  ones that it is about, first (case, call, layer)
    explanations  ranked, where steps could not be measured; each has suspects
                  (name or "", says, fix; several that cannot be told apart),
                  share of what differs that it explains, explains and
                  contradicts (ids of cases)
    first         the first tensor that differs: case, name, worst, where
  not_compared    a list of case and why
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    golden.add_candidate(parser)
    text = "a tokenizer.model of tokenizer and chat cases, which shows more; may be repeated"
    golden.add_vocabulary(parser, text)
    golden.add_recorded_model(parser)
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Diagnose a candidate and print the result; the exit code says whether anything differs."""
    from tinymistral.golden.compare.candidate import open_candidate
    from tinymistral.golden.compare.verdicts import exit_code
    from tinymistral.golden.diagnose.predictions import Predictions
    from tinymistral.golden.diagnose.report import as_fields
    from tinymistral.golden.diagnose.search import diagnose, gather
    from tinymistral.mistakes import FORWARD, SAMPLING, TEXTS

    topics = {  # diagnosed separately: the kinds of cases, and their mistakes
        "forward": (("operation", "model", "generate"), FORWARD),
        "sampling": (("sampling",), SAMPLING),
        "tokenizer": (("tokenizer",), TEXTS),
        "chat": (("chat",), TEXTS),
    }
    suite = golden.find_suite(options.suite, options.model)
    check_vocabularies(suite, options.vocabulary)
    candidate = open_candidate(options.candidate, suite, options.layout)
    predictions = Predictions(suite, options.vocabulary)
    evidence, results = gather(candidate, predictions, options.case, options.dtype)
    problems = not_compared(results)
    if not evidence:
        why = "".join(f"; {name}: {says}" for name, says in problems[:1])
        raise ValueError(f"{options.candidate}: nothing can be compared{why}")
    diagnoses: dict[str, Diagnosis] = {}
    with interruptible(), Progress("mistakes tried: {} of {}") as progress:
        for about, (kinds, mistakes) in topics.items():
            if given := [each for each in evidence if each.case.kind in kinds]:
                diagnoses[about] = diagnose(given, mistakes, predictions, progress)
    stages = suite.manifest.stages
    if options.json:
        fields = [{"about": about} | as_fields(d, stages) for about, d in diagnoses.items()]
        print_json(
            {
                "suite": suite.manifest.suite,
                "candidate": str(options.candidate),
                "diagnoses": fields,
                "not_compared": [{"case": name, "why": why} for name, why in problems],
            }
        )
    else:
        lines = [line for about, d in diagnoses.items() for line in report(about, d, stages)]
        lines += [f"not compared: {name}: {one_line(why, 200)}" for name, why in problems]
        lines += without_vocabulary(diagnoses, predictions)
        write("".join(f"{line}\n" for line in lines))
    return exit_code(results)


def check_vocabularies(suite: Suite, paths: Sequence[Path]) -> None:
    """Raise a ValueError for a file that is not the vocabulary of any case."""
    from tinymistral.golden.manifest import TEXT_KINDS
    from tinymistral.golden.run.tinymistral import open_vocabulary

    cases = [case for case in suite.manifest.cases.values() if case.kind in TEXT_KINDS]
    for path in paths:
        for case in cases:
            with suppress(ValueError):
                open_vocabulary(case, path)
                break
        else:
            raise ValueError(f"--vocabulary: {path} is not what any case of the suite is made with")


def not_compared(results: Sequence[Compared]) -> list[tuple[str, str]]:
    """Return the cases of which something that is given cannot be compared, and why."""
    from tinymistral.golden.compare.verdicts import INCOMPARABLE

    found = []
    for result in results:
        if result.problem:
            found.append((result.case.id, result.problem))
        parts = [part for part in result.parts if part.verdict == INCOMPARABLE]
        found += [(result.case.id, f"{part.name}: {part.says}") for part in parts]
    return found


def report(about: str, diagnosis: Diagnosis, stages: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines that describe a diagnosis."""
    from tinymistral.golden.diagnose.report import as_text

    cases = len(diagnosis.evidence)
    if not diagnosis.differing:
        yield f"{about}: nothing differs in {cases} case{'s' * (cases != 1)}"
        return
    head, *rest = as_text(diagnosis, stages)
    yield f"{about}: {head}"
    yield from (f"  {line}".rstrip() for line in rest)
    yield ""


def without_vocabulary(diagnoses: Mapping[str, Diagnosis], predictions: Predictions) -> list[str]:
    """Return a line for each case of which a vocabulary would show more."""
    from tinymistral.golden.manifest import TEXT_KINDS

    lines = []
    for diagnosis in diagnoses.values():
        for each in () if diagnosis.explanations else diagnosis.differing:
            case = each.case
            if case.kind in TEXT_KINDS and predictions.tokenizer(case) is None:
                name = one_line((case.vocabulary or {}).get("name"), 100)
                lines.append(
                    f"{case.id}: its vocabulary would show more: --vocabulary FILE, "
                    f"the path of {name}"
                )
    return lines
