"""The result of a comparison: as a table with details, as JSON, or as JUnit's XML."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tinymistral.files import whole_file
from tinymistral.golden.compare.texts import shown
from tinymistral.golden.compare.verdicts import (
    ABSENT,
    AGREES,
    DIFFERS,
    INCOMPARABLE,
    UNPROVEN,
    Compared,
    Part,
    verdict_of_all,
)
from tinymistral.text import listed, one_line, table

HEADER = ("case", "", "compared", "largest error")
FIRST_FEW = 5  # of what may be many
SHOWN = {"not": 3, "fine": 1}  # details of so many cases that do not agree, or do

_NUMBERS = re.compile(r"(?<![^.])[0-9]+(?![^.])")  # of calls and layers


def as_table(results: Sequence[Compared], unknown: Mapping[str, str], verbose: bool = False) -> str:
    """Return a line for each given case; below it what is wrong, or, if `verbose`, all tensors."""
    given = [result for result in results if result.verdict != ABSENT]
    rows = [HEADER, *((r.case.id, headline(r), amount(r), worst(r)) for r in given)]
    lines = table(rows)
    counts, hidden = {"fine": 0, "not": 0}, 0
    for result in given:
        below = [*details(result), *(every_part(result) if verbose else ())]
        kind = "fine" if result.verdict == AGREES else "not"
        if not below:
            continue
        counts[kind] += 1
        if counts[kind] > SHOWN[kind] and not verbose:
            hidden += 1
            continue
        lines += ["", f"{result.case.id}: {one_line(result.case.says)}"]
        lines += [f"  {line}" for line in below]
    lines.append("")
    if hidden:
        lines.append(f"details of {hidden} more: see --verbose, or --case ID")
    lines += [*unknown_names(unknown, "case"), summary(results)]
    return "".join(f"{line}\n" for line in lines)


def headline(result: Compared) -> str:
    """Return in a few words how a case compares."""
    if result.first is not None:
        return f"DIFFERS at {result.first.name}"
    if result.verdict == INCOMPARABLE:
        return "CANNOT BE COMPARED"
    unproven = any(part.verdict == UNPROVEN for part in result.parts)
    layout = ", in layout raw" if result.layout == "raw" else ""
    return f"OK{', as far as can be told' if unproven else layout}"


def amount(result: Compared) -> str:
    """Return how many tensors or texts of a case were compared."""
    compared = sum(part.verdict != INCOMPARABLE for part in result.parts)
    return f"{compared} of {len(result.names)}"


def worst(result: Compared) -> str:
    """Return the largest error of a case."""
    exact = [part for part in result.parts if part.verdict == DIFFERS and not part.tolerance]
    if exact:
        return f"{len(exact)} wrong" if result.case.expected is None else "other ids"
    tolerances = any(part.tolerance for part in result.parts)
    return f"{result.worst:.2g} tolerances" if tolerances else ""


def details(result: Compared) -> Iterator[str]:
    """Give the lines that say what is wrong with a case."""
    if result.problem:
        yield f"cannot be compared: {result.problem}"
    incomparable = [part for part in result.parts if part.verdict == INCOMPARABLE]
    for part in incomparable[:FIRST_FEW]:
        yield f"cannot be compared: {part.name}: {part.says}"
    if len(incomparable) > FIRST_FEW:
        yield f"cannot be compared: {len(incomparable) - FIRST_FEW} more, see --verbose"
    yield from unknown_names(result.unknown, "name")
    yield from result.notes
    for part in result.parts:
        if part.verdict == UNPROVEN:
            yield f"{part.name} is another one from {part.where} on: {part.says}"
    if result.first is not None and result.case.expected is None:
        yield from other_texts(result)
    elif result.first is not None:
        yield from divergence(result, result.first)


def divergence(result: Compared, first: Part) -> Iterator[str]:
    """Describe the first part that differs, and the parts around it."""
    yield f"the first to differ, in the order of computation, is {first.name}"
    yield f"  where     {first.where}: [{', '.join(map(str, first.index))}]"
    yield f"  expected  {number(first.expected)}"
    yield f"  got       {number(first.got)}"
    if first.tolerance:
        yield (
            f"  error     {first.error:.3g}, the tolerance of {first.dtype} is {first.tolerance:g}"
        )
    where = f": {first.extent}" if first.extent else ""
    yield f"  wrong     {first.wrong} of {first.counted} numbers{where}"
    if first.says:
        yield f"  {first.says}"
    before, missing = result.before
    if before is not None:
        yield f"the last to agree before it is {before.name}"
    if missing:
        yield f"not given in between: {some(missing)}"
    differing = [part for part in result.parts if part.verdict == DIFFERS]
    yield f"of {len(result.parts)} tensors {len(differing)} differ"
    if result.fits:
        yield (
            f"all of it is within the tolerances of {result.fits[0]}; if that is what you "
            f"compute in, say --dtype {result.fits[0]}"
        )
    if result.case.catches:
        yield f"mistakes that this case catches: {some(result.case.catches, 20)}"


def other_texts(result: Compared) -> Iterator[str]:
    """Describe the texts that differ."""
    differing = [part for part in result.parts if part.verdict == DIFFERS]
    yield f"{len(result.parts) - len(differing)} of {len(result.parts)} are right"
    groups = Counter(part.extent for part in differing)
    if list(groups) != [""]:
        yield f"wrong by group: {', '.join(f'{shown(g, 40)} {n}' for g, n in groups.items())}"
    for part in differing[:FIRST_FEW]:
        answer = part.name.rpartition(".")[2]
        at = f", other from index {part.index[0]} on" if part.index else ""
        yield part.where
        yield f"  {answer} expected  {shown(part.expected)}"
        yield f"  {'':{len(answer)}} got       {shown(part.got)}{at}"
    if len(differing) > FIRST_FEW:
        yield f"and {len(differing) - FIRST_FEW} more, see --verbose"


def every_part(result: Compared) -> Iterator[str]:
    """List all parts of a case, in the order of computation."""
    found = {part.name: part for part in result.parts}
    width = max(map(len, result.names), default=0)
    for name in result.names:
        part = found.get(name)
        if part is None:
            yield f"-        {name:{width}}  not given"
        elif part.verdict == INCOMPARABLE:
            yield f"?        {name:{width}}  cannot be compared: {part.says}"
        else:
            word = {AGREES: "OK", DIFFERS: "DIFFERS", UNPROVEN: "?"}[part.verdict]
            far = f"{part.worst:.2g} tolerances of {part.dtype}" if part.tolerance else part.dtype
            where = f", at {part.where}" if part.verdict != AGREES else ""
            yield f"{word:7}  {name:{width}}  {far}{where}".rstrip()


def unknown_names(unknown: Mapping[str, str], what: str) -> Iterator[str]:
    """List names that nothing expected has."""
    groups: dict[str, list[str]] = {}
    for name in unknown:
        groups.setdefault(_NUMBERS.sub("N", name), []).append(name)
    for group, names in list(groups.items())[:FIRST_FEW]:
        name, near = names[0], unknown[names[0]]
        if len(names) > 1:
            name, near = group, _NUMBERS.sub("N", near)
        hint = f"; is it {near}?" if near else ""
        amount = f" ({len(names)} of them)" if len(names) > 1 else ""
        yield f"not compared: there is no {what} {one_line(name, 120)!r}{amount}{hint}"
    if len(groups) > FIRST_FEW:
        yield f"not compared: {len(groups) - FIRST_FEW} more"


def not_given(results: Iterable[Compared]) -> str:
    """Return one line with the cases that are not given; "" if there is none."""
    names = [result.case.id for result in results if result.verdict == ABSENT]
    return f"--complete: {len(names)} are missing: {', '.join(names)}" if names else ""


def summary(results: Sequence[Compared]) -> str:
    """Return how many cases have each verdict."""
    counts = {v: sum(r.verdict == v for r in results) for v in (AGREES, DIFFERS, INCOMPARABLE)}
    words = [f"{counts[AGREES]} OK", f"{counts[DIFFERS]} differ"]
    if counts[INCOMPARABLE]:
        words.append(f"{counts[INCOMPARABLE]} cannot be compared")
    return f"{sum(counts.values())} of {len(results)} cases given: {', '.join(words)}"


def some(names: Iterable[str], most: int = FIRST_FEW) -> str:
    """Return the first few, and how many more there are."""
    return one_line(listed(names, most), 1000)


def number(x: object) -> str:
    """Return a number with enough digits for float32."""
    return f"{x:.9g}" if isinstance(x, float) else str(x)


_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_json(
    suite: str,
    candidate: str,
    results: Sequence[Compared],
    unknown: Mapping[str, str],
    complete: bool = False,
) -> str:
    """Return all results as one JSON object on one line, null for a number that is not finite."""
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
    """Write a test case for each case, whole or not at all; ValueError if that fails.

    An absent case is skipped, or failed if all must be there: `complete`.
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
