"""Reports for people, programs and CIs, on a suite and errors made by hand."""

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from handmade_suite import STRINGS, changed, compared, expected, suite_fixture  # noqa: F401

from tinymistral.golden.compare.candidate import CaseDump
from tinymistral.golden.compare.verdicts import Compared
from tinymistral.golden.report import as_json, as_table, legible, write_junit
from tinymistral.golden.suite import Suite


def one_of_each(suite: Suite) -> list[Compared]:
    """A case that agrees, one that differs, one that cannot be compared, one that is absent."""
    once = changed("once", "calls.0.layers.1.q", (1, 0, 1, 2), 2.0)
    once["calls.0.norm"] = once["calls.0.norm"] + np.float32(np.inf)
    del once["calls.0.layers.1.k"], once["calls.0.layers.0.output"]
    return [
        compared(suite, "rope", expected("rope")),
        compared(suite, "once", once),
        compared(suite, "draw", {"probabilities": np.zeros((4, 1), np.float32)}),
        compared(suite, "twice", {}),
    ]


def test_the_table(suite: Suite) -> None:
    given = [
        compared(suite, "rope", changed("rope", "out", (0, 0, 0, 0), 0.125)),
        *one_of_each(suite),
    ]
    assert as_table(given[:2], {}).splitlines() == [
        "case      compared  largest error",
        "rope  OK  1 of 1    0.5 tolerances",  # 0.125 / 0.25
        "rope  OK  1 of 1    0 tolerances",
        "",
        "2 of 2 cases given: 2 OK, 0 differ",
    ]
    assert as_table(given[1:], {"bad": "rope"}).splitlines() == [
        "case                                 compared  largest error",
        "rope  OK                             1 of 1    0 tolerances",
        "once  DIFFERS at calls.0.layers.1.q  14 of 16  inf tolerances",
        "draw  CANNOT BE COMPARED             0 of 1",
        "",
        "once: what once is about",
        "  the first to differ, in the order of computation, is calls.0.layers.1.q",
        "    where     layer 1, row 1, token 0 (position 0), head 1, dimension 2: [1, 0, 1, 2]",
        "    expected  22",  # 16 numbers a row, 4 a head
        "    got       24",
        "    error     2, the tolerance of float32 is 0.25",
        "    wrong     1 of 32 numbers: row 1; token 0; head 1; dimension 2",
        "  the last to agree before it is calls.0.layers.0.attention_weights",
        "  not given in between: calls.0.layers.0.output",
        "  of 14 tensors 2 differ",
        "  mistakes that this case catches: that",
        "",
        "draw: what draw is about",
        "  cannot be compared: probabilities: its shape is (4, 1), expected (1, 4), which is B V; "
        "its axes are in another order",
        "",
        "not compared: there is no case 'bad'; is it rope?",
        "3 of 4 cases given: 1 OK, 1 differ, 1 cannot be compared",
    ]


def test_verbose_lists_every_tensor(suite: Suite) -> None:
    lines = as_table(one_of_each(suite), {}, verbose=True).splitlines()
    assert "  OK       out  0 tolerances of float32" in lines
    assert f"  OK       {'calls.0.embedding':34}  0 tolerances of float32" in lines
    assert f"  -        {'calls.0.layers.1.k':34}  not given" in lines
    assert (
        f"  DIFFERS  {'calls.0.layers.1.q':34}  8 tolerances of float32, at layer 1, row 1, "
        "token 0 (position 0), head 1, dimension 2" in lines
    )
    assert any(line.startswith("  ?        probabilities  cannot be compared: ") for line in lines)


def test_a_coarser_dtype_is_proposed_where_all_is_within_its_tolerances(suite: Suite) -> None:
    given = [compared(suite, "rope", changed("rope", "out", (0, 0, 0, 0), 1.5))]
    assert (
        "  all of it is within the tolerances of bfloat16; if that is what you compute in, say "
        in (as_table(given, {}))
    )
    assert "within" not in as_table(one_of_each(suite), {})


def test_other_ids(suite: Suite) -> None:
    given = {"sequences": expected("greedy")["sequences"].copy()}
    given["sequences"][1, 4] = 8
    table = as_table([compared(suite, "greedy", given)], {})
    assert "greedy  DIFFERS at sequences  1 of 2    other ids\n" in table
    assert "    where     row 1, step 1: [1, 4]\n    expected  31\n    got       8\n" in table
    assert "in bfloat16 rounding may lead to other tokens" in table
    table = as_table([compared(suite, "greedy", given, "bfloat16")], {})
    assert "greedy  OK, as far as can be told  1 of 2\n" in table
    assert "sequences is another one from row 1, step 1 on: in bfloat16 rounding may lead" in table


def test_other_texts(suite: Suite) -> None:
    wrong = [STRINGS[0] | {"ids": [5, 7]}, STRINGS[1], STRINGS[2] | {"decoded": "x\x1b[1m"}]
    table = as_table([compared(suite, "words", CaseDump(document={"strings": wrong}))], {})
    assert table.splitlines()[1:12] == [
        "words  DIFFERS at strings.0.ids  6 of 6    2 wrong",
        "",
        "words: what words is about",
        "  4 of 6 are right",
        "  wrong by group: 'spaces' 1, 'bytes' 1",
        "  text 'a  b'",
        "    ids expected  [5, 6, 7]",
        "        got       [5, 7], other from index 1 on",
        r"  text '\x00<é>'",
        r"    decoded expected  '\x00<é>'",
        r"            got       'x\x1b[1m', other from index 0 on",
    ]


def test_names_of_a_dump_are_printable(suite: Suite) -> None:
    unknown = {"\x1b[2J\nOK": "", **{f"name{n}": "" for n in range(9)}}
    table = as_table([compared(suite, "rope", CaseDump(unknown=unknown))], unknown)
    assert "\x1b" not in table
    assert table.count("not compared: there is no") == 10
    assert table.count("not compared: 5 more") == 2
    assert "CANNOT BE COMPARED" in table


def test_json_is_one_object_on_one_line(suite: Suite) -> None:
    out = as_json("handmade", "dump", one_of_each(suite), {"bad": "rope"})
    assert out.count("\n") == 1
    told = json.loads(out, parse_constant=pytest.fail)
    assert {n: told[n] for n in ("suite", "candidate", "verdict", "unknown")} == {
        "suite": "handmade",
        "candidate": "dump",
        "verdict": "differs",
        "unknown": {"bad": "rope"},
    }
    assert [(case["id"], case["verdict"], case["first"]) for case in told["cases"]] == [
        ("rope", "agrees", None),
        ("once", "differs", "calls.0.layers.1.q"),
        ("draw", "incomparable", None),
        ("twice", "absent", None),
    ]
    once = told["cases"][1]
    assert (once["expected"], len(once["parts"]), once["worst"]) == (16, 14, None)  # infinite
    assert next(part for part in once["parts"] if part["verdict"] == "differs") == {
        "name": "calls.0.layers.1.q",
        "verdict": "differs",
        "dtype": "float32",
        "tolerance": 0.25,
        "error": 2.0,
        "worst": 8.0,
        "index": [1, 0, 1, 2],
        "where": "layer 1, row 1, token 0 (position 0), head 1, dimension 2",
        "expected": 22.0,
        "got": 24.0,
        "wrong": 1,
        "counted": 32,
        "extent": "row 1; token 0; head 1; dimension 2",
        "says": "",
        "fits": ["bfloat16"],
    }


def test_junit_has_a_test_case_for_each_case(suite: Suite, tmp_path: Path) -> None:
    write_junit(tmp_path / "report.xml", "handmade", one_of_each(suite))
    assert [path.name for path in tmp_path.iterdir()] == ["report.xml"]
    group = ElementTree.parse(tmp_path / "report.xml").getroot()[0]
    counts = {name: group.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    assert [case.get("name") for case in group] == ["rope", "once", "draw", "twice"]
    assert [[child.tag for child in case] for case in group] == [
        [],
        ["failure"],
        ["error"],
        ["skipped"],
    ]
    assert group[1][0].get("message") == "DIFFERS at calls.0.layers.1.q"
    assert "got       24" in (group[1][0].text or "")


def test_junit_with_what_xml_cannot_hold(suite: Suite, tmp_path: Path) -> None:
    wrong = [STRINGS[2] | {"decoded": "\ud800\x00]]>&<"}]
    unknown = {"\x01\ud800": ""}
    results = [
        compared(suite, "words", CaseDump(document={"strings": wrong})),
        compared(suite, "rope", CaseDump(expected("rope"), unknown=unknown)),
    ]
    write_junit(tmp_path / "report.xml", "handmade", results)
    assert ElementTree.parse(tmp_path / "report.xml").getroot()[0].get("failures") == "1"
    assert legible("a\x00\ud800\x1bé🙂\n") == "a\\x00\\ud800\\x1bé🙂\n"


def test_a_number_with_an_infinite_error_is_reported(suite: Suite) -> None:
    result = compared(suite, "rope", changed("rope", "out", (0, 0, 0, 1), math.nan))
    assert "expected  1\n    got       nan\n    error     inf" in as_table([result], {})


def test_names_that_differ_only_in_numbers_are_reported_once(suite: Suite) -> None:
    unknown = {f"calls.{n}.layers.7.queries": f"calls.{n}.layers.7.q" for n in range(3)}
    unknown |= {"layers.1.keys": "layers.1.k"}
    table = as_table([compared(suite, "rope", CaseDump(expected("rope"), unknown=unknown))], {})
    assert table.splitlines()[4:6] == [
        "  not compared: there is no name 'calls.N.layers.N.queries' (3 of them); "
        "is it calls.N.layers.N.q?",
        "  not compared: there is no name 'layers.1.keys'; is it layers.1.k?",
    ]


def test_details_of_the_first_of_many_cases(suite: Suite) -> None:
    wrong = compared(suite, "rope", changed("rope", "out", (0, 0, 0, 0), 9.0))
    strange = compared(suite, "rope", CaseDump(expected("rope"), unknown={"other": ""}))
    table = as_table([wrong] * 5 + [strange] * 5, {})
    assert table.count("the first to differ") == 3
    assert table.count("there is no name 'other'") == 1
    assert "details of 6 more: see --verbose, or --case ID" in table
    assert as_table([wrong] * 5, {}, verbose=True).count("the first to differ") == 5
