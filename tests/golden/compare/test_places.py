"""Where something differs: in words, and first in the order of computation; padding nowhere.

The suite is made by hand: every number says where it is, the tolerance of float32 is 0.25.
"""

import numpy as np
import pytest
from handmade_suite import changed, compared, expected, suite_fixture  # noqa: F401

from tinymistral.golden.suite import Suite


@pytest.mark.parametrize(
    ("name", "index", "where"),
    [
        ("calls.1.embedding", (1, 0, 2), "call 1, row 1, token 0 (position 2), dimension 2"),
        (
            "calls.1.layers.1.q",
            (1, 1, 1, 3),
            "call 1, layer 1, row 1, token 1 (position 3), head 1, dimension 3",
        ),
        (
            "calls.0.layers.0.k",
            (0, 1, 0, 2),
            "call 0, layer 0, row 0, token 1 (position 0), key/value head 0, dimension 2",
        ),
        (
            "calls.1.layers.0.attention_weights",
            (0, 1, 0, 1),
            "call 1, layer 0, row 0, head 1, token 0 (position 1), key 1 (position 1)",
        ),
        (
            "calls.1.cache.layers.1.v",
            (1, 0, 0, 0),
            "call 1, layer 1, row 1, key 0 (position 2), key/value head 0, dimension 0",
        ),
    ],
)
def test_the_place_of_an_error_in_words(suite: Suite, name: str, index: tuple, where: str) -> None:
    result = compared(suite, "twice", changed("twice", name, index, -7.0))
    assert result.first is not None
    assert (result.first.name, result.first.index, result.first.where) == (name, index, where)
    assert result.first.got == result.first.expected - 7
    assert result.first.expected == expected("twice")[name][index]
    assert (result.worst, result.first.wrong) == (28, 1)  # 7 / 0.25


def test_places_in_other_kinds_of_cases(suite: Suite) -> None:
    result = compared(suite, "rope", changed("rope", "out", (0, 1, 0, 2), 1.0))
    assert result.parts[0].where == "row 0, token 1 (position 7), head 0, dimension 2"
    result = compared(suite, "draw", changed("draw", "probabilities", (0, 3), 1.0))
    assert result.parts[0].where == "row 0, vocabulary id 3"
    result = compared(suite, "once", changed("once", "calls.0.norm", (0, 1, 2), 1.0))
    assert result.parts[-1].where == "row 0, token 1 (position 1), dimension 2"  # the only call


def test_the_largest_error_and_the_extent_of_errors_are_reported(suite: Suite) -> None:
    given = expected("twice")
    q = given["calls.1.layers.0.q"] = given["calls.1.layers.0.q"].copy()
    q[1, :, 0] += 1
    q[1, 1, 0, 2] += 5
    first = compared(suite, "twice", given).first
    assert first is not None
    assert first.index == (1, 1, 0, 2)
    assert first.worst == 24  # (1 + 5) / 0.25
    # Row 0 has one token and padding, row 1 two: 3 tokens of 2 heads of 4 count, 2 of 1 are wrong.
    assert (first.wrong, first.counted) == (8, 24)
    assert first.extent == "row 1; head 0"


# Padding


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("calls.0.layers.0.q", (0, 0)),  # padding on the left of row 0
        ("calls.1.norm", (0, 1)),  # on its right
        ("calls.1.layers.0.attention_weights", (0, slice(None), slice(None), slice(2, 4))),
        ("calls.0.layers.0.attention_weights", (0, slice(None), 0)),
        ("calls.0.cache.layers.0.k", (0, 0)),
    ],
)
@pytest.mark.parametrize("value", [1e9, np.nan])
def test_padding_is_not_compared(suite: Suite, name: str, index: tuple, value: float) -> None:
    given = changed("twice", name, index, value)
    assert compared(suite, "twice", given).verdict == "agrees"


# The order of computation

IN_ORDER = [
    "calls.0.embedding",
    "calls.0.layers.0.q",
    "calls.0.layers.0.k",
    "calls.0.layers.0.k_rotated",
    "calls.0.cache.layers.0.k",
    "calls.0.cache.layers.0.v",
    "calls.0.layers.0.attention_weights",
    "calls.0.layers.0.output",
    "calls.0.layers.1.q",
    "calls.0.layers.1.k",
    "calls.0.layers.1.k_rotated",
    "calls.0.cache.layers.1.k",
    "calls.0.cache.layers.1.v",
    "calls.0.layers.1.attention_weights",
    "calls.0.layers.1.output",
    "calls.0.norm",
]
IN_ORDER += [name.replace("calls.0", "calls.1") for name in IN_ORDER]


def test_parts_are_in_the_order_of_computation(suite: Suite) -> None:
    result = compared(suite, "twice", dict(reversed(expected("twice").items())))
    assert list(result.names) == [part.name for part in result.parts] == IN_ORDER


@pytest.mark.parametrize("n", range(0, len(IN_ORDER) - 1, 3))
def test_the_first_that_differs_is_named_however_small_its_error(suite: Suite, n: int) -> None:
    given = {name: x.copy() for name, x in expected("twice").items()}
    for name in IN_ORDER[n + 1 :]:
        given[name] += 100
    given[IN_ORDER[n]] += np.float32(0.5)
    result = compared(suite, "twice", given)
    assert result.first is not None
    assert result.first.name == IN_ORDER[n]
    assert result.first.worst == 2
    assert sum(part.verdict == "differs" for part in result.parts) == len(IN_ORDER) - n


def test_what_agrees_before_it_and_what_is_not_given_in_between(suite: Suite) -> None:
    given = changed("once", "calls.0.layers.0.output", (0, 0, 0), 1.0)
    for name in ("calls.0.cache.layers.0.k", "calls.0.cache.layers.0.v"):
        del given[name]
    del given["calls.0.layers.0.attention_weights"]
    last, between = compared(suite, "once", given).before
    assert last is not None
    assert last.name == "calls.0.layers.0.k_rotated"
    assert len(between) == 3
    assert between[-1] == "calls.0.layers.0.attention_weights"
