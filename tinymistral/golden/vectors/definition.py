"""Sampling by its definition: one row at a time, in Python's floats, with explicit loops.

What is kept of a row, in this order, which is that of transformers (generation/utils.py):

1. repetition_penalty r: the score s of each token that the row already has, once however often
   it has it, becomes s / r, or s * r if it is negative.
2. temperature t: every score becomes s / t.
3. top_k k: the k highest scores are kept; 0, or k above the vocabulary: all.
4. top_p p: of what is still there, renormalized, the likeliest tokens until their sum reaches p:
   the token that reaches it is kept too, and there is always one.
5. min_p m: of what is still there, tokens at least m times as likely as the likeliest.

Then the softmax of what is kept; the rest has probability 0. Where equal scores stand at a
boundary, who is kept is nobody's truth: ValueError, for such inputs are no use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

Scores = dict[int, float]  # of the tokens of a row that are still there
Parameters = Mapping[str, float]

TWINS = "equal scores where only some of them can be kept; choose other logits"


def probabilities(
    logits: np.ndarray, previous_ids: np.ndarray, parameters: Parameters
) -> np.ndarray:
    """Return the probabilities (B, V) by which a token is drawn after logits (B, V)."""
    result = np.zeros(logits.shape, dtype=np.float64)
    for b, row in enumerate(logits.tolist()):
        scores = kept(row, set(previous_ids[b].tolist()), parameters)
        for token, probability in softmax(scores).items():
            result[b, token] = probability
    return result


def kept(row: list[float], seen: set[int], parameters: Parameters) -> Scores:
    """Return the processed scores of the tokens of a row that are kept."""
    penalty = parameters.get("repetition_penalty", 1.0)
    scores = {}
    for token, score in enumerate(row):
        if score == -math.inf:
            continue
        if token in seen:
            score = score * penalty if score < 0 else score / penalty
        scores[token] = score / parameters.get("temperature", 1.0)
    k = int(parameters.get("top_k", 0))
    if 0 < k < len(scores):
        scores = _likeliest(scores, k)
    p = parameters.get("top_p", 1.0)
    if p < 1:
        scores = _likeliest(scores, _how_many(scores, p))
    chances = softmax(scores)
    least = parameters.get("min_p", 0.0) * max(chances.values())
    if list(chances.values()).count(least) > 1:
        raise ValueError(TWINS)
    return {token: scores[token] for token, chance in chances.items() if chance >= least}


def softmax(scores: Scores) -> dict[int, float]:
    """Return the probabilities of scores."""
    highest = max(scores.values())
    exps = {token: math.exp(score - highest) for token, score in scores.items()}
    total = math.fsum(exps.values())
    return {token: e / total for token, e in exps.items()}


def _how_many(scores: Scores, p: float) -> int:
    """Count the likeliest tokens that together reach probability p, at least one."""
    total, count = 0.0, 0
    for probability in sorted(softmax(scores).values(), reverse=True):
        total, count = total + probability, count + 1
        if total >= p:
            break
    return count


def _likeliest(scores: Scores, count: int) -> Scores:
    tokens = sorted(scores, key=lambda token: -scores[token])
    if count < len(tokens) and scores[tokens[count - 1]] == scores[tokens[count]]:
        raise ValueError(TWINS)
    return {token: scores[token] for token in tokens[:count]}
