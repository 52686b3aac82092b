"""Orders in which what is right may be given, other than the suite's, and bringing it into that.

A program that uses the weights of a raw checkpoint as they are has queries and keys in the order
of these: it turns the numbers 2i and 2i+1 of a head together, the suite i and i + d/2. And one that
pads has a column of attention weights for each token of the input, padding too; the suite, for each
key. Either is right, and of a whole case that which comes nearer to what is expected is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from tinymistral.golden.compare.tensors import counted, errors_of
from tinymistral.golden.manifest import Case
from tinymistral.golden.suite import Arrays

_IN_PAIRS = re.compile(
    r"calls\.\d+\.(layers\.\d+\.(q|k|q_rotated|k_rotated)|cache\.layers\.\d+\.k)"
)
_WEIGHTS = re.compile(r"calls\.(\d+)\.layers\.\d+\.attention_weights")

Tensors = dict[str, np.ndarray]


# Queries and keys


def in_pairs(case: Case, name: str) -> bool:
    """Tell whether the numbers of an expected tensor are ordered otherwise in layout raw."""
    return case.kind == "model" and _IN_PAIRS.fullmatch(name) is not None


def halves(x: np.ndarray) -> np.ndarray:
    """Bring the numbers of each head (..., d) from the order of a raw checkpoint into halves."""
    pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    return pairs.swapaxes(-1, -2).reshape(x.shape)


def pairs(x: np.ndarray) -> np.ndarray:
    """Undo `halves`."""
    both = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
    return both.swapaxes(-1, -2).reshape(x.shape)


def all_in_halves(case: Case, given: Mapping[str, np.ndarray]) -> Tensors:
    """Bring all queries and keys of a case from the order of a raw checkpoint into halves."""
    return {name: halves(x) if in_pairs(case, name) else x for name, x in given.items()}


def is_raw(case: Case, arrays: Arrays, given: Mapping[str, np.ndarray]) -> bool:
    """Tell whether what is given of a case is in the order of a raw checkpoint.

    It is if it comes nearer in it to what is expected. But raw weights are in that order too where
    one has forgotten to bring them into halves, and turns halves all the same.
    """
    those = {
        name: x
        for name, x in given.items()
        if in_pairs(case, name) and x.shape == arrays.expected[name].shape
    }
    turned = all_in_halves(case, those)
    return distance(case, arrays, turned) < distance(case, arrays, those) and not turns_halves(
        those
    )


def turns_halves(given: Mapping[str, np.ndarray]) -> bool:
    """Tell whether rotation leaves the lengths of (i, i + d/2) as they are, not of (2i, 2i+1)."""
    by_halves = by_pairs = 0.0
    for name, x in given.items():
        rotated = given.get(f"{name}_rotated")
        if rotated is not None:
            by_halves += _stretched(pairs(x), pairs(rotated))
            by_pairs += _stretched(x, rotated)
    return by_halves < by_pairs


def _stretched(x: np.ndarray, rotated: np.ndarray) -> float:
    """Sum how much the lengths of the numbers 2i and 2i+1 are changed."""
    with np.errstate(all="ignore"):
        lengths = [
            np.square(a.astype(np.float64)).reshape(-1, 2).sum(axis=-1) for a in (x, rotated)
        ]
        change = np.abs(lengths[0] - lengths[1])
    return float(change[np.isfinite(change)].sum())


# Columns of attention weights


def all_columns(case: Case, inputs: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
    """Return the positions (B, C) of all tokens so far, where padding makes them no key_positions.

    Of attention weights; None for other tensors.
    """
    match = _WEIGHTS.fullmatch(name) if case.kind == "model" else None
    if match is None:
        return None
    calls = range(int(match[1]) + 1)
    columns = np.concatenate([inputs[f"calls.{n}.positions"] for n in calls], axis=1)
    return None if np.array_equal(columns, inputs[keys_of(name)]) else columns


def keys_of(name: str) -> str:
    """Name the input that has the positions of the columns of a case's attention weights."""
    return f"calls.{name.split('.')[1]}.key_positions"


def of_keys(weights: np.ndarray, columns: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Pick from (B, H, T, C), with columns at positions (B, C), those at keys (B, S), -1 for none.

    Where there is no column for a key, NaN.
    """
    out = np.full((*weights.shape[:3], keys.shape[1]), np.nan, dtype=weights.dtype)
    for b, n in np.argwhere(keys >= 0):
        for column in np.flatnonzero(columns[b] == keys[b, n]):
            out[b, :, :, n] = weights[b, :, :, column]
    out[np.broadcast_to((keys < 0)[:, None, None, :], out.shape)] = 0
    return out


def by_key(case: Case, arrays: Arrays, given: Mapping[str, np.ndarray]) -> tuple[Tensors, bool]:
    """Bring attention weights that have a column for each token of the input into one for each key.

    Return what is given, and whether it had to be brought.
    """
    picked: Tensors = {}
    certain = False  # their shape says so
    for name, x in given.items():
        columns = all_columns(case, arrays.inputs, name)
        wanted = arrays.expected[name].shape
        if columns is not None and x.shape == (*wanted[:3], columns.shape[1]):
            if x.dtype.kind in "iub":
                continue  # which cannot be compared
            picked[name] = of_keys(x, columns, arrays.inputs[keys_of(name)])
            certain = certain or x.shape != wanted
    as_given = {name: given[name] for name in picked}
    if certain or distance(case, arrays, picked) < distance(case, arrays, as_given):
        return {**given, **picked}, True
    return dict(given), False


def distance(case: Case, arrays: Arrays, given: Mapping[str, np.ndarray]) -> float:
    """Sum how far tensors are from those expected: of each the mean error, at most their size."""
    total = 0.0
    for name, x in given.items():
        expected = arrays.expected[name]
        counts = counted(case, arrays.inputs, name, expected.shape)
        if counts.any():
            size = float(np.sqrt(np.square(expected[counts]).mean())) or 1.0
            total += float(np.minimum(errors_of(x, expected)[counts], size).mean()) / size
    return total
