"""Mistakes in sampling: each returns wrong probabilities for logits, ids and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinymistral import sampling
from tinymistral.backend import DTYPES
from tinymistral.mistakes.mistake import mistake

Parameters = Mapping[str, Any]


def penalize(scores: np.ndarray, ids: np.ndarray, how: Parameters) -> np.ndarray:
    """Apply the repetition penalty."""
    present = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(present, ids, True, axis=1)
    return sampling.penalize_repetition(scores, present, how.get("repetition_penalty", 1.0))


def temperature(scores: np.ndarray, how: Parameters) -> np.ndarray:
    """Apply the temperature."""
    return sampling.scale_temperature(scores, how.get("temperature", 1.0))


def top_k(scores: np.ndarray, how: Parameters, more: int = 0) -> np.ndarray:
    """Keep the k + `more` highest scores."""
    return sampling.keep_top_k(scores, max(1, how["top_k"] + more)) if how.get("top_k") else scores


def top_p(scores: np.ndarray, how: Parameters) -> np.ndarray:
    """Keep the likeliest tokens whose sum reaches top_p."""
    return sampling.keep_top_p(scores, how["top_p"]) if how.get("top_p", 1.0) < 1 else scores


def min_p(scores: np.ndarray, how: Parameters) -> np.ndarray:
    """Keep tokens at least min_p times as likely as the likeliest."""
    return sampling.keep_min_p(scores, how["min_p"]) if "min_p" in how else scores


def filtered(scores: np.ndarray, how: Parameters, more: int = 0) -> np.ndarray:
    """Apply top_k, top_p and min_p."""
    return min_p(top_p(top_k(scores, how, more), how), how)


def before_filters(logits: np.ndarray, ids: np.ndarray, how: Parameters) -> np.ndarray:
    """Apply the repetition penalty, then the temperature."""
    return temperature(penalize(logits, ids, how), how)


@mistake("sampling")
def penalty_divides_what_is_negative(logits, ids, how):
    """Divides negative scores by the repetition penalty too, which makes these tokens likelier.
    Fix: Multiply negative scores by the penalty."""
    divided = np.sign(logits) * penalize(np.abs(logits), ids, how)
    return sampling.softmax(filtered(temperature(divided, how), how))


@mistake("sampling")
def penalty_for_each_occurrence(logits, ids, how):
    """Applies the repetition penalty once for each occurrence of a token.
    Fix: Penalize a token once, however often the row has it."""
    for n in range(ids.shape[1]):
        logits = penalize(logits, ids[:, n : n + 1], how)
    return sampling.softmax(filtered(temperature(logits, how), how))


@mistake("sampling")
def temperature_multiplied(logits, ids, how):
    """Multiplies the scores by the temperature.
    Fix: Divide the scores by the temperature."""
    scores = penalize(logits, ids, how) * how.get("temperature", 1.0)
    return sampling.softmax(filtered(scores, how))


@mistake("sampling")
def temperature_after_the_filters(logits, ids, how):
    """Applies the temperature last, so that the filters use probabilities without it.
    Fix: Divide by the temperature before top_p and min_p."""
    return sampling.softmax(temperature(filtered(penalize(logits, ids, how), how), how))


@mistake("sampling")
def top_k_one_too_many(logits, ids, how):
    """Keeps k + 1 tokens.
    Fix: Keep only tokens whose score is not below the k-th highest."""
    return sampling.softmax(filtered(before_filters(logits, ids, how), how, more=1))


@mistake("sampling")
def top_k_of_fifty_unasked(logits, ids, how):
    """Keeps the 50 likeliest if there is no top_k, as transformers does by default.
    Fix: Without a top_k parameter do not filter by top_k."""
    return sampling.softmax(filtered(before_filters(logits, ids, how), {"top_k": 50, **how}))


@mistake("sampling")
def top_p_before_top_k(logits, ids, how):
    """Sums up to top_p over all tokens rather than over those that top_k leaves.
    Fix: Apply top_k first, then top_p to the renormalized rest."""
    return sampling.softmax(min_p(top_k(top_p(before_filters(logits, ids, how), how), how), how))


@mistake("sampling")
def top_p_drops_what_reaches_it(logits, ids, how):
    """Keeps tokens only while their sum is below top_p.
    Fix: Keep also the token with which the sum reaches top_p."""
    scores = top_k(before_filters(logits, ids, how), how)
    if how.get("top_p", 1.0) < 1:
        probabilities = sampling.softmax(scores)
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        sums = np.cumsum(np.take_along_axis(probabilities, order, axis=-1), axis=-1)
        remove = np.empty(scores.shape, dtype=np.bool_)
        np.put_along_axis(remove, order, sums > how["top_p"], axis=-1)
        np.put_along_axis(remove, order[:, :1], False, axis=-1)
        scores = np.where(remove, -np.inf, scores)
    return sampling.softmax(min_p(scores, how))


@mistake("sampling")
def min_p_of_one(logits, ids, how):
    """Uses min_p as an absolute probability, not as a fraction of the likeliest token's.
    Fix: Compare with min_p times the probability of the likeliest token."""
    scores = top_p(top_k(before_filters(logits, ids, how), how), how)
    probabilities = sampling.softmax(scores)
    low = (probabilities < how.get("min_p", 0)) & (scores < scores.max(axis=-1, keepdims=True))
    return sampling.softmax(np.where(low, -np.inf, scores))


@mistake("sampling")
def not_renormalized(logits, ids, how):
    """Sets the probabilities of filtered tokens to 0, but does not rescale the others.
    Fix: Take the softmax of the remaining scores."""
    scores = before_filters(logits, ids, how)
    return np.where(filtered(scores, how) == -np.inf, 0, sampling.softmax(scores))


@mistake("sampling", of_a_dtype=DTYPES)
def sampling_softmax_overflows(logits, ids, how):
    """Takes exp of the raw scores, which in float32 is infinite above 88.
    Fix: Subtract the row's highest score before exp."""
    exps = np.exp(filtered(before_filters(logits, ids, how), how))
    return exps / exps.sum(axis=-1, keepdims=True)
