"""Laws of the rolling cache on a backend, compared with a list of all tokens."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tinymistral.backend import Backend
from tinymistral.cache import RollingCache
from tinymistral.conformance import oracle
from tinymistral.conformance.bounds import agree, rope_error
from tinymistral.conformance.cases import normal, on
from tinymistral.conformance.law import law
from tinymistral.conformance.models import Stream, streams
from tinymistral.conformance.stagewise import ExpectedCache, StageChecker
from tinymistral.conformance.test_attention import agree_with_oracle


@law(lambda backend: streams(backend, 10, st.just(1)))
def test_the_cache_remembers_what_a_list_would(backend: Backend, case: Stream) -> None:
    """Queries find the right keys after pieces of any size, wraps, growth, drafts and copies."""
    checker, tiny = StageChecker(case.tiny.model(backend)), case.tiny

    def take(cache: RollingCache, expected: ExpectedCache, positions: np.ndarray, n: int) -> None:
        rng = np.random.default_rng([tiny.seed, n])
        heads = (tiny.K * tiny.group, tiny.K, tiny.K)
        q, k, v = (normal(rng, backend.dtype, *positions.shape, h, tiny.d) for h in heads)
        table = backend.rope_table(positions, tiny.theta, tiny.d)
        call = cache.begin()
        call.admit(positions)
        call.update(0, backend.rope(on(backend, k), table), on(backend, v))
        call.commit()

        keys, values = checker.cached(cache, 0, positions)
        real = positions >= 0
        error = rope_error(k, positions, tiny.theta, backend.dtype)
        agree(keys[real], oracle.rope(k, positions, tiny.theta)[real], error[real], backend.dtype)
        np.testing.assert_array_equal(values[real], v[real])
        expected.add(positions, keys[None], values[None])
        if any(expected.rows):
            rings, at = cache.read(0), cache.key_positions
            mix = backend.attention(on(backend, q), *rings, positions, at, tiny.window)
            out = backend.to_numpy(mix)
            keys, values, at = expected.read(0)
            visibility = (positions, at, tiny.window)
            agree_with_oracle(out, q, keys, values, visibility, backend.dtype)

    checker.walk(case, take)


@law(lambda backend: streams(backend, 10, st.just(1)))
def test_memory_is_constant_past_the_ring(backend: Backend, case: Stream) -> None:
    """A row has at most W + C - 1 slots, however long it is; with no window, what it needs."""
    cache = case.tiny.model(backend).new_cache(case.rows, case.chunk)
    tokens = 0
    for _ in range(4):
        for step in case.steps:
            T = len(step.masks[0])
            positions = np.tile(np.arange(tokens, tokens + T), (case.rows, 1))
            cache.admit(positions)
            tokens += T
            slots = cache.k[0].shape[1]
            assert slots == cache.v[0].shape[1] == cache.positions.shape[1]
            if case.tiny.window is None:
                assert tokens <= slots <= 2 * tokens + case.chunk
            else:
                assert slots <= case.tiny.window + case.chunk - 1
