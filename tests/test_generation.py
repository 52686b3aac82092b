"""`generate` against transformers, whose results are in `fixtures/`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from goldens import DEMO, FIXTURES, MODELS, goldens, read_json
from strategies import config, tiny_model

from tinymistral import MistralForCausalLM, MistralTokenizer, RollingCache
from tinymistral.sampling import GenerationConfig
from tinymistral.scoring import score
from tinymistral.settings import GENERATION_FILE, NO_EFFECT
from tinymistral.streaming import StreamDecoder

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


SCORING = {
    "greedy": lambda model: model.generate([[1, 2]], do_sample=False),
    "sampling": lambda model: model.generate([[1, 2]], do_sample=True),
    "scoring": lambda model: score(model, [[1, 2]]),
}


@pytest.mark.parametrize("use", SCORING.values(), ids=SCORING)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(value, use):
    model = open_model("gqa")
    tensors = dict(model.tensors)
    head = tensors["lm_head.weight"] = tensors["lm_head.weight"].copy()
    head[7] = value
    broken = MistralForCausalLM(model.config, tensors=tensors)
    with pytest.raises(ValueError, match="not finite"), np.errstate(invalid="ignore"):
        use(broken)


@pytest.mark.parametrize("use", SCORING.values(), ids=SCORING)
def test_logits_that_are_all_minus_infinity_are_an_error(use):
    # Finite weights: every token is all ones, from the embedding to the last norm.
    model = open_model("gqa")
    tensors = {
        name: np.full(x.shape, name.endswith(("norm.weight", "embed_tokens.weight")), x.dtype)
        for name, x in model.tensors.items()
    }
    tensors["lm_head.weight"][:] = -3e38
    broken = MistralForCausalLM(model.config, tensors=tensors, dtype="float32")
    with pytest.raises(ValueError, match="not finite"), np.errstate(over="ignore"):
        use(broken)
    tensors["lm_head.weight"][3] = 1  # -inf for the others: they never come
    one = MistralForCausalLM(model.config, tensors=tensors, dtype="float32")
    with np.errstate(over="ignore"):
        assert one.generate([[1]], max_new_tokens=2).tolist() == [[1, 3, 3]]


def test_stop_strings_need_the_tokenizer_of_the_model():
    model, tokenizer = open_model("gqa"), MistralTokenizer.from_pretrained(DEMO)
    with pytest.raises(ValueError, match="2048 pieces and the model a vocabulary of 67"):
        model.generate([[5]], stop=["x"], tokenizer=tokenizer)
    assert model.generate([[5]], stop=[], max_new_tokens=2).shape == (1, 3)


def counting_model(monkeypatch, vocab_size=12):
    """A model that says n + 1 after n, else n: tokens are points of a circle; widths of pieces."""
    tiny = tiny_model(config(vocab_size=vocab_size, hidden_size=2, sliding_window=None))
    tensors = {name: np.full(x.shape, x.ndim == 1, x.dtype) for name, x in tiny.tensors.items()}
    for name, turned in (("model.embed_tokens.weight", 0), ("lm_head.weight", 0.8)):
        angles = 2 * np.pi * (np.arange(vocab_size) - turned) / vocab_size
        tensors[name] = np.column_stack([np.cos(angles), np.sin(angles)])
    model, widths = MistralForCausalLM(tiny.config, dtype="float64", tensors=tensors), []
    embedding = model.backend.embedding
    monkeypatch.setattr(
        model.backend, "embedding", lambda w, ids: widths.append(ids.shape[1]) or embedding(w, ids)
    )
    return model, widths


@pytest.mark.parametrize(
    "prompt, options, new, pieces",
    [
        # Nothing comes again; the first token comes from the prompt's piece.
        ([0, 1], {}, [2, 3, 4, 5], [2, 1, 1, 1]),
        # All that is guessed is right.
        ([2, 3, 4, 5, 6, 7, 0, 2], {}, [3, 4, 5, 6], [8, 3]),
        ([2, 3, 4, 5, 6, 7, 0, 2], {"prompt_lookup_num_tokens": 1}, [3, 4, 5, 6], [8, 2, 1]),
        # After 2 3 came 4 9; the 4 is right, and the 9 is not.
        ([2, 3, 4, 9, 9, 2], {}, [3, 4, 5, 6], [6, 3, 1]),
        # What came last is what is guessed.
        ([2, 3, 9, 9, 2, 3, 4, 5, 2], {}, [3, 4, 5, 6], [9, 3]),
        # 4 4 goes on with the 4 of one token ago, again and again.
        ([2, 4], {"suppress_tokens": [5]}, [4, 4, 4, 4], [2, 1, 2]),
        # The text ends, or what would come is forbidden, inside of what is guessed.
        ([2, 3, 4, 5, 6, 7, 0, 2], {"eos_token_id": 4}, [3, 4], [8, 3]),
        ([2, 3, 4, 5, 6, 0, 2], {"suppress_tokens": [5]}, [3, 4, 4, 4], [7, 3, 1]),
        ([2, 3, 4, 5, 6, 0, 2], {"eos_token_id": 5, "min_new_tokens": 4}, [3, 4, 4, 4], [7, 3, 1]),
    ],
)
def test_what_followed_the_same_two_tokens_is_computed_ahead(
    prompt, options, new, pieces, monkeypatch
):
    model, widths = counting_model(monkeypatch)
    options = {"max_new_tokens": 4, "prompt_lookup_num_tokens": 5} | options
    assert model.generate([prompt], **options)[0, len(prompt) :].tolist() == new
    assert widths == pieces


def test_a_wrong_guess_is_followed_by_a_short_one(monkeypatch):
    # Wrong are 9 9 9 after 1 2, and 9 after 5 6; right are 9 after 7 8, and 11 0 1 after 9 10.
    model, widths = counting_model(monkeypatch)
    prompt = [1, 2, 9, 9, 9, 9, 5, 6, 9, 9, 7, 8, 9, 10, 11, 0, 1]
    options = {"max_new_tokens": 14, "prompt_lookup_num_tokens": 3}
    assert model.generate([prompt], **options)[0, 17:].tolist() == [*range(2, 12), 0, 1, 2, 3]
    assert widths == [17, 4, 1, 1, 1, 2, 1, 2, 4, 1]


def test_a_stop_string_ends_a_row_inside_of_what_is_guessed(monkeypatch):
    tokenizer = MistralTokenizer.from_pretrained(DEMO)
    model, widths = counting_model(monkeypatch, len(tokenizer))
    prompt, cache = [*range(301, 309), 400, 301], model.new_cache(1)
    texts = StreamDecoder(tokenizer)
    texts = [texts.push(token) for token in range(301, 309)]
    stop = "".join(texts[2:4])
    assert len(stop) > 2
    assert stop not in "".join(texts[:3])
    options = {"stop": stop, "tokenizer": tokenizer, "past_key_values": cache}
    options |= {"max_new_tokens": 6, "prompt_lookup_num_tokens": 9}
    assert model.generate([prompt], **options)[0, 10:].tolist() == [302, 303, 304]
    assert widths == [10, 5]
    assert cache.count == 12  # all but the last new one


def test_no_new_tokens_give_the_prompt_back():
    ids = [[5, 6, 7]]
    output = open_model("gqa").generate(ids, max_new_tokens=0, return_dict_in_generate=True)
    np.testing.assert_array_equal(output.sequences, ids)
    assert output.logprobs.shape == (1, 0)


def test_a_stop_string_ends_a_row():
    model = MistralForCausalLM.from_pretrained(DEMO)
    tokenizer = MistralTokenizer.from_pretrained(DEMO)
    begun = ["Once upon a time", "The king"]
    prompts = tokenizer(begun)
    options = {"max_new_tokens": 60, "do_sample": False}
    free = tokenizer.batch_decode(model.generate(**prompts, **options), skip_special_tokens=True)
    # What the rows say after thirty letters, and after twenty.
    stops = [free[0][len(begun[0]) + 30 :][:4], free[1][len(begun[1]) + 20 :][:4]]
    stopped = model.generate(**prompts, **options, stop=stops, tokenizer=tokenizer)
    texts = tokenizer.batch_decode(stopped, skip_special_tokens=True)
    for prompt, whole, text in zip(begun, free, texts, strict=True):
        new = whole[len(prompt) :]
        ends = [new.index(stop) + len(stop) for stop in stops if stop in new]
        assert len(new) > 40
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


def test_a_row_keeps_its_own_tokens_when_another_finishes():
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
    entries = json.loads((DEMO / "generation_config.json").read_text("utf-8"))
    assert entries.pop("bos_token_id") == 1  # which is no option of generate
    assert model.generation_config == entries
    assert entries.keys() >= {"do_sample", "temperature", "top_k", "eos_token_id"}


def with_file(tmp_path, entries, **config):
    """Open a copy of the model gqa with these entries in its generation_config.json."""
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "models" / "gqa", folder, copy_function=shutil.copyfile)
    (folder / "generation_config.json").write_text(json.dumps(entries), encoding="utf-8")
    fields = json.loads((folder / "config.json").read_text("utf-8")) | config
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return MistralForCausalLM.from_pretrained(folder)


GREEDY = goldens("gqa.float64", "greedy")  # 7 tokens, and what transformers continues them with


@pytest.mark.parametrize(
    "entries, config",
    [
        ({"do_sample": False, "temperature": 0.0}, {}),
        ({"temperature": 0.0}, {}),
        ({"top_k": -1, "top_p": 7, "min_p": "x", "seed": -1}, {}),
        ({"pad_token_id": -1}, {}),
        ({}, {"pad_token_id": -1}),
        ({"eos_token_id": [2, 99]}, {}),
        ({"eos_token_id": [-1, 67]}, {}),
        ({"eos_token_id": 99}, {}),
        ({"pad_token_id": 67, "eos_token_id": 67}, {}),
        ({}, {"eos_token_id": [67]}),
        ({"temperature": None, "top_k": None, "eos_token_id": None}, {}),
        ({"suppress_tokens": [-1, 99]}, {}),
        ({"num_beams": 1, "length_penalty": 2.0, "early_stopping": True}, {}),
        ({"use_cache": False, "cache_implementation": "static", "output_scores": True}, {}),
        ({"typical_p": 0.9, "top_h": 0.5, "eta_cutoff": 0.1}, {}),
        ({"typical_p": 1.0, "renormalize_logits": True, "max_matching_ngram_size": 3}, {}),
    ],
)
def test_what_a_file_says_in_vain_does_no_harm(entries, config, tmp_path):
    # transformers 5.23 generates with each of these what it does without.
    model = with_file(tmp_path, entries, **config)
    np.testing.assert_array_equal(model.generate(GREEDY["input_ids"]), GREEDY["sequences"][:, :27])
    vain = NO_EFFECT[GENERATION_FILE]
    kept = {n: v for n, v in entries.items() if v is not None and n not in vain}
    assert model.generation_config == kept


def test_an_end_that_never_comes_does_not_fill(tmp_path):
    model = with_file(tmp_path, {"eos_token_id": [99, 21], "pad_token_id": -1})
    prompts = [GREEDY["input_ids"][0], [5] * 7]
    # transformers' second new token is 21: the row ends there, while the other goes on.
    new = model.generate(prompts, max_new_tokens=4)[:, 7:]
    assert new[0].tolist() == [9, 21, 21, 21]


def test_a_padding_outside_the_vocabulary_is_an_error_where_a_row_is_padded(tmp_path):
    model = with_file(tmp_path, {"pad_token_id": 67})
    says = "^generation_config.json: pad_token_id: 67 is not in the vocabulary"
    with pytest.raises(ValueError, match=says):
        model.generate([GREEDY["input_ids"][0], [5] * 7], max_new_tokens=4)
    with pytest.raises(ValueError, match=says):
        model.generate([[5]], do_sample=True, num_return_sequences=2)
    rows = model.generate([GREEDY["input_ids"][0], [5] * 7], max_new_tokens=4, pad_token_id=3)
    assert rows.shape == (2, 11)


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"do_sample": True, "temperature": 0.0}, "temperature: expected a number from 1e-06"),
        ({"do_sample": True, "top_k": -1}, "top_k: expected an integer from 0 on, got -1"),
        ({"do_sample": "yes"}, "do_sample: expected True or False"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_length": "20"}, "max_length"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id"),
        ({"eos_token_id": {"id": 2}}, "eos_token_id"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"num_beams": 4}, "num_beams: 4 is not supported; expected none or 1"),
        ({"do_sample": True, "typical_p": 0.9}, "typical_p: 0.9 is not supported"),
        ({"guidance_scale": 1.5}, "guidance_scale: 1.5 is not supported"),
        ({"min_new_tokens": -1}, "min_new_tokens"),
        ({"suppress_tokens": "all"}, "suppress_tokens: expected an integer from 0 on, got 'all'"),
        ({"bad_words_ids": [[99]]}, "bad_words_ids: 99 is not in the vocabulary"),
        ({"do_sample": True, "num_return_sequences": 10**9}, "num_return_sequences: .* to 1024,"),
    ],
)
def test_a_wrong_value_of_the_file_is_named_and_can_be_overruled(entries, message, tmp_path):
    model = with_file(tmp_path, entries)
    with pytest.raises(ValueError, match=f"^generation_config.json: {message}") as caught:
        model.generate([[5]])
    assert "\n" not in str(caught.value)
    (name,) = set(entries) - {"do_sample"} or {"do_sample"}
    right = {"do_sample": False, "max_length": 3, "suppress_tokens": [1], "bad_words_ids": [[1]]}
    assert model.generate([[5]], **{name: right.get(name, 1)}).shape[0] == 1
    # A wrong option is not the file's.
    wrong = {"repetition_penalty": -1} if name != "repetition_penalty" else {name: -1}
    with pytest.raises(ValueError, match=r"^repetition_penalty"):
        model.generate([[5]], **({name: right.get(name, 1)} | wrong))


def test_the_files_drawing_counts_as_soon_as_there_is_any(tmp_path):
    model = with_file(tmp_path, {"top_k": 1})  # so what is drawn is what greedy takes
    ids = model.generate(GREEDY["input_ids"], do_sample=True)
    np.testing.assert_array_equal(ids, GREEDY["sequences"][:, :27])
    with pytest.raises(ValueError, match=r"^generation_config\.json: temperature"):
        with_file(tmp_path / "b", {"temperature": 0.0}).generate([[5]], do_sample=True)


@pytest.mark.parametrize(
    "entries, options, new",
    [  # how many transformers 5.23 makes of the same 7 tokens
        ({"max_length": 12}, {}, 5),
        ({"max_length": 8}, {}, 1),
        ({}, {"max_length": 12}, 5),
        ({"max_length": 12}, {"max_length": 10}, 3),
        ({"max_length": 12}, {"max_new_tokens": 2}, 2),
        ({"max_length": 12, "max_new_tokens": 2}, {}, 2),
        ({"max_new_tokens": 2}, {}, 2),
        # An option comes before the file; transformers warns, and makes 2.
        ({"max_new_tokens": 2}, {"max_length": 12}, 5),
    ],
)
def test_max_length_counts_the_prompt(entries, options, new, tmp_path):
    ids = with_file(tmp_path, entries).generate(GREEDY["input_ids"], **options)
    np.testing.assert_array_equal(ids, GREEDY["sequences"][:, : 7 + new])


def test_config_json_gives_the_defaults_where_there_is_no_generation_config(tmp_path):
    # transformers 5.23 takes them in one case, and not in the other.
    settings = {"suppress_tokens": [9, 21], "eos_token_id": [2], "max_length": 40}
    with_file(tmp_path, {}, **settings)
    folder = tmp_path / "model"
    (folder / "generation_config.json").unlink()
    model = MistralForCausalLM.from_pretrained(folder)
    assert model.generation_config == {"suppress_tokens": [9, 21], "max_length": 40}
    assert not {9, 21} & set(model.generate(GREEDY["input_ids"])[0, 7:].tolist())
    model = with_file(tmp_path / "other", {}, **settings)
    np.testing.assert_array_equal(model.generate(GREEDY["input_ids"]), GREEDY["sequences"][:, :27])


def test_a_setting_that_nobody_knows_is_warned_of(tmp_path):
    with pytest.warns(
        UserWarning, match=r"^generation_config.json: 'temprature' is not known"
    ) as w:
        with_file(tmp_path, {"temprature": 0.5, "_from_model_config": True})
    assert w[0].filename == __file__


@pytest.mark.parametrize("eos", [(60, 12), np.array([60, 12]), np.array([60], dtype=np.int32)])
def test_ids_that_end_a_row_may_be_a_tuple_or_an_array(eos):
    # transformers' continuation is 9 21 30 60 ...
    ids = open_model("gqa").generate(GREEDY["input_ids"], eos_token_id=eos)
    np.testing.assert_array_equal(ids, GREEDY["sequences"][:, :11])


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
        ({"max_new_tokens": 1.5}, "max_new_tokens: expected an integer from 0 on, got 1.5"),
        ({"max_new_tokens": 2**63}, "max_new_tokens: expected an integer from 0 to 2"),
        ({"max_length": -1}, "max_length: expected an integer from 0 on, got -1"),
        ({"eos_token_id": 67}, "^eos_token_id: 67 is not in the vocabulary; expected 0 to 66"),
        ({"eos_token_id": [2, 99]}, "^eos_token_id: 99 is not in the vocabulary"),
        ({"eos_token_id": [None]}, "eos_token_id"),
        ({"eos_token_id": np.array([[2]])}, "eos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id: expected an integer from 0 on, got -1"),
        ({"pad_token_id": 67}, "^pad_token_id: 67 is not in the vocabulary"),
        ({"pad_token_id": -1}, "pad_token_id: expected an integer from 0 on, got -1"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"seed": -1}, "seed"),
        ({"do_sample": 1}, "do_sample"),
        ({"do_sample": False, "temperature": 0.5}, "^temperature: has no effect without do_sample"),
        ({"seed": 1}, "^seed: has no effect without do_sample=True"),
        ({"max_length": 1}, "^max_length: 1 tokens leave none after a prompt of 1"),
        ({"num_beams": 4}, "^num_beams: 4 is not supported; expected none or 1"),
        ({"assistant_model": "gqa"}, "^assistant_model: 'gqa' is not supported"),
        ({"cache_implementation": "quantized"}, "^cache_implementation: 'quantized' is not"),
        ({"min_new_tokens": 1.5}, "^min_new_tokens: expected an integer"),
        ({"no_repeat_ngram_size": -1}, "^no_repeat_ngram_size"),
        ({"suppress_tokens": 5}, "^suppress_tokens: expected a list of ids, got 5"),
        ({"suppress_tokens": [67]}, "^suppress_tokens: 67 is not in the vocabulary"),
        ({"bad_words_ids": [5]}, r"^bad_words_ids: expected lists of ids, none empty, got \[5\]"),
        ({"bad_words_ids": 5}, "^bad_words_ids: expected lists of ids"),
        ({"bad_words_ids": [[]]}, "^bad_words_ids: expected lists of ids"),
        ({"bad_words_ids": [[5, "a"]]}, "^bad_words_ids: expected an integer"),
        ({"bad_words_ids": [[67]]}, "^bad_words_ids: 67 is not in the vocabulary"),
        ({"num_return_sequences": 2}, "do_sample=True"),
        ({"num_return_sequences": 1025, "do_sample": True}, "num_return_sequences: .* to 1024,"),
        ({"prompt_lookup_num_tokens": -1}, "^prompt_lookup_num_tokens: .* from 0 on, got -1"),
        ({"prompt_lookup_num_tokens": 1.5}, "^prompt_lookup_num_tokens: expected an integer"),
        ({"stop": ["a"]}, "tokenizer"),
    ],
)
def test_a_wrong_option_is_an_error_at_once_that_names_it(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_model("gqa").generate_stream([[5]], **options)
    assert "\n" not in str(caught.value)


def test_tokens_are_guessed_for_one_row_and_the_file_may_ask_for_it(tmp_path):
    # As transformers 5 refuses it: assisted generate is only supported for batch_size = 1.
    model = with_file(tmp_path, {"prompt_lookup_num_tokens": 3})
    np.testing.assert_array_equal(model.generate(GREEDY["input_ids"]), GREEDY["sequences"][:, :27])
    says = "prompt_lookup_num_tokens: expected one row, got 2; .* or set it to 0"
    with pytest.raises(ValueError, match=f"^generation_config.json: {says}"):
        model.generate([[5], [6]])
    sampled = {"do_sample": True, "num_return_sequences": 2}
    with pytest.raises(ValueError, match=f"^{says}"):
        model.generate([[5]], prompt_lookup_num_tokens=2, **sampled)
    assert model.generate([[5]], prompt_lookup_num_tokens=0, **sampled).shape == (2, 21)


def test_an_unknown_option_lists_the_known():
    with pytest.raises(TypeError, match=r"temprature; known are .*temperature"):
        open_model("gqa").generate([[5]], temprature=0.5)
    model = open_model("gqa")
    model.generation_config["temprature"] = 0.5
    with pytest.raises(TypeError, match=r"generation_config: unknown argument temprature"):
        model.generate([[5]])


def test_an_empty_prompt_is_an_error_that_names_its_row():
    with pytest.raises(ValueError, match="row 1 is all padding"):
        open_model("gqa").generate([[5, 6], [0, 0]], [[1, 1], [0, 0]])


def test_the_defaults_are_those_of_transformers():
    config = GenerationConfig()
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (False, 1, 50, 1)


def test_a_cache_of_another_model_is_refused():
    model = tiny_model(config())
    for other, says in (
        (tiny_model(config(sliding_window=5)), "same configuration"),
        (tiny_model(config(num_hidden_layers=1)), "same configuration"),
        (tiny_model(config(), dtype="float16"), "float16"),
    ):
        with pytest.raises(ValueError, match=f"past_key_values: .*{says}"):
            model.generate([[1, 2, 3]], past_key_values=other.new_cache(1))
