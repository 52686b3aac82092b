"""Logits for the cases of kind sampling, on which no filter hangs on how a sum is rounded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tinymistral.golden.making.drawing import exact, integers, normal
from tinymistral.golden.vectors import definition

V = 64  # of the vocabulary
MARGIN = 0.004  # top_p may be so much more or less, min_p ten times that part of itself


def steady_inputs(
    number: int, parameters: Mapping[str, Any], rows: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Draw inputs until no token hangs on how a sum is rounded."""
    for seed in itertools.count():
        logits = exact_logits([900 + number, seed], rows)
        inputs = {"logits": logits, "previous_ids": previous_ids([950 + number, seed], logits)}
        try:
            sets = [kept(inputs, shifted) for shifted in around(parameters)]
        except ValueError:  # equal scores on both sides of a boundary
            continue
        if all(np.array_equal(sets[0], other) for other in sets):
            return inputs
    raise AssertionError


def around(parameters: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Give the parameters, and what is a little below and above their boundaries."""
    yield parameters
    for sign in (-1, 1):
        if parameters.get("top_p", 1) < 1:
            yield {**parameters, "top_p": max(0.0, parameters["top_p"] + sign * MARGIN)}
        if parameters.get("min_p", 0) > 0:
            yield {**parameters, "min_p": min(1.0, parameters["min_p"] * (1 + sign * 10 * MARGIN))}


def kept(inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any]) -> np.ndarray:
    """Tell which tokens (B, V) are kept."""
    return definition.probabilities(inputs["logits"], inputs["previous_ids"], parameters) > 0


def exact_logits(seed: list[int], rows: tuple[str, ...]) -> np.ndarray:
    """Draw logits (B, V) that 16 bits hold, a row of each kind."""
    drawn = []
    for n, kind in enumerate(rows):
        row = normal([*seed, n], V)
        if kind == "far":
            row = np.where(np.arange(V) % 2 == 0, 300, -300) + 4 * row
        elif kind == "far below":
            row = 4 * row - 500
        elif kind == "twins":  # of each number there are two
            row = np.repeat(2 * row[::2], 2)
        elif kind == "peaked":
            row[seed[0] % V] = 12
        else:
            row = {"narrow": 0.5 * row, "below zero": 2 * row - 24}.get(kind, 3 * row)
        row = exact(row)
        if kind == "forbidden":
            row[::3] = -np.inf
        elif kind == "all but one forbidden":
            row[: V - 1] = -np.inf
        drawn.append(row)
    return np.stack(drawn)


def previous_ids(seed: list[int], logits: np.ndarray) -> np.ndarray:
    """Give what each row has so far (B, 8): drawn ids, then the likeliest two, and each twice."""
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :2]
    ids = np.concatenate([integers(seed, V, len(logits), 2), best], axis=-1)
    return np.concatenate([ids, ids], axis=-1)
