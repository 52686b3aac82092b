"""Telling programs what came of a comparison: as JSON, or as JUnit's XML for a CI."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tinymistral.files import whole_file
from tinymistral.golden.checking.reporting import details, headline
from tinymistral.golden.checking.verdicts import (
    ABSENT,
    DIFFERS,
    INCOMPARABLE,
    Compared,
    verdict_of_all,
)

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_json(
    suite: str,
    candidate: str,
    results: Sequence[Compared],
    unknown: Mapping[str, str],
    complete: bool = False,
) -> str:
    """Return all there is to know as one JSON object on one line; null where a number is none."""
    fields = {
        "suite": suite,
        "candidate": candidate,
        "verdict": verdict_of_all(results, complete),
        "unknown": dict(unknown),
        "cases": [_case(result) for result in results],
    }
    return json.dumps(_finite(fields), allow_nan=False) + "\n"


def _case(result: Compared) -> dict[str, Any]:
    return {
        "id": result.case.id,
        "kind": result.case.kind,
        "verdict": result.verdict,
        "first": result.first.name if result.first else None,
        "worst": result.worst,
        "expected": len(result.names),
        "problem": result.problem or None,
        "unknown": dict(result.unknown),
        "layout": result.layout,
        "notes": result.notes,
        "parts": [asdict(part) | {"worst": part.worst} for part in result.parts],
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_junit(
    path: Path, suite: str, results: Sequence[Compared], complete: bool = False
) -> None:
    """Write a test case for each case, whole or not at all; ValueError if that cannot be.

    What is absent is skipped, or has failed where all has to be there: `complete`.
    """
    if not path.name:
        raise ValueError(f"{path}: expected the name of a file for the report in JUnit's XML")
    missing = DIFFERS if complete else ABSENT
    verdicts = [missing if r.verdict == ABSENT else r.verdict for r in results]
    root = ElementTree.Element("testsuites")
    counts = {"failures": DIFFERS, "errors": INCOMPARABLE, "skipped": ABSENT}
    attributes = {name: str(verdicts.count(verdict)) for name, verdict in counts.items()}
    attributes |= {"name": f"tinymistral golden {suite}", "tests": str(len(results))}
    group = ElementTree.SubElement(root, "testsuite", attributes)
    tags = {DIFFERS: "failure", INCOMPARABLE: "error", ABSENT: "skipped"}
    for result, verdict in zip(results, verdicts, strict=True):
        name = {"classname": f"golden.{suite}", "name": result.case.id}
        case = ElementTree.SubElement(group, "testcase", name)
        if verdict in tags:
            message = "nothing of it is given" if result.verdict == ABSENT else headline(result)
            element = ElementTree.SubElement(case, tags[verdict], {"message": legible(message)})
            element.text = legible("\n".join(details(result)))
    ElementTree.indent(root)
    content = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(content + b"\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from None


def legible(text: str) -> str:
    """Escape what XML cannot hold."""
    return _NO_XML.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
