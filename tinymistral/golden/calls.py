"""The calls of a case of kind model, which follow each other with one cache, and their inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Arrays = dict[str, np.ndarray]


def calls_of(inputs: Mapping[str, np.ndarray]) -> list[Arrays]:
    """Return the inputs of each call of a case of kind model."""
    calls: list[Arrays] = []
    while f"calls.{len(calls)}.input_ids" in inputs:
        name = f"calls.{len(calls)}."
        calls.append({n.removeprefix(name): x for n, x in inputs.items() if n.startswith(name)})
    return calls


def inputs_of(
    ids: np.ndarray, positions: np.ndarray, widths: list[int], window: int | None
) -> Arrays:
    """Cut a text (B, T), -1 for padding, into calls of so many columns: the inputs of a case."""
    inputs: Arrays = {}
    stops = np.cumsum(widths)
    for n, (stop, width) in enumerate(zip(stops, widths, strict=True)):
        inputs[f"calls.{n}.input_ids"] = ids[:, stop - width : stop]
        inputs[f"calls.{n}.positions"] = positions[:, stop - width : stop]
        so_far = [row[row >= 0] for row in positions[:, :stop]]
        kept = [_seen_by_the_next(row, window) for row in so_far]
        inputs[f"calls.{n}.key_positions"] = _rows(so_far, left=False)
        inputs[f"calls.{n}.cache_positions"] = _rows(kept, left=True)
    return inputs


def text_of(inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Join the calls of a case -> ids and positions (B, T), and the columns of each call."""
    parts = calls_of(inputs)
    ids, positions = (
        np.concatenate([part[name] for part in parts], axis=1)
        for name in ("input_ids", "positions")
    )
    return ids, positions, [part["input_ids"].shape[1] for part in parts]


def logprobs(scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the natural logarithms of the probabilities of tokens (B, n) by logits (B, n, V)."""
    scores = scores.astype(np.float64)
    scores = scores - scores.max(axis=-1, keepdims=True)
    picked = np.take_along_axis(scores, chosen[..., None], axis=-1)[..., 0]
    return np.asarray(picked - np.log(np.exp(scores).sum(axis=-1)))


def _seen_by_the_next(row: np.ndarray, window: int | None) -> np.ndarray:
    """Return those of the positions of a row that the position after the last one sees."""
    return row if window is None or not len(row) else row[row[-1] + 1 - row < window]


def _rows(rows: list[np.ndarray], left: bool) -> np.ndarray:
    """Stack rows of unequal length, -1 on the left or on the right of the shorter ones."""
    out = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for into, row in zip(out, rows, strict=True):
        into[len(into) - len(row) if left else 0 :][: len(row)] = row
    return out
