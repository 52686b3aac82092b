"""On a GPU: the laws, a text, and arrays of more than 2^31 numbers; `bench` measures its speed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from graph_checks import CHECKS

from tinymistral import DEMO, MistralForCausalLM, MistralTokenizer
from tinymistral.backend import BackendUnavailable
from tinymistral_cupy import CupyBackend

try:
    NAME, WHY_NOT = CupyBackend.device(), ""
except BackendUnavailable as error:
    NAME, WHY_NOT = "", error.reason

needs_gpu = pytest.mark.skipif(not NAME, reason=f"needs a GPU: {WHY_NOT}")
every_dtype = pytest.mark.parametrize("dtype", CupyBackend.dtypes)


@pytest.fixture(scope="module")
def backend() -> CupyBackend:
    return CupyBackend("float16")


def drawn(backend: CupyBackend, *shape: int) -> Any:
    rng = np.random.default_rng(0)
    return backend.asarray(rng.standard_normal(shape, dtype=np.float32), backend.dtype)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.slow
def test_all_laws_hold():
    suite = ("-m", "pytest", "--pyargs", "tinymistral.conformance", "-p", "no:cacheprovider")
    command = [sys.executable, *suite, "--tinymistral-backend", "cupy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout
    print(done.stdout[done.stdout.index("= tinymistral conformance") :])
    assert f"backend cupy on {NAME}, in float32, float16, bfloat16" in done.stdout
    assert " laws ran, 0 failed" in done.stdout


@needs_gpu
@pytest.mark.gpu
@every_dtype
def test_the_demo_generates_the_same_text(dtype):
    """Past a window of 64 tokens several times; in 16 bits rounding may choose another word."""
    tokenizer = MistralTokenizer.from_pretrained(DEMO)
    prompts = tokenizer(["Once upon a time", "The fox said to the hare that"])
    texts = []
    for backend in ("numpy", "cupy"):
        model = MistralForCausalLM.from_pretrained(DEMO, backend=backend, dtype=dtype)
        model.config = dataclasses.replace(model.config, sliding_window=64)
        ids = model.generate(**prompts, max_new_tokens=200, do_sample=False, eos_token_id=[])
        texts.append(ids[:, prompts["input_ids"].shape[1] :])
    same = (texts[0] == texts[1]).all(axis=0)
    print(f"\n{dtype}: the same for {np.argmin([*same, False])} of {len(same)} tokens")
    assert same[: 200 if dtype == "float32" else 5].all()


@needs_gpu
@pytest.mark.gpu
@every_dtype
@pytest.mark.parametrize("name", CHECKS)
def test_a_captured_step_has_the_bits_of_its_kernels(dtype, name):
    CHECKS[name](CupyBackend(dtype))


@needs_gpu
@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("T", [1, 40], ids=["split", "tiles"])
def test_a_cache_may_have_more_than_2_to_the_31_numbers(backend, T):
    """In a row. The last key of either row is the only visible one, so its value comes out."""
    B, S, H, K, d = 2, 2**21 + 1, 8, 8, 128
    try:
        backend.check_memory(2 * B * S * K * d * 2 + (1 << 30))
    except BackendUnavailable as error:
        pytest.skip(str(error))
    cache, small = (
        tuple(backend.zeros((B, slots, K, d), "float16") for _ in range(2)) for slots in (S, 1)
    )
    q, k, v = (drawn(backend, B, n, heads, d) for n, heads in ((T, H), (1, K), (1, K)))
    k_positions = np.full((B, S), -1)
    k_positions[:, -1] = 5
    last, first = np.full((B, 1), S - 1), np.zeros((B, 1), dtype=np.int64)
    for far, near, new in zip(cache, small, (k, v), strict=True):
        backend.scatter(far, last, new)
        backend.scatter(near, first, new)
        expected = backend.to_numpy(near)
        assert expected.any()
        np.testing.assert_array_equal(backend.to_numpy(far[:, -1:]), expected)
    backend.scatter(cache[1], last, k)  # something else
    value = backend.to_numpy(k)
    np.testing.assert_array_equal(backend.to_numpy(cache[1][:, -1:]), value)
    mix = backend.attention(q, *cache, np.full((B, T), 9), k_positions, None)
    np.testing.assert_array_equal(backend.to_numpy(mix), np.broadcast_to(value, mix.shape))


@needs_gpu
@pytest.mark.gpu
@pytest.mark.slow
def test_activations_may_have_more_than_2_to_the_31_numbers(backend):
    """The last token of a long text comes out as it does alone."""
    rows, K, d, D = 2**19 + 1, 8, 128, 4096
    try:
        backend.check_memory(3 * rows * D * 2 + (2 << 30))
    except BackendUnavailable as error:
        pytest.skip(str(error))
    alone, weight = drawn(backend, 1, D), drawn(backend, D)
    k, v = drawn(backend, 1, 1, K, d), drawn(backend, 1, 1, K, d)
    text = backend.zeros((rows, D), "float16")
    text[-1:].set(backend.to_numpy(alone))

    def attention(x: Any) -> Any:
        at = np.zeros((1, x.shape[0]), dtype=np.int64)
        return backend.attention(x.reshape(1, -1, D // d, d), k, v, at, at[:, :1], None)

    def rope(x: Any) -> Any:
        at = np.full((1, x.shape[0]), 7)
        return backend.rope(x.reshape(1, -1, D // d, d), backend.rope_table(at, 1e4, d))

    for call in (
        lambda x: backend.rms_norm(x, weight, 1e-5),
        lambda x: backend.silu_mul(x, x),
        rope,
        attention,
    ):
        expected = backend.to_numpy(call(alone))
        assert expected.any()
        last = call(text).reshape(rows, D)[-1:]
        np.testing.assert_array_equal(backend.to_numpy(last), expected.reshape(1, D))
