"""A model with its inner dimensions in another order: the same function, summed otherwise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.golden.making.drawing import integers
from tinymistral.numpy_backend import NUMPY_DTYPES, NumpyBackend

Arrays = dict[str, np.ndarray]

# Which order the last axis of a stage has, by the end of its name; others keep theirs.
_OF_STAGE = {"q": "qk", "k": "qk", "q_rotated": "qk", "k_rotated": "qk", "v": "v"}
_OF_STAGE |= {"attention_mix": "v", "gate": "F", "up": "F", "silu_mul": "F"}
_AS_THEY_ARE = ("attention_weights", "logits")


def order(seed: list[int], n: int) -> np.ndarray:
    """Draw an order of n things."""
    return np.argsort(integers(seed, 2**62, n), kind="stable")


class Angles(NumpyBackend):
    """The numpy backend with rotary angles made in another dtype, and pairs in another order."""

    def __init__(self, dtype: str, angles: str = "float64", pairs: np.ndarray | None = None):
        super().__init__(dtype)
        self._angles, self._pairs = NUMPY_DTYPES[angles], pairs

    def rope_table(
        self, positions: np.ndarray, theta: float, d: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Multiply positions by frequencies that are both rounded first."""
        exponents = -np.arange(0, d, 2, dtype=self._angles) / self._angles.type(d)
        frequencies = self._angles.type(theta) ** exponents
        if self._pairs is not None:
            frequencies = frequencies[self._pairs]
        angles = positions.astype(self._angles)[..., None, None] * frequencies
        return np.cos(angles).astype(self.compute_dtype), np.sin(angles).astype(self.compute_dtype)


class Permuted:
    """Orders for the model width, the feed-forward width and the widths of heads."""

    def __init__(self, config: MistralConfig, seed: int):
        """Draw them; 0 leaves all as they are."""
        d = config.head_dim
        sizes = {"D": config.hidden_size, "F": config.intermediate_size, "v": d, "qk": d // 2}
        self.orders = {
            name: order([seed, n], size) if seed else np.arange(size, dtype=np.int64)
            for n, (name, size) in enumerate(sizes.items())
        }
        self.pairs = self.orders["qk"]
        self.orders["qk"] = np.concatenate([self.pairs, self.pairs + d // 2])

    def tensors(self, tensors: Mapping[str, np.ndarray]) -> Arrays:
        """Return weights of the model in these orders."""
        return {name: self._tensor(name, tensor) for name, tensor in tensors.items()}

    @staticmethod
    def pick(x: np.ndarray, new: np.ndarray) -> np.ndarray:
        """Return the numbers of the last axis in a new order."""
        return x[..., new]

    def _tensor(self, name: str, x: np.ndarray) -> np.ndarray:
        D, F, of_head = self.orders["D"], self.orders["F"], self.orders
        kind = name.split(".")[-2]
        if kind == "down_proj":
            return self.pick(x[D], F)
        if kind == "o_proj":
            heads = x[D].reshape(len(D), -1, len(of_head["v"]))
            return self.pick(heads, of_head["v"]).reshape(x.shape)
        x = self.pick(x, D)
        if kind in ("gate_proj", "up_proj"):
            return x[F]
        if kind in ("q_proj", "k_proj", "v_proj"):
            rows = of_head["v" if kind == "v_proj" else "qk"]
            return x.reshape(-1, len(rows), len(D))[:, rows].reshape(x.shape)
        return x

    def undo(self, stages: Mapping[str, np.ndarray]) -> Arrays:
        """Return the stages of such a model in the order of the original one."""
        out = dict(stages)
        for name, array in stages.items():
            stage = name.rpartition(".")[2]
            if stage not in _AS_THEY_ARE:
                out[name] = array[..., np.argsort(self.orders[_OF_STAGE.get(stage, "D")])]
        return out
