"""What a case must say and its file must hold, by its kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

MOST_CALLS = 10_000
MOST_NEW_TOKENS = 100_000

OPERATIONS = {  # method of `Backend`: its arrays, and its other arguments
    "embedding": ("table ids", ""),
    "linear": ("x weight", ""),
    "rms_norm": ("x weight", "eps"),
    "rope": ("x positions", "theta"),
    "attention": ("q k v q_positions k_positions", "window"),
    "silu_mul": ("gate up", ""),
}
OF_A_CALL = ("input_ids", "positions", "key_positions", "cache_positions")
OF_KIND = {"generate": "input_ids attention_mask", "sampling": "logits previous_ids"}


def check_fields(kind: str, fields: Mapping[str, Any]) -> None:
    """Check calls, operation and parameters of a case; ValueError for what could not be run."""
    parameters = fields.get("parameters", {})
    if kind == "model" and not 1 <= fields["calls"] <= MOST_CALLS:
        raise ValueError(f"calls: expected 1 to {MOST_CALLS}, got {fields['calls']}")
    if kind == "generate":
        new = parameters.get("max_new_tokens")
        if not isinstance(new, int) or not 1 <= new <= MOST_NEW_TOKENS:
            raise ValueError(
                f"parameters: max_new_tokens: expected 1 to {MOST_NEW_TOKENS}, got {new!r:.60}"
            )
    if kind == "operation":
        name = fields["operation"]
        if name not in OPERATIONS:
            raise ValueError(
                f"operation: expected one of {', '.join(OPERATIONS)}, got {name!r:.60}"
            )
        _same("parameters", parameters, OPERATIONS[name][1].split())


def check_inputs(kind: str, calls: int, operation: str | None, inputs: Collection[str]) -> None:
    """Check that the inputs of a case are those of its kind; ValueError if they are not."""
    if kind == "model":
        names = [f"calls.{n}.{name}" for n in range(calls) for name in OF_A_CALL]
    elif operation is not None:
        names = OPERATIONS[operation][0].split()
    else:
        names = OF_KIND[kind].split()
    _same("inputs", inputs, names)


def _same(what: str, found: Collection[str], expected: Collection[str]) -> None:
    if different := set(found) ^ set(expected):
        first = min(different)
        wrong = "is missing" if first in expected else "is one too many"
        raise ValueError(f"{what}: {first!r:.100} {wrong}")
