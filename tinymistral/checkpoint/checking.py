"""Holding a checkpoint's tensors against those that a config calls for."""

import re
from collections.abc import Callable, Iterable, Mapping

import ml_dtypes
import numpy as np

from tinymistral.checkpoint.errors import CheckpointError, listed, quoted

WEIGHT_DTYPES = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16)))

_LAYER = re.compile(r"(?:model\.)?layers\.(0|[1-9][0-9]{0,17})\.")


def layer_count(names: Iterable[str]) -> int:
    """Return how many layers the names `model.layers.N.…` or `layers.N.…` speak of.

    Different numbers N are counted, not the largest one taken, so that no single name can make a
    checkpoint look as if it had a billion layers. Compare this with the config before naming every
    tensor that the config calls for.
    """
    return len({match[1] for match in map(_LAYER.match, names) if match})


def check_tensors(
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    ignorable: Callable[[str], bool] = lambda name: False,
) -> None:
    """Check that `found` has the expected names and shapes, in float32, float16 or bfloat16.

    A name that is not expected is passed over where `ignorable(name)` is true. Raises one
    CheckpointError that lists everything missing, not expected, misshapen or wrongly typed.
    """
    both = [name for name in expected if name in found]
    complaints = {
        "missing": [quoted(name) for name in expected if name not in found],
        "not expected": [
            quoted(name) for name in found if name not in expected and not ignorable(name)
        ],
        "wrong shape": [
            f"{quoted(name)} is {found[name].shape}, expected {tuple(expected[name])}"
            for name in both
            if found[name].shape != tuple(expected[name])
        ],
        "wrong type": [
            f"{quoted(name)} is {found[name].dtype}, expected float32, float16 or bfloat16"
            for name in both
            if found[name].dtype not in WEIGHT_DTYPES
        ],
    }
    problems = [f"{what}: {listed(items)}" for what, items in complaints.items() if items]
    if problems:
        raise CheckpointError(
            f"the checkpoint's tensors do not fit its config: {'; '.join(problems)}"
        )
