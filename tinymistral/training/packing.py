"""Packing: from documents to rows of tokens, which fill a batch without padding.

A row holds whole documents, one after the other. None sees another, because the position of its
first token is the window W after that of the last token before it: of two tokens W or more apart
the later does not see the earlier (`operations.visible`). Nothing else changes, since RoPE depends
only on the distance of two positions. With W = 3, two documents of 3 and 2 tokens:

    ids        1  7  2  1  8  2
    targets    7  2  .  8  2  .      . is -100: nothing is predicted
    positions  0  1  2  5  6  7
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from tinymistral.losses import IGNORED

Piece = tuple[np.ndarray, np.ndarray]  # ids and targets of a document, or of a part of one


@dataclass(frozen=True)
class Row:
    """Tokens that go through the model together, each array (T,), int64."""

    ids: np.ndarray
    targets: np.ndarray  # the next token of the same document, or -100
    positions: np.ndarray


def take_documents(
    document: Callable[[int], np.ndarray], start: int, tokens: int
) -> tuple[list[np.ndarray], int]:
    """Return documents from number `start` on that have `tokens` tokens or more, and the next.

    `document(n)` are the ids (T,) of document n.
    """
    taken: list[np.ndarray] = []
    total = 0
    while total < tokens:
        taken.append(document(start + len(taken)))
        total += len(taken[-1])
    return taken, start + len(taken)


def pack(documents: Iterable[np.ndarray], length: int, window: int | None) -> list[Row]:
    """Pack documents (T,) into rows of at most `length` tokens, the longest row first.

    A document that is longer is cut into pieces, which do not see each other; the first token of
    a piece is still predicted, by the last of the piece before. Each piece goes into the first row
    that has room. Without a window nothing would hide a document, so each piece is a row.
    """
    pieces = [piece for ids in documents for piece in _cut(ids, length)]
    rows: list[list[Piece]] = []
    room: list[int] = []
    for piece in pieces:
        size = len(piece[0])
        place = next((n for n, left in enumerate(room) if left >= size), None)
        if place is None or window is None:
            rows.append([piece])
            room.append(length - size)
        else:
            rows[place].append(piece)
            room[place] -= size
    packed = [_row(row, window or 0) for row in rows]
    return sorted(packed, key=lambda row: -len(row.ids))  # threads that take turns end together


def _cut(ids: np.ndarray, length: int) -> list[Piece]:
    targets = np.append(ids[1:], IGNORED)
    return [(ids[n : n + length], targets[n : n + length]) for n in range(0, len(ids), length)]


def _row(pieces: list[Piece], window: int) -> Row:
    ids, targets = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    sizes = [len(piece) for piece, _ in pieces]
    positions = np.arange(len(ids), dtype=np.int64)
    # A piece begins W - 1 positions later than it would as a part of the one before it.
    positions += np.repeat(np.arange(len(sizes), dtype=np.int64), sizes) * (window - 1)
    return Row(ids, targets, positions)
