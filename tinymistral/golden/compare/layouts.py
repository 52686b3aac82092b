"""Two orders of numbers other than the suite's that are right too, and converting them.

A program that uses the weights of a raw checkpoint unchanged has queries and keys in that order: it
rotates the numbers 2i and 2i+1 of a head together, the suite i and i + d/2. A program with padding
may have a column of attention weights for each token of the input, padding included; the suite has
one for each key. For a whole case the order that is nearer to the expected numbers is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from tinymistral.golden.calls import at_positions
from tinymistral.golden.compare.tensors import counted, errors_of
from tinymistral.golden.files import Arrays
from tinymistral.golden.manifest import Case
from tinymistral.golden.suite import CaseArrays

_IN_PAIRS = re.compile(
    r"calls\.\d+\.(layers\.\d+\.(q|k|q_rotated|k_rotated)|cache\.layers\.\d+\.k)"
)
_WEIGHTS = re.compile(r"calls\.(\d+)\.layers\.\d+\.attention_weights")


# Queries and keys


def in_pairs(case: Case, name: str) -> bool:
    """Return whether an expected tensor has another order in layout raw."""
    return case.kind == "model" and _IN_PAIRS.fullmatch(name) is not None


def halves(x: np.ndarray) -> np.ndarray:
    """Convert heads (..., d) from the order of a raw checkpoint, pairs, into halves."""
    both = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    return both.swapaxes(-1, -2).reshape(x.shape)


def pairs(x: np.ndarray) -> np.ndarray:
    """Convert heads (..., d) from halves into pairs."""
    both = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
    return both.swapaxes(-1, -2).reshape(x.shape)


def all_in_halves(case: Case, given: Mapping[str, np.ndarray]) -> Arrays:
    """Convert all queries and keys of a case from pairs into halves."""
    return {name: halves(x) if in_pairs(case, name) else x for name, x in given.items()}


def is_raw(case: Case, arrays: CaseArrays, given: Mapping[str, np.ndarray]) -> bool:
    """Return whether what is given of a case is in the order of a raw checkpoint.

    It is if that order is nearer to what is expected, unless the program rotates halves: then it
    only forgot to convert raw weights.
    """
    paired = {
        name: x
        for name, x in given.items()
        if in_pairs(case, name) and x.shape == arrays.expected[name].shape
    }
    converted = all_in_halves(case, paired)
    nearer = distance(case, arrays, converted) < distance(case, arrays, paired)
    return nearer and not rotates_halves(paired)


def rotates_halves(given: Mapping[str, np.ndarray]) -> bool:
    """Return whether rope preserves the lengths of (i, i + d/2) rather than of (2i, 2i+1)."""
    by_halves = by_pairs = 0.0
    for name, x in given.items():
        rotated = given.get(f"{name}_rotated")
        if rotated is not None:
            by_halves += _length_change(pairs(x), pairs(rotated))
            by_pairs += _length_change(x, rotated)
    return by_halves < by_pairs


def _length_change(x: np.ndarray, rotated: np.ndarray) -> float:
    """Return the sum of changes in the squared lengths of (2i, 2i+1)."""
    with np.errstate(all="ignore"):
        before, after = (
            np.square(a.astype(np.float64)).reshape(-1, 2).sum(axis=-1) for a in (x, rotated)
        )
        change = np.abs(before - after)
    return float(change[np.isfinite(change)].sum())


# Columns of attention weights


def all_columns(case: Case, inputs: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
    """Return the positions (B, C) of all tokens so far, if padding makes them not key_positions.

    None for tensors other than attention weights.
    """
    match = _WEIGHTS.fullmatch(name) if case.kind == "model" else None
    if match is None:
        return None
    calls = range(int(match[1]) + 1)
    columns = np.concatenate([inputs[f"calls.{n}.positions"] for n in calls], axis=1)
    return None if np.array_equal(columns, inputs[_keys_of(name)]) else columns


def _keys_of(name: str) -> str:
    return f"calls.{name.split('.')[1]}.key_positions"


def by_key(case: Case, arrays: CaseArrays, given: Mapping[str, np.ndarray]) -> tuple[Arrays, bool]:
    """Convert attention weights with a column for each token of the input to one for each key.

    Return what is given, and whether it was converted.
    """
    picked: Arrays = {}
    certain = False  # by their shape
    for name, x in given.items():
        columns = all_columns(case, arrays.inputs, name)
        wanted = arrays.expected[name].shape
        if columns is None or x.shape != (*wanted[:3], columns.shape[1]) or x.dtype.kind in "iub":
            continue
        keys = arrays.inputs[_keys_of(name)]
        by_column = x.transpose(0, 3, 1, 2)  # (B, C, H, T)
        picked[name] = at_positions(by_column, columns, keys, np.nan).transpose(0, 2, 3, 1)
        certain = certain or x.shape != wanted
    as_given = {name: given[name] for name in picked}
    if certain or distance(case, arrays, picked) < distance(case, arrays, as_given):
        return {**given, **picked}, True
    return dict(given), False


def distance(case: Case, arrays: CaseArrays, given: Mapping[str, np.ndarray]) -> float:
    """Return the sum over tensors of the mean error, each error relative to the size, at most 1."""
    total = 0.0
    for name, x in given.items():
        expected = arrays.expected[name]
        counts = counted(case, arrays.inputs, name, expected.shape)
        if counts.any():
            size = float(np.sqrt(np.square(expected[counts]).mean())) or 1.0
            total += float(np.minimum(errors_of(x, expected)[counts], size).mean()) / size
    return total
