"""Cases of kind model: calls that follow each other with one cache, and their inputs.

    calls.N.input_ids         (B, T) tokens, any where there is padding
    calls.N.positions         (B, T) their positions
    calls.N.key_positions     (B, S) the columns of the attention weights: each row's tokens so far
    calls.N.cache_positions   (B, P) what the cache must hold afterwards: the keys that are visible
                              to the next token

A position of -1 is padding.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tinymistral.golden.files import Arrays


def calls_of(inputs: Mapping[str, np.ndarray]) -> list[Arrays]:
    """Return the inputs of each call."""
    calls: list[Arrays] = []
    while f"calls.{len(calls)}.input_ids" in inputs:
        name = f"calls.{len(calls)}."
        calls.append({n.removeprefix(name): x for n, x in inputs.items() if n.startswith(name)})
    return calls


def inputs_of(
    ids: np.ndarray, positions: np.ndarray, widths: list[int], window: int | None
) -> Arrays:
    """Split a text (B, T) into calls with these numbers of columns; return the case's inputs."""
    inputs: Arrays = {}
    stops = np.cumsum(widths)
    for n, (stop, width) in enumerate(zip(stops, widths, strict=True)):
        inputs[f"calls.{n}.input_ids"] = ids[:, stop - width : stop]
        inputs[f"calls.{n}.positions"] = positions[:, stop - width : stop]
        so_far = [row[row >= 0] for row in positions[:, :stop]]
        visible = [  # to the position after the last one
            row if window is None or not len(row) else row[row[-1] + 1 - row < window]
            for row in so_far
        ]
        inputs[f"calls.{n}.key_positions"] = _padded(so_far, left=False)
        inputs[f"calls.{n}.cache_positions"] = _padded(visible, left=True)
    return inputs


def at_positions(
    array: np.ndarray, columns: np.ndarray, positions: np.ndarray, missing: float
) -> np.ndarray:
    """Take from (B, S, ...) what is at `positions` (B, n); S columns are at positions `columns`.

    Where `columns` (B, >= S) has more, the last S count. The result is 0 where the position is -1,
    and `missing` where no column has it.
    """
    columns = columns[:, columns.shape[1] - array.shape[1] :]
    out = np.full((*positions.shape, *array.shape[2:]), missing, dtype=array.dtype)
    out[positions < 0] = 0
    for b, n in np.argwhere(positions >= 0):
        for column in np.flatnonzero(columns[b] == positions[b, n]):
            out[b, n] = array[b, column]
    return out


def logprobs(scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the log-probabilities (B, n) of tokens (B, n) by logits (B, n, V), in float64.

    Expected numbers are made with it, so it does not use `sampling.log_softmax`, which they test.
    """
    scores = scores.astype(np.float64)
    scores = scores - scores.max(axis=-1, keepdims=True)
    picked = np.take_along_axis(scores, chosen[..., None], axis=-1)[..., 0]
    return np.asarray(picked - np.log(np.exp(scores).sum(axis=-1)))


def _padded(rows: list[np.ndarray], left: bool) -> np.ndarray:
    """Stack rows of unequal length, with -1 on the left or on the right."""
    out = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for into, row in zip(out, rows, strict=True):
        into[len(into) - len(row) if left else 0 :][: len(row)] = row
    return out
