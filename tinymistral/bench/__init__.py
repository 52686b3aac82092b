"""Speed: programs that generate with the same weights, in turns, and the limits of the machine.

A program is a function: prompts (B, T) and how many new tokens -> the time, as `perf_counter`
tells it, at which each new token was there.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.heads import MistralForCausalLM
from tinymistral.pretrained import flat
from tinymistral.threads import threads

Program = Callable[[np.ndarray, int], Sequence[float]]


@dataclass
class Speed:
    """What a program took for prompts of one length: seconds of each round."""

    length: int
    program: str
    first: list[float] = field(default_factory=list)  # to the first new token
    each: list[float] = field(default_factory=list)  # from one new token to the next


@dataclass
class Limits:
    """What this machine could do, measured beside the programs: seconds of each round."""

    length: int
    products: list[float] = field(default_factory=list)  # the matrix products of the prompt
    reading: list[float] = field(default_factory=list)  # the weights that a token needs, once


def ours(model: MistralForCausalLM) -> Program:
    """Return the program that is this project, greedy."""

    def generate(ids: np.ndarray, new: int) -> list[float]:
        steps = model.generate_stream(ids, max_new_tokens=new, eos_token_id=[], do_sample=False)
        return [time.perf_counter() for _ in steps]

    return generate


def with_window(model: MistralForCausalLM, window: int | None) -> MistralForCausalLM:
    """Return a model with the same weights and another window; None: without one."""
    other = copy.copy(model)
    other.config = dataclasses.replace(model.config, sliding_window=window)
    return other


def measure(
    programs: Mapping[str, Program],
    limits: Callable[[int], tuple[float, float]] | None,
    config: MistralConfig,
    *,
    lengths: Sequence[int],
    batch: int,
    new: int,
    rounds: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Speed], list[Limits]]:
    """Let the programs generate in turns, so that what else the machine does hits all of them.

    The first round of each length is not counted. `limits(length)` is measured in each round too.
    """
    speeds, bounds, done = [], [], 0
    for length in lengths:
        ids = np.random.default_rng(length).integers(3, config.vocab_size, (batch, length))
        of_length = [Speed(length, name) for name in programs]
        bound = Limits(length)
        for number in range(rounds + 1):
            for speed, program in zip(of_length, programs.values(), strict=True):
                start = time.perf_counter()
                times = program(ids, new)
                if number:
                    speed.first.append(times[0] - start)
                    speed.each.append((times[-1] - times[0]) / (new - 1))
            if number and limits is not None:
                products, reading = limits(length)
                bound.products.append(products)
                bound.reading.append(reading)
            done += 1
            progress(done, len(lengths) * (rounds + 1))
        speeds += of_length
        bounds += [bound] if limits is not None else []
    return speeds, bounds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return how many times as long they took, above 1 where we are faster: a median of rounds."""
    return median(b / a for a, b in zip(ours, theirs, strict=True))


def limits_of(model: MistralForCausalLM, batch: int) -> Callable[[int], tuple[float, float]] | None:
    """Return what measures the limits for a model; None if its weights are not on the processor.

    Attention is in neither of them: it depends on the window.
    """
    weights = flat(model.weights)
    tied = model.config.tie_word_embeddings
    matrices = {
        name: array
        for name, array in weights.items()
        if array.ndim == 2 and (tied or "embed_tokens" not in name)
    }
    if not all(isinstance(array, np.ndarray) for array in matrices.values()):
        return None
    of_a_layer = [array.shape for name, array in matrices.items() if ".layers.0." in name]
    layers, chunk = model.config.num_hidden_layers, model.backend.chunk

    def measure_limits(length: int) -> tuple[float, float]:
        rows = batch * min(length, chunk)
        pieces = batch * length / rows
        return layers * pieces * seconds_of_products(of_a_layer, rows), seconds_of_reading(
            list(matrices.values()), threads()
        )

    return measure_limits


def seconds_of_products(shapes: Sequence[tuple[int, int]], rows: int) -> float:
    """Return the seconds of the float32 products of `rows` rows with matrices of these shapes."""
    total = 0.0
    for m, n in shapes:
        x, weight = np.ones((rows, n), dtype=np.float32), np.ones((m, n), dtype=np.float32)
        out = np.empty((rows, m), dtype=np.float32)
        start = time.perf_counter()
        np.matmul(x, weight.T, out=out)
        total += time.perf_counter() - start
    return total


def seconds_of_reading(arrays: Sequence[np.ndarray], number: int) -> float:
    """Return the seconds in which so many threads read these arrays, once, one after the other."""
    parts: list[list[Any]] = [[] for _ in range(number)]
    for array in arrays:
        bits = array.reshape(-1).view(f"u{array.itemsize}")
        for part, share in zip(parts, np.array_split(bits, number), strict=True):
            part.append(share)
    with ThreadPoolExecutor(number) as pool:
        list(pool.map(len, parts))  # the threads have started
        start = time.perf_counter()
        list(pool.map(lambda part: [share.max(initial=0) for share in part], parts))
        return time.perf_counter() - start
