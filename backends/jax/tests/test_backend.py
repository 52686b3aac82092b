"""Tests of the backend beyond `tinymistral.conformance`."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixture_files import MODELS

from tinymistral import MistralForCausalLM
from tinymistral_jax import JaxBackend, backend
from tinymistral_jax.backend import Slots, whole


def run(*lines: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_token_more_compiles_nothing():
    """The cache's storage is doubled, so of 40 tokens only a few see attention compiled."""
    model = MistralForCausalLM.from_pretrained(MODELS / "no_window", backend="jax")
    cache = model.new_cache(1)
    cache.reserve(64)
    sizes = []
    for token in range(40):
        model([[token]], past_key_values=cache)
        sizes.append(backend._attention._cache_size())
    assert sizes[-1] == sizes[1]


def test_the_used_slots_are_those_that_are_read():
    storage = jnp.arange(2 * 8 * 3 * 4, dtype=jnp.float32).reshape(2, 8, 3, 4)
    slots = Slots(storage, 8)
    view = slots[:, :5]
    assert isinstance(view, Slots)
    assert view.shape == (2, 5, 3, 4)
    np.testing.assert_array_equal(whole(view), storage[:, :5])
    np.testing.assert_array_equal(whole(view[:, :-2]), storage[:, :3])
    for index in (
        np.s_[0],
        np.s_[:, 1:3],
        np.s_[1:, :3],
        np.s_[:, -1:],
        np.s_[..., 0],
        np.s_[:, 2],
    ):
        np.testing.assert_array_equal(whole(view[index]), storage[:, :5][index])


@pytest.mark.parametrize("slot_position", [-1, 9])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_query_mixes_what_it_sees(value, slot_position):
    """A single query has a path of its own, which few cases of the laws take."""
    rng, jax_backend = np.random.default_rng(0), JaxBackend("float32")
    q, k, v = (jnp.asarray(rng.standard_normal((1, n, 2, 4)), jnp.float32) for n in (1, 3, 3))
    at, unseen, seen = np.array([[5]]), np.array([[4, slot_position, 5]]), np.array([[3, 4, 5]])
    with_value = v.at[:, 1].set(value)
    expected = jax_backend.attention(q, k[:, ::2], v[:, ::2], at, unseen[:, ::2], 4)
    out = jax_backend.attention(q, k, with_value, at, unseen, 4)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    np.testing.assert_array_equal(jax_backend.attention(q, k, with_value, at, seen, 4), value)


@pytest.mark.parametrize("theta", [10000.0, 1e6])
def test_traced_cosines_are_as_exact_as_those_of_the_host(theta):
    """Up to the last position; by extended precision."""
    positions = np.array([*range(300), 32767, 2**24 + 1, 2**31 - 1])
    at = jnp.asarray(positions[None], jnp.int32)
    table = jax.jit(JaxBackend("float32").rope_table, static_argnums=(1, 2))(at, theta, 64)
    frequencies = theta ** (-np.arange(0, 64, 2, dtype=np.longdouble) / 64)
    angles = positions[:, None] * frequencies
    off = abs(np.asarray(table)[:, 0, :, 0] - np.stack([np.cos(angles), np.sin(angles)]))
    # half a unit in the last place of float32, 4 roundings to 2^-33 turns, and the frequencies'
    assert (off <= 2**-25 + 2**-28 + 2**-52 * positions[:, None]).all()
    nowhere = jnp.full((1, 1), -1, jnp.int32)
    assert np.isfinite(JaxBackend("float32").rope_table(nowhere, theta, 64)).all()


def test_float64_says_what_it_needs():
    if jax.config.jax_enable_x64:
        assert "float64" in JaxBackend.dtypes
    else:
        with pytest.raises(ValueError, match="JAX_ENABLE_X64 is 1; set it"):
            JaxBackend("float64")


def test_with_x64_float64_is_float64():
    out = run(
        "import numpy as np",
        "from tinymistral import MistralForCausalLM",
        "from tinymistral_jax import FlaxMistralForCausalLM",
        f"folder, ids = {str(MODELS / 'gqa')!r}, [[5, 6, 7, 8, 9, 10, 11]]",
        "true = MistralForCausalLM.from_pretrained(folder, dtype='float64')(ids).logits",
        "through = MistralForCausalLM.from_pretrained(folder, dtype='float64', backend='jax')",
        "whole = FlaxMistralForCausalLM.from_pretrained(folder, dtype='float64')",
        "float32 = FlaxMistralForCausalLM.from_pretrained(folder)(ids).logits",
        "print(abs(through(ids).logits - true).max() < 1e-12)",
        "print(abs(np.asarray(whole(ids).logits) - true).max() < 1e-12, float32.dtype)",
        JAX_ENABLE_X64="1",
    )
    assert out.split() == ["True", "True", "float32"]
