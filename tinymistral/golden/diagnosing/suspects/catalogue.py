"""The conformance suite's mistakes as suspects, and those that no forward pass of a suite shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tinymistral.cache import RollingCache
from tinymistral.conformance.mistakes import MISTAKES
from tinymistral.conformance.mistakes.caches import EndlessCache
from tinymistral.golden.diagnosing.suspects.forgotten import padding_counted
from tinymistral.golden.diagnosing.suspects.suspect import Suspect
from tinymistral.numpy_backend import NumpyBackend

_ARRAYS = "it is about arrays of a backend of tinymistral, which other programs do not have"
_ROUNDING = "it is within what rounding may do, so nothing differs"
_NEVER = "nothing of the kind is done in the calls of a suite"

# By name, why it is no suspect.
LEFT_OUT = {
    "rope-not-set-at-padding": "padding is never looked at",
    "rope-in-16-bits": _ROUNDING,
    "softmax-in-16-bits": _ROUNDING,
    "norm-rounded-before-its-weight": _ROUNDING,
    "silu-rounded-before-up": _ROUNDING,
    "sums-not-rounded": _ROUNDING,
    "bfloat16-truncated": "what is cut off is two roundings at most, and so much is allowed",
    "embedding-not-converted": "what is not rounded is nearer to what is right",
    "float64-by-name-only": "there is no tolerance for float64",
    "weights-converted-unasked": _ARRAYS,
    "float32-on-the-host": _ARRAYS,
    "zeros-not-set": _ARRAYS,
    "take-along-the-first-axis": _ARRAYS,
    "take-in-order": _ARRAYS,
    "take-gives-a-view": _ARRAYS,
    "endless-cache": "the numbers are right",
    "draft-not-forgotten": _NEVER,
    "copy-shares-memory": _NEVER,
    "positions-not-reordered": _NEVER,
}

# These lie in how something is rounded, or in the largest number that a dtype holds: and in which
# dtypes they show in a suite.
_OF_A_DTYPE = {
    "one-scale-for-the-batch": ("float32", "float16", "bfloat16"),
    "maximum-of-hidden-scores": ("float32", "float16", "bfloat16"),
    "masked-by-adding": ("float32", "float16", "bfloat16"),
    "softmax-overflows": ("float32", "float16", "bfloat16"),
    "silu-overflows": ("float32", "float16", "bfloat16"),
    "sums-in-16-bits": ("float16", "bfloat16"),
    "squares-in-16-bits": ("float16",),
    "bfloat16-read-as-float16": ("bfloat16",),
    "widened-in-the-wrong-order": ("bfloat16",),
}

_COMMON = (
    "inclusive-window",
    "no-window",
    "tiled-heads",
    "scores-not-scaled",
    "future-seen",
    "rope-interleaved",
    "rope-theta-ignored",
    "rope-begins-anew",
    "eps-of-another-model",
    "eps-outside-the-root",
    "norm-weight-plus-1",
    "gelu-for-silu",
    "gate-and-up-swapped",
    "evict-before-attend",
    "padding-seen",
    "padding-counted",
    "keys-not-turned",
)

# Names of those of which a program with no ring sees more: its cache keeps all keys.
_WITHOUT_A_RING = ("inclusive-window", "no-window")


def suspects() -> Iterator[Suspect]:
    """Give those that show in a forward pass."""
    for mistake in MISTAKES:
        if mistake.name in LEFT_OUT:
            continue
        changes: dict[str, Any] = {"common": mistake.name in _COMMON}
        if mistake.name in _OF_A_DTYPE:
            changes |= {"of_a_dtype": True, "dtypes": _OF_A_DTYPE[mistake.name]}
        if mistake.backend is not NumpyBackend:
            changes["backends"] = (mistake.backend,)
        if mistake.cache is not RollingCache:
            changes["caches"] = (mistake.cache,)
        if mistake.name == "padding-counted":
            changes["texts"] = (padding_counted,)
        yield Suspect(mistake.name, mistake.says, mistake.fix, **changes)
        if mistake.name in _WITHOUT_A_RING:
            yield Suspect(
                f"{mistake.name}-and-no-ring",
                f"{mistake.says} The cache keeps all keys.",
                mistake.fix,
                **changes | {"caches": (EndlessCache,)},
            )
