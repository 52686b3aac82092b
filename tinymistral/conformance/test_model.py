"""Laws of the whole model on a backend."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tinymistral.backend import Backend
from tinymistral.cache import RollingCache
from tinymistral.conformance import oracle
from tinymistral.conformance.bounds import within
from tinymistral.conformance.cases import sizes
from tinymistral.conformance.law import law
from tinymistral.conformance.models import (
    Decoding,
    Step,
    Stream,
    Tiny,
    decodings,
    masks,
    streams,
    tinies,
)
from tinymistral.conformance.propagation import logits_error
from tinymistral.conformance.stagewise import ExpectedCache, StageChecker
from tinymistral.model import forward

WIDE = ("float32", "float64")  # in 16 bits a bound on a whole pass is too wide
one_layer = st.just(1)
few = st.sampled_from([1, 2, 3, 5, None])


@law(streams)
def test_every_stage_follows_from_those_before(backend: Backend, case: Stream) -> None:
    """Each stage is right, with pieces, padding, drafts, and copies of a cache that wraps."""
    checker = StageChecker(case.tiny.model(backend))

    def take(cache: RollingCache, expected: ExpectedCache, positions: np.ndarray, n: int) -> None:
        checker.call(cache, expected, case.tiny.ids(*positions.shape, n), positions)

    checker.walk(case, take)


def bounds(tiny: Tiny, backend: Backend, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact logits (B, T, V) of whole texts (B, T), and the bound on their error."""
    model = tiny.model(backend)
    at = np.tile(np.arange(ids.shape[1], dtype=np.int64), (len(ids), 1))
    stages = oracle.forward(model.config, model.tensors, ids, at)
    error = logits_error(model.config, model.tensors, stages, at, backend.dtype)
    return stages["logits"], error


@law(
    lambda b: st.tuples(tinies(b, one_layer, few, sharpness=0.7), sizes(20), sizes(5)), dtypes=WIDE
)
def test_logits_are_the_oracles_in_pieces_of_any_size(
    backend: Backend, case: tuple[Tiny, int, int]
) -> None:
    """A text in pieces has the logits of the whole text computed without a cache."""
    tiny, T, chunk = case
    model, ids = tiny.model(backend), tiny.ids(2, T)
    logits = model(ids, past_key_values=model.new_cache(2, chunk)).logits
    exact, error = bounds(tiny, backend, ids)
    within(logits, exact, error)


@st.composite
def padded_texts(draw: st.DrawFn, backend: Backend) -> tuple[Tiny, int, Step]:
    """Draw a model, a chunk and the masks of a batch."""
    T, rows = draw(sizes(9)), draw(sizes(3))
    step = Step(tuple(draw(masks(T)) for _ in range(rows)), (0,) * rows)
    return draw(tinies(backend, one_layer, sharpness=0.7)), draw(sizes(5)), step


@law(padded_texts, dtypes=WIDE)
def test_each_row_of_a_padded_batch_is_the_row_alone(
    backend: Backend, case: tuple[Tiny, int, Step]
) -> None:
    """Padding on either side, or holes in the mask, change no token's logits."""
    tiny, chunk, step = case
    mask = np.array([[int(digit) for digit in row] for row in step.masks], dtype=np.int64)
    model, ids = tiny.model(backend), tiny.ids(*mask.shape)
    logits = model(ids, mask, past_key_values=model.new_cache(len(mask), chunk)).logits
    for row, real in enumerate(mask == 1):
        if real.any():
            exact, error = bounds(tiny, backend, ids[row : row + 1, real])
            within(logits[row, real], exact[0], error[0])


@law(decodings, dtypes=WIDE)
def test_steps_of_one_token_give_the_logits_of_the_whole_text(
    backend: Backend, case: Decoding
) -> None:
    """As a cache grows, wraps, has padding, and loses rows; no step changes an earlier result."""
    model, width, lengths = case.tiny.model(backend), max(case.lengths), np.array(case.lengths)
    ids, first = case.tiny.ids(len(lengths), width + case.steps), width - lengths
    mask = np.arange(width) >= first[:, None]
    rows, cache = np.arange(len(lengths)), model.new_cache(len(lengths), case.chunk)
    model(ids[:, :width], mask, past_key_values=cache)
    results = []
    for t in range(width, width + case.steps):
        if t == width + case.leaves and len(rows) > 1:
            rows, cache = rows[1:], cache.select(np.arange(1, len(rows)))
        call = cache.begin()
        rest = (model.base, cache.last[:, None] + 1, call, model.config)
        results.append((t, rows, backend.run_piece(forward, ids[rows, t : t + 1], *rest)))
        call.commit()
    whole = [bounds(case.tiny, backend, ids[n : n + 1, start:]) for n, start in enumerate(first)]
    for t, rows, hidden in results:
        logits = backend.to_numpy(model.logits(hidden))
        for row, got in zip(rows, logits, strict=True):
            exact, error = (array[0, t - first[row]] for array in whole[row])
            within(got[0], exact, error)


@law(
    lambda b: st.tuples(tinies(b, sharpness=0.5), st.integers(2, 14), sizes(5), st.integers(0, 13))
)
def test_a_token_reaches_as_far_as_the_window_does_in_every_layer(
    backend: Backend, case: tuple[Tiny, int, int, int]
) -> None:
    """It changes no bit past layers · (W - 1) tokens, whatever the pieces are."""
    tiny, T, chunk, j = case
    model, ids = tiny.model(backend), tiny.ids(1, T)
    other, j = ids.copy(), j % T
    other[0, j] = (ids[0, j] + 1) % tiny.V
    before, after = (
        model(text, past_key_values=model.new_cache(1, chunk)).logits[0] for text in (ids, other)
    )
    changed = np.flatnonzero((before != after).any(axis=1))
    reach = T if tiny.window is None else tiny.layers * (tiny.window - 1)
    allowed = np.arange(j, min(T, j + reach + 1))
    assert set(changed) <= set(allowed)
    if backend.dtype in WIDE:  # in 16 bits rounding may hide the last
        np.testing.assert_array_equal(changed, allowed)
