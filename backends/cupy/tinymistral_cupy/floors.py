"""The least time that attention, and a step of decoding, can take on a card.

At least, keys, values and weights are read once, and each visible pair of a query and a key costs
two products of d numbers. The rates are those of the card.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """What a card can do in a second: bytes of its memory, and operations of its tensor cores."""

    bandwidth: float
    operations: float


@dataclass(frozen=True)
class Heads:
    """The heads and the window of Mistral-7B-v0.1."""

    H: int = 32
    K: int = 8
    d: int = 128
    W: int = 4096
    itemsize: int = 2


def visible_pairs(T: int, window: int) -> int:
    """Count the visible pairs of a query and a key, in a text of T tokens."""
    wide = min(T, window)
    return wide * (wide + 1) // 2 + (T - wide) * window


def prefill_seconds(rates: Rates, T: int, heads: Heads) -> float:
    """Return the floor of attention over a text of T tokens: a product is two operations."""
    return 4 * heads.d * heads.H * visible_pairs(T, heads.W) / rates.operations


def decode_seconds(rates: Rates, rows: int, heads: Heads) -> float:
    """Return the floor of attention for one new token of each row, past the window."""
    return rows * 2 * heads.W * heads.K * heads.d * heads.itemsize / rates.bandwidth
