"""Calls that follow each other with one cache: as one text, and cut into calls again.

A model's stages for a whole text at once hold all that its calls must come to, however the text is
cut. Attention weights (B, H, T, n) are by token here: column n is the row's n-th, oldest first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tinymistral.golden.running import calls_of

Arrays = dict[str, np.ndarray]


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


def cut(whole: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]) -> Arrays:
    """Cut the stages of a whole text into what is expected of each call and of its cache."""
    _, positions, widths = text_of(inputs)
    expected: Arrays = {}
    stops = np.cumsum(widths)
    for n, (stop, width) in enumerate(zip(stops, widths, strict=True)):
        part = slice(stop - width, stop)
        for name, array in whole.items():
            if name.endswith("attention_weights"):
                tokens = inputs[f"calls.{n}.key_positions"].shape[1]
                expected[f"calls.{n}.{name}"] = array[:, :, part, :tokens]
            else:
                expected[f"calls.{n}.{name}"] = array[:, part]
        at = inputs[f"calls.{n}.cache_positions"]
        for layer in range(sum(name.endswith("k_rotated") for name in whole) if at.size else 0):
            for name, stage in (("k", "k_rotated"), ("v", "v")):
                out = np.zeros((*at.shape, *whole[f"layers.{layer}.{stage}"].shape[2:]))
                for b, p in np.argwhere(at >= 0):
                    column = np.flatnonzero(positions[b] == at[b, p])[0]
                    out[b, p] = whole[f"layers.{layer}.{stage}"][b, column]
                expected[f"calls.{n}.cache.layers.{layer}.{name}"] = out
    return expected


def join(results: Mapping[str, np.ndarray], calls: int) -> Arrays:
    """Join the stages of calls, whatever the calls were, to those of the whole text."""
    names = [n.removeprefix("calls.0.") for n in results if n.startswith("calls.0.")]
    whole: Arrays = {}
    for name in names:
        if name.startswith("cache."):
            continue
        arrays = [results[f"calls.{n}.{name}"].astype(np.float64) for n in range(calls)]
        if name.endswith("attention_weights"):
            tokens = arrays[-1].shape[3]
            arrays = [np.pad(x, [(0, 0)] * 3 + [(0, tokens - x.shape[3])]) for x in arrays]
        whole[name] = np.concatenate(arrays, axis=2 if name.endswith("weights") else 1)
    return whole


def by_token(weights: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Turn attention weights over columns (B, H, T, T) into those over tokens (B, H, T, n)."""
    real = positions >= 0
    out = np.zeros((*weights.shape[:3], real.sum(axis=1).max()))
    for b, row in enumerate(real):
        out[b, :, :, : row.sum()] = weights[b][:, :, row]
    return out


def _seen_by_the_next(row: np.ndarray, window: int | None) -> np.ndarray:
    """Return those of the positions of a row that the position after the last one sees."""
    return row if window is None or not len(row) else row[row[-1] + 1 - row < window]


def _rows(rows: list[np.ndarray], left: bool) -> np.ndarray:
    """Stack rows of unequal length, -1 on the left or on the right of the shorter ones."""
    out = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for into, row in zip(out, rows, strict=True):
        into[len(into) - len(row) if left else 0 :][: len(row)] = row
    return out
