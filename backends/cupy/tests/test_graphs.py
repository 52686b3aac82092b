"""Steps of decoding as CUDA graphs: the same bits, no more memory, and what is not captured."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import graph_checks
import numpy as np
import pytest
from graph_checks import CHECKS, decoded, prefilled, small, without_graphs
from tiny import ids, tiny_model

from cuda_emulator.cupy_stand_in import _card
from tinymistral_cupy import EmulatedBackend, graphs
from tinymistral_cupy.graphs import MOST_GRAPHS, Step


@pytest.mark.parametrize("name", CHECKS)
def test_a_captured_step_has_the_bits_of_its_kernels(float16, name):
    CHECKS[name](float16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_other_dtypes_too(dtype):
    graph_checks.ring_wraps(EmulatedBackend(dtype))


@pytest.fixture
def captures(monkeypatch) -> list[Step]:
    """Return a list to which each captured step is added."""
    made: list[Step] = []

    class Counted(Step):
        def __init__(self, *what: Any):
            super().__init__(*what)
            made.append(self)

    monkeypatch.setattr(graphs, "Step", Counted)
    return made


def fresh() -> EmulatedBackend:
    return EmulatedBackend("float16")


def test_a_step_is_one_copy_and_one_launch(monkeypatch):
    """And a copy of the result on the card, and the product of the head.

    Without a graph a step of one layer launches more than 15 kernels.
    """
    done: list[str] = []

    def noted(holder: Any, name: str) -> None:
        replaced = getattr(holder, name)
        monkeypatch.setattr(holder, name, lambda *a: (done.append(name), replaced(*a))[1])

    backend = fresh()
    model = small(backend)
    cache = prefilled(model, 1)
    list(decoded(model, cache, 2))
    noted(_card.Copies, "copy")
    noted(backend.module().cuda.Graph, "launch")
    noted(_card.Work, "do")
    list(decoded(model, cache, 1))
    assert done == ["copy", "launch", "do", "do"]
    done.clear()
    with without_graphs(backend):
        list(decoded(model, cache, 1))
    assert done.count("do") > 15


# When


def test_it_is_captured_again_when_storage_grows_and_never_once_that_is_full(captures):
    model = small(fresh())
    cache = prefilled(model, 1, room=3)
    list(decoded(model, cache, 30))
    assert cache.positions.shape == (1, 8)
    assert len(captures) == 2  # 6 slots, then 8


def test_it_is_captured_when_it_comes_for_the_second_time(captures):
    model = small(fresh())
    for n in range(3):
        model(ids(1, 1, seed=n))  # a new cache each time
    assert not captures
    cache = prefilled(model, 1)
    for n in range(3):
        list(decoded(model, cache, 1))
        assert len(captures) == (n > 0)


def test_only_tokens_alone_without_a_tap_are_captured(captures):
    model = small(fresh())
    cache = prefilled(model, 1)
    for _ in range(3):
        model(ids(1, 2), past_key_values=cache)
    for _ in range(3):
        model(ids(1, 1), past_key_values=cache, tap=lambda name, array: None)
        model(ids(1, 1), past_key_values=cache, output_hidden_states=True)
        model(inputs_embeds=np.ones((1, 1, 24)), past_key_values=cache)
    assert not captures


def test_drafts_go_the_ordinary_way_and_change_no_text(captures):
    model = small(fresh())
    text = [[3, 5, 7, 3, 5, 7, 3, 5]]
    out = [
        model.generate(text, max_new_tokens=10, prompt_lookup_num_tokens=n, eos_token_id=[])
        for n in (0, 3)
    ]
    np.testing.assert_array_equal(*out)


def test_the_environment_turns_it_off(captures, monkeypatch):
    monkeypatch.setenv(graphs.VARIABLE, "0")
    model = small(fresh())
    list(decoded(model, prefilled(model, 1), 4))
    assert not captures


# Memory


@pytest.mark.slow
def test_nothing_grows_over_200_steps():
    model = tiny_model(fresh(), hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    cache = prefilled(model, 1)
    list(decoded(model, cache, 12))
    gc.collect()
    used, allocated = _card.CARD.used, _card.CARD.allocations
    list(decoded(model, cache, 200))
    gc.collect()
    assert _card.CARD.used == used
    assert _card.CARD.allocations == allocated + 2 * 200  # each step's result, and its logits


def test_few_graphs_are_kept_and_the_last_used_one_among_them(captures):
    backend = fresh()
    model = small(backend)
    caches = [prefilled(model, rows) for rows in range(1, MOST_GRAPHS + 3)]
    used = []
    for cache in caches:
        list(decoded(model, cache, 2))
        gc.collect()
        used.append(_card.CARD.used)
        assert len(backend.graphs._steps) <= MOST_GRAPHS
    assert len(captures) == len(caches)
    list(decoded(model, caches[-1], 2))
    assert len(captures) == len(caches)
    assert used[-1] - used[-2] < 20_000  # one comes, one goes


def test_neither_a_model_nor_a_cache_is_kept_alive():
    backend = fresh()
    model = small(backend)
    cache = prefilled(model, 1)
    list(decoded(model, cache, 4))
    gone = [weakref.ref(model), weakref.ref(cache)]
    arrays = [weakref.ref(x) for x in (cache.k[0], model.weights.model.norm.weight)]
    del model, cache
    gc.collect()
    assert [each() for each in (*gone, *arrays)] == [None] * 4


# What fails


def fail(*_: Any) -> None:
    raise RuntimeError("no such\nfunction")


@pytest.mark.parametrize("where", ["cublas", "end_capture"])
def test_what_fails_is_said_once_and_kernels_are_launched_one_at_a_time(where, monkeypatch):
    backend = fresh()
    model = small(backend)
    holder = backend if where == "cublas" else backend.module().cuda.Stream
    cache, other = prefilled(model, 2), prefilled(model, 2)
    with without_graphs(backend):
        expected = list(decoded(model, other, 5))
    with monkeypatch.context() as patch:
        patch.setattr(holder, where, fail)
        said = "not captured into a CUDA graph, but launched .* takes longer: no such function$"
        with pytest.warns(UserWarning, match=said) as warned:
            got = list(decoded(model, cache, 5))
    np.testing.assert_array_equal(got, expected)
    assert len(warned) == 1
    assert not backend.graphs.enabled


def test_no_memory_for_a_capture_is_no_error(monkeypatch):
    backend = fresh()
    model = small(backend)
    cache = prefilled(model, 2)
    list(decoded(model, cache, 1))
    with monkeypatch.context() as patch:
        patch.setattr(_card.CARD, "total", _card.CARD.used + 100_000)  # not for cuBLAS's workspace
        with pytest.warns(UserWarning, match="takes longer: Out of memory allocating"):
            list(decoded(model, cache, 2))


@pytest.mark.parametrize("where", ["begin_capture", "end_capture", "copyto", "launch", "send"])
def test_an_interrupt_leaves_the_cache_whole(where, monkeypatch):
    """While it is captured, or replayed; the step is then taken again."""
    backend = fresh()
    model = small(backend)
    cache, other = prefilled(model, 1), prefilled(model, 1)
    cp = backend.module()
    holder = {"copyto": cp, "launch": cp.cuda.Graph, "send": graphs.Numbers}.get(
        where, cp.cuda.Stream
    )
    replaced = getattr(holder, where)

    def interrupted(*arguments: Any) -> Any:
        replaced(*arguments)
        raise KeyboardInterrupt

    steps = 2 if holder is not cp.cuda.Stream else 1
    got = list(decoded(model, cache, steps))
    with monkeypatch.context() as patch:
        patch.setattr(holder, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(decoded(model, cache, 1, first=steps))
        assert cache.count[0] == 3 + steps
    assert _card.WORK.captured is None
    got += decoded(model, cache, 4, first=steps)
    with without_graphs(backend):
        np.testing.assert_array_equal(got, list(decoded(model, other, 4 + steps)))
    for one, two in zip(graph_checks.contents(cache), graph_checks.contents(other), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_step_that_goes_too_far_back_is_the_same_error():
    backend = fresh()
    model = small(backend)
    cache = prefilled(model, 1)
    list(decoded(model, cache, 12))
    with pytest.raises(ValueError, match="row 0 goes back to position 2"):
        model(ids(1, 1), position_ids=[[2]], past_key_values=cache)
