"""What is on the card, what a step allocates, and the errors when there is no room."""

from __future__ import annotations

import gc
import re

import numpy as np
import pytest
from tiny import ids, tiny_model

from cuda_emulator.cupy_stand_in import _card
from tinymistral.backend import BackendUnavailable
from tinymistral_cupy import EmulatedBackend

# The weights of `tiny_config`, by hand: V·D = 29·24 = 696 embeddings and as many in the head; in a
# layer 2·24·32 + 2·24·16 = 2304 in attention, 3·24·40 = 2880 in the mlp, 2·24 in norms; 24 in the
# last norm.
LAYERS = 2 * (2304 + 2880 + 48) + 24
WEIGHTS = LAYERS + 2 * 696


@pytest.mark.parametrize(("dtype", "nbytes"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_on_the_card_once_in_the_backends_dtype(dtype, nbytes, tied):
    backend = EmulatedBackend(dtype)
    gc.collect()
    before = _card.CARD.used
    model = tiny_model(backend, tie_word_embeddings=tied)
    numbers = WEIGHTS - 696 * tied
    assert model.num_parameters() == numbers
    assert _card.CARD.used - before == nbytes * numbers
    del model
    gc.collect()
    assert _card.CARD.used == before


def test_weights_that_do_not_fit_are_refused_before_any_is_copied(float16, monkeypatch):
    numbers = LAYERS + 696
    said = "the weights take {} in float16, and of the GPU's .* are free; the cache would come on"
    in_use = float16.zeros((1000,), "float16")
    monkeypatch.setattr(_card.CARD, "total", _card.CARD.used + 2 * numbers - 1)
    before = _card.CARD.allocations
    with pytest.raises(BackendUnavailable, match=said.format(f"{2 * numbers / 1e6:.1f} MB")):
        tiny_model(float16, tie_word_embeddings=True)
    assert _card.CARD.allocations == before
    monkeypatch.setattr(_card.CARD, "total", _card.CARD.used + 2 * numbers)
    tiny_model(float16, tie_word_embeddings=True)
    assert in_use.nbytes == 2000


def test_the_sum_of_a_large_model_is_in_gigabytes_with_the_remedy(float16, monkeypatch):
    monkeypatch.setattr(_card.CARD, "total", _card.CARD.used + 12_000_000_000)
    with pytest.raises(BackendUnavailable) as caught:
        float16.check_memory(14_480_000_000)
    said = str(caught.value)
    assert "the weights take 14.5 GB in float16" in said
    assert re.search(r"of the GPU's 12\.\d GB 12\.0 GB are free", said)
    assert "take a smaller model, or end what else uses the GPU" in said
    with pytest.raises(BackendUnavailable, match="take --dtype float16 or a smaller model"):
        EmulatedBackend("float32").check_memory(29_000_000_000)
    float16.check_memory(12_000_000_000)


def test_what_the_pool_holds_unused_counts_as_free(float16, monkeypatch):
    """CuPy keeps freed memory: the driver does not count it as free, but CuPy will reuse it."""
    monkeypatch.setattr(_card.CARD, "total", _card.CARD.used + 1_000_000)
    pool = type(float16.module().get_default_memory_pool())
    monkeypatch.setattr(pool, "free_bytes", lambda self: 500_000)
    float16.check_memory(1_500_000)
    with pytest.raises(BackendUnavailable, match=r"1\.5 MB are free"):
        float16.check_memory(1_500_001)


# In a pass


def outputs_of_a_step(layers: int) -> int:
    """Count the arrays that a step of decoding has to make.

    Embedded tokens, the table of angles, the first norm and logits; in a layer q, k, v, q and k
    rotated, the mix, its projection, a sum and its norm; gate, up, their product, its projection, a
    sum and its norm.
    """
    return 4 + 15 * layers


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_decode_step_allocates_its_outputs_and_nothing_else(float16, rows, layers, monkeypatch):
    """Where it is not captured; a captured one allocates its result alone, see test_graphs.py."""
    monkeypatch.setattr(float16.graphs, "enabled", False)
    model = tiny_model(float16, num_hidden_layers=layers)
    cache = model.new_cache(rows, chunk=4)
    prompt = np.ones((rows, 9), dtype=np.int64)
    prompt[-1, 0] = 0 if rows == 2 else 1  # left-padded, so that rows have other positions
    model(ids(rows, 9), attention_mask=prompt, past_key_values=cache)  # all of the ring's 8 slots
    steps = []
    for n in range(12):
        before = _card.CARD.allocations
        model(ids(rows, 1, seed=n), past_key_values=cache)
        steps.append(_card.CARD.allocations - before)
    assert steps == [outputs_of_a_step(layers)] * 12


def test_a_cache_past_its_window_takes_no_more_memory(float16):
    model = tiny_model(float16)
    cache = model.new_cache(1, chunk=4)
    model(ids(1, 8), past_key_values=cache)
    for n in range(2):  # the second is captured, and keeps memory of its own
        model(ids(1, 1, seed=n), past_key_values=cache)
    gc.collect()
    before = _card.CARD.used
    for n in range(10):
        model(ids(1, 1, seed=n), past_key_values=cache)
    gc.collect()
    assert _card.CARD.used == before


def test_no_room_in_a_pass_is_one_line_with_a_remedy_and_the_model_goes_on(float16, monkeypatch):
    model = tiny_model(float16)
    cache, other = model.new_cache(1), model.new_cache(1)
    first, rest = ids(1, 4), ids(1, 3, seed=1)
    for each in (cache, other):
        model(first, past_key_values=each)
    expected = model(rest, past_key_values=other).logits
    gc.collect()
    with monkeypatch.context() as patch:
        patch.setattr(_card.CARD, "total", _card.CARD.used + 600)
        with pytest.raises(BackendUnavailable) as caught:
            model(rest, past_key_values=cache)
    said = str(caught.value)
    assert re.match(r"the GPU has run out of memory: Out of memory allocating [\d,]+ bytes", said)
    assert said.endswith("; take shorter texts, fewer at once, a narrower dtype or a smaller model")
    assert "\n" not in said
    np.testing.assert_array_equal(model(rest, past_key_values=cache).logits, expected)
