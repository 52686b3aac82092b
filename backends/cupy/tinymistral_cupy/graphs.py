"""Graphs: a step of decoding, one token of each row, captured as a CUDA graph and replayed.

A step launches hundreds of small kernels, and launching takes longer than what they do. They are
always the same, on the same memory, as long as the cache's storage is. So what `model.forward`
launches is captured once, and then launched as a whole. What changes from step to step lies in one
block on the card, which one copy from the host fills: see `Numbers`. The graph attends to all slots
that are allocated; those that are not used yet have position -1, and change no bit.

https://docs.nvidia.com/cuda/cuda-programming-guide (CUDA Graphs)
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from math import prod
from operator import attrgetter
from typing import Any

import numpy as np

from tinymistral.backend import Array, Backend
from tinymistral.cache import RollingCache
from tinymistral.config import MistralConfig
from tinymistral.settings import caller
from tinymistral.text import one_line
from tinymistral_cupy.cublas import Cublas

VARIABLE = "TINYMISTRAL_CUPY_GRAPHS"  # 0: none are captured

# So many are kept, those last used: with their memory, for the activations of a layer or two.
MOST_GRAPHS = 4

NORMS = ("input_layernorm", "post_attention_layernorm")
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
OF_A_LAYER = attrgetter(*(f"{name}.weight.data.ptr" for name in NORMS + ATTENTION + MLP))


class Numbers:
    """The numbers that change from step to step: in pinned memory, and on the card.

    On the host they are NumPy arrays: `ids`, `positions` and `slots` (B, 1), `k_positions` (B, S),
    and `angles`, the cosines and sines (2, B, 1, d/2) in float32.
    """

    def __init__(self, cp: Any, B: int, S: int, d: int):
        """Make room for them, with those of a step that writes nothing."""
        end = B * d // 2  # of what is given out below, in numbers of 8 bytes
        total = end + 3 * B + B * S
        pinned = cp.cuda.alloc_pinned_memory(8 * total)
        self._host = np.frombuffer(pinned, dtype=np.int64, count=total)
        self._device = cp.empty(total, dtype=np.int64)
        self._copied = cp.cuda.Event(disable_timing=True)
        # First, since they are loaded 16 bytes at a time
        self.angles = self._host[:end].view(np.float32).reshape(2, B, 1, d // 2)
        angles_there = cp.ndarray(self.angles.shape, np.float32, self._device.data)
        self._on_card = {id(self.angles): angles_there}

        def part(value: int, *shape: int) -> np.ndarray:
            nonlocal end
            start, end = end, end + prod(shape)
            here = self._host[start:end].reshape(shape)
            here[...] = value
            self._on_card[id(here)] = self._device[start:end].reshape(*shape)
            return here

        self.angles[...] = 0
        self.ids, self.positions, self.slots = part(0, B, 1), part(-1, B, 1), part(-1, B, 1)
        self.k_positions = part(-1, B, S)
        self.send()

    def __call__(self, array: np.ndarray) -> Array:
        """Return on the card what is on the host one of the arrays here."""
        return self._on_card[id(array)]

    def wait(self) -> None:
        """Wait until the last copy was made; then the arrays may be written to."""
        self._copied.synchronize()

    def send(self) -> None:
        """Copy them to the card, while the host goes on."""
        self._device.set(self._host)
        self._copied.record()


class Slots:
    """The cache while a step is captured: all slots of its storage, and no tokens of its own."""

    def __init__(self, cache: RollingCache, numbers: Numbers, backend: Any):
        self.k, self.v, self.key_positions = cache.k, cache.v, numbers.k_positions
        self._slots, self._backend = numbers.slots, backend

    def admit(self, positions: np.ndarray) -> None:
        """Do nothing: each step assigns its own slots."""

    def update(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Write keys and values (B, 1, K, d) -> those of all slots (B, S, K, d)."""
        S = self.key_positions.shape[1]
        arrays = (self.k[layer], self.v[layer])
        for array, new in zip(arrays, (k, v), strict=True):
            written = self._backend.scatter(array, self._slots, new)
            assert written is array, "a copy was written to, not the cache"
        return arrays[0][:, :S], arrays[1][:, :S]


class Step:
    """One captured step, for a number of rows, the storage of a cache, and weights."""

    def __init__(
        self,
        backend: Any,
        cublas: Cublas | None,
        forward: Callable[..., Array],
        weights: Any,
        cache: RollingCache,
        config: MistralConfig,
    ):
        """Capture it. Nothing is computed for a token, and nothing is written to the cache."""
        self._cp = cp = backend.module()
        (B, S), d = cache.positions.shape, config.head_dim
        self._numbers = numbers = Numbers(cp, B, S, d)
        captured = copy.copy(backend)
        captured._ids = captured._slots = captured._q_positions = captured._k_positions = numbers
        captured._angles = lambda _: numbers(numbers.angles)
        if cublas is not None:
            captured._product = cublas.product
        where = (numbers.positions, Slots(cache, numbers, captured), config)

        def run() -> Array:
            captured._kernels = backend._kernels.with_own_scratch()
            return Backend.run_piece(captured, forward, numbers.ids, weights, *where)

        # What it frees is used again in the order of the stream, and by nobody else.
        self._pool = cp.cuda.MemoryPool()
        stream = cp.cuda.Stream(non_blocking=True)
        cp.cuda.get_current_stream().synchronize()  # where the numbers and the weights are written
        with cp.cuda.using_allocator(self._pool.malloc), stream:
            if cublas is not None:
                cublas.use(stream)
            run()  # which loads the kernels, and has the pool take the memory from the card
            stream.synchronize()
            try:
                stream.begin_capture()
                self._hidden = run()
                self._graph = stream.end_capture()
            except BaseException:
                with suppress(Exception):  # the first error says more
                    stream.end_capture()
                raise

    def __call__(
        self, ids: np.ndarray, positions: np.ndarray, cache: RollingCache, angles: np.ndarray
    ) -> Array:
        """Compute ids (B, 1) at positions (B, 1), and add them to the cache -> (B, 1, D), new."""
        cache.admit(positions)
        numbers = self._numbers
        numbers.wait()
        numbers.ids[...], numbers.positions[...], numbers.slots[...] = ids, positions, cache.slots
        numbers.k_positions[...] = cache.positions
        numbers.angles[...] = angles
        numbers.send()
        self._graph.launch()
        out = self._cp.empty(self._hidden.shape, dtype=self._hidden.dtype)
        self._cp.copyto(out, self._hidden)
        return out


class Graphs:
    """The captured steps of a backend, those last used; without `enabled` there are none."""

    def __init__(self) -> None:
        self.enabled = os.environ.get(VARIABLE) != "0"
        self._steps: list[tuple[Any, Step | None]] = []  # what for; None: it came once
        self._cublas: Cublas | None = None

    def step(
        self,
        backend: Any,
        forward: Callable[..., Array],
        weights: Any,
        cache: RollingCache,
        config: MistralConfig,
    ) -> Step | None:
        """Return the captured step of a token of each row; None: launch kernels one at a time.

        It is captured when it comes for the second time, since many a cache takes only one. A card
        where that fails is warned of, and none is tried again.
        """
        if not self.enabled:
            return None
        what = (forward, config, *addresses(weights, cache))
        n = next((n for n, (other, _) in enumerate(self._steps) if other == what), None)
        step = None if n is None else self._steps.pop(n)[1]
        if n is not None and step is None:
            try:
                if self._cublas is None and len(cache.count) > 1:  # of one row all is kernels
                    self._cublas = Cublas(backend.module(), backend.cublas(), backend.dtype)
                step = Step(backend, self._cublas, forward, weights, cache, config)
            except Exception as error:  # none of it has run on every card
                self.enabled, self._steps = False, []
                warnings.warn(
                    f"a step is not captured into a CUDA graph, but launched kernel by kernel, "
                    f"which takes longer: {one_line(error) or type(error).__name__}",
                    stacklevel=caller(),
                )
                return None
        if len(self._steps) >= MOST_GRAPHS:
            backend.module().cuda.get_current_stream().synchronize()  # the last may still compute
        self._steps = [(what, step), *self._steps[: MOST_GRAPHS - 1]]
        return step


def addresses(weights: Any, cache: RollingCache) -> tuple[Any, ...]:
    """Return where the weights and the cache lie: only there a captured step reads and writes.

    Nothing is kept alive by that: other arrays may come to lie there, and are then used.
    """
    layers = [OF_A_LAYER(layer) for layer in weights.layers]
    ends = (weights.embed_tokens.weight.data.ptr, weights.norm.weight.data.ptr)
    storage = [(array.data.ptr, array.shape) for array in (*cache.k, *cache.v)]
    return (ends, layers, storage)
