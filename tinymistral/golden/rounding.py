"""Correct computations that round differently, by which tolerances are measured.

The numpy backend computes an operation in float32 and rounds its result, once. Other programs are
as correct: PyTorch rounds each step of an operation, FlashAttention the weights before they are
multiplied with the values, two devices their halves of a sum. PLACES are where that happens;
FORMULAS are equal except for rounding, so they change float32 results too. Long sums are in float32
or wider in all of them: sums in 16 bits are a mistake.

`Permuted` reorders the inner dimensions of a model: the same function, summed in another order.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.golden.files import Arrays
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.operations import NUMPY_DTYPES

FACTOR = 4  # a tolerance of v1 is so many times the largest measured error
UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # roundoff of one number

PLACES = {
    "normed": "what is normed, before its weight",
    "silu": "silu, before its product with up",
    "cosines": "cosines and sines",
    "rotated": "products with cosines and sines, before two of them are added",
    "queries": "queries, scaled before the products with keys",
    "products": "products of queries and keys, before they are scaled",
    "scores": "scores, before their softmax",
    "exps": "exponentials, before the products with values; their sum is not of the rounded ones",
    "weights": "weights, before the products with values",
    "halves": "the halves of a sum over inputs, before they are added",
}
FORMULAS = {
    "reciprocals": "x · (1 / y) for x / y",
    "powers-of-2": "2^(x · log2(e)) for e^x, the largest score subtracted after that",
    "tiles": "a softmax tile by tile of keys, relative to the largest score so far",
    "in-a-row": "sums of one number after the other; NumPy sums by pairs, or by blocks",
}
CHOICES = (*PLACES, *FORMULAS)

TRANSFORMERS = ("normed", "silu", "cosines", "rotated", "products", "scores", "weights")

TILE = 3  # keys: few, so that any text has some


def rounded_up(x: float) -> float:
    """Round up to two digits."""
    if not 0 < x < math.inf:
        raise ValueError(f"no tolerance can be made of an error of {x}")
    unit = 10.0 ** (math.floor(math.log10(x)) - 1)
    return float(f"{math.ceil(x / unit) * unit:.1e}")


class AnglesBackend(NumpyBackend):
    """The numpy backend with rotary angles in another dtype, and their pairs in another order."""

    def __init__(self, dtype: str, angles: str = "float64", pairs: np.ndarray | None = None):
        super().__init__(dtype)
        self._angles, self._pairs = NUMPY_DTYPES[angles], pairs

    def rope_table(
        self, positions: np.ndarray, theta: float, d: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Multiply positions by frequencies, both rounded first."""
        exponents = -np.arange(0, d, 2, dtype=self._angles) / self._angles.type(d)
        frequencies = self._angles.type(theta) ** exponents
        if self._pairs is not None:
            frequencies = frequencies[self._pairs]
        angles = positions.astype(self._angles)[..., None, None] * frequencies
        return np.cos(angles).astype(self.compute_dtype), np.sin(angles).astype(self.compute_dtype)


class RoundingBackend(AnglesBackend):
    """The numpy backend with any of CHOICES.

    With large scores, rounding them (as TRANSFORMERS does) is far from rounding the result alone: a
    score of 100 is off by up to 0.25 in bfloat16, and its weight by a quarter.
    """

    def __init__(
        self,
        dtype: str,
        angles: str = "float64",
        pairs: np.ndarray | None = None,
        choices: Collection[str] = (),
    ):
        super().__init__(dtype, angles, pairs)
        self._choices = frozenset(choices)

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Add two halves of the sum, each of them rounded, or one product after the other."""
        linear = self._in_a_row if "in-a-row" in self._choices else super().linear
        if "halves" not in self._choices:
            return linear(x, weight)
        half = x.shape[-1] // 2
        one, other = (linear(x[..., p], weight[:, p]) for p in (slice(0, half), slice(half, None)))
        return self.round(self.widen(one) + self.widen(other))

    def _in_a_row(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        out = np.zeros((*x.shape[:-1], len(weight)), dtype=self.compute_dtype)
        for n in range(x.shape[-1]):
            out += self.widen(x[..., n, None]) * self.widen(weight[:, n])
        return self.round(out)

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        """Round what is normed, then its product with the weight."""
        wide = self.widen(x)
        mean_square = self._sum(np.square(wide)) / self.compute_dtype.type(x.shape[-1])
        normed = self._at("normed", self._over(wide, np.sqrt(mean_square + eps)))
        return self.round(normed * self.widen(weight))

    def silu_mul(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        """Round silu, then the product."""
        wide = self.widen(gate)
        with np.errstate(over="ignore"):  # exp(-gate) = inf is right: the quotient is 0
            silu = self._over(wide, 1 + np.exp(-wide))
        return self.round(self._at("silu", silu) * self.widen(up))

    def rope_table(
        self, positions: np.ndarray, theta: float, d: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Round cosines and sines."""
        cos, sin = super().rope_table(positions, theta, d)
        return self._at("cosines", cos), self._at("cosines", sin)

    def rope(self, x: np.ndarray, table: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Round the products, then their sums."""
        cos, sin = table
        first, second = np.split(self.widen(x), 2, axis=-1)
        a, b, c, d = (
            self._at("rotated", product)
            for product in (first * cos, second * sin, second * cos, first * sin)
        )
        return self.round(np.concatenate([a - b, c + d], axis=-1))

    def _exp_scores(
        self, q: np.ndarray, k: np.ndarray, visible: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return exponentials (K, G·t, s) and their sums; or weights, and sums of 1."""
        scores = self._scores(q, k)
        np.copyto(scores.reshape(q.shape[1], *visible.shape), -np.inf, where=~visible)
        largest = self._largest(scores)
        exps = self._at("exps", self._exp(scores - largest))
        to_all = self._exp(largest - largest[..., -1:])  # 1, if they are of all keys at once
        with np.errstate(invalid="ignore"):
            total = self._sum(self._exp(scores - largest) * to_all)
            exps = exps * to_all
        total[total == 0] = 1
        if "weights" not in self._choices:
            return exps, total
        return self._at("weights", self._over(exps, total)), np.ones_like(total)

    def _mix(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """Add weighed values, one key after the other."""
        if "in-a-row" not in self._choices:
            return super()._mix(q, k, v, visible)
        weights, total = self._exp_scores(q, k, visible)
        mix = np.zeros((*weights.shape[:2], v.shape[-1]), dtype=self.compute_dtype)
        with np.errstate(invalid="ignore"):  # 0 · inf, of what is not visible
            for s in range(len(v)):
                mix += weights[..., s, None] * self.widen(v[s])[:, None]
            mix = self._over(mix, total)
        return mix.reshape(q.shape[1], len(q), -1).swapaxes(0, 1)

    def _scores(self, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Return the scores (K, G·t, s), times log2(e) if they are to be powers of 2."""
        (t, H, d), K = q.shape, k.shape[1]
        queries = self.widen(q.swapaxes(0, 1)).reshape(K, H // K * t, d)
        scale = self.compute_dtype.type(d**-0.5)
        base = self.compute_dtype.type(np.log2(np.e) if "powers-of-2" in self._choices else 1)
        with np.errstate(invalid="ignore", over="ignore"):  # of what is not visible
            if "queries" in self._choices:
                queries, scale = self._at("queries", queries * scale), self.compute_dtype.type(1)
            products = self._at("products", queries @ self.widen(k.transpose(1, 2, 0)))
            return self._at("scores", products * scale) * base

    def _largest(self, scores: np.ndarray) -> np.ndarray:
        """Return the largest score of a row, or up to each tile; 0 if no key is visible."""
        of_all = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        of_all[of_all == -np.inf] = 0
        largest = np.broadcast_to(of_all, scores.shape).copy()
        for start in range(0, scores.shape[-1] if "tiles" in self._choices else 0, TILE):
            so_far = scores[..., : start + TILE].max(axis=-1, keepdims=True)
            largest[..., start : start + TILE] = np.where(so_far == -np.inf, of_all, so_far)
        return largest

    def _sum(self, x: np.ndarray) -> np.ndarray:
        if "in-a-row" in self._choices and x.shape[-1]:
            return np.add.accumulate(x, axis=-1)[..., -1:]
        return x.sum(axis=-1, keepdims=True)

    def _exp(self, x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.exp2(x) if "powers-of-2" in self._choices else np.exp(x)

    def _over(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return x * (1 / y) if "reciprocals" in self._choices else x / y

    def _at(self, place: str, x: np.ndarray) -> np.ndarray:
        return self.widen(self.round(x)) if place in self._choices else x


# The order that the last axis of a stage has, by the end of its name; of others it is D.
_OF_STAGE = {"q": "qk", "k": "qk", "q_rotated": "qk", "k_rotated": "qk", "v": "v"}
_OF_STAGE |= {"attention_mix": "v", "gate": "F", "up": "F", "silu_mul": "F"}
_UNCHANGED = ("attention_weights", "logits")


def order(seed: list[int], n: int) -> np.ndarray:
    """Draw an order of n numbers."""
    keys = np.random.PCG64(seed).random_raw(n) % np.uint64(2**62)
    return np.argsort(keys.astype(np.int64), kind="stable")


class Permuted:
    """Orders for the model width, the feed-forward width and the widths of heads."""

    def __init__(self, config: MistralConfig, seed: int):
        """Draw them; seed 0 leaves all unchanged."""
        d = config.head_dim
        sizes = {"D": config.hidden_size, "F": config.intermediate_size, "v": d, "qk": d // 2}
        self.orders = {
            name: order([seed, n], size) if seed else np.arange(size, dtype=np.int64)
            for n, (name, size) in enumerate(sizes.items())
        }
        self.pairs = self.orders["qk"]
        self.orders["qk"] = np.concatenate([self.pairs, self.pairs + d // 2])

    def tensors(self, tensors: Mapping[str, np.ndarray]) -> Arrays:
        """Return the weights of the model in these orders."""
        return {name: self._tensor(name, tensor) for name, tensor in tensors.items()}

    @staticmethod
    def pick(x: np.ndarray, new: np.ndarray) -> np.ndarray:
        """Return the numbers of the last axis in a new order."""
        return x.take(new, axis=-1)

    def _tensor(self, name: str, x: np.ndarray) -> np.ndarray:
        D, F, v = self.orders["D"], self.orders["F"], self.orders["v"]
        kind = name.split(".")[-2]
        if kind == "down_proj":
            return self.pick(x[D], F)
        if kind == "o_proj":
            return self.pick(x[D].reshape(len(D), -1, len(v)), v).reshape(x.shape)
        x = self.pick(x, D)
        if kind in ("gate_proj", "up_proj"):
            return x[F]
        if kind in ("q_proj", "k_proj", "v_proj"):
            rows = v if kind == "v_proj" else self.orders["qk"]
            return x.reshape(-1, len(rows), len(D))[:, rows].reshape(x.shape)
        return x

    def undo(self, stages: Mapping[str, np.ndarray]) -> Arrays:
        """Return the stages of such a model in the order of the original one."""
        out = dict(stages)
        for name, array in stages.items():
            stage = name.rpartition(".")[2]
            if stage not in _UNCHANGED:
                out[name] = array[..., np.argsort(self.orders[_OF_STAGE.get(stage, "D")])]
        return out
