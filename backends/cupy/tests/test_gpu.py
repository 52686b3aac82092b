"""On a GPU: the laws, a text, and how far the kernels are from what the card can do.

Times, and their ratios to the floor, are printed (`pytest -m gpu -s`), and no limit is set to them:
what launches from Python cost, and how often the float32 of plain kernels is slower than a card's
tensor cores, differs from card to card and is not known before it is measured.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from floors import Heads, Rates, decode_seconds, prefill_seconds, visible_pairs

from tinymistral import DEMO, MistralConfig, MistralForCausalLM, MistralTokenizer
from tinymistral.backend import BackendUnavailable
from tinymistral_cupy import CupyBackend

try:
    NAME, WHY_NOT = CupyBackend.device(), ""
except BackendUnavailable as error:
    NAME, WHY_NOT = "", error.reason

needs_gpu = pytest.mark.skipif(not NAME, reason=f"needs a GPU: {WHY_NOT}")
every_dtype = pytest.mark.parametrize("dtype", CupyBackend.dtypes)
HEADS = Heads()


# Correctness


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


# Speed: CUDA events around many calls, after some that are not counted


def seconds(cp: Any, call: Callable[[], Any], calls: int = 20) -> float:
    """Return the seconds that one call takes on the card."""
    for _ in range(3):
        call()
    start, stop = cp.cuda.Event(), cp.cuda.Event()
    start.record()
    for _ in range(calls):
        call()
    stop.record()
    stop.synchronize()
    return cp.cuda.get_elapsed_time(start, stop) / 1000 / calls


@pytest.fixture(scope="module")
def backend() -> CupyBackend:
    return CupyBackend("float16")


@pytest.fixture(scope="module")
def rates(backend: CupyBackend) -> Rates:
    """Measure the card: a copy of 512 MB, and a product of two matrices of 8192 x 8192."""
    cp, n = backend.module(), 8192
    from_, to = cp.zeros(1 << 28, np.float16), cp.empty(1 << 28, np.float16)
    copy = seconds(cp, lambda: cp.copyto(to, from_))
    matrix = backend.zeros((n, n), "float16")
    product = seconds(cp, lambda: backend.linear(matrix, matrix))
    measured = Rates(bandwidth=2 * from_.nbytes / copy, operations=2 * n**3 / product)
    print(
        f"\n{NAME}: {measured.bandwidth / 1e12:.2f} TB/s, "
        f"{measured.operations / 1e12:.0f} TFLOP/s in float16"
    )
    return measured


def report(what: str, took: float, floor: float) -> None:
    print(f"{what:32} {took * 1e6:9.1f} µs, {took / floor:6.1f} times the floor")


def drawn(backend: CupyBackend, *shape: int) -> Any:
    rng = np.random.default_rng(0)
    return backend.asarray(rng.standard_normal(shape, dtype=np.float32), backend.dtype)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 8, 32])
def test_times_of_decoding_attention(backend, rates, rows):
    H, K, d, W = HEADS.H, HEADS.K, HEADS.d, HEADS.W
    q, k, v = (drawn(backend, rows, *rest) for rest in ((1, H, d), (W, K, d), (W, K, d)))
    at = np.full((rows, 1), W - 1)
    where = (at, np.tile(np.arange(W), (rows, 1)), W)
    took = seconds(backend.module(), lambda: backend.attention(q, k, v, *where))
    report(f"attention, decode, batch {rows}", took, decode_seconds(rates, rows, HEADS))


@needs_gpu
@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("T", [8192, 32768])
def test_times_of_prefill_attention(backend, rates, T):
    H, K, d = HEADS.H, HEADS.K, HEADS.d
    q, k, v = (drawn(backend, 1, T, heads, d) for heads in (H, K, K))
    at = np.arange(T)[None]
    took = seconds(backend.module(), lambda: backend.attention(q, k, v, at, at, HEADS.W), calls=3)
    report(f"attention, prefill {T}", took, prefill_seconds(rates, T, HEADS))


@needs_gpu
@pytest.mark.gpu
def test_times_of_kernels_on_single_tokens(backend, rates):
    x, y = drawn(backend, 4096, 4096), drawn(backend, 4096, 4096)
    weight, cp = drawn(backend, 4096), backend.module()
    heads = x.reshape(1, 4096, 32, 128)
    table = backend.rope_table(np.arange(4096)[None], 1e4, 128)
    cache = backend.zeros((1, 4096, 32, 128), "float16")
    slots = np.arange(4096)[None]
    for what, arrays, call in (
        ("rms_norm", 2, lambda: backend.rms_norm(x, weight, 1e-5)),
        ("add", 3, lambda: x + y),
        ("silu_mul", 3, lambda: backend.silu_mul(x, y)),
        ("rope", 2, lambda: backend.rope(heads, table)),
        ("scatter", 2, lambda: backend.scatter(cache, slots, heads)),
    ):
        report(what, seconds(cp, call), arrays * x.nbytes / rates.bandwidth)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.slow
def test_times_of_a_step_of_decoding(backend, rates):
    """Two layers of Mistral-7B: shows the cost of launches beside that of reading the weights."""
    model = MistralForCausalLM(MistralConfig(num_hidden_layers=2), backend=backend)
    cache, token = model.new_cache(1), np.ones((1, 1), dtype=np.int64)
    model(np.ones((1, 64), dtype=np.int64), past_key_values=cache)
    took = seconds(backend.module(), lambda: model(token, past_key_values=cache))
    embeddings = model.tensors["model.embed_tokens.weight"].size
    floor = 2 * (model.num_parameters() - embeddings) / rates.bandwidth
    report("decode, two layers and the head", took, floor)


# The floors themselves, which need no GPU. An H100, on paper: 3.35 TB/s and 800 TFLOP/s.

H100 = Rates(bandwidth=3.35e12, operations=800e12)


@pytest.mark.parametrize(("T", "milliseconds"), [(8192, 0.515), (32768, 2.58)])
def test_the_floor_of_prefill(T, milliseconds):
    assert prefill_seconds(H100, T, HEADS) * 1e3 == pytest.approx(milliseconds, rel=5e-3)
    small = sum(0 <= i - j < 5 for i in range(12) for j in range(12))
    assert visible_pairs(12, 5) == small


@pytest.mark.parametrize(("rows", "microseconds"), [(1, 5.0), (8, 40), (32, 160)])
def test_the_floor_of_decoding(rows, microseconds):
    assert decode_seconds(H100, rows, HEADS) * 1e6 == pytest.approx(microseconds, rel=5e-3)
