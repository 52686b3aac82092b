"""Comparing the results of tokenizers and chat formats."""

import pytest
from handmade_suite import STRINGS, TALK, TEXTS, compared, suite_fixture  # noqa: F401

from tinymistral.golden.compare.candidate import CaseDump
from tinymistral.golden.suite import Suite


def test_texts_agree_in_any_order_and_some_may_be_missing(suite: Suite) -> None:
    given = CaseDump(document={"strings": STRINGS[:0:-1]})
    result = compared(suite, "words", given)
    assert result.verdict == "agrees"
    assert [part.name for part in result.parts] == [
        f"strings.{n}.{answer}" for n in (1, 2) for answer in ("ids", "decoded")
    ]
    assert len(result.names) == 6
    assert compared(suite, "talk", CaseDump(document=TEXTS["talk"][1])).verdict == "agrees"


def test_a_text_that_differs_is_reported(suite: Suite) -> None:
    wrong = [STRINGS[0] | {"ids": [5, 7]}, STRINGS[1], STRINGS[2] | {"decoded": "x"}]
    result = compared(suite, "words", CaseDump(document={"strings": wrong}))
    assert result.verdict == "differs"
    first, second = (part for part in result.parts if part.verdict == "differs")
    assert first.where == "text 'a  b'"  # no space is lost
    assert (first.name, first.expected, first.got, first.index) == (
        "strings.0.ids",
        [5, 6, 7],
        [5, 7],
        (1,),
    )
    assert (second.name, second.where) == ("strings.2.decoded", r"text '\x00<é>'")
    doubled = [TALK[0] | {"ids": [1, 1, 5]}]
    first_talk = compared(suite, "talk", CaseDump(document={"conversations": doubled})).first
    assert first_talk is not None
    assert first_talk.index == (1,)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "expected a JSON object, got []"),
        ({"strings": 5}, "strings: expected a list, got 5"),
        ({"strings": [5]}, "strings: entry 0: expected an object with 'text', got 5"),
        ({"strings": [{"ids": []}]}, "entry 0: expected an object with 'text'"),
        ({"strings": [STRINGS[0], STRINGS[0] | {"ids": []}]}, "text 'a  b' is there twice"),
    ],
)
def test_texts_that_cannot_be_compared(suite: Suite, document: object, says: str) -> None:
    result = compared(suite, "words", CaseDump(document=document))
    assert result.verdict == "incomparable"
    assert says in result.problem


def test_texts_that_are_not_in_the_suite(suite: Suite) -> None:
    document = {"strings": [STRINGS[1], {"text": "other", "ids": [1]}], "more": []}
    result = compared(suite, "words", CaseDump(document=document))
    assert result.verdict == "agrees"
    assert dict(result.unknown) == {"more": "", "text 'other'": ""}
    result = compared(
        suite, "words", CaseDump(document={"strings": [{"text": "other", "ids": [1]}]})
    )
    assert result.verdict == "incomparable"
