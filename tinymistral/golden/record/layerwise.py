"""A text through a model, layer by layer: all that is in memory is one layer's weights.

So a checkpoint is read once, however many ways of computing go along: each has its own hidden
states, and takes its turn while a layer is there. What computes is `model.forward`, as always, on a
model of one layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tinymistral.cache import RollingCache
from tinymistral.config import MistralConfig
from tinymistral.golden.rounding import TRANSFORMERS, AnglesBackend, Permuted, RoundingBackend
from tinymistral.model import Piece, forward
from tinymistral.numpy_backend import NUMPY_DTYPES
from tinymistral.pretrained import tree
from tinymistral.stages import Watcher

Arrays = dict[str, np.ndarray]
Tensors = Mapping[str, np.ndarray]
Wanted = Callable[[str], bool]  # the name of a stage, such as layers.3.q

EMBEDDING = "model.embed_tokens.weight"


class Way:
    """One way of computing: in a dtype, with sums in an order, so many tokens at a time.

    `hidden` (1, T, D) is what goes from layer to layer, in the order of this way.
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
        """Take an order's seed (0: as it is), the dtype of angles, the width, whether eager."""
        self.config, self.order = config, order
        self.permuted = Permuted(config, order)
        pairs = self.permuted.pairs
        self.backend = AnglesBackend(dtype, angles, pairs)
        if eager:
            self.backend = RoundingBackend(dtype, angles, pairs, TRANSFORMERS)
        self.width = min(width or self.backend.chunk, self.backend.chunk)
        self.hidden = np.empty((1, 0, config.hidden_size), dtype=np.float64)

    def embed(self, tensors: Tensors, ids: np.ndarray) -> Arrays:
        """Look tokens (T,) up -> the stage `embedding`."""
        rows = {EMBEDDING: tensors[EMBEDDING][ids]}
        table = self.permuted.tensors(rows)[EMBEDDING] if self.order else rows[EMBEDDING]
        self.hidden = self.backend.embedding(table, np.arange(len(ids), dtype=np.int64)[None])
        return self.permuted.undo({"embedding": self.hidden})

    def layer(self, tensors: Tensors, n: int, wanted: Wanted) -> Arrays:
        """Send the hidden states through layer n -> those of its stages that are wanted.

        `tensors` are those of the layer as this way needs them, see `by_weights`.
        """
        prefix = f"model.layers.{n}."
        layer = tree({k.removeprefix(prefix): self._array(x) for k, x in tensors.items()})
        weights = tree({"norm.weight": layer.input_layernorm.weight})  # of no use
        weights.layers = [layer]
        one = dataclasses.replace(self.config, num_hidden_layers=1)
        T = self.hidden.shape[1]
        cache = RollingCache(one, self.backend, 1, self.width)
        cache.reserve(T)
        kept = Kept(self.backend, n, lambda name: wanted(name) or name == f"layers.{n}.output")
        for start in range(0, T, self.width):
            x = self.hidden[:, start : start + self.width]
            positions = np.arange(start, start + x.shape[1], dtype=np.int64)[None]
            table = self.backend.rope_table(positions, one.rope_theta, one.head_dim)
            slots = cache.admit(positions)
            forward(x, weights, Piece(one, self.backend, cache, positions, slots, table, kept))
            cache.commit(positions)
        stages = kept.joined(T)
        self.hidden = stages[f"layers.{n}.output"]
        return self.permuted.undo({name: x for name, x in stages.items() if wanted(name)})

    def norm(self, tensors: Tensors) -> np.ndarray:
        """Norm the hidden states of the last layer (1, T, D), in the order of this way.

        `tensors` are those of `head_tensors` as this way needs them.
        """
        weight = self._array(tensors["model.norm.weight"])
        return self.backend.rms_norm(self.hidden, weight, self.config.rms_norm_eps)

    def logits(self, tensors: Tensors, normed: np.ndarray) -> np.ndarray:
        """Map what `norm` returns, or some columns of it, to logits (1, T, V)."""
        weight = self._array(tensors[head_name(self.config)])
        parts = range(0, normed.shape[1], self.width)
        return np.concatenate(
            [self.backend.linear(normed[:, n : n + self.width], weight) for n in parts], axis=1
        )

    def _array(self, tensor: np.ndarray) -> np.ndarray:
        """Leave a matrix as it is stored, which `linear` widens; bring a vector to the dtype."""
        return self.backend.asarray(tensor, None if tensor.ndim > 1 else self.backend.dtype)


class Kept(Watcher):
    """Keeps the stages that are wanted of layer n, which `forward` takes for layer 0."""

    def __init__(self, backend: Any, n: int, wanted: Wanted):
        super().__init__(backend)
        self._n, self._wanted = n, wanted
        self._pieces: dict[str, list[np.ndarray]] = {}

    @property
    def wants_all(self) -> bool:
        """Tell whether stages that cost work of their own are wanted."""
        names = ("k_rotated", "attention_weights")
        return any(self._wanted(f"layers.{self._n}.{name}") for name in names)

    def __call__(self, name: str, array: Any) -> None:
        """Keep a piece of a stage."""
        parts = name.split(".")
        if parts[0] == "layers":
            name = f"layers.{self._n}.{parts[2]}"
            if self._wanted(name):
                self._pieces.setdefault(name, []).append(self.backend.to_numpy(array))

    def joined(self, tokens: int) -> Arrays:
        """Return the stages of all pieces together."""
        whole = {}
        for name, pieces in self._pieces.items():
            weights = name.endswith("attention_weights")  # (1, H, t, tokens so far)
            if weights:
                pieces = [np.pad(x, [(0, 0)] * 3 + [(0, tokens - x.shape[3])]) for x in pieces]
            whole[name] = np.concatenate(pieces, axis=2 if weights else 1)
        return whole


def layer_tensors(tensors: Tensors, n: int) -> Arrays:
    """Return the weights of layer n."""
    prefix = f"model.layers.{n}."
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def head_name(config: MistralConfig) -> str:
    """Return the name of the weight that makes logits."""
    return EMBEDDING if config.tie_word_embeddings else "lm_head.weight"


def head_tensors(config: MistralConfig, tensors: Tensors) -> Arrays:
    """Return the weights of the final norm and of the logits."""
    return {name: tensors[name] for name in ("model.norm.weight", head_name(config))}


def rounded(tensor: np.ndarray, dtype: str) -> np.ndarray:
    """Round a weight to a dtype of 16 bits; it stays in its own, which holds the rounded one too.

    And which is widened several times faster than float16.
    """
    if dtype in ("float64", "float32", tensor.dtype.name):
        return tensor
    with np.errstate(over="ignore"):
        return tensor.astype(NUMPY_DTYPES[dtype]).astype(tensor.dtype)


def by_weights(ways: list[Way], tensors: Tensors) -> Iterator[tuple[Way, Tensors]]:
    """Give each way the weights as it needs them, rounded and reordered: one copy at a time."""
    stored = {tensor.dtype.name for tensor in tensors.values()}

    def kind(way: Way) -> str:
        exact = way.backend.dtype in ("float64", "float32") or stored <= {way.backend.dtype}
        return "" if exact else way.backend.dtype

    for dtype in dict.fromkeys(map(kind, ways)):
        those = [way for way in ways if kind(way) == dtype]
        near = {n: rounded(x, dtype) for n, x in tensors.items()} if dtype else tensors
        for order in dict.fromkeys(way.order for way in those):
            same = [way for way in those if way.order == order]
            arranged = same[0].permuted.tensors(near) if order else near
            for way in same:
                yield way, arranged
