"""Packing: laws of rows, checked with the rule of visibility itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymistral.operations import visible
from tinymistral.training.packing import pack, take_documents

# Documents of numbers that are all different, so that a token says where it is from.
SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=12)
LENGTHS = st.integers(1, 40)
WINDOWS = st.one_of(st.none(), st.integers(1, 20))


def documents_of(sizes: list[int]) -> list[np.ndarray]:
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def test_the_example_of_the_docstring() -> None:
    (row,) = pack([np.array([1, 7, 2]), np.array([1, 8, 2])], length=6, window=3)
    assert row.ids.tolist() == [1, 7, 2, 1, 8, 2]
    assert row.targets.tolist() == [7, 2, -100, 8, 2, -100]
    assert row.positions.tolist() == [0, 1, 2, 5, 6, 7]


def test_a_long_document_is_cut_and_keeps_its_targets() -> None:
    rows = pack([np.array([1, 4, 5, 6, 2])], length=2, window=8)
    assert [row.ids.tolist() for row in rows] == [[1, 4], [5, 6], [2]]
    assert [row.targets.tolist() for row in rows] == [[4, 5], [6, 2], [-100]]


def test_a_document_goes_where_there_is_room() -> None:
    documents = documents_of([5, 4, 3, 2])
    rows = pack(documents, length=8, window=4)
    assert [row.ids.tolist() for row in rows] == [[0, 1, 2, 3, 4, 9, 10, 11], [5, 6, 7, 8, 12, 13]]


@given(SIZES, LENGTHS, WINDOWS)
def test_every_token_is_in_one_row_that_is_not_too_long(sizes, length, window) -> None:
    rows = pack(documents_of(sizes), length, window)
    assert all(0 < len(row.ids) <= length for row in rows)
    assert sorted(np.concatenate([row.ids for row in rows])) == list(range(sum(sizes)))


@given(SIZES, LENGTHS, WINDOWS)
def test_every_token_predicts_the_next_of_its_document(sizes, length, window) -> None:
    last = set(np.cumsum(sizes) - 1)
    for row in pack(documents_of(sizes), length, window):
        for token, target in zip(row.ids, row.targets, strict=True):
            assert target == (-100 if token in last else token + 1)


@given(SIZES, LENGTHS, WINDOWS)
def test_no_document_sees_another(sizes, length, window) -> None:
    of = np.repeat(np.arange(len(sizes)), sizes)  # the document of each token
    start = np.concatenate([[0], np.cumsum(sizes)])  # the first token of each document
    piece = np.stack([of, (np.arange(sum(sizes)) - start[of]) // length])
    for row in pack(documents_of(sizes), length, window):
        distance = row.ids[:, None] - row.ids
        same = (piece[:, row.ids][:, :, None] == piece[:, row.ids][:, None]).all(axis=0)
        sees = same & (distance >= 0) & (distance < (window or np.inf))
        assert (visible(row.positions, row.positions, window) == sees).all()


@given(SIZES, LENGTHS, WINDOWS)
def test_the_longest_row_comes_first(sizes, length, window) -> None:
    lengths = [len(row.ids) for row in pack(documents_of(sizes), length, window)]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(("tokens", "numbers"), [(1, [3]), (4, [3]), (5, [3, 4]), (10, [3, 4, 5])])
def test_documents_are_taken_until_there_are_enough_tokens(tokens: int, numbers: list[int]) -> None:
    """Document n has n + 1 tokens."""
    taken, after = take_documents(lambda n: np.full(n + 1, n), 3, tokens)
    assert [ids[0] for ids in taken] == numbers
    assert after == numbers[-1] + 1
