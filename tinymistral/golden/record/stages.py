"""Which stages of a model are recorded."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence

from tinymistral.config import MistralConfig
from tinymistral.tap import STAGES

CACHED = ("cache.layers.N.k", "cache.layers.N.v")  # what a cache must still hold after a text
# A recording of all stages that would be larger has only some, unless asked for.
ALL_AT_MOST = 64_000_000  # bytes


def select(
    config: MistralConfig,
    tokens: int,
    patterns: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
) -> tuple[str, ...]:
    """Name the stages of a text of so many tokens that are recorded, in the order of computation.

    `patterns` are names as `fnmatch` knows them, such as logits, layers.*.output, cache.*;
    `layers` says of which layers. With neither: all stages, or, where these would take more than
    ALL_AT_MOST, those of layer 0, the outputs of all layers, and what lies outside the layers.
    Raises ValueError for a pattern or layer that there is none of.
    """
    count = config.num_hidden_layers
    for n in layers or ():
        if not 0 <= n < count:
            raise ValueError(
                f"--layers: there is no layer {n}; the model has layers 0 to {count - 1}"
            )
    names = [
        name for name in all_names(config) if layers is None or layer_of(name) in (None, *layers)
    ]
    if patterns is None:
        size = sum(8 * math.prod(shape_of(config, name, tokens)) for name in names)
        if layers is not None or size <= ALL_AT_MOST:
            return tuple(name for name in names if math.prod(shape_of(config, name, tokens)))
        return tuple(
            name
            for name in names
            if layer_of(name) in (None, 0) or name.endswith(".output")
            if not name.startswith("cache.")
        )
    chosen = {name for pattern in patterns for name in fnmatch.filter(names, pattern)}
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(
                f"--stages: {pattern!r:.60} matches no stage; expected names such as logits, "
                f"layers.0.q, layers.*.output, cache.*; the stages are {', '.join(STAGES)}"
            )
    recorded = (name for name in names if name in chosen)
    return tuple(name for name in recorded if math.prod(shape_of(config, name, tokens)))


def all_names(config: MistralConfig) -> list[str]:
    """Name all stages, and what a cache holds, in the order of computation."""
    before, *after = [name for name in STAGES if not name.startswith("layers.")]
    of_layers = [name for name in STAGES if name.startswith("layers.")]
    at = of_layers.index("layers.N.k_rotated") + 1
    each = [*of_layers[:at], *CACHED, *of_layers[at:]]
    layers = range(config.num_hidden_layers)
    return [before, *(name.replace("N", str(n)) for n in layers for name in each), *after]


def layer_of(name: str) -> int | None:
    """Return the layer of a stage; None if it is of none."""
    parts = name.removeprefix("cache.").split(".")
    return int(parts[1]) if parts[0] == "layers" else None


def shape_of(config: MistralConfig, name: str, tokens: int) -> tuple[int, ...]:
    """Return the shape of a stage of one text."""
    window, layer = config.sliding_window, layer_of(name)
    letters = "B P K d"
    if not name.startswith("cache."):
        letters = STAGES[name if layer is None else name.replace(str(layer), "N", 1)]
    sizes = {
        "B": 1,
        "T": tokens,
        "S": tokens,
        "P": tokens if window is None else min(tokens, window - 1),
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "V": config.vocab_size,
        "H": config.num_attention_heads,
        "K": config.num_key_value_heads,
        "d": config.head_dim,
    }
    return tuple(sizes[letter] for letter in letters.split())
