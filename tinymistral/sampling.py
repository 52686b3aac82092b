"""Logits to the next token: the processors of transformers, in its order and with its meaning.

Each takes and returns scores (B, V); a token that may not be drawn has score -inf. Checked
against transformers 5 (generation/logits_process.py), whose classes are named beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def penalize_repetition(scores: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """Divide positive scores, and multiply negative ones, of tokens that a row already has.

    RepetitionPenaltyLogitsProcessor; Keskar et al. 2019, https://arxiv.org/abs/1909.05858.
    `seen` (B, V) is true for the tokens of a row, those of its prompt included.
    """
    penalized = np.where(scores < 0, scores * penalty, scores / penalty)
    return np.where(seen, penalized, scores)


def scale_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Divide by the temperature: below 1 the likely becomes likelier (TemperatureLogitsWarper)."""
    return scores / temperature


def keep_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Keep the k highest scores of a row, and what equals the lowest of them (TopKLogitsWarper)."""
    k = min(k, scores.shape[-1])
    lowest = np.partition(scores, -k, axis=-1)[:, -k, None]
    return np.where(scores < lowest, -np.inf, scores)


def keep_top_p(scores: np.ndarray, p: float) -> np.ndarray:
    """Keep the likeliest tokens that together reach probability p, at least one.

    TopPLogitsWarper; Holtzman et al. 2019, https://arxiv.org/abs/1904.09751.
    """
    order = np.argsort(scores, axis=-1, kind="stable")
    up_to_here = np.cumsum(np.take_along_axis(softmax(scores), order, axis=-1), axis=-1)
    remove = up_to_here <= 1 - p
    remove[:, -1] = False
    removed = np.empty_like(remove)
    np.put_along_axis(removed, order, remove, axis=-1)
    return np.where(removed, -np.inf, scores)


def keep_min_p(scores: np.ndarray, p: float) -> np.ndarray:
    """Keep tokens with at least p times the probability of the likeliest (MinPLogitsWarper)."""
    probabilities = softmax(scores)
    lowest = p * probabilities.max(axis=-1, keepdims=True)
    return np.where(probabilities < lowest, -np.inf, scores)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Turn scores (B, V) into probabilities."""
    exps = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Turn scores (B, V) into log-probabilities, in float64."""
    scores = scores.astype(np.float64)
    scores = scores - scores.max(axis=-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def draw(scores: np.ndarray, randoms: Sequence[np.random.Generator]) -> np.ndarray:
    """Draw a token for each row (B, V) with the probabilities of its scores -> (B,).

    Each row has a random stream of its own, so that what it draws does not depend on the others.
    """
    sums = np.cumsum(softmax(scores.astype(np.float64)), axis=-1)
    thresholds = [random.random() * row[-1] for random, row in zip(randoms, sums, strict=True)]
    return np.array(
        # `right`: the first sum above the threshold, so never a token of probability 0
        [np.searchsorted(row, u, side="right") for row, u in zip(sums, thresholds, strict=True)],
        dtype=np.int64,
    )
