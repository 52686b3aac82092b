"""Backends and caches that make mistakes, and what they record for the mistakes' functions.

A change is a name and a function. The function takes the backend (or cache), the function that it
replaces, and that one's arguments; so several changes of one operation are nested. The second
parameter is `_` if the function does not call what it replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np

from tinymistral.backend import Array
from tinymistral.cache import RollingCache
from tinymistral.numpy_backend import NumpyBackend

Change = tuple[str, Callable[..., Any]]
Window = int | None
PARTS = ("visible", "repeat", "scale", "masked_exp", "masked_softmax", "mix")  # of attention


def in_order(changes: Iterable[Change]) -> list[Change]:
    """Sort changes, innermost first: those that do not call what they replace come first."""

    def key(change: Change) -> tuple[bool, str, int]:
        code = change[1].__code__
        return code.co_varnames[1] != "_", change[1].__module__, code.co_firstlineno

    return sorted(dict.fromkeys(changes), key=key)


class InParts(NumpyBackend):
    """Attention with all scores at once, in parts that mistakes can replace one by one."""

    def visible(self, i: Array, j: Array, window: Window) -> Array:
        """Return which keys at j (B, 1, S) are visible to queries at i (B, T, 1) -> (B, T, S)."""
        mask = (j >= 0) & (i - j >= 0)
        return mask if window is None else mask & (i - j < window)

    def repeat(self, x: Array, H: int) -> Array:
        """Repeat key/value heads for the query heads: (B, S, K, d) -> (B, S, H, d)."""
        return np.repeat(x, H // x.shape[2], axis=2)

    def scale(self, H: int, d: int) -> float:
        """Return the factor of the scores."""
        return float(d**-0.5)

    def masked_exp(self, scores: Array, mask: Array) -> Array:
        """Return exp(score - largest), 0 where masked: scores (B, H, T, S), mask (B, 1, T, S)."""
        scores = np.where(mask, scores, -np.inf)
        largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        return np.exp(scores - np.where(largest == -np.inf, 0, largest))

    def masked_softmax(self, scores: Array, mask: Array) -> Array:
        """Return weights (B, H, T, S); all are 0 in a row with no visible key."""
        exps = self.masked_exp(scores, mask)
        total = exps.sum(axis=-1, keepdims=True)
        return exps / np.where(total == 0, 1, total)

    def mix(self, weights: Array, v: Array, mask: Array) -> Array:
        """Return the weighted sum of the visible v (B, S, H, d) -> (B, T, H, d)."""
        weights, finite = np.where(mask[:, None], weights, 0), np.isfinite(v)
        out = (weights @ np.where(finite, v, 0).swapaxes(1, 2)).swapaxes(1, 2)
        for b, s in np.argwhere(~finite.all(axis=(2, 3))):  # 0 · NaN is NaN: only where visible
            rest = weights[b, :, :, s].T[..., None] * np.where(finite[b, s], 0, v[b, s])
            out[b] += np.where(mask[b, :, s, None, None], rest, 0)
        return out

    def attention_weights(
        self, q: Array, k: Array, q_positions: Array, k_positions: Array, window: Window
    ) -> Array:
        """Return the weights (B, H, T, S)."""
        return self.round(self._weights(q, k, self._mask(q_positions, k_positions, window)))

    def attention(
        self, q: Array, k: Array, v: Array, q_positions: Array, k_positions: Array, window: Window
    ) -> Array:
        """Return the mix (B, T, H, d)."""
        mask = self._mask(q_positions, k_positions, window)
        v = self.repeat(self.widen(v), q.shape[2])
        return self.round(self.mix(self._weights(q, k, mask), v, mask))

    def _mask(self, q_positions: Array, k_positions: Array, window: Window) -> Array:
        mask = self.visible(q_positions[:, :, None], k_positions[:, None, :], window)
        return np.broadcast_to(mask, (*q_positions.shape, k_positions.shape[1]))

    def _weights(self, q: Array, k: Array, mask: Array) -> Array:
        k = self.repeat(self.widen(k), q.shape[2]).transpose(0, 2, 3, 1)
        scores = self.widen(q).swapaxes(1, 2) @ k * self.scale(*q.shape[2:])
        return self.masked_softmax(scores, mask[:, None])


class Stream(np.ndarray):
    """The residual stream: an array whose sums are computed by the backend's `add`."""

    backend: Any = None  # views and results have none: they add like any array

    def __add__(self, other: Any) -> Any:
        if self.backend is None:
            return super().__add__(other)
        return self.backend.add_to_stream(self.view(np.ndarray), other)


class Faulty(NumpyBackend):
    """A backend that makes the mistakes in `changes`, and the state that their functions read.

    `call` is -1 in an operation by itself.
    """

    changes: ClassVar[tuple[Change, ...]] = ()

    call = -1  # the number of the call, or of the piece in `generate`
    ropes = 0  # calls of `rope` since the last `linear`: 0 when queries come, 1 when keys come
    normed: Array | None = None  # the last result of `rms_norm`
    to_norm: Array | None = None  # the input of the next `rms_norm`, if not its argument

    def __init__(self, dtype: str | None = None, changes: Iterable[Change] | None = None):
        super().__init__(dtype)
        changes = self.changes if changes is None else changes
        for name, wrong in in_order(change for change in changes if hasattr(self, change[0])):
            self._replace(name, partial(wrong, self))
        for name in ("embedding", "rms_norm", "linear", "rope"):  # these record the state
            self._replace(name, getattr(self, f"_{name}"))

    def _replace(self, name: str, new: Callable[..., Any]) -> None:
        setattr(self, name, partial(new, getattr(self, name)))

    def add(self, x: Array, y: Array) -> Array:
        """Add the output y of attention or of the feed-forward network to its input x."""
        return x + y

    def add_to_stream(self, x: Array, y: Array) -> Array:
        """Return the sum as the new residual stream."""
        return self._stream(self.add(x, y))

    def _stream(self, x: Array) -> Array:
        if type(x) is not np.ndarray:  # an array with its own sums
            return x
        stream = x.view(Stream)
        stream.backend = self
        return stream

    def _embedding(self, right: Callable[..., Any], table: Array, ids: Array) -> Array:
        self.call += 1
        return self._stream(right(table, ids))

    def _rms_norm(self, right: Callable[..., Any], x: Array, weight: Array, eps: float) -> Array:
        x = x.view(np.ndarray) if isinstance(x, Stream) else x
        x, self.to_norm = x if self.to_norm is None else self.to_norm, None
        self.normed = right(x, weight, eps)
        return self.normed

    def _linear(self, right: Callable[..., Any], x: Array, weight: Array) -> Array:
        out = right(x, weight)
        self.ropes = 0
        return out

    def _rope(self, right: Callable[..., Any], x: Array, table: Array) -> Array:
        out = right(x, table)
        self.ropes += 1
        return out


@cache
def faulty(base: type[NumpyBackend], in_parts: bool) -> type[Faulty]:
    """Return the class of backends like `base` in which mistakes can be made."""
    bases = (Faulty, InParts, base) if in_parts else (Faulty, base)
    least = bases[:-1] if base is NumpyBackend else bases
    return least[0] if len(least) == 1 else type("Faulty", least, {})


def faulty_for(changes: Iterable[Change], base: type[NumpyBackend] = NumpyBackend) -> type[Faulty]:
    """Return the class of backends in which these changes can be made."""
    return faulty(base, any(name in PARTS for name, _ in changes))


def cache_with(changes: Iterable[Change]) -> type[RollingCache]:
    """Return a class of caches with the changes that are named `cache.NAME`."""
    kind: Any = RollingCache
    for name, wrong in in_order(change for change in changes if change[0].startswith("cache.")):
        name = name.removeprefix("cache.")
        kind = type("Faulty", (kind,), {name: _replaced(getattr(kind, name), wrong)})
    found: type[RollingCache] = kind
    return found


def _replaced(right: Any, wrong: Callable[..., Any]) -> Any:
    if isinstance(right, property):
        return property(lambda cache: wrong(cache, right.__get__(cache)))
    return lambda cache, *arguments: wrong(cache, partial(right, cache), *arguments)
