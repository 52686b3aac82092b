"""Where numbers count: padding, and what nobody looks at, is compared with nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tinymistral.golden.manifest import Case


def counted(
    case: Case, inputs: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    """Tell which numbers of the expected tensor `name`, of this shape, count: a mask like it.

    `inputs` are those of the case; -1 among their positions says where nothing is.
    """
    rows = columns = None
    if case.kind == "model":
        calls, n, rest = name.split(".", 2)
        which = "cache_positions" if rest.startswith("cache.") else "positions"
        rows = inputs[f"{calls}.{n}.{which}"]
        if rest.endswith("attention_weights"):
            columns = inputs[f"{calls}.{n}.key_positions"]
    elif case.kind == "operation":
        rows = inputs.get("q_positions", inputs.get("positions"))
        columns = inputs["k_positions"] if name == "weights" else None
    mask = np.ones(shape, dtype=bool)
    if rows is not None:  # (B, T, ...), weights (B, H, T, S)
        real = rows >= 0
        mask &= real[:, None, :, None] if columns is not None else _as_wide(real, shape)
    if columns is not None:
        mask &= (columns >= 0)[:, None, None, :]
    return mask


def _as_wide(real: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return real.reshape(*real.shape, *[1] * (len(shape) - 2))
