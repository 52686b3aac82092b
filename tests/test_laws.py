"""Laws of the model: which ways of calling it give the same result.

Each way is compared with one call on all tokens, without a cache or padding, which the laws of
`tinymistral.conformance` compare with an oracle. Models and texts are those of `strategies.py`.
"""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    config,
    cut,
    masks,
    random_ids,
    seeds,
    sizes,
    tiny_configs,
    tiny_model,
    wide_dtypes,
)

from tinymistral import MistralModel
from tinymistral.cache import RollingCache
from tinymistral.conformance import oracle
from tinymistral.numpy_backend import NUMPY_DTYPES, NumpyBackend
from tinymistral.tap import STAGES

# What rounding may make of logits of deviation 3: ten times the largest difference seen over
# 20,000 of these models (float32 from float64, and float64 cached from whole; most are a hundred
# times smaller). Where a rule is broken they differ by about 1.
TOLERANCE = {"float32": 1.5e-3, "float64": 2.5e-12}

stored_dtypes = st.sampled_from(["float32", "float16", "bfloat16"])


def close(actual, expected, dtype):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[dtype])


def alone(model, row):
    """Logits (n, V) of one row (n,), all at once and without a cache of its own before."""
    return model([row.tolist()]).logits[0] if len(row) else np.empty((0, model.config.vocab_size))


# Cache and pieces


@given(tiny_configs(), seeds, st.integers(1, 24), sizes, st.integers(1, 7), wide_dtypes)
def test_calls_of_any_size_through_a_ring_of_any_chunk_are_the_whole(
    config, seed, T, sizes, chunk, dtype
):
    # T is up to 24 windows. With pieces of 1 this is: cached decode = no cache.
    model, ids = tiny_model(config, seed, dtype), random_ids(config, seed, 2, T)
    whole = model(ids, use_cache=False).logits
    cache = RollingCache(config, model.backend, 2, chunk)
    calls = [model(ids[:, part], past_key_values=cache) for part in cut(T, sizes)]
    assert all(call.past_key_values is cache for call in calls)
    close(np.concatenate([call.logits for call in calls], axis=1), whole, dtype)


@given(tiny_configs(), seeds, st.integers(1, 16), st.integers(1, 5))
def test_embeddings_are_as_good_as_ids(config, seed, T, chunk):
    model, ids = tiny_model(config, seed, "float32"), random_ids(config, seed, 1, T)
    embeds = model.tensors["model.embed_tokens.weight"][ids]
    outs = [
        model(**given, past_key_values=RollingCache(config, model.backend, 1, chunk)).logits
        for given in ({"input_ids": ids}, {"inputs_embeds": embeds})
    ]
    np.testing.assert_array_equal(*outs)


# Batches and padding


@given(tiny_configs(), seeds, st.integers(1, 3), sizes, st.integers(1, 5), wide_dtypes, st.data())
def test_each_row_of_a_padded_batch_is_the_row_alone(config, seed, B, sizes, chunk, dtype, data):
    # Padding on either side, holes, rows that are all padding in one call and not in the next.
    model = tiny_model(config, seed, dtype)
    T = sum(sizes)
    ids, mask = random_ids(config, seed, B, T), np.empty((B, 0), dtype=np.int64)
    cache = RollingCache(config, model.backend, B, chunk)
    logits = []
    for part in cut(T, sizes):
        new = data.draw(masks(B, part.stop - part.start))
        mask = np.concatenate([mask, new], axis=1)
        before = cache.last
        way = data.draw(st.sampled_from(["mask", "whole mask", "positions", "both"]))
        arguments = {}
        if way in ("mask", "both"):
            arguments["attention_mask"] = new.astype(bool)
        if way == "whole mask":
            arguments["attention_mask"] = mask
        if way in ("positions", "both"):
            counted = before[:, None] + np.cumsum(new, axis=1)
            arguments["position_ids"] = (
                np.where(new, counted, -1) if way == "positions" else counted
            )
        if way == "both":  # a position where the mask says padding may be anything that fits
            arguments["position_ids"] = np.maximum(arguments["position_ids"], 0)
        logits.append(model(ids[:, part], past_key_values=cache, **arguments).logits)
    logits, mask = np.concatenate(logits, axis=1), mask.astype(bool)
    np.testing.assert_array_equal(cache.count, mask.sum(axis=1))
    for row in range(B):
        close(logits[row, mask[row]], alone(model, ids[row, mask[row]]), dtype)


@given(tiny_configs(), seeds, st.integers(1, 8), st.data())
def test_padding_has_no_influence_at_all(config, seed, T, data):
    model, ids = tiny_model(config, seed), random_ids(config, seed, 2, T)
    mask = data.draw(masks(2, T)).astype(bool)
    other = np.where(mask, ids, (ids + 1) % config.vocab_size)
    np.testing.assert_array_equal(model(other, mask).logits[mask], model(ids, mask).logits[mask])


# The window


@given(tiny_configs(), seeds, st.integers(2, 20), sizes, st.integers(1, 5), st.data())
def test_a_token_reaches_as_far_as_the_window_does_in_every_layer(
    config, seed, T, sizes, chunk, data
):
    # A layer reaches W - 1 back, so all of them layers · (W - 1), and one token more does not.
    # Not at all, bit for bit, is the claim: however the text is cut into pieces.
    W, layers = config.sliding_window, config.num_hidden_layers
    model, ids = tiny_model(config, seed, sharpness=0.5), random_ids(config, seed, 1, T)
    j = data.draw(st.integers(0, T - 1))
    other = ids.copy()
    other[0, j] = (ids[0, j] + 1) % config.vocab_size
    before, after = (
        np.concatenate(
            [model(text[:, part], past_key_values=cache).logits[0] for part in cut(T, sizes)]
        )
        for text in (ids, other)
        for cache in [RollingCache(config, model.backend, 1, chunk)]
    )
    changed = np.flatnonzero((before != after).any(axis=1))
    reach = T if W is None else layers * (W - 1)
    np.testing.assert_array_equal(changed, np.arange(j, min(T, j + reach + 1)))


@given(tiny_configs(), seeds, st.integers(2, 12), st.data())
def test_nan_reaches_no_further_than_a_token_does(config, seed, T, data):
    # Those after it and out of reach, those before it, the other row: as if it were not there.
    model, ids = tiny_model(config, seed), random_ids(config, seed, 2, T)
    embeds = model.tensors["model.embed_tokens.weight"][ids]
    before = model(inputs_embeds=embeds).logits
    j = data.draw(st.integers(0, T - 1))
    embeds[0, j] = np.nan
    after = model(inputs_embeds=embeds).logits
    W, layers = config.sliding_window, config.num_hidden_layers
    reached = np.zeros((2, T), dtype=bool)
    reached[0, j : T if W is None else j + layers * (W - 1) + 1] = True
    assert np.isnan(after[reached]).all()
    np.testing.assert_array_equal(after[~reached], before[~reached])


garbage = st.sampled_from([np.nan, np.inf, -np.inf, 1e30])


@given(tiny_configs(), seeds, sizes, st.integers(1, 5), st.integers(1, 4), garbage, st.data())
def test_what_an_invisible_slot_holds_changes_nothing(config, seed, sizes, chunk, new, value, data):
    # Invisible to all new tokens of its row: empty, evicted, taken back, past the window.
    model, T, W = tiny_model(config, seed), sum(sizes), config.sliding_window
    ids = random_ids(config, seed, 2, T + new)
    cache = RollingCache(config, model.backend, 2, chunk)
    for part in cut(T, sizes):
        mask = data.draw(masks(2, part.stop - part.start))
        model(ids[:, part], mask, past_key_values=cache)
    back = data.draw(st.integers(0, min(chunk, cache.last.min() + 1)))
    start = cache.last + 1 - back
    positions = start[:, None] + np.arange(new)
    spoiled = cache.copy()
    at = spoiled.positions
    visible = (at >= 0) & (at < start[:, None])
    if W is not None:
        visible &= start[:, None] - at < W
    for layer in range(config.num_hidden_layers):
        spoiled.k[layer][~visible] = value
        spoiled.v[layer][~visible] = value
    expected, logits = (
        model(ids[:, T:], position_ids=positions, past_key_values=each).logits
        for each in (cache, spoiled)
    )
    np.testing.assert_array_equal(logits, expected)


# Drafts and interruptions


@given(tiny_configs(), seeds, sizes, st.integers(1, 5), wide_dtypes, st.data())
def test_a_rejected_draft_leaves_no_trace(config, seed, sizes, chunk, dtype, data):
    # Of a draft of up to C tokens, each row keeps as many as it likes.
    model, T, new = tiny_model(config, seed, dtype), sum(sizes), 4
    ids = random_ids(config, seed, 2, T + chunk + new)
    cache = RollingCache(config, model.backend, 2, chunk)
    for part in cut(T, sizes):
        model(ids[:, part], past_key_values=cache)
    accepted = np.array([[data.draw(st.integers(0, chunk))] for _ in range(2)])
    right = np.arange(chunk) < accepted
    draft = np.where(right, ids[:, T : T + chunk], (ids[:, T : T + chunk] + 1) % config.vocab_size)
    for part in cut(chunk, data.draw(st.sampled_from([[1], [2], [9]]))):
        model(draft[:, part], past_key_values=cache)
    at = T + accepted + np.arange(new)
    logits = [
        model(np.take_along_axis(ids, at[:, :-1], axis=1), None, at[:, :-1], cache).logits,
        model(np.take_along_axis(ids, at[:, -1:], axis=1), past_key_values=cache).logits,
    ]
    for row, got in enumerate(np.concatenate(logits, axis=1)):
        close(got, alone(model, ids[row, : at[row, -1] + 1])[at[row]], dtype)


def state(cache):
    """All that a cache tells, apart from how much room it has."""
    tensors = [array for n in range(len(cache.k)) for array in cache.read(n)] if cache.k else []
    return [cache.key_positions, cache.count, cache.columns, cache.mask, *tensors]


def same_state(cache, other):
    for one, two in zip(state(cache), state(other), strict=True):
        np.testing.assert_array_equal(one, two)


@given(tiny_configs(windows=st.sampled_from([2, 3, 5, None])), seeds, st.data())
def test_going_back_too_far_is_refused_and_changes_nothing(config, seed, data):
    # Too far: by more than C, where tokens have left the ring.
    W, chunk = config.sliding_window, data.draw(st.integers(1, 5))
    model, T = tiny_model(config, seed), data.draw(st.integers(1, 12))
    back, ids = data.draw(st.integers(1, T)), random_ids(config, seed, 2, T)
    cache = RollingCache(config, model.backend, 2, chunk)
    model(ids, past_key_values=cache)
    before = cache.copy()
    at = np.array([[T], [T - back]])  # the first row goes on
    if W is not None and W + chunk - 1 < T and back > chunk:
        refusal = (
            rf"^position_ids: row 1 goes back .*{T - back}, .* by at most {chunk} tokens, [^\n]*$"
        )
        with pytest.raises(ValueError, match=refusal):
            model(ids[:, :1], position_ids=at, past_key_values=cache)
        same_state(cache, before)
        at[1] = T
    expected = [
        alone(model, np.append(row[:p], first))[-1]
        for row, p, first in zip(ids, at[:, 0], ids[:, 0], strict=True)
    ]
    logits = model(ids[:, :1], position_ids=at, past_key_values=cache).logits[:, 0]
    close(logits, expected, "float64")


class Interrupting(NumpyBackend):
    """Raises KeyboardInterrupt in the n-th of its operations, once."""

    countdown = None

    def __getattribute__(self, name):
        value = object.__getattribute__(self, name)
        if name in OPERATIONS and self.countdown is not None:
            self.countdown -= 1
            if self.countdown < 0:
                self.countdown = None
                raise KeyboardInterrupt
        return value


OPERATIONS = {
    "embedding", "linear", "rms_norm", "rope_table", "rope", "attention", "attention_weights",
    "silu_mul", "scatter", "asarray", "zeros", "take",
}  # fmt: skip


@given(tiny_configs(), seeds, sizes, st.integers(1, 5), st.integers(0, 60), st.data())
def test_a_piece_that_was_interrupted_can_be_repeated(config, seed, sizes, chunk, n, data):
    # In whichever operation of the layers it broke off, and if it was to go back too.
    backend = Interrupting("float64")
    model, T = tiny_model(config, seed, backend=backend, kind=MistralModel), sum(sizes)
    new = data.draw(st.integers(1, chunk))
    ids = random_ids(config, seed, 2, T + new)
    cache = RollingCache(config, backend, 2, chunk)
    for part in cut(T, sizes):
        model(ids[:, part], past_key_values=cache)
    call = {"input_ids": ids[:, T:], "attention_mask": data.draw(masks(2, new))}
    if back := data.draw(st.integers(0, min(T, chunk))):
        call["position_ids"] = T - back + np.arange(new)[None]
    untroubled, before = cache.copy(), cache.copy()
    expected = model(**call, past_key_values=untroubled).last_hidden_state
    backend.countdown = n
    try:
        model(**call, past_key_values=cache)
    except KeyboardInterrupt:
        if not back:
            np.testing.assert_array_equal(cache.count, before.count)
            np.testing.assert_array_equal(cache.last, before.last)
        repeated = model(**call, past_key_values=cache).last_hidden_state
        np.testing.assert_array_equal(repeated, expected)
    backend.countdown = None
    same_state(cache, untroubled)


@given(tiny_configs(), seeds, st.integers(1, 5), st.integers(1, 16), st.integers(0, 200))
def test_an_interrupted_call_has_taken_in_whole_pieces(config, seed, chunk, T, n):
    # Here in the head, too. The rest of the text may follow, and more of it.
    backend = Interrupting("float64")
    model, ids = tiny_model(config, seed, backend=backend), random_ids(config, seed, 1, T + 5)
    cache = RollingCache(config, backend, 1, chunk)
    backend.countdown = n
    try:
        model(ids[:, :T], past_key_values=cache)
    except KeyboardInterrupt:
        (done,) = cache.count
        assert done == T or (done < T and done % chunk == 0)
        logits = model(ids[:, done:], past_key_values=cache).logits[0]
        close(logits, alone(model, ids[0])[done:], "float64")


# What a call shows and returns


def expected_stages(config, head=True):
    layer = [name for name in STAGES if ".N." in name]
    first, last = ["embedding"], ["norm", "logits"] if head else ["norm"]
    layers = [
        name.replace("N", str(n), 1) for n in range(config.num_hidden_layers) for name in layer
    ]
    assert {*first, *layer, "norm", "logits"} == set(STAGES)
    return first + layers + last


def shape_of(name, config, B, T, S):
    letters = {
        "B": B, "T": T, "S": S, "D": config.hidden_size, "F": config.intermediate_size,
        "H": config.num_attention_heads, "K": config.num_key_value_heads, "d": config.head_dim,
        "V": config.vocab_size,
    }  # fmt: skip
    parts = name.split(".")
    general = ".".join(["layers", "N", *parts[2:]]) if parts[0] == "layers" else name
    return tuple(letters[letter] for letter in STAGES[general].split())


@given(tiny_configs(), seeds, st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_every_stage_is_shown_once_in_order_in_the_shape_it_names(config, seed, calls, data):
    model, chunk = tiny_model(config, seed, "float32"), max(calls)
    cache, B = RollingCache(config, model.backend, 2, chunk), 2
    for T in calls:
        mask, seen = data.draw(masks(B, T)), []
        out = model(
            random_ids(config, seed, B, T),
            mask,
            past_key_values=cache,
            output_hidden_states=True,
            output_attentions=True,
            tap=lambda name, array, seen=seen: seen.append((name, array)),
        )
        stages = dict(seen)
        assert [name for name, _ in seen] == expected_stages(config)
        for name, array in seen:
            assert array.shape == shape_of(name, config, B, T, cache.count.max())
            assert array.dtype == np.float32
            assert not array.flags.writeable
        layers = range(config.num_hidden_layers)
        for n in layers:
            sums = stages[f"layers.{n}.attention_weights"].sum(axis=-1).swapaxes(1, 2)
            np.testing.assert_allclose(sums[mask == 1], 1, rtol=1e-5)
            assert not sums[mask == 0].any()
            np.testing.assert_array_equal(
                out.attentions[n], stages[f"layers.{n}.attention_weights"]
            )
        states = ["embedding", *(f"layers.{n}.output" for n in layers[:-1]), "norm"]
        for state, name in zip(out.hidden_states, states, strict=True):
            np.testing.assert_array_equal(state, stages[name])
        np.testing.assert_array_equal(out.logits, stages["logits"])


@given(tiny_configs(), seeds, sizes, st.integers(1, 4))
def test_attentions_after_a_cache_are_those_of_the_whole(config, seed, sizes, new):
    # A column a token, oldest first, however the ring has turned; 0 for what has left it.
    model, T = tiny_model(config, seed), sum(sizes)
    ids, cache = random_ids(config, seed, 2, T + new), RollingCache(config, model.backend, 2, 4)
    for part in cut(T, sizes):
        model(ids[:, part], past_key_values=cache)
    ends = model(ids[:, T:], past_key_values=cache, output_attentions=True).attentions
    wholes = model(ids, output_attentions=True).attentions
    for end, whole in zip(ends, wholes, strict=True):
        close(end, whole[:, :, T:], "float64")


@given(tiny_configs(), seeds, st.integers(1, 12), st.integers(1, 4), wide_dtypes)
def test_hidden_states_in_pieces_are_those_of_the_whole(config, seed, T, chunk, dtype):
    model, ids = tiny_model(config, seed, dtype), random_ids(config, seed, 2, T)
    cache = RollingCache(config, model.backend, 2, chunk)
    pieces = model(ids, past_key_values=cache, output_hidden_states=True).hidden_states
    wholes = model(ids, output_hidden_states=True).hidden_states
    assert len(pieces) == len(wholes) == config.num_hidden_layers + 1
    for piece, whole in zip(pieces, wholes, strict=True):
        close(piece, whole, dtype)


@given(tiny_configs(), seeds, st.integers(1, 9), st.integers(1, 4), st.data())
def test_logits_to_keep_are_columns_of_all_logits(config, seed, T, chunk, data):
    # Up to rounding: a product of fewer rows may be summed in another order.
    model, ids = tiny_model(config, seed), random_ids(config, seed, 2, T)

    def logits(keep):
        cache = RollingCache(config, model.backend, 2, chunk)
        return model(ids, past_key_values=cache, logits_to_keep=keep).logits

    whole, last = logits(0), data.draw(st.integers(1, T + 2))
    close(logits(last), whole[:, -last:], "float64")
    columns = sorted(data.draw(st.sets(st.integers(0, T - 1), min_size=1)))
    negative = [column - T for column in columns]
    for keep in (columns, negative, np.array(columns, dtype=np.int32)):
        close(logits(keep), whole[:, columns], "float64")


@given(tiny_configs(), seeds, st.integers(1, 8))
def test_the_base_model_is_the_language_model_without_its_head(config, seed, T):
    model, ids, shown = tiny_model(config, seed), random_ids(config, seed, 2, T), {}
    tensors = {name.removeprefix("model."): array for name, array in model.tensors.items()}
    base = MistralModel(config, tensors=tensors, dtype="float64")
    normed = model(ids, output_hidden_states=True).hidden_states[-1]
    out = base(ids, tap=lambda name, array: shown.update({name: array}))
    np.testing.assert_array_equal(out.last_hidden_state, normed)
    assert list(shown) == expected_stages(config, head=False)


@pytest.mark.parametrize("in_config", [True, False])
@pytest.mark.parametrize("asked", [True, False, None])
def test_the_cache_is_returned_if_wanted(in_config, asked):
    out = tiny_model(config(use_cache=in_config))([[1, 2]], use_cache=asked)
    assert (out.past_key_values is not None) == (in_config if asked is None else asked)
    assert out.hidden_states is None
    assert out.attentions is None


@pytest.mark.parametrize("kind", ["base", "lm"])
def test_an_unknown_argument_is_a_type_error_that_lists_the_known(kind):
    model = tiny_model(config(), kind=MistralModel) if kind == "base" else tiny_model(config())
    with pytest.raises(TypeError) as error:
        model([[1]], head_mask=None, attn_mask=[[1]])
    text = str(error.value)
    assert "unknown argument attn_mask, head_mask" in text
    known = ["input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds",
             "use_cache", "output_hidden_states", "output_attentions", "tap"]  # fmt: skip
    assert all(name in text for name in known)
    assert ("logits_to_keep" in text) == (kind == "lm")


# Dtypes, memory, far positions


class Checked(NumpyBackend):
    """Fails where an array that goes into an operation, or comes out, is float64."""

    def __getattribute__(self, name):
        value = object.__getattribute__(self, name)
        if name not in OPERATIONS:
            return value

        def checked(*args, **kwargs):
            no_float64(name, args, kwargs)
            result = value(*args, **kwargs)
            no_float64(name, result)
            return result

        return checked


def no_float64(name, *values):
    for value in values:
        if isinstance(value, tuple | list):
            no_float64(name, *value)
        elif isinstance(value, dict):
            no_float64(name, *value.values())
        else:
            assert getattr(value, "dtype", None) not in (np.float64, np.complex128), name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@given(tiny_configs(), seeds, stored_dtypes, sizes)
def test_nothing_is_float64_in_a_run_that_is_not(dtype, config, seed, stored, sizes):
    backend = Checked(dtype)
    model, T = tiny_model(config, seed, weight_dtype=stored, backend=backend), sum(sizes)
    ids, shown = random_ids(config, seed, 2, T), []
    cache = RollingCache(config, backend, 2, 9)
    for part in cut(T, sizes):
        out = model(
            ids[:, part],
            past_key_values=cache,
            output_hidden_states=True,
            output_attentions=True,
            tap=lambda name, array, shown=shown: shown.append(array),
        )
        shown += [out.logits, *out.hidden_states, *out.attentions, *cache.k, *cache.v]
    assert {array.dtype for array in shown} == {NUMPY_DTYPES[dtype]}


@given(tiny_configs(windows=st.sampled_from([1, 2, 3, 5])), seeds, sizes, st.integers(1, 5))
def test_memory_is_constant_past_the_ring(config, seed, sizes, chunk):
    # The same arrays, written in place, for 5 windows and more after W + C - 1 tokens.
    model, S = tiny_model(config, seed, "float32"), config.sliding_window + chunk - 1
    cache = RollingCache(config, model.backend, 2, chunk)
    room = None
    for part in cut(S + 5 * config.sliding_window + 10, sizes):
        model(random_ids(config, seed, 2, part.stop - part.start), past_key_values=cache)
        arrays = [*cache.k, *cache.v]
        assert cache.positions.shape == (2, min(S, arrays[0].shape[1]))
        assert all(array.shape[:2] == cache.positions.shape for array in arrays)
        if part.stop >= S:
            assert cache.positions.shape == (2, S)
            room = room or [id(array) for array in arrays]
            assert [id(array) for array in arrays] == room


def test_a_growing_cache_is_not_copied_at_every_token():
    # Room doubles: 8 times for 200 tokens, not 200 times.
    model = tiny_model(config(sliding_window=None))
    cache, rooms = RollingCache(model.config, model.backend, 1), set()
    for _ in range(200):
        model([[1]], past_key_values=cache)
        rooms.add(cache.k[0].shape[1])
    assert max(rooms) >= 200
    assert len(rooms) <= 9


@given(
    tiny_configs(),
    seeds,
    sizes,
    st.integers(1, 5),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
)
def test_a_copied_cache_is_independent(config, seed, sizes, chunk, rows):
    # Rows in any order, and repeated: each goes on as the row it was, whatever the others do.
    model, T, new = tiny_model(config, seed), sum(sizes), 5
    ids = random_ids(config, seed, 3, T + new)
    cache = RollingCache(config, model.backend, 3, chunk)
    for part in cut(T, sizes):
        model(ids[:, part], past_key_values=cache)
    chosen, copied = cache.select(np.array(rows)), cache.copy()
    other = (ids[rows] + 1) % config.vocab_size
    branched = model(other[:, T:], past_key_values=chosen).logits
    went_on = model(ids[:, T:], past_key_values=cache).logits
    np.testing.assert_array_equal(model(ids[:, T:], past_key_values=copied).logits, went_on)
    for row in range(3):
        close(went_on[row], alone(model, ids[row])[T:], "float64")
    for n, row in enumerate(rows):
        close(branched[n], alone(model, np.append(ids[row, :T], other[n, T:]))[T:], "float64")


def test_far_positions_work_and_warn_once():
    model = tiny_model(config(max_position_embeddings=4, sliding_window=None))
    ids = random_ids(model.config, 0, 1, 8)
    exact = oracle.forward(model.config, model.tensors, ids, np.arange(8)[None])["logits"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache = model(ids[:, :4]).past_key_values
        assert not caught  # positions 0 to 3 are all right
        logits = [model(ids[:, n : n + 1], past_key_values=cache).logits for n in range(4, 8)]
        model(ids)
    assert [str(w.message).split(":")[0] for w in caught] == [
        "position 4 is past max_position_embeddings, 4"
    ]
    close(np.concatenate(logits, axis=1), exact[:, 4:], "float64")


@given(tiny_configs(), seeds, st.integers(1, 6), st.integers(1, 2**20))
def test_only_distances_count(config, seed, T, offset):
    # Rotary embeddings: a text moved along gives the same. An angle of 2^20 is off by 2^-33.
    model, ids = tiny_model(config, seed), random_ids(config, seed, 1, T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        moved = model(ids, position_ids=np.arange(T)[None] + offset).logits
    np.testing.assert_allclose(moved, model(ids).logits, rtol=0, atol=1e-7)
