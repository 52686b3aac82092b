"""The labels that a call is given, checked: arrays that the losses can take, or a clear error.

Padding never counts: its labels are ignored, whatever they are, and so is what it predicts.
`real` (B, T) is true where there is a token.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.inputs import as_array, integers
from tinymistral.losses import IGNORED


def token_labels(labels: Any, classes: int, real: np.ndarray) -> np.ndarray:
    """Return a class for each token (B, T) as int64, -100 where it does not count."""
    array = integers("labels", labels)
    if array.shape != real.shape:
        raise ValueError(f"labels: expected shape {real.shape}, like the input, got {array.shape}")
    _check_classes(array, classes)
    return np.where(real, array, IGNORED)


def next_token_labels(labels: Any, vocab_size: int, real: np.ndarray) -> np.ndarray:
    """Return `token_labels` to be predicted each by the column before; padding predicts none."""
    array = token_labels(labels, vocab_size, real)
    array[:, 1:][~real[:, :-1]] = IGNORED
    return array


def sequence_labels(labels: Any, config: MistralConfig, rows: int) -> tuple[str, np.ndarray]:
    """Return the problem type, and labels in the shape of the pooled logits or of their rows.

    The problem type is the configuration's. Where it has none, one label means regression, and
    more mean a class a row if the labels are integers, else any number of classes a row.
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

    squeezes = problem == "regression" and classes == 1  # whatever axes of length 1 there are
    if squeezes and array.squeeze().shape == np.empty(rows).squeeze().shape:
        array = array.reshape(rows, 1)
    if array.shape != (rows, classes):
        raise ValueError(
            f"labels: expected shape {(rows,) if squeezes else (rows, classes)} for {problem}, "
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
    """Return a column for each row (B,), clipped to 0 ... T, T being outside, where none counts."""
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
