"""Laws of `generate`: what it returns follows from the model's logits, row by row.

It is compared with the model itself, called on all of each text, without padding, batch or cache.
All in float64, where rounding decides no draw.
"""

import itertools
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cap_chunk, config, random_ids, seeds, tiny_configs, tiny_model

import tinymistral
from tinymistral import MistralTokenizer, generation
from tinymistral.cache import RollingCache
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.streaming import StreamDecoder

TOLERANCE = 2.5e-12  # see test_laws.py


@st.composite
def cases(draw):
    """A model whose ring is small, prompts of unequal length in a batch, their mask."""
    config, seed = draw(tiny_configs()), draw(seeds)
    model = tiny_model(config, seed, backend=cap_chunk(NumpyBackend("float64"), draw(chunks)))
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    ids = random_ids(config, seed, len(lengths), max(lengths))
    left = draw(st.booleans())
    columns = np.arange(max(lengths))[:: -1 if left else 1]
    return model, ids, (columns < np.array(lengths)[:, None]).astype(np.int64)


chunks = st.integers(1, 5)
news = st.integers(1, 12)
sampling = st.fixed_dictionaries(
    {
        "do_sample": st.just(True),
        "temperature": st.sampled_from([0.5, 1.0, 3.0]),
        "top_k": st.sampled_from([0, 2, 50]),
        "top_p": st.sampled_from([0.5, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.5]),
        "seed": st.integers(0, 2**63 - 1),
    }
)


def prompt(ids, mask, row):
    return ids[row, mask[row] == 1]


def next_logits(model, text):
    return model([text.tolist()], use_cache=False).logits[0, -1]


def log_softmax(logits):
    """By the definition, on an axis of few numbers, none of them large."""
    return np.log(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))


@given(cases(), news, st.sampled_from([1.0, 1.5, 0.5]))
def test_greedy_takes_the_likeliest_token_each_time(case, new, penalty):
    # With a penalty on what the row has so far, prompt and continuation, padding apart:
    # Keskar et al. 2019, https://arxiv.org/abs/1909.05858, as transformers has it.
    model, ids, mask = case
    sequences = model.generate(ids, mask, max_new_tokens=new, repetition_penalty=penalty)
    assert sequences.shape == (len(ids), ids.shape[1] + new)
    np.testing.assert_array_equal(sequences[:, : ids.shape[1]], ids)
    for row, sequence in enumerate(sequences[:, ids.shape[1] :]):
        text = prompt(ids, mask, row)
        for token in sequence:
            scores = next_logits(model, text)
            for old in set(text.tolist()):
                scores[old] *= penalty if scores[old] < 0 else 1 / penalty
            assert token == scores.argmax()
            text = np.append(text, token)


@given(cases(), news, st.sampled_from([{}, {"do_sample": True, "seed": 7, "temperature": 3.0}]))
def test_log_probabilities_are_those_of_scoring_the_text_at_once(case, new, options):
    model, ids, mask = case
    eos = [1, 2]
    out = model.generate(
        ids, mask, max_new_tokens=new, eos_token_id=eos, return_dict_in_generate=True, **options
    )
    written = out.sequences[:, ids.shape[1] :]
    assert out.logprobs.shape == written.shape
    for row, (tokens, logprobs) in enumerate(zip(written, out.logprobs, strict=True)):
        ends = np.flatnonzero(np.isin(tokens, eos))
        length = ends[0] + 1 if len(ends) else len(tokens)
        start = prompt(ids, mask, row)
        text = np.concatenate([start, tokens[:length]])
        scores = log_softmax(model([text.tolist()]).logits[0, len(start) - 1 : -1])
        expected = scores[np.arange(length), tokens[:length]]
        np.testing.assert_allclose(logprobs[:length], expected, rtol=0, atol=TOLERANCE)
        assert (tokens[length:] == eos[0]).all()  # filled up
        assert not logprobs[length:].any()


@given(cases(), news, sampling, st.integers(1, 2))
def test_a_row_is_what_it_is_alone(case, new, options, each):
    # Row r of a result draws from stream r, whoever its neighbours are, when they end, and which
    # of a prompt's texts it is. Alone it is made as the last of r + 1 texts.
    model, ids, mask = case
    options = {"max_new_tokens": new, "eos_token_id": [1, 2], **options}
    sequences = model.generate(ids, mask, num_return_sequences=each, **options)
    assert len(sequences) == len(ids) * each
    for row, sequence in enumerate(sequences[:, ids.shape[1] :]):
        start = prompt(ids, mask, row // each)
        single = model.generate([start.tolist()], num_return_sequences=row + 1, **options)[row]
        written = single[len(start) :]
        np.testing.assert_array_equal(sequence[: len(written)], written[: len(sequence)])
        assert (sequence[len(written) :] == 1).all()
        assert (written[len(sequence) :] == 1).all()


@given(cases(), news, st.data())
def test_the_order_of_rows_does_not_matter_to_greedy(case, new, data):
    model, ids, mask = case
    order = data.draw(st.permutations(range(len(ids))))
    options = {"max_new_tokens": new, "eos_token_id": [1, 2], "repetition_penalty": 1.3}
    there = model.generate(ids, mask, **options)
    np.testing.assert_array_equal(model.generate(ids[order], mask[order], **options), there[order])


@given(cases(), news, sampling)
def test_the_stream_is_the_result_a_column_at_a_time(case, new, options):
    model, ids, mask = case
    options = {"max_new_tokens": new, "eos_token_id": [1], "pad_token_id": 3, **options}
    out = model.generate(ids, mask, return_dict_in_generate=True, **options)
    steps = list(model.generate_stream(ids, mask, **options))
    written = np.column_stack([step.tokens for step in steps])
    np.testing.assert_array_equal(written, out.sequences[:, ids.shape[1] :])
    np.testing.assert_array_equal(np.column_stack([s.logprobs for s in steps]), out.logprobs)
    ended = np.maximum.accumulate(written == 1, axis=1)
    np.testing.assert_array_equal(np.column_stack([step.finished for step in steps]), ended)
    before = np.hstack([np.zeros((len(ids), 1), dtype=bool), ended[:, :-1]])
    assert (written[before] == 3).all()
    assert not before.all(axis=0).any()  # no column is all padding


@given(cases(), news)
def test_a_finished_row_costs_nothing_more(case, new):
    model, ids, mask = case
    rows, embedding = [], model.backend.embedding
    model.backend.embedding = lambda table, ids: rows.append(len(ids)) or embedding(table, ids)
    unfinished = [
        np.count_nonzero(~step.finished)
        for step in model.generate_stream(ids, mask, max_new_tokens=new, eos_token_id=[1, 2, 3])
    ]
    del model.backend.embedding
    steps = len(unfinished) - 1  # the last one's tokens need not go through
    assert rows[len(rows) - steps :] == unfinished[:-1]


@given(tiny_configs(), seeds, chunks, st.lists(st.tuples(news, news), min_size=1, max_size=3))
def test_a_conversation_may_keep_its_cache(config, seed, chunk, turns):
    # Each turn adds tokens to what there is; what the cache holds of it is not computed again.
    model = tiny_model(config, seed, backend=cap_chunk(NumpyBackend("float64"), chunk))
    cache, text = RollingCache(config, model.backend, 1), []
    for turn, (more, new) in enumerate(turns):
        text = [*text, *random_ids(config, seed + turn, more).tolist()]
        options = {"max_new_tokens": new, "return_dict_in_generate": True}
        fresh = model.generate([text], **options)
        kept = model.generate([text], past_key_values=cache, **options)
        np.testing.assert_array_equal(kept.sequences, fresh.sequences)
        np.testing.assert_allclose(kept.logprobs, fresh.logprobs, rtol=0, atol=TOLERANCE)
        text = kept.sequences[0].tolist()
        assert cache.count.tolist() == [len(text) - 1]


@st.composite
def repetitive(draw):
    """A model whose ring is small and a text of few tokens, which drafts follow; its mask."""
    config, seed = draw(tiny_configs()), draw(seeds)
    model = tiny_model(config, seed, backend=cap_chunk(NumpyBackend("float64"), draw(chunks)))
    text = draw(st.lists(st.integers(0, 2), min_size=1, max_size=12))
    padding = draw(st.integers(0, 2))
    ids, mask = np.array([[0] * padding + text]), np.array([[0] * padding + [1] * len(text)])
    return (model, ids, mask) if draw(st.booleans()) else (model, ids[:, ::-1], mask[:, ::-1])


choices = st.one_of(
    st.fixed_dictionaries({"no_repeat_ngram_size": st.sampled_from([0, 4])}),
    sampling.map(lambda options: options | {"suppress_tokens": [0]}),
    # 3 tokens, all likely: drafts are often right
    sampling.map(lambda options: options | {"top_k": 3, "temperature": 30.0}),
)


@given(repetitive(), news, choices, st.integers(1, 6), st.integers(0, 2))
def test_a_draft_changes_nothing(case, new, options, most, left):
    # The same text for the same seed, in whatever pieces: a draft that is right is computed once,
    # of one that is wrong nothing stays. The reader leaves some tokens before the end.
    model, ids, mask = case
    options = {"max_new_tokens": new, "eos_token_id": [1], **options}
    runs = []
    for ahead in (0, most):
        cache = model.new_cache(1)
        with_cache = options | {"past_key_values": cache, "prompt_lookup_num_tokens": ahead}
        steps = model.generate_stream(ids, mask, **with_cache)
        steps = list(itertools.islice(steps, max(1, new - left)))
        runs.append((cache, [int(s.tokens[0]) for s in steps], [s.logprobs[0] for s in steps]))
    (plain, text, logprobs), (cache, ours, our_logprobs) = runs
    assert ours == text
    np.testing.assert_allclose(our_logprobs, logprobs, rtol=0, atol=TOLERANCE)
    assert (cache.count, cache.last, cache.columns) == (plain.count, plain.last, plain.columns)
    # What any later query can see is there, and nothing else is in its window.
    window = model.config.sliding_window or 100
    for one in (plain, cache):
        seen = one.key_positions[one.key_positions > one.last - window + 1]
        assert sorted(seen) == list(range(max(0, int(one.last[0]) - window + 2), one.last[0] + 1))
    more = [1, 2, 0, 2][: cache.chunk]
    after = [model([more], past_key_values=one).logits for one in (plain, cache)]
    np.testing.assert_allclose(after[1], after[0], rtol=0, atol=TOLERANCE)


@given(cases(), sampling)
def test_a_seed_says_what_is_drawn(case, options):
    model, ids, mask = case
    first, again = (model.generate(ids, mask, max_new_tokens=6, **options) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@given(cases(), news)
def test_no_eos_never_stops(case, new):
    # Greedy ends as it does without one, even if every token were an eos of the checkpoint's.
    model, ids, mask = case
    model.generation_config["eos_token_id"] = list(range(model.config.vocab_size))
    assert model.generate(ids, mask, max_new_tokens=new).shape[1] == ids.shape[1] + 1
    sequences = model.generate(ids, mask, max_new_tokens=new, eos_token_id=[])
    model.generation_config = {}
    np.testing.assert_array_equal(sequences, model.generate(ids, mask, max_new_tokens=new))
    assert sequences.shape[1] == ids.shape[1] + new


@given(cases())
def test_no_new_tokens_are_the_prompts(case):
    model, ids, mask = case
    out = model.generate(ids, mask, max_new_tokens=0, return_dict_in_generate=True)
    np.testing.assert_array_equal(out.sequences, ids)
    assert out.logprobs.shape == (len(ids), 0)
    assert list(model.generate_stream(ids, mask, max_new_tokens=0)) == []


@pytest.fixture(scope="module")
def flat_model():
    """Every token is about as likely as any other, so draws that differ do so soon."""
    model = tiny_model(config())
    head = {"lm_head.weight": np.zeros_like(model.tensors["lm_head.weight"])}
    model = type(model)(model.config, backend=model.backend, tensors=model.tensors | head)
    assert not model([[1]]).logits.any()
    return model


def test_seeds_differ_and_so_do_calls_without_one(flat_model):
    options = {"max_new_tokens": 40, "do_sample": True}
    drawn = [{"seed": 1}, {"seed": 2}, {}, {}]
    texts = {tuple(flat_model.generate([[1]], **options, **seed)[0]) for seed in drawn}
    assert len(texts) == 4


def test_rows_with_the_same_prompt_are_drawn_apart(flat_model):
    options = {"max_new_tokens": 40, "do_sample": True, "seed": 0}
    assert len(np.unique(flat_model.generate([[1]] * 4, **options), axis=0)) == 4
    several = flat_model.generate([[1]], num_return_sequences=4, **options)
    np.testing.assert_array_equal(several, flat_model.generate([[1]] * 4, **options))


def test_what_is_drawn_is_as_likely_as_the_model_says():
    # 4,000 draws of one token: each frequency within 5 standard deviations of its probability.
    model, rows = tiny_model(config(), 3), 4000
    drawn = model.generate([[1, 2]] * rows, max_new_tokens=1, do_sample=True, top_k=0, seed=0)
    frequencies = np.bincount(drawn[:, -1], minlength=13) / rows
    p = np.exp(log_softmax(next_logits(model, np.array([1, 2]))))
    assert (np.abs(frequencies - p) <= 5 * np.sqrt(p * (1 - p) / rows)).all()


def test_with_drafts_each_text_is_exactly_as_likely_as_the_model_says(monkeypatch):
    # Token 0 has probability 1/2, 1 and 2 have 1/4, whatever came before: the logits of tokens are
    # ln 2, 0, 0. Of the 4^4 ways to draw four times from quarters, each gives a text.
    tokens, draws = 3, 4
    model = tiny_model(config(vocab_size=tokens, sliding_window=None))
    tensors = {
        name: np.full(x.shape, float(x.ndim == 1 or "embed" in name), dtype=np.float64)
        for name, x in model.tensors.items()
    }  # each token is all ones, and stays so
    tensors["lm_head.weight"][0] = np.log(2) / model.config.hidden_size
    model = type(model)(model.config, dtype="float64", tensors=tensors)
    widths, embedding = set(), model.backend.embedding
    model.backend.embedding = lambda w, ids: widths.add(ids.shape[1]) or embedding(w, ids)
    ways = itertools.product((0.125, 0.375, 0.625, 0.875), repeat=draws)
    found = Counter()
    for way in ways:
        stream = SimpleNamespace(random=iter(way).__next__)
        monkeypatch.setattr(generation, "random_streams", lambda *_, s=stream: [s])
        options = {"max_new_tokens": draws, "do_sample": True, "prompt_lookup_num_tokens": 3}
        text = model.generate([[0, 1, 2, 0, 0, 1, 1]], **options)[0, 7:]
        found[tuple(text.tolist())] += 1
    assert widths == {7, 1, 2, 3}  # the prompt; a token with no draft, or one of 1 or 2
    assert found == {
        text: 2 ** text.count(0) for text in itertools.product(range(tokens), repeat=draws)
    }


@pytest.fixture(scope="module")
def tokenizer():
    return MistralTokenizer.from_pretrained(Path(tinymistral.__file__).parent / "demo")


@settings(max_examples=20)
@given(seeds, st.data())
def test_a_stop_string_ends_a_row_with_the_token_that_completes_it(tokenizer, seed, data):
    size = tokenizer.vocab_size
    model = tiny_model(config(vocab_size=size, sliding_window=5), seed)
    ids = np.random.default_rng(seed).integers(3, size, (2, 3))
    options = {"max_new_tokens": 10, "do_sample": True, "seed": seed, "top_k": 0}
    free = model.generate(ids, **options)[:, 3:]
    texts = [new_texts(tokenizer, *row) for row in zip(ids, free, strict=True)]
    showing = [n for n in range(10) if texts[0][n] != ([""] + texts[0])[n]]
    end = data.draw(st.sampled_from(showing))
    stop = texts[0][end][-3:]
    written = model.generate(ids, stop=[stop, "\0"], tokenizer=tokenizer, **options)[:, 3:]
    for row in (0, 1):
        length = next((n + 1 for n in range(10) if stop in texts[row][n]), 10)
        assert row == 1 or length <= end + 1
        np.testing.assert_array_equal(written[row, :length], free[row, :length])
        assert not written[row, length:].any()


def new_texts(tokenizer, prompt, tokens):
    """The text that continues a prompt, after each token, by the decoder that has its own tests."""
    decoder = StreamDecoder(tokenizer)
    for token in prompt.tolist():
        decoder.push(token)
    return list(itertools.accumulate(decoder.push(token) for token in tokens.tolist()))
