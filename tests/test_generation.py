"""`generate` against transformers, whose results are in `fixtures/`."""

from __future__ import annotations

import numpy as np
import pytest
from goldens import DEMO, FIXTURES, MODELS, goldens, read_json

from tinymistral import MistralForCausalLM, MistralTokenizer, RollingCache
from tinymistral.generation_config import GenerationConfig

GENERATE = read_json("generate.json")


def open_model(name, **options):
    return MistralForCausalLM.from_pretrained(FIXTURES / "models" / name, **options)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", ["greedy", "greedy_left"])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_continuations_are_those_of_transformers(name, case, dtype):
    golden = goldens(f"{name}.float64", case)
    output = open_model(name, dtype=dtype).generate(
        golden["input_ids"],
        golden["attention_mask"],
        max_new_tokens=64,
        eos_token_id=[],
        return_dict_in_generate=True,
    )
    np.testing.assert_array_equal(output.sequences, golden["sequences"])
    tolerance = 1e-9 if dtype == "float64" else 2e-4
    np.testing.assert_allclose(output.logprobs, golden["logprobs"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", sorted(GENERATE))
def test_generate_returns_what_transformers_returns(case):
    golden = goldens("generate", case)
    model = open_model(GENERATE[case]["model"])
    sequences = model.generate(
        golden["input_ids"], golden["attention_mask"], **GENERATE[case]["settings"]
    )
    assert sequences.dtype == np.int64
    np.testing.assert_array_equal(sequences, golden["sequences"])


def test_the_published_story_of_stories260k_to_the_letter(test_models):
    # llama2.c publishes this text for the model, greedy from <s> alone.
    folder = test_models / "stories260k"
    model = MistralForCausalLM.from_pretrained(folder)
    tokenizer = MistralTokenizer.from_pretrained(folder)
    ids = model.generate([[1]], max_new_tokens=200)[0]
    story = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball. She wanted to play with it, but it was too high."
        "\nLily's mom said, "
    )
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith(story)


def test_a_cache_is_continued_and_only_what_it_lacks_is_computed(monkeypatch):
    # The same greedy ids as transformers gives in one go, in three calls that share a cache.
    golden = goldens("gqa.float64", "greedy")
    model = open_model("gqa", dtype="float64")
    cache = RollingCache(model.config, model.backend, rows=1)
    widths = []
    embedding = model.backend.embedding
    monkeypatch.setattr(
        model.backend, "embedding", lambda w, ids: widths.append(ids.shape[1]) or embedding(w, ids)
    )
    ids = golden["input_ids"]
    for new in (1, 20, 5):
        options = {"max_new_tokens": new, "eos_token_id": [], "past_key_values": cache}
        ids = model.generate(ids, **options)
    np.testing.assert_array_equal(ids, golden["sequences"][:, : ids.shape[1]])
    assert widths == [golden["input_ids"].shape[1]] + [1] * 25
    with pytest.raises(ValueError, match="holds 32 tokens, but input_ids are 3"):
        model.generate([[5, 6, 7]], past_key_values=cache)
    with pytest.raises(ValueError, match="one row"):
        model.generate([[5], [6]], past_key_values=cache)


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(value, do_sample):
    model = open_model("gqa")
    tensors = dict(model.tensors)
    head = tensors["lm_head.weight"] = tensors["lm_head.weight"].copy()
    head[7] = value
    broken = MistralForCausalLM(model.config, tensors=tensors)
    with pytest.raises(ValueError, match="not finite"), np.errstate(invalid="ignore"):
        broken.generate([[1, 2]], do_sample=do_sample)


def test_stop_strings_need_the_tokenizer_of_the_model():
    model, tokenizer = open_model("gqa"), MistralTokenizer.from_pretrained(DEMO)
    with pytest.raises(ValueError, match="2048 pieces and the model a vocabulary of 67"):
        model.generate([[5]], stop=["x"], tokenizer=tokenizer)
    assert model.generate([[5]], stop=[], max_new_tokens=2).shape == (1, 3)


def test_no_new_tokens_give_the_prompt_back():
    ids = [[5, 6, 7]]
    output = open_model("gqa").generate(ids, max_new_tokens=0, return_dict_in_generate=True)
    np.testing.assert_array_equal(output.sequences, ids)
    assert output.logprobs.shape == (1, 0)


def test_a_stop_string_ends_a_row():
    model = MistralForCausalLM.from_pretrained(DEMO)
    tokenizer = MistralTokenizer.from_pretrained(DEMO)
    prompts = tokenizer(["Once upon a time", "The king"])
    options = {"max_new_tokens": 60, "do_sample": False}
    free = tokenizer.batch_decode(model.generate(**prompts, **options), skip_special_tokens=True)
    stopped = model.generate(**prompts, **options, stop=["king", ", and"], tokenizer=tokenizer)
    texts = tokenizer.batch_decode(stopped, skip_special_tokens=True)
    for prompt, whole, text in zip(["Once upon a time", "The king"], free, texts, strict=True):
        new = whole[len(prompt) :]
        ends = [new.index(stop) + len(stop) for stop in ("king", ", and") if stop in new]
        assert whole.startswith(text)
        # The token that completes the stop string is the last one.
        assert min(ends) <= len(text) - len(prompt) < min(ends) + 8


def test_steps_come_one_by_one_and_add_up_to_what_generate_returns():
    model = open_model("gqa")
    options = {"max_new_tokens": 12, "do_sample": True, "seed": 4}
    steps = list(model.generate_stream([[5, 6, 7]], **options))
    assert [step.tokens.shape for step in steps] == [(1,)] * len(steps)
    tokens = np.concatenate([step.tokens for step in steps])
    np.testing.assert_array_equal(model.generate([[5, 6, 7]], **options)[0, 3:], tokens)


def test_only_the_last_position_becomes_logits(monkeypatch):
    model = open_model("gqa")
    shapes = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda x: shapes.append(x.shape) or logits(x))
    model.generate([[5] * 40], max_new_tokens=3, eos_token_id=[])
    assert shapes == [(1, 1, 32)] * 3


def test_a_finished_row_leaves_the_batch(monkeypatch):
    model = open_model("gqa")
    free = model.generate([[5, 6], [9, 8]], max_new_tokens=6, eos_token_id=[])
    ends = int(free[0, 3])  # the second new token of row 0
    rows = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda x: rows.append(x.shape[0]) or logits(x))
    model.generate([[5, 6], [9, 8]], max_new_tokens=6, eos_token_id=ends)
    assert ends not in free[1, 2:]
    assert rows == [2, 2, 1, 1, 1, 1]


def test_what_a_row_has_said_stays_with_it_when_another_leaves():
    # With a repetition penalty; row 0 ends first, and row 1 goes on as it does alone.
    model = open_model("gqa")
    options = {"max_new_tokens": 12, "repetition_penalty": 1.7, "eos_token_id": []}
    both = model.generate([[5, 6], [9, 8]], **options)
    ends = int(both[0, 4])
    assert ends not in both[1]
    stopped = model.generate([[5, 6], [9, 8]], **(options | {"eos_token_id": ends}))
    np.testing.assert_array_equal(stopped[1], model.generate([[9, 8]], **options)[0])


def test_progress_tells_how_much_of_the_prompt_has_gone_through():
    model = open_model("gqa")
    told = []
    model.backend.chunk = 16
    steps = model.generate_stream(
        [[5] * 40], max_new_tokens=1, progress=lambda *counts: told.append(counts)
    )
    list(steps)
    assert told == [(16, 40), (32, 40), (40, 40)]


def test_the_checkpoints_generation_config_gives_the_defaults():
    model = MistralForCausalLM.from_pretrained(DEMO)
    assert model.generation_config == {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 40,
        "eos_token_id": 2,
    }


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, "temperature: expected a number from 1e-06"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1e-45}, "temperature"),
        ({"repetition_penalty": 1e308}, "repetition_penalty"),
        ({"seed": 10**400}, "seed"),
        ({"top_k": 10**400}, "top_k"),
        ({"top_k": 2.5}, "top_k: expected an integer"),
        ({"top_p": 1.5}, "top_p: .* to 1,"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"eos_token_id": 67}, "not in the vocabulary"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"seed": -1}, "seed"),
        ({"do_sample": 1}, "do_sample"),
        ({"num_return_sequences": 2}, "do_sample=True"),
        ({"stop": ["a"]}, "tokenizer"),
    ],
)
def test_a_wrong_option_is_said_at_once_and_by_name(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_model("gqa").generate_stream([[5]], **options)
    assert "\n" not in str(caught.value)


def test_an_unknown_option_lists_the_known():
    with pytest.raises(TypeError, match=r"num_beams; known are .*temperature"):
        open_model("gqa").generate([[5]], num_beams=4)


def test_an_empty_prompt_is_an_error_that_names_its_row():
    with pytest.raises(ValueError, match="row 1 is all padding"):
        open_model("gqa").generate([[5, 6], [0, 0]], [[1, 1], [0, 0]])


def test_the_defaults_are_those_of_transformers():
    config = GenerationConfig()
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (False, 1, 50, 1)
