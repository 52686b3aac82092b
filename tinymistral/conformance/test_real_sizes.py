"""Laws at the sizes of real models, and just past the tiles and limits that kernels have.

Their cases are few, and the same in every run. `--tinymistral-small` leaves these laws out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinymistral.backend import Backend
from tinymistral.conformance import test_attention, test_operations, test_rope
from tinymistral.conformance.cases import Attention, Matrix, Rotation, Writing, call
from tinymistral.conformance.law import law

Cases = Callable[[Backend], st.SearchStrategy[Any]]


def width(backend: Backend, d: int) -> int:
    """Return the head width d, or the largest that the backend supports instead."""
    supported = backend.head_dims
    return d if supported is None or d in supported else max(supported)


def matrices(*shapes: tuple[int, int, int]) -> Cases:
    """Return cases with these T, m and n."""
    return lambda backend: st.sampled_from(
        [Matrix(*shape, stored=backend.dtype, scale=1.0, seed=n) for n, shape in enumerate(shapes)]
    )


@law(matrices((5, 131_073, 9)), real_sizes=True)
def test_embedding_at_real_sizes(backend: Backend, case: Matrix) -> None:
    """A vocabulary may have more than 131,072 tokens."""
    test_operations.test_embedding_is_rows_of_the_table.tinymistral_law.check(backend, case)


@law(matrices((1, 131_073, 9), (2, 33, 14_337), (5, 97, 5120), (2049, 5, 65)), real_sizes=True)
def test_linear_at_real_sizes(backend: Backend, case: Matrix) -> None:
    """There may be more than 131,072 outputs, 14,336 inputs or 4,096 rows."""
    test_operations.test_linear_is_dot_products.tinymistral_law.check(backend, case)


@law(matrices((3, 1, 4097), (5, 1, 5120), (1, 1, 8193), (2049, 1, 65)), real_sizes=True)
def test_rms_norm_at_real_sizes(backend: Backend, case: Matrix) -> None:
    """A row may have more than 4,096 or 8,192 numbers, and there may be as many rows."""
    test_operations.test_rms_norm_divides_by_the_root_mean_square.tinymistral_law.check(
        backend, case
    )


@law(matrices((5, 1, 14_337)), real_sizes=True)
def test_silu_mul_at_real_sizes(backend: Backend, case: Matrix) -> None:
    """A row may have more than 14,336 numbers."""
    check = test_operations.test_silu_mul_is_gate_times_sigmoid_times_up.tinymistral_law.check
    check(backend, case)


@law(
    lambda b: st.sampled_from(
        [
            Rotation(B=9, T=33, H=3, d=width(b, 256), theta=1e6, first=0, seed=0),
            Rotation(B=1, T=513, H=32, d=width(b, 128), theta=1e4, first=0, seed=1),
        ]
    ),
    real_sizes=True,
)
def test_rope_at_real_sizes(backend: Backend, case: Rotation) -> None:
    """A batch may have 9 rows, a row 513 tokens, a token 32 heads, and a head 256 numbers."""
    test_rope.test_rope_turns_the_pairs_of_halves.tinymistral_law.check(backend, case)


@law(lambda b: st.just(Writing(T=513, S=4609, K=2, d=width(b, 128), seed=0)), real_sizes=True)
def test_scatter_at_real_sizes(backend: Backend, case: Writing) -> None:
    """A ring for a window of 4,096 has more slots than that."""
    test_operations.test_scatter_writes_its_slots_and_nothing_else.tinymistral_law.check(
        backend, case
    )


@law(
    lambda b: st.sampled_from(
        [  # with seeds that place queries late, where they see most slots
            Attention(9, 1, 1025, K=2, group=4, d=width(b, 128), window=None, first=0, seed=0),
            Attention(1, 3, 4099, K=2, group=4, d=width(b, 128), window=4096, first=5, seed=8),
            Attention(1, 67, 777, K=1, group=2, d=width(b, 256), window=None, first=0, seed=11),
            Attention(2, 9, 4609, K=1, group=1, d=width(b, 64), window=4096, first=0, seed=55),
        ]
    ),
    real_sizes=True,
)
def test_attention_at_real_sizes(backend: Backend, case: Attention) -> None:
    """A batch may have 9 rows, a row more than 4,096 slots, and a head 256 numbers."""
    # A query is twice a visible key, which gets nearly all the weight: in half of the heads the
    # one in the last slot, in the others any one.
    rng, (q, k, v) = np.random.default_rng(case.seed), case.qkv(backend.dtype)
    seen = test_attention.visible(*case.visibility)
    for b, t in np.argwhere(seen.any(axis=-1)):
        slots = np.flatnonzero(seen[b, t])
        for h in range(q.shape[2]):
            slot = rng.choice(slots) if h % 2 else slots[-1]
            q[b, t, h] = k[b, slot, h // case.group] * q.dtype.type(2)
    out = call(backend, "attention", q, k, v, *case.visibility)
    test_attention.agree_with_oracle(out, q, k, v, case.visibility, backend.dtype)
