"""A conversation that keeps its cache, against computing everything anew each time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from goldens import DEMO
from strategies import config, tiny_model

from tinymistral import MistralTokenizer
from tinymistral.chat import Conversation, chat_ids, is_instruct

TOKENIZER = MistralTokenizer.from_pretrained(DEMO)
# The window is small, so that a conversation soon goes past it several times.
MODEL = tiny_model(config(vocab_size=len(TOKENIZER), sliding_window=32))
OPTIONS = {"do_sample": False, "max_new_tokens": 30, "eos_token_id": 2}
QUESTIONS = ["Who are you?", "Where is the king?", "Is he old?", "What did he say to the fox?"]


def anew(ids):
    """The greedy answer to ids, with no cache kept."""
    return MODEL.generate([ids], **OPTIONS)[0, len(ids) :].tolist()


def question(content, first, system=None):
    """The ids of a user turn as mistral-common's v1 has them, written out."""
    text = content if system is None else f"{system}\n\n{content}"
    return ([1] if first else []) + TOKENIZER.processor.encode(f"[INST] {text} [/INST]")


@pytest.mark.parametrize("system", [None, "You are a witch."])
def test_answers_are_those_to_the_whole_conversation(system):
    # The questions alone take more than two windows of the model.
    talk, ids = Conversation(MODEL, TOKENIZER, system), []
    for n, content in enumerate(QUESTIONS):
        said = "".join(talk.ask(content, **OPTIONS))
        ids += question(content, n == 0, system if n == 0 else None)
        drawn = anew(ids)
        assert said == TOKENIZER.processor.decode(drawn)
        ids += drawn if drawn[-1] == 2 else [*drawn, 2]
        assert talk.ids == ids
        assert talk.messages[-1] == {"role": "assistant", "content": said}
    assert len(ids) > 2 * MODEL.config.sliding_window


def test_a_turn_costs_only_its_own_tokens(monkeypatch):
    talk = Conversation(MODEL, TOKENIZER)
    widths = []
    embedding = MODEL.backend.embedding
    monkeypatch.setattr(
        MODEL.backend, "embedding", lambda w, ids: widths.append(ids.shape[1]) or embedding(w, ids)
    )
    for content in QUESTIONS:
        before = len(talk.ids)
        list(talk.ask(content, **OPTIONS))
        # The end of the answer before, not yet seen by the model, comes with the turn.
        assert sum(widths) <= len(talk.ids) - before + 2
        widths.clear()


def test_a_stopped_answer_ends_there_and_the_conversation_goes_on():
    talk = Conversation(MODEL, TOKENIZER)
    texts = talk.ask(QUESTIONS[0], **OPTIONS)
    said = "".join(next(texts) for _ in range(4))
    texts.close()
    asked = question(QUESTIONS[0], True)
    ids = [*asked, *anew(asked)[:4], 2]
    assert talk.ids == ids
    assert talk.messages[-1]["content"] == said
    list(talk.ask(QUESTIONS[1], **OPTIONS))
    ids += question(QUESTIONS[1], False)
    assert talk.ids[: len(ids)] == ids
    assert talk.ids[len(ids) :][:30] == anew(ids)


def test_an_interrupt_while_the_model_computes_leaves_the_conversation_whole(monkeypatch):
    talk = Conversation(MODEL, TOKENIZER)
    texts = talk.ask(QUESTIONS[0], **OPTIONS)
    next(texts)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MODEL.backend, "silu_mul", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(texts)
    list(talk.ask(QUESTIONS[1], **OPTIONS))
    asked = question(QUESTIONS[0], True)
    ids = [*asked, anew(asked)[0], 2, *question(QUESTIONS[1], False)]
    assert talk.ids[: len(ids) + 30] == ids + anew(ids)


def test_a_message_stopped_before_its_answer_is_removed():
    talk = Conversation(MODEL, TOKENIZER)
    list(talk.ask(QUESTIONS[0], **OPTIONS))
    ids, messages = list(talk.ids), list(talk.messages)

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(talk.ask(QUESTIONS[1], progress=interrupt, **OPTIONS))
    assert (talk.ids, talk.messages) == (ids, messages)
    list(talk.ask(QUESTIONS[2], **OPTIONS))
    ids += question(QUESTIONS[2], False)
    assert talk.ids[: len(ids) + 30] == ids + anew(ids)


def test_what_is_saved_is_the_messages(tmp_path):
    talk = Conversation(MODEL, TOKENIZER, "Be brief.")
    list(talk.ask("Who?", **OPTIONS))
    talk.save(tmp_path / "talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert [m["role"] for m in saved["messages"]] == ["system", "user", "assistant"]
    # The first turn is what the chat format makes of the messages; so would the answer be, if its
    # text were cut into the same tokens.
    first = chat_ids(TOKENIZER, saved["messages"][:2])
    assert talk.ids[: len(first)] == first


def test_an_instruct_model_is_recognized_by_its_template_or_its_name(tmp_path):
    name = "Mistral-7B-Instruct-v0.1"
    assert not is_instruct(DEMO, TOKENIZER)
    assert is_instruct(tmp_path / name, TOKENIZER)
    assert is_instruct(tmp_path / f"models--mistralai--{name}/snapshots/0a1b", TOKENIZER)
    tokenizer = MistralTokenizer.from_pretrained(DEMO)
    tokenizer.chat_template = "{{ bos_token }}"
    assert is_instruct(DEMO, tokenizer)


def test_the_cache_holds_what_was_said():
    talk = Conversation(MODEL, TOKENIZER)
    list(talk.ask("Who?", **OPTIONS))
    held = talk.cache.count[0]
    assert len(talk.ids) - 2 <= held < len(talk.ids)
    np.testing.assert_array_equal(np.sort(talk.cache.key_positions[0])[-5:], range(held - 5, held))
