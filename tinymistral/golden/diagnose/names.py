"""What the names in `formulas.py` mean: functions, and the numbers of a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np

from tinymistral.golden.diagnose.steps import Array, Step, compute, mask_of, scores_of
from tinymistral.operations import NUMPY_DTYPES

FAR = 2**62
HALVES = ("bfloat16", "float16")
EIGHTS = ("float8_e4m3fn", "float8_e5m2")


def rounded(x: Array, dtype: str) -> Array:
    """Round to 8 or 16 bits, or to float32."""
    kind = NUMPY_DTYPES.get(dtype) or getattr(ml_dtypes, dtype)
    return np.asarray(x.astype(np.float32).astype(kind).astype(np.float64))


def turn(
    x: Array, angle: Array, neighbours: bool = False, to: Callable[[Array], Array] = np.asarray
) -> Array:
    """Rotate pairs (m, m + d/2), or neighbours, by angles (B, T, H or 1, d/2)."""
    order = pairs_to_halves(x.shape[-1]) if neighbours else np.arange(x.shape[-1])
    one, two = np.split(x[..., order], 2, axis=-1)
    cos, sin = to(np.cos(angle)), to(np.sin(angle))
    found = np.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)
    return np.asarray(found[..., np.argsort(order)])


def pairs_to_halves(d: int) -> Array:
    """Return the order 0, 2, ..., 1, 3, ... of the numbers of a head."""
    return np.arange(d).reshape(-1, 2).T.ravel()


def total(x: Array) -> Array:
    """Sum over the last axis."""
    return np.asarray(x.sum(axis=-1, keepdims=True))


def mean(x: Array) -> Array:
    """Average over the last axis."""
    return np.asarray(x.mean(axis=-1, keepdims=True))


def norm(x: Array) -> Array:
    """Return lengths over the last axis; 1 for 0."""
    size = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(np.where(size == 0, 1, size))


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-x)))


def exps(z: Array, mask: Array) -> Array:
    """Return e^z, 0 where masked."""
    return np.exp(np.where(mask, z, -np.inf))


def softmax(z: Array, mask: Array) -> Array:
    """Return the softmax over the last axis; all 0 where nothing is visible."""
    largest = np.where(mask, z, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
    e = exps(z - np.where(np.isfinite(largest), largest, 0), mask)
    return np.asarray(e / np.where(total(e) == 0, 1, total(e)))


def integers(w: Array, most: int, axis: int | None) -> Array:
    """Round to integers up to `most`, with a scale for each row or for all."""
    scale = np.abs(w).max(axis=axis, keepdims=True) / most
    return np.asarray(np.round(w / np.where(scale == 0, 1, scale)) * scale)


_OF_NUMPY = "abs arange clip exp log maximum minimum roll sort tanh where pi inf".split()
FUNCTIONS: dict[str, Any] = {
    "__builtins__": {},
    **{name: getattr(np, name) for name in _OF_NUMPY},
    **{f.__name__: f for f in (turn, total, mean, norm, sigmoid, exps, softmax, integers)},
    **{dtype: lambda x, t=dtype: rounded(x, t) for dtype in ("float32", *HALVES)},
    "min": min,
    "len": len,
    "FAR": FAR,
    "rms": lambda x, eps: np.sqrt(mean(np.square(x)) + eps),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "join": lambda *x: np.concatenate(x, axis=-1),
}


@lru_cache(maxsize=64)
def names(s: Step) -> dict[str, Any]:
    """Return the numbers of a step by the names that formulas have for them."""
    x = {**s.x, "right": s.right, "call": s.x.get("call", 0), "W": s.x.get("window") or FAR}
    B, T = s.right.shape[:2]
    if s.right.ndim == 4 and s.kind not in ("mask", "weights"):
        x |= {"B": B, "T": T, "H": s.right.shape[2], "d": s.right.shape[3]}
        x |= {"h": np.arange(x["H"]), "to_halves": pairs_to_halves(x["d"])}
        x["to_pairs"] = np.argsort(x["to_halves"])
    x["row"] = s.right.reshape(B, T, -1)
    x["flat"] = lambda found: found.reshape(s.right.shape)
    more = {"mask": _attention, "weights": _attention, "mix": _attention}
    more |= {"rope": _rope, "cache": _rope, "linear": _linear}
    if s.kind in more:
        x |= more[s.kind](s)
    elif s.kind == "norm":
        x |= {"w": s.x["weight"], "D": s.right.shape[-1]}
    elif s.kind == "silu":
        x |= {"g": s.x["gate"], "u": s.x["up"]}
    return x


def _rope(s: Step) -> dict[str, Any]:
    d, theta, p = s.right.shape[-1], s.x["theta"], s.x["positions"]
    m = np.arange(d // 2)
    f = theta ** (-2 * m / d)
    every = s.x.get("all", p)
    start = np.where(every < 0, every.max(), every).min(axis=1)[:, None, None, None]
    found = {"m": m, "f": f, "p": p[..., None, None], "start": start}
    found |= {"t": np.arange(p.shape[1])[None, :, None, None], "again": _again(p, f)}
    return found


def _again(p: Array, f: Array) -> Callable[..., Array]:
    def again(x: Array, neighbours: bool = False) -> Array:
        angle = p[..., None, None] * f
        return np.where(p[..., None, None] < 0, x, turn(x, angle, neighbours))

    return again


def _attention(s: Step) -> dict[str, Any]:
    x, q, k = s.x, s.x["q"], s.x["k"]
    H, K, d = q.shape[2], k.shape[2], q.shape[3]
    i, j = x["q_positions"], x["k_positions"]
    newest = i.max(axis=1)[:, None, None, None]
    oldest = np.where(i < 0, FAR, i).min(axis=1)[:, None, None, None]
    found = {"H": H, "K": K, "d": d, "D": x.get("width", H * d), "S": k.shape[1]}
    found |= {"h": np.arange(H), "newest": newest, "oldest": oldest, "single": i.shape[1] == 1}
    found |= {"i": i[:, None, :, None], "j": j[:, None, None, :]}
    found |= {"distance": found["i"] - found["j"], "old": j[..., None, None] < oldest}
    found |= {"again": _again(j, x.get("theta", 1e4) ** (-np.arange(0, d, 2) / d))}

    def scores(q: Array, k: Array, heads: Array | None = None) -> Array:
        """Return scaled scores where query heads read these key/value heads."""
        return scores_of({"q": q, "k": k if heads is None else k[:, :, heads]})

    found |= {"z": scores(q, k), "mask": mask_of(x), "causal": compute("mask", x) > 0}
    found |= {"scores": scores, "most": np.where(found["mask"], found["z"], -np.inf)}
    found["most"] = found["most"].max(axis=-1, keepdims=True, initial=-FAR)
    weights = x.get("weights")

    def mix(v: Array, heads: Array | None = None) -> Array:
        w = softmax(scores(q, k, heads), found["mask"]) if weights is None else weights
        return compute("mix", {"weights": w, "v": v if heads is None else v[:, :, heads]})

    def running(to: Callable[[Array], Array]) -> Array:
        """Add weighed values key by key, and round each sum."""
        w = softmax(found["z"], found["mask"]) if weights is None else weights
        v, total = np.repeat(x["v"], H // K, axis=2), np.zeros(q.shape)
        for s in range(v.shape[1]):
            total = to(total + w[..., s].swapaxes(1, 2)[..., None] * v[:, s, None])
        return total

    def beside(v: Array, n: int) -> Array:
        """Return what belongs to the n-th key after each, or to the last or first of its row."""
        last = (j >= 0).sum(axis=1, keepdims=True) - 1
        at = np.clip(np.arange(v.shape[1]) + n, 0, np.maximum(last, 0))
        return np.take_along_axis(v, at[..., None, None], axis=1)

    return {**found, "mix": mix, "running": running, "beside": beside}


def _linear(s: Step) -> dict[str, Any]:
    def times(x: Array, weight: Array) -> Array:
        """Multiply any input, its axes after (B, T) joined."""
        return (x.reshape(*s.right.shape[:2], -1) @ weight.T).reshape(s.right.shape)

    def running(x: Array, weight: Array, to: Callable[[Array], Array]) -> Array:
        """Add product by product, and round each sum."""
        total = np.zeros((*x.shape[:2], len(weight)))
        for n, column in enumerate(weight.T):
            total = to(total + x[..., n, None] * column)
        return total.reshape(s.right.shape)

    x = s.x["x"].reshape(*s.right.shape[:2], -1)
    found = {"x": x, "w": s.x["weight"], "times": times, "running": running, "heads": s.x["x"]}
    if s.stage in ("q", "k", "v") and s.model is not None:
        d, start = s.right.shape[-1], f"model.layers.{s.layer}.self_attn."
        q, k, v = (s.model.tensors[f"{start}{n}_proj.weight"] for n in "qkv")
        K, G = len(k) // d, len(q) // len(k)
        groups = np.concatenate([q, k, v]).reshape(K, G + 2, d, -1)
        rows = {"q": groups[:, :G], "k": groups[:, G], "v": groups[:, G + 1]}[s.stage]
        found["fused"] = rows.reshape(-1, q.shape[1])
    return found
