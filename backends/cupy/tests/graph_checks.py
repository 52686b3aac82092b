"""Checks of captured steps: the same bits as kernels that are launched one at a time.

A check calls a model as a user does, twice: with graphs and without. It takes a backend; its caches
and models are new each time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tiny import ids, tiny_config, tiny_model

from tinymistral import MistralForCausalLM
from tinymistral.cache import RollingCache
from tinymistral.model import forward
from tinymistral_cupy import CupyBackend


@contextmanager
def without_graphs(backend: CupyBackend) -> Iterator[None]:
    """Return a context in which the backend captures nothing."""
    before, backend.graphs.enabled = backend.graphs.enabled, False
    try:
        yield
    finally:
        backend.graphs.enabled = before


def steps_are_the_same(backend: CupyBackend, act: Callable[[], Iterator[np.ndarray]]) -> None:
    """Check that `act` yields the same arrays with graphs, of which it uses one, and without."""
    backend.graphs._steps.clear()
    got = list(act())
    assert backend.graphs.enabled
    assert any(step for _, step in backend.graphs._steps), "no step was captured"
    with without_graphs(backend):
        expected = list(act())
    assert len(got) == len(expected)
    for n, (one, other) in enumerate(zip(got, expected, strict=True)):
        np.testing.assert_array_equal(one, other, f"array {n}")


def small(backend: CupyBackend, **changes: Any) -> Any:
    return tiny_model(backend, **{"num_hidden_layers": 1, **changes})


def other_weights(backend: CupyBackend) -> Any:
    config = tiny_config(num_hidden_layers=1)
    return MistralForCausalLM(config, seed=4, backend=backend)


def decoded(model: Any, cache: RollingCache, steps: int, first: int = 0) -> Iterator[np.ndarray]:
    """Yield the logits of so many steps."""
    for n in range(first, first + steps):
        yield model(ids(len(cache.count), 1, seed=n), past_key_values=cache).logits


def prefilled(model: Any, rows: int, room: int = 8, **options: Any) -> RollingCache:
    """Return a cache that has a prompt of 3 tokens, and slots for `room`, which may be the ring."""
    cache = model.new_cache(rows, chunk=4)
    cache.reserve(room)
    model(ids(rows, 3, seed=99), past_key_values=cache, **options)
    return cache


def contents(cache: RollingCache) -> Iterator[np.ndarray]:
    """Yield what a cache holds."""
    yield from (cache.positions, cache.count, cache.last, cache.evicted)
    for array in (*cache.k, *cache.v):
        yield array.get()


# The checks


def storage_doubles(backend: CupyBackend) -> None:
    """From 3 slots to 6 and 12, each captured."""

    def act() -> Iterator[np.ndarray]:
        model = small(backend, sliding_window=None)
        cache = prefilled(model, 2, room=3)
        yield from decoded(model, cache, 8)
        yield from contents(cache)

    steps_are_the_same(backend, act)
    sizes = [what[-1][0][1][1] for what, step in backend.graphs._steps if step]
    assert sizes == [12, 6]


def ring_wraps(backend: CupyBackend) -> None:
    """A ring of 8 slots, with rows of other lengths, in two layers."""

    def act() -> Iterator[np.ndarray]:
        model = tiny_model(backend)
        cache = prefilled(model, 2, attention_mask=[[0, 1, 1], [1, 1, 1]])
        yield from decoded(model, cache, 12)
        yield from contents(cache)

    steps_are_the_same(backend, act)


def a_step_has_padding(backend: CupyBackend) -> None:
    def act() -> Iterator[np.ndarray]:
        model = small(backend)
        cache = prefilled(model, 2)
        for n in range(4):
            mask = [[1], [n % 2]]
            out = model(ids(2, 1, seed=n), attention_mask=mask, past_key_values=cache)
            yield out.logits[:1]
        yield from contents(cache)

    steps_are_the_same(backend, act)


def rows_leave(backend: CupyBackend) -> None:
    """From a batch of 3 in turn; greedy, until rows end by one of some tokens."""

    def act() -> Iterator[np.ndarray]:
        model = small(backend)
        options = {"max_new_tokens": 9, "return_dict_in_generate": True, "eos_token_id": [4, 7, 11]}
        out = model.generate(ids(3, 3, seed=5), do_sample=True, seed=2, **options)
        ends = np.isin(out.sequences[:, 3:], [4, 7, 11]).argmax(axis=1)
        assert len(set(ends)) == 3, f"rows do not end one by one: {ends}"
        yield from (out.sequences, out.logprobs)

    steps_are_the_same(backend, act)


def a_batch_lies_where_another_lay(backend: CupyBackend) -> None:
    """The cache of one row has the memory of one of two rows, as memory that is freed is reused."""

    def act() -> Iterator[np.ndarray]:
        model = small(backend)
        cache = prefilled(model, 2)
        yield from decoded(model, cache, 4)
        one = cache.select(np.array([0]))
        for arrays, before in ((one.k, cache.k), (one.v, cache.v)):
            arrays[0] = before[0][:1]
        yield from decoded(model, one, 3)

    steps_are_the_same(backend, act)


def a_cache_is_copied(backend: CupyBackend) -> None:
    """A cache, its copy, and one of its rows go on in turn."""

    def act() -> Iterator[np.ndarray]:
        model = small(backend)
        cache = prefilled(model, 2)
        yield from decoded(model, cache, 2)
        others = (cache, cache.copy(), cache.select(np.array([1])))
        for n in range(3):
            for m, each in enumerate(others):
                yield from decoded(model, each, 1, first=10 * n + m)
        for each in others:
            yield from contents(each)

    steps_are_the_same(backend, act)


def two_models_take_turns(backend: CupyBackend) -> None:
    """With two caches of the same size each, and with one cache."""

    def act() -> Iterator[np.ndarray]:
        models = [small(backend), other_weights(backend)]
        caches = [prefilled(model, 1) for model in models]
        for n in range(3):
            for model, cache in zip(models, caches, strict=True):
                yield from decoded(model, cache, 1, first=n)
        for n in range(4):
            yield from decoded(models[n % 2], caches[0], 1, first=n)

    steps_are_the_same(backend, act)


def a_config_changes(backend: CupyBackend) -> None:
    """A model gets another epsilon, then another theta."""

    def act() -> Iterator[np.ndarray]:
        model = small(backend)
        cache = prefilled(model, 1)
        for change in ({}, {"rms_norm_eps": 0.5}, {"rope_theta": 7.0}):
            model.config = cache.config = dataclasses.replace(model.config, **change)
            yield from decoded(model, cache, 3)

    steps_are_the_same(backend, act)


def weights_are_replaced(backend: CupyBackend) -> None:
    def act() -> Iterator[np.ndarray]:
        model, other = small(backend), other_weights(backend)
        cache = prefilled(model, 1)
        yield from decoded(model, cache, 3)
        model.weights.model.layers[0].mlp.up_proj = other.weights.model.layers[0].mlp.up_proj
        yield from decoded(model, cache, 3)

    steps_are_the_same(backend, act)


def a_row_goes_back(backend: CupyBackend) -> None:
    """A slot then gets a position below the one that it had."""

    def act() -> Iterator[np.ndarray]:
        model = small(backend)
        cache = prefilled(model, 1)
        yield from decoded(model, cache, 4)
        for position in (10, 20, 15, 16):
            at = {"position_ids": [[position]], "past_key_values": cache}
            yield model(ids(1, 1, seed=position), **at).logits
        yield from contents(cache)

    steps_are_the_same(backend, act)


def other_pieces_come_between(backend: CupyBackend) -> None:
    """Of several tokens, and with more rows, which need more scratch memory."""

    def act() -> Iterator[np.ndarray]:
        model = small(backend)
        cache = prefilled(model, 1)
        yield from decoded(model, cache, 2)
        yield model(ids(1, 3), past_key_values=cache).logits
        yield from decoded(model, cache, 3)
        yield model(ids(40, 2), past_key_values=model.new_cache(40)).logits
        yield from decoded(model, cache, 2)
        yield model(ids(1, 1), past_key_values=cache, output_hidden_states=True).hidden_states[0]
        yield from decoded(model, cache, 2)

    steps_are_the_same(backend, act)


def results_are_kept(backend: CupyBackend) -> None:
    """A result on the card is fetched when later steps are done."""

    def act() -> Iterator[np.ndarray]:
        model, results = small(backend), []
        cache = prefilled(model, 2)
        for n in range(4):
            rest = (model.base, cache.last[:, None] + 1, cache, model.config)
            results.append(backend.run_piece(forward, ids(2, 1, seed=n), *rest))
        yield from (backend.to_numpy(hidden) for hidden in results)

    steps_are_the_same(backend, act)


def heads_share_many_queries(backend: CupyBackend) -> None:
    """40 heads of queries to one of keys, which go to the kernels for prompts."""

    def act() -> Iterator[np.ndarray]:
        heads = {"num_attention_heads": 40, "num_key_value_heads": 1, "head_dim": 16}
        model = small(backend, **heads)
        yield from decoded(model, prefilled(model, 1), 4)

    steps_are_the_same(backend, act)


CHECKS = {
    check.__name__: check
    for check in (
        storage_doubles,
        ring_wraps,
        a_step_has_padding,
        rows_leave,
        a_batch_lies_where_another_lay,
        a_cache_is_copied,
        two_models_take_turns,
        a_config_changes,
        weights_are_replaced,
        a_row_goes_back,
        other_pieces_come_between,
        results_are_kept,
        heads_share_many_queries,
    )
}
