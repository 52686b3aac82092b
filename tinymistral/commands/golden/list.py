"""List the cases of a suite.

Each has a line with its id, its kind, and what it is about.

  tinymistral golden list
  tinymistral golden list --json
"""

from __future__ import annotations

import argparse

from tinymistral.commands import arguments, golden
from tinymistral.commands.console import print_json, write
from tinymistral.text import one_line

EPILOG = """\
--json prints one object, on one line:
  suite     its name
  folder    where it is: manifest.json there says how to read its files
  cases     a list of objects: id, kind, says, catches (mistakes it detects),
            model, file, expected (the names of its tensors, in the order in
            which they are computed; null where the file is JSON)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    text = "v1 (default), which comes with tinymistral, or the folder of a suite"
    parser.add_argument("suite", metavar="SUITE", nargs="?", default="v1", help=text)
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Print the cases of a suite."""
    from tinymistral.golden.compare.places import in_order

    suite = golden.find_suite(options.suite)
    cases = suite.manifest.cases.values()
    if options.json:
        rows = []
        for case in cases:
            names = ("id", "kind", "says", "catches", "model", "file")
            row = {name: getattr(case, name) for name in names}
            found = case.expected
            row["expected"] = None if found is None else in_order(suite.manifest.stages, found)
            rows.append(row)
        print_json({"suite": suite.manifest.suite, "folder": str(suite.folder), "cases": rows})
        return
    width = max((len(case.id) for case in cases), default=0)
    lines = [f"{case.id:{width}}  {case.kind:9}  {one_line(case.says)}\n" for case in cases]
    write(f"{''.join(lines)}\n{len(cases)} cases, in {suite.folder}\n")
