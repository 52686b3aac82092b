"""Checks of the labels of a call, and the losses computed with them.

The losses are those of transformers (5.23, loss/loss_utils.py), as functions of arrays. They are
computed in float32, or in float64 where the logits are float64. If all labels are ignored the loss
is nan, as in transformers. Padding never counts: its labels are ignored, and so are a model's
predictions there (which count in transformers). `real` (B, T) is true for tokens, false for
padding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.inputs import as_array, integers

IGNORED = -100  # a label that does not count


# Labels


def token_labels(labels: Any, classes: int, real: np.ndarray) -> np.ndarray:
    """Return a class for each token (B, T) as int64, -100 where it does not count."""
    array = integers("labels", labels)
    if array.shape != real.shape:
        raise ValueError(f"labels: expected shape {real.shape}, like the input, got {array.shape}")
    _check_classes(array, classes)
    return np.where(real, array, IGNORED)


def next_token_labels(labels: Any, vocab_size: int, real: np.ndarray) -> np.ndarray:
    """Return `token_labels`, -100 too where the column before, which predicts, is padding."""
    array = token_labels(labels, vocab_size, real)
    array[:, 1:][~real[:, :-1]] = IGNORED
    return array


def sequence_labels(labels: Any, config: MistralConfig, rows: int) -> tuple[str, np.ndarray]:
    """Return the problem type, and labels (B, num_labels), or (B,) for a class a row.

    The problem type is the configuration's. If it is None, num_labels = 1 means regression; else
    integer labels mean one class a row, and floats any number of classes a row.
    """
    array, classes = as_array("labels", labels, "number"), config.num_labels
    if array.dtype.kind not in "iufb":
        raise ValueError(f"labels: expected numbers, got {array.dtype}")
    problem = config.problem_type
    if problem is None and classes == 1:
        problem = "regression"
    elif problem is None:
        integer = array.dtype.kind in "iu"
        problem = "single_label_classification" if integer else "multi_label_classification"

    if problem == "single_label_classification":
        if array.dtype.kind not in "iu":
            raise ValueError(f"labels: expected integers, a class for each row, got {array.dtype}")
        if array.size != rows or array.squeeze().ndim > 1:
            raise ValueError(
                f"labels: expected shape ({rows},), a class for each row, got {array.shape}; for "
                "several classes a row give floats, 0.0 or 1.0"
            )
        array = array.reshape(rows)
        _check_classes(array, classes)
        return problem, array.astype(np.int64)

    scalars = problem == "regression" and classes == 1  # with any axes of length 1
    if scalars and array.squeeze().shape == np.empty(rows).squeeze().shape:
        array = array.reshape(rows, 1)
    if array.shape != (rows, classes):
        raise ValueError(
            f"labels: expected shape {(rows,) if scalars else (rows, classes)} for {problem}, "
            f"got {array.shape}"
        )
    if problem == "multi_label_classification":
        if array.dtype.kind != "f":
            raise ValueError(
                f"labels: expected floating point, 0.0 or 1.0, for {problem}, got {array.dtype}"
            )
        if not ((array >= 0) & (array <= 1)).all():
            raise ValueError(f"labels: expected 0.0 to 1.0 for {problem}, got others")
    elif not np.isfinite(array).all():
        raise ValueError("labels: expected finite numbers, got inf or nan")
    return problem, array


def span_columns(name: str, positions: Any, real: np.ndarray) -> np.ndarray:
    """Return a column for each row (B,), clipped to 0 ... T; T is outside, and ignored."""
    rows, T = real.shape
    array = as_array(name, positions)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integers, a column for each row, got {array.dtype}")
    if array.shape not in ((rows,), (rows, 1)):
        raise ValueError(f"{name}: expected shape ({rows},), got {array.shape}")
    columns = array.reshape(rows).clip(0, T).astype(np.int64)
    for row, column in enumerate(columns):
        if column < T and not real[row, column]:
            raise ValueError(
                f"{name}: {array.reshape(rows)[row]} of row {row} is padding; count columns with "
                f"the padding, or give {T} or more for a row without an answer"
            )
    return columns


def _check_classes(labels: np.ndarray, classes: int) -> None:
    wrong = np.argwhere((labels != IGNORED) & ((labels < 0) | (labels >= classes)))
    if len(wrong):
        where = tuple(int(n) for n in wrong[0])
        place = f"row {where[0]}" + (f", column {where[1]}" if len(where) > 1 else "")
        raise ValueError(
            f"labels: {labels[where]} at {place} is no class; expected 0 to {classes - 1}, or "
            f"{IGNORED} for what does not count"
        )


# Losses


def cross_entropy(logits: np.ndarray, labels: np.ndarray, ignored: int = IGNORED) -> np.floating:
    """Return the mean over labels of log(sum_c exp(x_c)) - x_label, for logits x (..., classes)."""
    counted = labels != ignored
    x, labels = _widened(logits[counted]), labels[counted]
    if not len(labels):
        return x.dtype.type(np.nan)
    x = x - x.max(axis=1, keepdims=True)  # so that nothing overflows
    chosen = x[np.arange(len(labels), dtype=np.int64), labels]
    return (np.log(np.exp(x).sum(axis=1)) - chosen).mean()


def causal_lm_loss(logits: np.ndarray, labels: np.ndarray) -> np.floating:
    """Return the cross-entropy of logits (B, T, V) and the next column's labels (B, T)."""
    return cross_entropy(logits[:, :-1], labels[:, 1:])


def regression_loss(values: np.ndarray, labels: np.ndarray) -> np.floating:
    """Return the mean of (value - label)², for values and labels of one shape."""
    values = _widened(values)
    difference = values - labels.astype(values.dtype)
    return (difference * difference).mean()


def multi_label_loss(logits: np.ndarray, labels: np.ndarray) -> np.floating:
    """Return the mean of -y·log σ(x) - (1-y)·log(1 - σ(x)), for logits x and labels y of one shape.

    Computed as max(x, 0) - x·y + log(1 + exp(-|x|)), which neither overflows nor takes log(0).
    """
    x = _widened(logits)
    y = labels.astype(x.dtype)
    return (np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))).mean()


def span_loss(
    start_logits: np.ndarray, end_logits: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.floating:
    """Return the mean of two cross-entropies over the columns (B, T), for true columns (B,).

    A column below 0 counts as 0; one from T on is ignored.
    """
    T = start_logits.shape[1]
    start_loss = cross_entropy(start_logits, starts.clip(0, T), ignored=T)
    end_loss = cross_entropy(end_logits, ends.clip(0, T), ignored=T)
    return (start_loss + end_loss) / 2


def _widened(logits: np.ndarray) -> np.ndarray:
    return logits.astype(np.promote_types(logits.dtype, np.float32), copy=False)
