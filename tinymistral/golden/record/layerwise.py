"""A text through a model, layer by layer: only one layer's weights are in memory.

So a checkpoint is read once, however many variants of the computation are run: each has its own
hidden states, and all of them pass a layer while its weights are there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tinymistral.cache import RollingCache
from tinymistral.config import MistralConfig
from tinymistral.golden.files import Arrays
from tinymistral.golden.rounding import TRANSFORMERS, AnglesBackend, Permuted, RoundingBackend
from tinymistral.model import forward
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.operations import NUMPY_DTYPES
from tinymistral.pretrained import tree
from tinymistral.tap import Tapped

Wanted = Callable[[str], bool]  # the name of a stage, such as layers.3.q

EMBEDDING = "model.embed_tokens.weight"


# What depends on the forward pass of `model.py`: all of it is here.


def run_layer(
    config: MistralConfig,
    backend: NumpyBackend,
    weights: Arrays,
    hidden: np.ndarray,
    width: int,
    wanted: Wanted,
) -> Arrays:
    """Run hidden states (1, T, D) through one layer, `width` tokens at a time -> its stages.

    `weights` and stages are those of layer 0. Returned are the wanted stages and the output.
    """
    weights = {name.removeprefix("model."): x for name, x in weights.items()}
    weights["norm.weight"] = weights["layers.0.input_layernorm.weight"]  # its result is not used
    pieces: dict[str, list[np.ndarray]] = {}

    def keep(name: str, array: np.ndarray) -> None:
        if name.startswith("layers.") and (name == "layers.0.output" or wanted(name)):
            pieces.setdefault(name, []).append(array)

    one = dataclasses.replace(config, num_hidden_layers=1)
    T = hidden.shape[1]
    cache = RollingCache(one, backend, 1, width)
    cache.reserve(T)
    tapped: Any = Tapped(backend, cache, tap=keep)
    tapped.weighs = wanted("layers.0.attention_weights")
    for start in range(0, T, width):
        x = hidden[:, start : start + width]
        positions = np.arange(start, start + x.shape[1], dtype=np.int64)[None]
        forward(x, tree(weights), positions, cache, one, tapped)
    return {name: joined(name, parts, T) for name, parts in pieces.items()}


def joined(name: str, pieces: list[np.ndarray], tokens: int) -> np.ndarray:
    """Join the pieces of a stage; attention weights are (1, H, t, tokens so far)."""
    if not name.endswith("attention_weights"):
        return np.concatenate(pieces, axis=1)
    padded = [np.pad(x, [(0, 0)] * 3 + [(0, tokens - x.shape[3])]) for x in pieces]
    return np.concatenate(padded, axis=2)


class Variant:
    """One variant of the computation: its dtype, order of sums, number of tokens at a time.

    `hidden` (1, T, D) is the current input of a layer, in the order of this variant.
    """

    def __init__(
        self,
        config: MistralConfig,
        dtype: str,
        order: int = 0,
        angles: str = "float64",
        width: int = 0,
        eager: bool = False,
    ):
        """Take an order's seed (0: unchanged), the dtype of angles, the width, whether eager."""
        self.config, self.order = config, order
        self.permuted = Permuted(config, order)
        pairs = self.permuted.pairs
        self.backend = AnglesBackend(dtype, angles, pairs)
        if eager:  # round each step of an operation
            self.backend = RoundingBackend(dtype, angles, pairs, TRANSFORMERS)
        self.width = min(width or self.backend.chunk, self.backend.chunk)
        self.hidden = np.empty((1, 0, config.hidden_size), dtype=np.float64)

    def embed(self, tensors: Mapping[str, np.ndarray], ids: np.ndarray) -> Arrays:
        """Look up tokens (T,) -> the stage `embedding`."""
        rows = {EMBEDDING: tensors[EMBEDDING][ids]}
        table = self.permuted.tensors(rows)[EMBEDDING] if self.order else rows[EMBEDDING]
        self.hidden = self.backend.embedding(table, np.arange(len(ids), dtype=np.int64)[None])
        return self.permuted.undo({"embedding": self.hidden})

    def layer(self, tensors: Mapping[str, np.ndarray], n: int, wanted: Wanted) -> Arrays:
        """Run the hidden states through layer n -> its wanted stages.

        `tensors` are the layer's weights as this variant needs them, see `by_weights`.
        """
        here, first = f"layers.{n}.", "layers.0."
        stages = run_layer(
            self.config,
            self.backend,
            {name.replace(here, first, 1): self._array(x) for name, x in tensors.items()},
            self.hidden,
            self.width,
            lambda name: wanted(name.replace(first, here, 1)),
        )
        stages = {name.replace(first, here, 1): x for name, x in stages.items()}
        self.hidden = stages[f"{here}output"]
        return self.permuted.undo({name: x for name, x in stages.items() if wanted(name)})

    def norm(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Apply the final norm to the hidden states (1, T, D), in the order of this variant.

        `tensors` are those of `head_tensors` as this variant needs them.
        """
        weight = self._array(tensors["model.norm.weight"])
        return self.backend.rms_norm(self.hidden, weight, self.config.rms_norm_eps)

    def logits(self, tensors: Mapping[str, np.ndarray], normed: np.ndarray) -> np.ndarray:
        """Map the result of `norm`, or some columns of it, to logits (1, T, V)."""
        weight = self._array(tensors[head_name(self.config)])
        parts = range(0, normed.shape[1], self.width)
        return np.concatenate(
            [self.backend.linear(normed[:, n : n + self.width], weight) for n in parts], axis=1
        )

    def _array(self, tensor: np.ndarray) -> np.ndarray:
        """Convert vectors to the dtype; `linear` widens matrices itself."""
        return self.backend.asarray(tensor, None if tensor.ndim > 1 else self.backend.dtype)


def layer_tensors(tensors: Mapping[str, np.ndarray], n: int) -> Arrays:
    """Return the weights of layer n."""
    prefix = f"model.layers.{n}."
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def head_name(config: MistralConfig) -> str:
    """Return the name of the weight that maps to logits."""
    return EMBEDDING if config.tie_word_embeddings else "lm_head.weight"


def head_tensors(config: MistralConfig, tensors: Mapping[str, np.ndarray]) -> Arrays:
    """Return the weights of the final norm and of the logits."""
    return {name: tensors[name] for name in ("model.norm.weight", head_name(config))}


def rounded(tensor: np.ndarray, dtype: str) -> np.ndarray:
    """Round a weight to a 16-bit dtype, kept in its own dtype, which is faster to widen."""
    if dtype in ("float64", "float32", tensor.dtype.name):
        return tensor
    with np.errstate(over="ignore"):
        return tensor.astype(NUMPY_DTYPES[dtype]).astype(tensor.dtype)


def by_weights(variants: list[Variant], tensors: Arrays) -> Iterator[tuple[Variant, Arrays]]:
    """Give each variant the weights as it needs them, rounded and reordered: one copy at a time."""
    stored = {tensor.dtype.name for tensor in tensors.values()}

    def rounding(variant: Variant) -> str:
        dtype = variant.backend.dtype
        return "" if dtype in ("float64", "float32") or stored <= {dtype} else dtype

    for dtype in dict.fromkeys(map(rounding, variants)):
        alike = [v for v in variants if rounding(v) == dtype]
        near = {n: rounded(x, dtype) for n, x in tensors.items()} if dtype else tensors
        for order in dict.fromkeys(v.order for v in alike):
            same = [v for v in alike if v.order == order]
            arranged = same[0].permuted.tensors(near) if order else near
            for variant in same:
                yield variant, arranged
