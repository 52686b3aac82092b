"""Laws of attention: the mask, the softmax, and that hidden keys have no influence."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinymistral.backend import Backend
from tinymistral.conformance import oracle
from tinymistral.conformance.bounds import (
    UNIT,
    agree,
    attention_error,
    gamma,
    repeated,
    smallest,
    softmax_error,
    softmax_roundings,
    within,
)
from tinymistral.conformance.cases import Attention, attentions, call, filled, normal, sizes
from tinymistral.conformance.law import law


def visible(q_positions: np.ndarray, k_positions: np.ndarray, window: int | None) -> np.ndarray:
    """Return the oracle's mask (B, T, S): which keys are visible to each query."""
    (B, T), S = q_positions.shape, k_positions.shape[1]
    out = np.zeros((B, T, S), dtype=bool)
    for b, t, s in np.ndindex(B, T, S):
        out[b, t, s] = oracle.visible(int(q_positions[b, t]), int(k_positions[b, s]), window)
    return out


def agree_with_oracle(
    out: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, visibility: Any, dtype: str
) -> None:
    """Compare the result of attention with the oracle."""
    weights = oracle.attention_weights(q, k, *visibility)
    error = attention_error(q, k, v, weights, dtype)
    agree(out, oracle.attention(q, k, v, *visibility), error, dtype)


@law(attentions)
def test_attention_mixes_what_is_visible(backend: Backend, case: Attention) -> None:
    """It is a softmax over the visible keys, with any window and any order of slots."""
    q, k, v = case.qkv(backend.dtype)
    out = call(backend, "attention", q, k, v, *case.visibility)
    agree_with_oracle(out, q, k, v, case.visibility, backend.dtype)


@law(attentions)
def test_slots_may_be_in_any_order(backend: Backend, case: Attention) -> None:
    """Moving keys, values and positions to other slots together changes nothing."""
    q, k, v = case.qkv(backend.dtype)
    q_positions, k_positions, window = case.visibility
    order = np.random.default_rng(case.seed).permutation(case.S)
    moved = (q, k[:, order], v[:, order], q_positions, k_positions[:, order], window)
    out = call(backend, "attention", *moved)
    agree_with_oracle(out, q, k, v, case.visibility, backend.dtype)


@law(attentions)
def test_grouped_heads_are_repeated_heads(backend: Backend, case: Attention) -> None:
    """Query head h reads key/value head h // (H/K), as if each had a copy of its own."""
    q, k, v = case.qkv(backend.dtype)
    copies = [np.repeat(array, case.group, axis=2) for array in (k, v)]
    for keys, values in ((k, v), copies):
        out = call(backend, "attention", q, keys, values, *case.visibility)
        agree_with_oracle(out, q, k, v, case.visibility, backend.dtype)


@law(attentions)
def test_large_scores_do_not_overflow(backend: Backend, case: Attention) -> None:
    """Where one score is by far the largest, the mix is its value."""
    # exp overflows above 88 in float32. Scores are n · 128 for slots n = 0, 1, ... in drawn order.
    q, k, v = (np.zeros_like(array) for array in case.qkv(backend.dtype))
    q_positions, k_positions, _ = case.visibility
    rng = np.random.default_rng(case.seed)
    rank = np.stack([rng.permutation(case.S) for _ in range(case.B)])
    q[..., 0], k[..., 0] = case.d**0.5 * 16, 8 * rank[..., None]
    v[:] = (1 + rank)[..., None, None]
    at = np.where(q_positions < 0, -1, 2**26)
    out = call(backend, "attention", q, k, v, at, k_positions, None)
    seen = np.where(k_positions >= 0, 1 + rank, 0).max(axis=1)
    expected = np.where(at >= 0, seen[:, None], 0)[..., None, None]
    exact = np.broadcast_to(expected, out.shape).astype(np.float64)
    # The largest exp is in the numerator and the denominator; the others are below exp(-127).
    agree(out, exact, gamma(softmax_roundings(case.S), backend.dtype) * exact, backend.dtype)


@law(attentions, dtypes=("float32", "float64", "bfloat16"))  # in float16 such weights are 0
def test_small_weights_count(backend: Backend, case: Attention) -> None:
    """A weight is not 0 where its score is below the largest by 80; its value may be large."""
    # Scores fall in drawn order as values grow, so that every key contributes the same to a mix.
    q, k, v = (np.zeros_like(array) for array in case.qkv(backend.dtype))
    rng = np.random.default_rng(case.seed)
    below = 80 / case.S * np.stack([rng.permutation(case.S) for _ in range(case.B)])
    q[..., 0], k[..., 0] = case.d**0.5, -below[..., None]
    v[:] = np.exp(below)[..., None, None]
    out = call(backend, "attention", q, k, v, *case.visibility)
    agree_with_oracle(out, q, k, v, case.visibility, backend.dtype)


NOT_SEEN = (np.nan, np.inf, -np.inf, None)  # None: the largest number


@law(
    lambda b: st.tuples(attentions(b), st.sampled_from(NOT_SEEN), st.sampled_from(["k", "v", "kv"]))
)
def test_what_a_query_does_not_see_has_no_influence(
    backend: Backend, case: tuple[Attention, float | None, str]
) -> None:
    """Empty slots, future keys, keys past the window and other rows change no bit, even as NaN."""
    attention, value, places = case
    q, k, v = attention.qkv(backend.dtype)
    seen, (q_positions, k_positions, _) = visible(*attention.visibility), attention.visibility
    expected = call(backend, "attention", q, k, v, *attention.visibility)
    for b, t in np.ndindex(seen.shape[:2]):
        hidden = np.ones(k_positions.shape, dtype=bool)
        hidden[b] = ~seen[b, t]
        others = np.ones(q_positions.shape, dtype=bool)
        others[b, t] = False
        out = call(
            backend,
            "attention",
            filled(q, others, np.nan),  # other queries may see `value`, and would overflow
            filled(k, hidden, value) if "k" in places else k,
            filled(v, hidden, value) if "v" in places else v,
            *attention.visibility,
        )
        np.testing.assert_array_equal(out[b, t], expected[b, t])


@law(attentions)
def test_the_last_visible_key_has_influence(backend: Backend, case: Attention) -> None:
    """A larger value of any visible key, the last one included, makes a larger mix."""
    # Queries scaled by 1/16 give about equal weights: of 200 keys at least 1/400 each, 2 of 800.
    q, k, v = case.qkv(backend.dtype)
    q = q * np.asarray(1 / 16, dtype=q.dtype)
    before = call(backend, "attention", q, k, v, *case.visibility)
    seen = visible(*case.visibility)
    for s in range(case.S):
        louder = v.copy()
        louder[:, s] = 800
        after = call(backend, "attention", q, k, louder, *case.visibility)
        for b, t in np.argwhere(seen[:, :, s]):
            assert (after[b, t] > before[b, t] + 1).all(), (
                f"row {b}: query {t} does not see slot {s}"
            )


@law(lambda b: st.tuples(attentions(b), st.sampled_from([np.nan, np.inf, -np.inf])))
def test_what_is_not_finite_reaches_whoever_sees_it(
    backend: Backend, case: tuple[Attention, float]
) -> None:
    """NaN and infinity are not lost: a mix with such a value has that value."""
    attention, value = case
    q, k, v = attention.qkv(backend.dtype)
    seen = visible(*attention.visibility)
    for s in range(attention.S):
        one = np.zeros(k.shape[:2], dtype=bool)
        one[:, s] = True
        out = call(backend, "attention", q, k, filled(v, one, value), *attention.visibility)
        np.testing.assert_array_equal(out[seen[:, :, s]].astype(np.float64), value)


@law(attentions)
def test_who_sees_nothing_gets_zeros(backend: Backend, case: Attention) -> None:
    """The mix is 0 for padding, for queries with no key in their window, and with no keys."""
    q, k, v = case.qkv(backend.dtype)
    q_positions, k_positions, window = case.visibility
    out = call(backend, "attention", q, k, v, *case.visibility)
    np.testing.assert_array_equal(out[~visible(*case.visibility).any(axis=-1)], 0)
    out = call(backend, "attention", q, k[:, :0], v[:, :0], q_positions, k_positions[:, :0], window)
    assert out.dtype == q.dtype
    np.testing.assert_array_equal(out, np.zeros(q.shape))


@law(attentions)
def test_rows_of_a_batch_attend_by_themselves(backend: Backend, case: Attention) -> None:
    """A row of a batch has the result that it has alone."""
    q, k, v = case.qkv(backend.dtype)
    q_positions, k_positions, window = case.visibility
    whole = call(backend, "attention", q, k, v, *case.visibility)
    weights = oracle.attention_weights(q, k, *case.visibility)
    error = 2 * attention_error(q, k, v, weights, backend.dtype)
    error = error + 2 * UNIT[backend.dtype] * (np.abs(whole.astype(np.float64)) + error)
    for b in range(case.B):
        row = slice(b, b + 1)
        visibility = (q_positions[row], k_positions[row], window)
        alone = call(backend, "attention", q[row], k[row], v[row], *visibility)
        agree(alone, whole[row].astype(np.float64), error[row], backend.dtype)


@law(lambda b: st.tuples(attentions(b), st.integers(0, 3), st.integers(0, 3)))
def test_padding_on_either_side_changes_nothing(
    backend: Backend, case: tuple[Attention, int, int]
) -> None:
    """Queries and slots at position -1, added on either side, change nothing, even as NaN."""
    attention, left, right = case
    q, k, v = attention.qkv(backend.dtype)
    q_positions, k_positions, window = attention.visibility

    def pad(array: np.ndarray, value: float) -> np.ndarray:
        widths = [(0, 0), (left, right), (0, 0), (0, 0)][: array.ndim]
        return np.pad(array, widths, constant_values=np.asarray(value, dtype=array.dtype))

    padded = (pad(q, 1), pad(k, np.nan), pad(v, np.nan), pad(q_positions, -1), pad(k_positions, -1))
    out = call(backend, "attention", *padded, window)
    real = slice(left, left + attention.T)
    agree_with_oracle(out[:, real], q, k, v, attention.visibility, backend.dtype)
    assert not out[:, :left].any()
    assert not out[:, real.stop :].any()


@law(
    lambda b: st.tuples(attentions(b), sizes(20), sizes(6), st.sampled_from([1, 2, 3, 7, 20, None]))
)
def test_pieces_through_a_ring_are_the_whole(
    backend: Backend, case: tuple[Attention, int, int, int | None]
) -> None:
    """Write, then attend: with W + C - 1 slots, pieces of C tokens give the result of the whole."""
    # Empty slots hold NaN; each row has its own left padding.
    shape, T, C, window = case
    dtype, B, K, d, S = backend.dtype, shape.B, shape.K, shape.d, (window or T) + C - 1
    rng = np.random.default_rng(shape.seed)
    q, k, v = (normal(rng, dtype, B, T, heads, d) for heads in (K * shape.group, K, K))
    at = np.maximum(np.arange(T) - rng.integers(0, T + 1, (B, 1)), -1)
    nothing = np.full((B, S, K, d), np.nan, dtype=k.dtype)
    rings = [backend.asarray(nothing.copy()) for _ in range(2)]
    ring_positions = np.full((B, S), -1, dtype=np.int64)
    out = []
    for start in range(0, T, C):
        piece = np.s_[:, start : start + C]
        slots = np.where(at[piece] >= 0, at[piece] % S, -1)
        rings = [
            backend.scatter(ring, slots, backend.asarray(new[piece].copy()))
            for ring, new in zip(rings, (k, v), strict=True)
        ]
        b, t = np.nonzero(slots >= 0)
        ring_positions[b, slots[b, t]] = at[piece][b, t]
        queries = backend.asarray(q[piece].copy())
        mix = backend.attention(queries, rings[0], rings[1], at[piece], ring_positions, window)
        out.append(backend.to_numpy(mix))
    agree_with_oracle(np.concatenate(out, axis=1), q, k, v, (at, at, window), dtype)


# Attention weights, of backends that have them


@law(attentions, needs_weights=True)
def test_attention_weights_are_the_softmax(backend: Backend, case: Attention) -> None:
    """They are the softmax by slot, and 0 for keys that are not visible."""
    q, k, _ = case.qkv(backend.dtype)
    exact = oracle.attention_weights(q, k, *case.visibility)
    out = call(backend, "attention_weights", q, k, *case.visibility)
    agree(out, exact, softmax_error(q, k, exact, backend.dtype) * exact, backend.dtype)
    np.testing.assert_array_equal(out[exact == 0], 0)


@law(attentions, needs_weights=True)
def test_weights_sum_to_1_or_0_and_mix_the_values(backend: Backend, case: Attention) -> None:
    """The weights of a query sum to 1, or 0 if it sees nothing; `attention` is their mix."""
    # Each weight has one rounding, a sum has those of all its weights.
    q, k, v = case.qkv(backend.dtype)
    u, least = UNIT[backend.dtype], smallest(backend.dtype)
    weights = call(backend, "attention_weights", q, k, *case.visibility).astype(np.float64)
    sums = np.where(visible(*case.visibility).any(axis=-1), 1.0, 0.0)[:, None]
    slack = gamma(softmax_roundings(case.S), backend.dtype) + 2 * u + case.S * least
    within(weights.sum(axis=-1), sums, slack)
    values = repeated(v, q.shape[2])
    mix = np.einsum("bhts,bshd->bthd", weights, values)
    size = np.einsum("bhts,bshd->bthd", weights, np.abs(values))
    error = 2 * attention_error(q, k, v, weights, backend.dtype) + 2 * u * size
    error = error + least * np.abs(values).sum(axis=1)[:, None]
    agree(call(backend, "attention", q, k, v, *case.visibility), mix, error, backend.dtype)
