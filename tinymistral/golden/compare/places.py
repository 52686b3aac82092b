"""Where in a tensor a number is, in words: "call 1, layer 0, row 0, token 2 (position 7), head 1".

And the order in which a model computes its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from tinymistral.golden.manifest import Case
from tinymistral.golden.shapes import STAGE_NAME
from tinymistral.text import one_line

AXES = {
    "B": "row",
    "T": "token",
    "S": "key",
    "P": "key",
    "H": "head",
    "K": "key/value head",
    "V": "vocabulary id",
    "C": "column",
    "N": "step",
}
MOST_RANGES = 4  # that a message lists


def in_order(stages: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """Sort the names of a case's tensors in the order of computation: by call, layer and stage.

    Cached keys and values come after the stage `k_rotated` of their layer, where they are written.
    """
    places = {stage.rpartition(".")[2]: n for n, stage in enumerate(stages)}
    of_layers = [n for n, stage in enumerate(stages) if stage.startswith("layers.")]
    first = min(of_layers, default=0)

    def key(name: str) -> tuple[int, ...]:
        match = STAGE_NAME.fullmatch(name)
        if match is None:
            return (-1,)
        stage = places.get("k_rotated" if match["cache"] else match["stage"], len(places))
        layer = int(match["layer"] or 0)
        if match["layer"] is None:  # before all layers, or after them
            layer = -1 if stage < first else 10**9
        return (int(match["call"] or 0), layer, stage, match["cache"] is not None)

    return sorted(sorted(names), key=key)  # of a cache, keys before values


def spot(
    case: Case,
    inputs: Mapping[str, np.ndarray],
    name: str,
    axes: tuple[str, ...],
    index: tuple[int, ...],
) -> str:
    """Return in words where the number of a tensor at `index` is."""
    if case.kind == "generate" and name == "sequences":
        new = index[1] - inputs["input_ids"].shape[1]
        return f"row {index[0]}, " + (f"step {new}" if new >= 0 else f"column {index[1]}")
    words = []
    match = STAGE_NAME.fullmatch(name) if case.kind == "model" else None
    if match and case.calls > 1:
        words.append(f"call {match['call']}")
    if match and match["layer"] is not None:
        words.append(f"layer {match['layer']}")
    row = index[axes.index("B")] if "B" in axes else 0
    for n, axis in enumerate(axes):
        word = f"{AXES.get(axis, 'dimension')} {index[n]}"
        positions = _positions(case, inputs, name, axis)
        if positions is not None:
            word += f" (position {positions[row, index[n]]})"
        words.append(word)
    return ", ".join(words)


def _positions(
    case: Case, inputs: Mapping[str, np.ndarray], name: str, axis: str
) -> np.ndarray | None:
    """Return the positions (B, length of the axis) along an axis; None where it has none."""
    if case.kind == "model":
        which = {"T": "positions", "S": "key_positions", "P": "cache_positions"}.get(axis)
        return inputs.get(f"calls.{name.split('.')[1]}.{which}")
    if case.kind == "operation" and axis in "TS":
        return inputs.get("k_positions" if axis == "S" else "q_positions", inputs.get("positions"))
    return None


def extent(wrong: np.ndarray, counts: np.ndarray, axes: tuple[str, ...]) -> str:
    """Return in words where numbers are wrong: "row 1; token 3-5"; "" if everywhere."""
    words = []
    for n, axis in enumerate(axes):
        others = tuple(m for m in range(len(axes)) if m != n)
        some, all_ = wrong.any(axis=others), counts.any(axis=others)
        if (some != all_).any():
            words.append(f"{AXES.get(axis, 'dimension')} {ranges(np.flatnonzero(some).tolist())}")
    return "; ".join(words)


def ranges(numbers: list[int]) -> str:
    """Return rising numbers as ranges: "0-3, 7, 9-10 and others"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:MOST_RANGES]]
    return ", ".join(texts) + (" and others" if len(runs) > MOST_RANGES else "")


def shape_problem(
    case: Case,
    name: str,
    axes: tuple[str, ...],
    found: tuple[int, ...],
    wanted: tuple[int, ...],
) -> str:
    """Say what is wrong with the shape of a tensor, with a hint; "" if nothing is."""
    if found == wanted:
        return ""
    text = f"its shape is {one_line(found, 80)}, expected {wanted}"
    text += f", which is {' '.join(axes)}"
    text += "".join(f" ({axis} {meaning})" for axis, meaning in _meanings(case, name, axes))
    new = (case.parameters or {}).get("max_new_tokens") if "C" in axes else None
    if new is not None and found == (wanted[0], new):
        text += "; it holds only what is new: put the prompt before it"
    elif sorted(found) == sorted(wanted):
        text += "; its axes are in another order"
    elif math.prod(found) == math.prod(wanted):
        text += "; reshape it"
    elif step := token_too_many(axes, found, wanted):
        much = "many" if step > 0 else "few"
        text += f"; it has a token too {much}, and `golden diagnose` says which one"
    elif "N" in axes and len(found) == 2 and found[0] == wanted[0]:
        step = found[1] - wanted[1]
        much = f"new token{'s' * (abs(step) > 1)} too {'many' if step > 0 else 'few'}"
        text += f"; it is {abs(step)} {much}"
    return text


def token_too_many(axes: tuple[str, ...], found: tuple[int, ...], wanted: tuple[int, ...]) -> int:
    """Return 1 for the shape of a text with one token too many, -1 with one too few, else 0."""
    if len(found) != len(wanted) or found == wanted:
        return 0
    steps = {a: n - m for a, n, m in zip(axes, found, wanted, strict=True) if n != m}
    values = set(steps.values())
    return values.pop() if set(steps) <= {"T", "S", "C"} and values in ({1}, {-1}) else 0


def _meanings(case: Case, name: str, axes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the letters of axes that the glossary of `model.py` lacks, and their meaning."""
    call = f"inputs.calls.{name.split('.')[1]}" if case.kind == "model" else ""
    known = {
        "C": "being the tokens of the prompt, padding too, then the new ones",
        "N": "being the new tokens",
        "S": f"being those of {call}.key_positions",
        "P": f"being those of {call}.cache_positions",
    }
    return [(axis, known[axis]) for axis in axes if axis in known and (call or axis in "CN")]
