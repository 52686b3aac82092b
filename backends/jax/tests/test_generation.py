"""`generate` of the Flax classes: beside both peers, and tinymistral's own processors."""

from __future__ import annotations

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from fixture_files import MODELS, PEER, exact

from tinymistral import sampling
from tinymistral_jax import FlaxMistralForCausalLM
from tinymistral_jax.generation import choice_of, kept


@pytest.fixture(scope="module")
def gqa():
    return FlaxMistralForCausalLM.from_pretrained(MODELS / "gqa")


def padded_on_the_right(ids, mask):
    order = np.argsort(1 - mask, axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(mask, order, axis=1)


def test_greedy_is_that_of_the_peer(gqa):
    given = exact("gqa", "left")
    ids, mask = given["input_ids"], given["attention_mask"]
    out = gqa.generate(ids, attention_mask=mask, max_new_tokens=20, eos_token_id=[])
    np.testing.assert_array_equal(out.sequences, PEER["agrees.left.sequences"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_ragged_prompts_past_the_window_are_continued_as_by_pytorch(gqa, side):
    """64 tokens with a window of 5 and a ring of 8 slots, which wraps eight times."""
    given = exact("gqa", "greedy_left")
    ids, mask = given["input_ids"], given["attention_mask"]
    if side == "right":
        ids, mask = padded_on_the_right(ids, mask)
    model = FlaxMistralForCausalLM(gqa.config, params=gqa.params)
    model.backend.chunk = 4
    out = model.generate(ids, attention_mask=mask, max_new_tokens=64, eos_token_id=[])
    new = given["sequences"][:, ids.shape[1] :]
    np.testing.assert_array_equal(out.sequences[:, ids.shape[1] :], new)


def test_a_row_ends_with_eos_and_is_filled_up(gqa):
    given = exact("gqa", "greedy_left")
    ids, mask, new = (given[n] for n in ("input_ids", "attention_mask", "sequences"))
    new = new[:, ids.shape[1] :][:, :16]
    eos = int(new[0, 3])
    out = gqa.generate(
        ids, attention_mask=mask, max_new_tokens=16, eos_token_id=eos, pad_token_id=0
    )
    for row, expected in zip(np.asarray(out.sequences)[:, ids.shape[1] :], new, strict=True):
        ends = np.flatnonzero(expected == eos)
        length = ends[0] + 1 if len(ends) else 16
        np.testing.assert_array_equal(row, [*expected[:length], *[0] * (16 - length)])


def test_a_hundred_tokens_take_one_compilation(gqa):
    """One of the prompt's piece, one of the loop; then none, for any prompt of 5 to 8 tokens."""
    model = FlaxMistralForCausalLM(gqa.config, params=gqa.params)
    counted = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: counted.append(event)
    )

    try:
        ids = np.arange(1, 8)[None]
        model.generate(ids, max_new_tokens=100, eos_token_id=[])
        counted.clear()  # an empty cache and the like are compiled too
        for tokens, new, eos in ((5, 90, 3), (8, 100, [4, 5]), (7, 65, [])):
            model.generate(ids[:, :1].repeat(tokens, 1), max_new_tokens=new, eos_token_id=eos)
            assert (model.step._cache_size(), model.decode._cache_size()) == (1, 1)
        assert not [event for event in counted if "backend_compile" in event]
    finally:
        jax.monitoring.clear_event_listeners()


def test_a_seed_gives_the_same_tokens_whatever_the_other_rows(gqa):
    ids = np.array([[5, 6, 7], [8, 9, 10]])
    options = {"max_new_tokens": 12, "do_sample": True, "eos_token_id": [], "temperature": 1.5}
    key = jax.random.PRNGKey(3)
    both = np.asarray(gqa.generate(ids, prng_key=key, **options).sequences)
    alone = np.asarray(gqa.generate(ids[:1], prng_key=key, **options).sequences)
    np.testing.assert_array_equal(both[:1], alone)
    other = np.asarray(gqa.generate(ids, prng_key=jax.random.PRNGKey(4), **options).sequences)
    assert (both != other).any()


def test_draws_have_the_probabilities_of_the_logits(gqa):
    """2,000 draws after one prompt: within 5 standard deviations of each probability."""
    ids = exact("gqa", "whole")["input_ids"][:1]
    options = {"max_new_tokens": 1, "do_sample": True, "top_k": 3, "num_return_sequences": 1000}
    out = [gqa.generate(ids, seed=n, **options).sequences[:, -1] for n in (1, 2)]
    shares = np.bincount(np.concatenate(out), minlength=67) / 2000
    scores = sampling.keep_top_k(exact("gqa", "whole")["logits"][:1, -1], 3)
    expected = sampling.softmax(scores)[0]
    assert (abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / 2000) + 1e-9).all()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_k": 5},
        {"top_k": 0, "top_p": 0.6},
        {"top_k": 8, "top_p": 0.9, "min_p": 0.1},
        {"top_k": 3, "top_p": 0.0},
        {"top_k": 0},
    ],
)
def test_what_may_be_drawn_is_what_the_processors_keep(options):
    """Those of sampling.py, which are compared with transformers."""
    config = sampling.GenerationConfig(do_sample=True, **options)
    scores = np.random.default_rng(0).standard_normal((20, 40)).astype(np.float32) * 3
    scores[:, 7] = scores[:, 3]  # as likely
    ours, ids = kept(jnp.asarray(scores), choice_of(config, 40))
    expected = np.take_along_axis(config.process(scores, [[]] * 20), np.asarray(ids), axis=1)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_tokens_may_be_suppressed_and_eos_put_off(gqa):
    ids = [[5, 6, 7]]
    plain = np.asarray(gqa.generate(ids, max_new_tokens=8, eos_token_id=[]).sequences)[0, 3:]
    out = gqa.generate(ids, max_new_tokens=8, eos_token_id=[], suppress_tokens=[int(plain[0])])
    assert plain[0] not in np.asarray(out.sequences)[0, 3:]
    late = gqa.generate(ids, max_new_tokens=8, eos_token_id=int(plain[0]), min_new_tokens=4)
    assert plain[0] not in np.asarray(late.sequences)[0, 3:7]


def test_generate_is_compiled_as_a_whole_too(gqa):
    ids = np.array([[5, 6, 7, 8]], np.int32)
    options = {"max_new_tokens": 8, "eos_token_id": []}
    compiled = jax.jit(lambda ids, params: gqa.generate(ids, params=params, **options).sequences)
    expected = gqa.generate(ids, **options).sequences
    np.testing.assert_array_equal(compiled(ids, gqa.params), expected)


def test_without_tracing_the_tokens_are_the_same(gqa):
    options = {"max_new_tokens": 2, "eos_token_id": []}
    plain = gqa.generate([[5, 6]], trace=False, **options).sequences
    np.testing.assert_array_equal(plain, gqa.generate([[5, 6]], **options).sequences)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repetition_penalty": 1.2}, "repetition_penalty: not in the compiled loop"),
        ({"num_beams": 4}, "num_beams"),
        ({"top_p": 0.9}, "top_p: has no effect without do_sample=True"),
        ({"attention_mask": [[0, 0]]}, "row 0 is all padding"),
    ],
)
def test_what_cannot_be_done_is_refused(gqa, options, said):
    with pytest.raises(ValueError, match=said):
        gqa.generate([[5, 6]], max_new_tokens=2, **options)


def test_logits_that_are_not_finite_are_an_error(gqa):
    params = jax.tree.map(lambda array: array * np.float32(np.nan), gqa.params)
    with pytest.raises(ValueError, match="logits are not finite"):
        gqa.generate([[5, 6]], params=params, max_new_tokens=2)
