"""The shapes of a case's arrays, in the letters of `model.py`, and whether they fit together.

Of a case of kind model, each call has its own T, S and P.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import numpy as np

from tinymistral.golden.manifest import OPERATIONS, Case
from tinymistral.golden.schema import LARGEST

STAGE_NAME = re.compile(
    r"(?:calls\.(?P<call>\d{1,9})\.)?(?P<cache>cache\.)?(?:layers\.(?P<layer>\d{1,9})\.)?(?P<stage>\w+)"
)
_INPUTS = {
    "generate": {"input_ids": "B T", "attention_mask": "B T"},
    "sampling": {"logits": "B V", "previous_ids": "B M"},
}
_CALL_INPUTS = {
    "input_ids": "B T",
    "positions": "B T",
    "key_positions": "B S",
    "cache_positions": "B P",
}
_RESULTS = {"sequences": "B C", "logprobs": "B N", "probabilities": "B V"}


def axes_of(case: Case, stages: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Return the letter of each axis of an expected tensor; () if there is no such tensor."""
    if case.kind == "model":
        match = STAGE_NAME.fullmatch(name)
        if match is None:
            return ()
        stage = match["stage"] if match["layer"] is None else f"layers.N.{match['stage']}"
        letters = "B P K d" if match["cache"] else stages.get(stage, "")
    elif case.operation is not None:
        letters = OPERATIONS[case.operation][1].get(name, "")
    else:
        letters = _RESULTS.get(name, "")
    return tuple(letters.split())


def check_arrays(
    case: Case,
    stages: Mapping[str, str],
    inputs: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
) -> None:
    """Check names, dtypes, shapes, positions and ids; a ValueError names the first wrong array."""
    wanted = _inputs_of(case)
    _same("inputs", inputs, wanted)
    how = case.expected or {}
    _same("expected", expected, how)
    sizes: dict[str, int] = {}
    for name, letters in wanted.items():
        _check(case, name, inputs[name], tuple(letters.split()), _is_integer(name), sizes)
    for name, x in expected.items():
        axes = axes_of(case, stages, name)
        if not axes or (case.kind == "model" and f"{_call(name)}positions" not in inputs):
            raise ValueError(f"expected: there is no call or stage of the name {name!r}")
        _check(case, name, x, axes, how[name].exact, sizes)
    if sizes.get("d", 0) % 2:
        raise ValueError(f"heads are {sizes['d']} wide, expected an even number")
    if case.kind == "generate":
        new = (case.parameters or {})["max_new_tokens"]
        if (sizes["N"], sizes["C"]) != (new, sizes["T"] + new):
            raise ValueError(
                f"sequences has {sizes['C']} columns and logprobs {sizes['N']}, expected "
                f"{sizes['T'] + new} and {new}: so many are the new tokens"
            )
    for name, x in inputs.items():
        _check_range(name, x, sizes)


def _inputs_of(case: Case) -> Mapping[str, str]:
    """Return the inputs that a case of this kind has, and their shapes."""
    if case.operation is not None:
        return OPERATIONS[case.operation][0]
    if case.kind != "model":
        return _INPUTS[case.kind]
    return {f"calls.{n}.{name}": x for n in range(case.calls) for name, x in _CALL_INPUTS.items()}


def _same(what: str, found: Collection[str], expected: Collection[str]) -> None:
    if different := set(found) ^ set(expected):
        first = min(different)
        wrong = "is missing" if first in expected else "is not expected"
        raise ValueError(f"{what}: {first!r:.100} {wrong}")


def _is_integer(name: str) -> bool:
    return name.endswith(("ids", "positions", "mask"))


def _call(name: str) -> str:
    """Return the beginning of a name that says which call it belongs to: "calls.0."."""
    return ".".join(name.split(".", 2)[:2]) + "."


def _check(
    case: Case,
    name: str,
    x: np.ndarray,
    axes: tuple[str, ...],
    integer: bool,
    sizes: dict[str, int],
) -> None:
    """Check an array's dtype, and its shape by the sizes found before, to which it adds its own."""
    dtype = np.dtype(np.int64 if integer else np.float64)
    if x.dtype != dtype:
        raise ValueError(f"{name}: expected numbers in {dtype}, found {x.dtype}")
    own = "TSP" if case.kind == "model" else ""
    keys = [f"{_call(name)}{axis}" if axis in own else axis for axis in axes]
    wanted = tuple(sizes.setdefault(key, n) for key, n in zip(keys, x.shape, strict=False))
    if x.shape != wanted or x.ndim != len(axes):
        known = " ".join(str(sizes.get(key, axis)) for key, axis in zip(keys, axes, strict=True))
        raise ValueError(f"{name}: its shape is {x.shape}, expected {' '.join(axes)}: {known}")


def _check_range(name: str, x: np.ndarray, sizes: Mapping[str, int]) -> None:
    least, most = -LARGEST, LARGEST
    if name.endswith("positions"):
        least = -1
    elif name == "attention_mask":
        least, most = 0, 1
    elif name in ("ids", "previous_ids"):  # of a table or of logits; a model checks its own
        least, most = 0, sizes["V"] - 1
    if _is_integer(name) and x.size and not least <= x.min() <= x.max() <= most:
        raise ValueError(f"{name}: expected {least} to {most}, found {x.min()} to {x.max()}")
