"""A KeyboardInterrupt at each line, or each instruction, of what writes to a cache.

What it leaves is compared with a cache, or a conversation, that was never interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import pytest
from goldens import DEMO
from strategies import config, tiny_model

from tinymistral import cache, chat, generation, heads, model, pretrained
from tinymistral.cache import RollingCache
from tinymistral.chat import Conversation
from tinymistral.tokenizer import MistralTokenizer

State = TypeVar("State")

CACHE = {cache.__file__}
OF_A_CALL = CACHE | {module.__file__ for module in (heads, model, pretrained)}
OF_GENERATION = OF_A_CALL | {generation.__file__}
OF_A_CONVERSATION = {module.__file__ for module in (chat, generation)}


def interrupted_at(n: int, unit: str, files: set[Any], call: Callable[[], Any]) -> bool:
    """Call with an interrupt before the n-th line, or opcode, in files; return whether it came."""
    left = n

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = unit == "opcode"
        if event == unit:
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 traces them only if this comes first
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def everywhere(
    unit: str, files: set[Any], begin: Callable[[], State], act: Callable[[State], Any]
) -> Iterator[State]:
    """Begin, and interrupt `act` before a line, or opcode, in files: yield what is left of it.

    Before each of them in turn, and at last not at all.
    """
    n, came = 0, True
    while came:
        state = begin()
        came = interrupted_at(n, unit, files, partial(act, state))
        yield state
        n += 1
    assert n > 20, "hardly anything was traced"


# A call of a model with a cache, whose ring has 6 slots and has turned

MODEL = tiny_model(config(num_hidden_layers=1, sliding_window=4))
IDS = np.random.default_rng(0).integers(0, 13, (1, 40))


def holding(stop: int) -> RollingCache:
    """A cache with 9 tokens of IDS, and then those up to `stop`."""
    cache = MODEL.new_cache(1, chunk=3)
    for part in (slice(9), slice(9, stop)):
        if part.start != part.stop:
            MODEL(IDS[:, part], past_key_values=cache)
    return cache


def go_on(cache: RollingCache, back: int) -> np.ndarray | None:
    """Add a token, so many back, and two more, and return their logits; None if refused."""
    at = int(cache.last[0]) + 1 - back + np.arange(3)
    try:
        parts = [
            MODEL(IDS[:, part], position_ids=part[None], past_key_values=cache).logits
            for part in (at[:1], at[1:])
        ]
    except ValueError:
        return None
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize(
    ("unit", "files", "new"),
    [("opcode", CACHE, 2), ("line", OF_A_CALL, 2), ("line", OF_A_CALL, 8)],
    ids=["at each instruction of the cache", "at each line", "in several pieces"],
)
def test_a_call_that_was_interrupted_has_added_whole_pieces(
    unit: str, files: set[Any], new: int
) -> None:
    whole = {stop: holding(stop) for stop in (9, *range(12, 9 + new, 3), 9 + new)}
    due = {(stop, back): go_on(whole[stop].copy(), back) for stop in whole for back in (0, 2)}
    found, refused = set(), 0
    for one in everywhere(
        unit, files, whole[9].copy, lambda one: MODEL(IDS[:, 9 : 9 + new], past_key_values=one)
    ):
        held = int(one.count[0])
        assert (one.last, one.columns) == (whole[held].last, whole[held].columns)
        found.add(held)
        for back in (0, 2):
            got, wanted = go_on(one.copy(), back), due[held, back]
            if back and got is None:  # keys that it would need are overwritten
                refused += 1
                continue
            assert got is not None
            np.testing.assert_array_equal(got, wanted)
    assert found == set(whole)
    assert refused


def test_a_call_that_goes_back_can_be_repeated() -> None:
    call = {"input_ids": IDS[:, 7:10], "position_ids": [[7, 8, 9]]}
    before, due, found = holding(9), holding(9), set()
    expected = MODEL(**call, past_key_values=due).logits
    for one in everywhere(
        "line", CACHE, before.copy, lambda one: MODEL(**call, past_key_values=one)
    ):
        found.add(int(one.count[0]))
        assert one.last == one.count - 1
        np.testing.assert_array_equal(MODEL(**call, past_key_values=one).logits, expected)
        np.testing.assert_array_equal(one.key_positions, due.key_positions)
    assert found == {9, 7, 10}  # as before; without the tokens that are replaced; done


@pytest.mark.parametrize("ahead", [0, 1])
def test_generation_that_was_interrupted_goes_on_with_its_cache(ahead: int) -> None:
    options = {"do_sample": True, "seed": 0, "top_k": 1, "prompt_lookup_num_tokens": ahead}

    def generate(ids: list[int], new: int, cache: RollingCache) -> Iterator[int]:
        steps = MODEL.generate_stream([ids], past_key_values=cache, max_new_tokens=new, **options)
        return (int(step.tokens[0]) for step in steps)

    # What comes first depends on the window alone: 4 tokens. It came before, and then 12 did,
    # which is guessed to come again.
    window = IDS[0, :4].tolist()
    first = next(generate(window, 1, MODEL.new_cache(1)))
    prompt = [window[-1], first, 12, 0, *window]
    expected = list(generate(prompt, 3, MODEL.new_cache(1, chunk=3)))
    assert expected[0] == first
    for got, one in everywhere(
        "line",
        OF_GENERATION,
        lambda: (list[int](), MODEL.new_cache(1, chunk=3)),
        lambda state: state[0].extend(generate(prompt, 3, state[1])),
    ):
        rest = generate([*prompt, *got], 3 - len(got), one) if len(got) < 3 else ()
        assert [*got, *rest] == expected


# A conversation

TOKENIZER = MistralTokenizer.from_pretrained(DEMO)
TALKER = tiny_model(config(vocab_size=len(TOKENIZER), num_hidden_layers=1, eos_token_id=2))
OPTIONS = {"do_sample": False, "max_new_tokens": 3}


def test_a_conversation_that_was_interrupted_has_added_whole_turns() -> None:
    def begun() -> Conversation:
        talk = Conversation(TALKER, TOKENIZER)
        list(talk.ask("Who?", **OPTIONS))
        return talk

    before, answers = begun(), set()
    for talk in everywhere(
        "line", OF_A_CONVERSATION, begun, lambda talk: list(talk.ask("Why?", **OPTIONS))
    ):
        asked = TOKENIZER.processor.encode("[INST] Why? [/INST]")
        new = talk.ids[len(before.ids) :]
        if new:
            assert new[: len(asked)] == asked
            answer = new[len(asked) : -1]
            answers.add(len(answer))
            assert talk.messages[2]["content"] == "Why?"
            assert talk.messages[3]["content"] == TOKENIZER.processor.decode(answer)
        assert talk.ids[: len(before.ids)] == before.ids
        assert talk.messages[:2] == before.messages
        assert len(talk.messages) == (4 if new else 2)
        next_ids = talk.ids + TOKENIZER.processor.encode("[INST] How? [/INST]")
        list(talk.ask("How?", **OPTIONS))
        anew = TALKER.generate([next_ids], **OPTIONS)[0].tolist()
        assert talk.ids[: len(anew)] == anew
    assert answers == {1, 2, 3}
