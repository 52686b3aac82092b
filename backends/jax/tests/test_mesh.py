"""A model divided over eight devices: virtual ones of the processor."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from fixture_files import leaves
from jax.sharding import Mesh

from tinymistral import MistralConfig
from tinymistral_jax import FlaxMistralForCausalLM

CONFIG = MistralConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=4,
    sliding_window=5,
    initializer_range=0.3,
)
IDS = np.random.default_rng(0).integers(0, 32, (4, 9))
MASK = np.ones_like(IDS)
MASK[1, :4] = 0


@pytest.fixture(scope="module")
def divided():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    return FlaxMistralForCausalLM(CONFIG, seed=2, mesh=mesh)


@pytest.fixture(scope="module")
def alone():
    return FlaxMistralForCausalLM(CONFIG, seed=2)


def bytes_by_device(tree):
    held = dict.fromkeys(jax.devices(), 0)
    for array in jax.tree.leaves(tree):
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return list(held.values())


def test_logits_and_texts_are_those_of_one_device(divided, alone):
    real = MASK.astype(bool)
    ours, theirs = (np.asarray(model(IDS, MASK).logits)[real] for model in (divided, alone))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    options = {"attention_mask": MASK, "max_new_tokens": 12, "eos_token_id": []}
    ours, theirs = (model.generate(IDS, **options).sequences for model in (divided, alone))
    np.testing.assert_array_equal(ours, theirs)


def test_each_device_holds_its_share_of_the_parameters(divided):
    """A quarter of each matrix; the norms, 5 of 16 numbers, whole."""
    matrices = sum(x.nbytes for x in jax.tree.leaves(divided.params) if x.ndim == 2)
    assert bytes_by_device(divided.params) == [matrices // 4 + 5 * 16 * 4] * 8
    kernel = leaves(divided.params)["model/layers/0/mlp/down_proj/kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (24 // 4, 16)


def test_each_device_holds_its_share_of_the_cache(divided):
    """Two of four rows, one of four heads."""
    empty = divided.init_cache(4, 32)
    for cache in (empty, divided(IDS, past_key_values=empty).past_key_values):
        keys = cache["k"] + cache["v"]
        assert bytes_by_device(keys) == [sum(x.nbytes for x in keys) // 8] * 8


def test_heads_that_an_axis_does_not_divide_are_kept_whole():
    mesh = Mesh(np.array(jax.devices()), ("model",))
    model = FlaxMistralForCausalLM(CONFIG, seed=2, mesh=mesh)
    params = leaves(model.params)
    q, up = (
        params[f"model/layers/0/{name}/kernel"] for name in ("self_attn/q_proj", "mlp/up_proj")
    )
    assert q.sharding.shard_shape(q.shape) == (16, 4)
    assert up.sharding.shard_shape(up.shape) == (16, 3)
    one = FlaxMistralForCausalLM(CONFIG, seed=2)(IDS).logits
    np.testing.assert_allclose(np.asarray(model(IDS).logits), one, rtol=0, atol=1e-5)
