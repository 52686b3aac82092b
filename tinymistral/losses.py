"""The losses that transformers computes (5.23, loss/loss_utils.py), as functions of arrays.

They are computed in float32, or in float64 where the logits are float64. A mean over nothing, all
labels being ignored, is nan, as it is there. What a model gives at padding is nobody's truth, and
never counts here; in transformers it does, where a padded column predicts or may be an answer's.
What is wrong with labels is said in `labels.py`.
"""

from __future__ import annotations

import numpy as np

IGNORED = -100  # the label of what does not count


def cross_entropy(logits: np.ndarray, labels: np.ndarray, ignored: int = IGNORED) -> np.floating:
    """Mean over labels (...) of log(sum_c exp(x_c)) - x_label, for logits x (..., classes)."""
    counts = labels != ignored
    x, labels = _widened(logits[counts]), labels[counts]
    if not len(labels):
        return x.dtype.type(np.nan)
    x = x - x.max(axis=1, keepdims=True)  # so that nothing overflows
    chosen = x[np.arange(len(labels), dtype=np.int64), labels]
    return (np.log(np.exp(x).sum(axis=1)) - chosen).mean()


def causal_lm_loss(logits: np.ndarray, labels: np.ndarray) -> np.floating:
    """Cross-entropy of logits (B, T, V) and labels (B, T), each column predicting the next one."""
    return cross_entropy(logits[:, :-1], labels[:, 1:])


def regression_loss(values: np.ndarray, labels: np.ndarray) -> np.floating:
    """Mean of (value - label)², for values and labels of one shape."""
    difference = _widened(values) - labels.astype(_widened(values).dtype)
    return (difference * difference).mean()


def multi_label_loss(logits: np.ndarray, labels: np.ndarray) -> np.floating:
    """Mean of -y·log σ(x) - (1-y)·log(1 - σ(x)), for logits x and labels y of one shape.

    Computed as max(x, 0) - x·y + log(1 + exp(-|x|)), which neither overflows nor takes log(0).
    """
    x = _widened(logits)
    y = labels.astype(x.dtype)
    return (np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))).mean()


def span_loss(
    start_logits: np.ndarray, end_logits: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.floating:
    """Mean of two cross-entropies over the columns of logits (B, T), for columns (B,).

    Columns below 0 are taken to be 0; a column from T on lies outside, and does not count.
    """
    T = start_logits.shape[1]
    start_loss = cross_entropy(start_logits, starts.clip(0, T), ignored=T)
    end_loss = cross_entropy(end_logits, ends.clip(0, T), ignored=T)
    return (start_loss + end_loss) / 2


def _widened(logits: np.ndarray) -> np.ndarray:
    return logits.astype(np.promote_types(logits.dtype, np.float32), copy=False)
