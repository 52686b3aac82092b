"""Mistakes in sampling that people make; each is told by a case, and tells why numbers differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinymistral import sampling

Parameters = Mapping[str, Any]
Process = Callable[[np.ndarray, np.ndarray, Parameters], np.ndarray]


@dataclass(frozen=True)
class SamplingMistake:
    """What is wrong, how it is right, and the probabilities (B, V) that come of it."""

    name: str
    says: str
    fix: str
    probabilities: Process  # of logits (B, V), previous ids (B, n), parameters


MISTAKES: list[SamplingMistake] = []


def mistake(name: str, fix: str) -> Callable[[Process], Process]:
    """Enter a function into the list. Its docstring is what the mistake says."""

    def enter(process: Process) -> Process:
        says = " ".join((process.__doc__ or "").split())
        MISTAKES.append(SamplingMistake(name, says, fix, process))
        return process

    return enter


def penalize(scores: np.ndarray, ids: np.ndarray, how: Parameters) -> np.ndarray:
    """Apply the repetition penalty."""
    seen = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(seen, ids, True, axis=1)
    return sampling.penalize_repetition(scores, seen, how.get("repetition_penalty", 1.0))


def heat(scores: np.ndarray, how: Parameters) -> np.ndarray:
    """Apply the temperature."""
    return sampling.scale_temperature(scores, how.get("temperature", 1.0))


def top_k(scores: np.ndarray, how: Parameters, more: int = 0) -> np.ndarray:
    """Keep the k highest, or more."""
    return sampling.keep_top_k(scores, max(1, how["top_k"] + more)) if how.get("top_k") else scores


def top_p(scores: np.ndarray, how: Parameters) -> np.ndarray:
    """Keep the likeliest."""
    return sampling.keep_top_p(scores, how["top_p"]) if how.get("top_p", 1.0) < 1 else scores


def filtered(scores: np.ndarray, how: Parameters, more: int = 0) -> np.ndarray:
    """Apply top_k, top_p and min_p."""
    scores = top_p(top_k(scores, how, more), how)
    return sampling.keep_min_p(scores, how["min_p"]) if "min_p" in how else scores


@mistake("penalty-divides-what-is-negative", "Multiply negative scores by the penalty.")
def _(logits: np.ndarray, ids: np.ndarray, how: Parameters) -> np.ndarray:
    """Divides negative scores by the repetition penalty too, which makes them likelier."""
    divided = np.sign(logits) * penalize(np.abs(logits), ids, how)
    return sampling.softmax(filtered(heat(divided, how), how))


@mistake("penalty-for-each-occurrence", "Penalize a token once, however often the row has it.")
def _(logits: np.ndarray, ids: np.ndarray, how: Parameters) -> np.ndarray:
    """Applies the repetition penalty once for each time that a token is there."""
    for n in range(ids.shape[1]):
        logits = penalize(logits, ids[:, n : n + 1], how)
    return sampling.softmax(filtered(heat(logits, how), how))


@mistake("temperature-multiplied", "Divide the scores by the temperature.")
def _(logits: np.ndarray, ids: np.ndarray, how: Parameters) -> np.ndarray:
    """Multiplies the scores by the temperature."""
    scores = penalize(logits, ids, how) * how.get("temperature", 1.0)
    return sampling.softmax(filtered(scores, how))


@mistake("temperature-after-the-filters", "Divide by the temperature before top_p and min_p.")
def _(logits: np.ndarray, ids: np.ndarray, how: Parameters) -> np.ndarray:
    """Applies the temperature last, so that the filters see the probabilities without it."""
    return sampling.softmax(heat(filtered(penalize(logits, ids, how), how), how))


@mistake("top-k-one-too-many", "Keep what is not lower than the k-th highest score.")
def _(logits: np.ndarray, ids: np.ndarray, how: Parameters) -> np.ndarray:
    """Keeps k + 1 tokens."""
    return sampling.softmax(filtered(heat(penalize(logits, ids, how), how), how, more=1))


@mistake("top-k-of-fifty-unasked", "Leave top_k out where it is not a parameter.")
def _(logits: np.ndarray, ids: np.ndarray, how: Parameters) -> np.ndarray:
    """Keeps the 50 likeliest where no top_k is given, as the default of transformers has it."""
    return sampling.softmax(filtered(heat(penalize(logits, ids, how), how), {"top_k": 50, **how}))


@mistake("top-p-before-top-k", "Apply top_k first, then top_p to what is left, renormalized.")
def _(logits: np.ndarray, ids: np.ndarray, how: Parameters) -> np.ndarray:
    """Sums up to top_p over all tokens rather than over what top_k leaves."""
    scores = top_k(top_p(heat(penalize(logits, ids, how), how), how), how)
    rest = {name: value for name, value in how.items() if name == "min_p"}
    return sampling.softmax(filtered(scores, rest))


@mistake("top-p-drops-what-reaches-it", "Keep the token with which the sum reaches top_p.")
def _(logits: np.ndarray, ids: np.ndarray, how: Parameters) -> np.ndarray:
    """Keeps tokens only while their sum is below top_p."""
    scores = top_k(heat(penalize(logits, ids, how), how), how)
    if how.get("top_p", 1.0) < 1:
        probabilities = sampling.softmax(scores)
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        sums = np.cumsum(np.take_along_axis(probabilities, order, axis=-1), axis=-1)
        remove = np.empty(scores.shape, dtype=np.bool_)
        np.put_along_axis(remove, order, sums > how["top_p"], axis=-1)
        np.put_along_axis(remove, order[:, :1], False, axis=-1)
        scores = np.where(remove, -np.inf, scores)
    return sampling.softmax(filtered(scores, {n: v for n, v in how.items() if n == "min_p"}))


@mistake("min-p-of-one", "Compare with min_p times the probability of the likeliest token.")
def _(logits: np.ndarray, ids: np.ndarray, how: Parameters) -> np.ndarray:
    """Takes min_p for a probability by itself, not for a part of the likeliest token's."""
    without = {name: value for name, value in how.items() if name != "min_p"}
    scores = filtered(heat(penalize(logits, ids, how), how), without)
    probabilities = sampling.softmax(scores)
    low = (probabilities < how.get("min_p", 0)) & (scores < scores.max(axis=-1, keepdims=True))
    return sampling.softmax(np.where(low, -np.inf, scores))


@mistake("not-renormalized", "Take the softmax of what is kept.")
def _(logits: np.ndarray, ids: np.ndarray, how: Parameters) -> np.ndarray:
    """Sets the probabilities of what is filtered to 0, but leaves the others as they were."""
    scores = heat(penalize(logits, ids, how), how)
    return np.where(filtered(scores, how) == -np.inf, 0, sampling.softmax(scores))


@mistake("sampling-softmax-overflows", "Subtract the row's highest score before exp.")
def _(logits: np.ndarray, ids: np.ndarray, how: Parameters) -> np.ndarray:
    """Takes exp of the scores as they are, which in float32 is infinite above 88."""
    exps = np.exp(filtered(heat(penalize(logits, ids, how), how), how))
    return exps / exps.sum(axis=-1, keepdims=True)
