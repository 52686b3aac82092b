"""Which stages of a model are recorded."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence

from tinymistral.config import MistralConfig
from tinymistral.tap import STAGES

CACHED = ("cache.layers.N.k", "cache.layers.N.v")  # keys and values that a cache must still hold
ALL_AT_MOST = 64_000_000  # bytes; of a larger recording only some stages, unless asked for


def select(
    config: MistralConfig,
    tokens: int,
    patterns: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
) -> tuple[str, ...]:
    """Return the stages to record of a text of so many tokens, in the order of computation.

    `patterns` are names for `fnmatch`, such as logits, layers.*.output, cache.*; `layers` limits
    them to some layers. With neither: all stages, or, if these were larger than ALL_AT_MOST, those
    of layer 0, the outputs of all layers, and what lies outside the layers. Raises ValueError for a
    pattern without a match, or an unknown layer.
    """
    count = config.num_hidden_layers
    for n in layers or ():
        if not 0 <= n < count:
            raise ValueError(
                f"--layers: there is no layer {n}; the model has layers 0 to {count - 1}"
            )
    sizes = {
        name: math.prod(shape_of(config, name, tokens))
        for name in all_names(config)
        if layers is None or layer_of(name) in (None, *layers)
    }
    names = [name for name in sizes if sizes[name]]
    if patterns is not None:
        chosen = set()
        for pattern in patterns:
            matches = fnmatch.filter(sizes, pattern)
            if not matches:
                raise ValueError(
                    f"--stages: {pattern!r:.60} matches no stage; expected names such as logits, "
                    f"layers.0.q, layers.*.output, cache.*; the stages are {', '.join(STAGES)}"
                )
            chosen.update(matches)
        return tuple(name for name in names if name in chosen)
    if layers is None and 8 * sum(sizes.values()) > ALL_AT_MOST:
        names = [
            name
            for name in names
            if layer_of(name) in (None, 0) or name.endswith(".output")
            if not name.startswith("cache.")
        ]
    return tuple(names)


def all_names(config: MistralConfig) -> list[str]:
    """Return all stages, and the cached keys and values, in the order of computation."""
    before, *after = [name for name in STAGES if not name.startswith("layers.")]
    of_layers = [name for name in STAGES if name.startswith("layers.")]
    at = of_layers.index("layers.N.k_rotated") + 1
    each = [*of_layers[:at], *CACHED, *of_layers[at:]]
    layers = range(config.num_hidden_layers)
    return [before, *(name.replace("N", str(n)) for n in layers for name in each), *after]


def layer_of(name: str) -> int | None:
    """Return the layer of a stage; None if it belongs to none."""
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
