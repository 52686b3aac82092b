"""Stop strings; the streaming decoder's laws stand with the tokenizer's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymistral.streaming import StopStrings

# Two letters and short pieces: stop strings that begin, overlap and break off all the time
texts_in_pieces = st.lists(st.text("ab", max_size=3), max_size=12)
stops = st.lists(st.text("ab", min_size=1, max_size=6), max_size=3)


def cut_by_definition(text: str, stop: list[str]) -> str:
    """Letter by letter: the first end of a stop string decides, the longest that ends there."""
    for end in range(len(text) + 1):
        complete = [string for string in stop if text[:end].endswith(string)]
        if complete:
            return text[: end - len(max(complete, key=len))]
    return text


@given(pieces=texts_in_pieces, stop=stops)
def test_any_pieces_give_the_text_cut_at_the_first_complete_stop_string(pieces, stop) -> None:
    stopper = StopStrings(stop)
    shown = "".join([stopper.push(piece) for piece in pieces]) + stopper.flush()
    whole = "".join(pieces)
    assert shown == cut_by_definition(whole, stop)
    assert (stopper.matched is None) == (not any(string in whole for string in stop))
    if stopper.matched is not None:
        assert stopper.matched in stop
        assert whole.startswith(shown + stopper.matched)


@given(pieces=texts_in_pieces, stop=stops)
def test_only_the_beginning_of_a_stop_string_is_held_back(pieces, stop) -> None:
    stopper = StopStrings(stop)
    shown = seen = ""
    for piece in pieces:
        shown, seen = shown + stopper.push(piece), seen + piece
        if stopper.matched is None:
            held = seen.removeprefix(shown)
            assert not held or any(string.startswith(held) for string in stop)


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one\n\ntwo", "\n\n", "one"),
        ("abcd", ["bcd", "c"], "ab"),  # c is complete before bcd is
        ("abcd", ["c", "abc", "bc"], ""),  # all end on the c: the longest
        ("aab", ["ab"], "a"),
        ("abab", ["c"], "abab"),
        ("abab", [], "abab"),
    ],
)
def test_where_the_text_is_cut(text: str, stop: list[str], shown: str) -> None:
    stopper = StopStrings(stop)
    assert "".join([stopper.push(letter) for letter in text]) + stopper.flush() == shown


@pytest.mark.parametrize("stop", [7, None, [""], "", ["a", 7], {"a": 1}])
def test_stop_strings_are_texts(stop: object) -> None:
    with pytest.raises(ValueError, match="expected a text or a list of texts, none empty"):
        StopStrings(stop)  # type: ignore[arg-type]
