"""Kept: what a cache should remember, in lists that keep everything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Token:
    """A position, and its keys and values (layers, K, d)."""

    position: int
    k: np.ndarray
    v: np.ndarray


class Kept:
    """The tokens of each row, oldest first: nothing wraps, nothing is overwritten."""

    def __init__(self, rows: int):
        """Begin with none."""
        self.rows: list[list[Token]] = [[] for _ in range(rows)]
        self.most = [0] * rows  # that a row ever had: so far the ring has turned

    def select(self, rows: tuple[int, ...]) -> Kept:
        """Return another one, of these rows."""
        new = Kept(0)
        new.rows = [list(self.rows[row]) for row in rows]
        new.most = [self.most[row] for row in rows]
        return new

    def before(self, row: int, back: int, chunk: int) -> int:
        """Return the position before the next token, gone back by up to `back` tokens.

        By no more than `chunk` from the furthest that the row has been: so much a ring allows.
        """
        tokens = self.rows[row]
        back = max(0, min(back, len(tokens), chunk - (self.most[row] - len(tokens))))
        tokens = tokens[: len(tokens) - back]
        return tokens[-1].position if tokens else -1

    def add(self, positions: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
        """Add tokens at positions (B, T), k and v (layers, B, T, K, d); later ones are gone."""
        for b, t in np.argwhere(positions >= 0):
            position, row = int(positions[b, t]), self.rows[b]
            while row and row[-1].position >= position:
                row.pop()
            row.append(Token(position, k[:, b, t].copy(), v[:, b, t].copy()))
            self.most[b] = max(self.most[b], len(row))

    def read(self, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return keys and values (B, S, K, d) and positions (B, S), -1 where a row has fewer."""
        S = max(map(len, self.rows))
        one = next((row[0] for row in self.rows if row), None)
        assert one is not None, "no tokens yet"
        k = np.zeros((len(self.rows), S, *one.k.shape[1:]), dtype=one.k.dtype)
        v = np.zeros_like(k)
        positions = np.full((len(self.rows), S), -1, dtype=np.int64)
        for b, row in enumerate(self.rows):
            for s, token in enumerate(row):
                k[b, s], v[b, s], positions[b, s] = token.k[layer], token.v[layer], token.position
        return k, v, positions
