"""The Instruct format: a conversation as the ids that Mistral's chat models were trained on.

A *turn* is one user or assistant message. Ids are handed out, never text: a text would be tokenized
once more, to other ids, and get a second <s>. Whatever a message contains is text, also `</s>` and
`[INST]`; the control tokens are put between the messages here, and come from nowhere else.

The formats, for a user's a, the assistant's b and the user's c; `…` is a text tokenized on its own:

official        <s> `[INST] a [/INST]` `b` </s> `[INST] c [/INST]`      v1: Mistral 7B v0.1 and v0.2
official        <s> [INST] `a` [/INST] `b` </s> [INST] `c` [/INST]      v2 and v3: Mistral 7B v0.3
hf              <s> `[INST] a [/INST]b` </s> ` [INST] c [/INST]`        v1 only

In v1 `[INST]` is text; in v2 and v3 it is a control token, which tells the two apart. The official
ones are those of mistral-common's instruct tokenizers. A system prompt and two newlines go before
the user's text: in v1 the first user's, in v2 and v3 the last one's.

`hf` is the chat template of Mistral-7B-Instruct-v0.1 on the Hugging Face hub, as published in 2023
(later ones differ in spaces), by the tokenizer.json beside it. It knows no system prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tinymistral.text import check_text, shown

if TYPE_CHECKING:
    from tinymistral.tokenizer import MistralTokenizer

FORMATS = ("official", "hf")


class Turn(NamedTuple):
    """One message of a conversation, checked; role is user or assistant."""

    role: str
    content: str


def chat_ids(
    tokenizer: MistralTokenizer,
    messages: Sequence[Mapping[str, Any]],
    format: str = "official",
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
) -> list[int]:
    """The ids of a conversation, <s> first; an assistant's turn ends with </s>.

    messages: `{"role": ..., "content": text}`, the role "user" and "assistant" in turn, before
        them at most one "system".
    add_generation_prompt: a reply is to be generated, so the last turn has to be the user's. The
        ids are the same: Mistral's models answer to [/INST].
    continue_final_message: the last turn is the assistant's, and left open: it has no </s>.

    A ValueError names the turn that is wrong.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {shown(format)}, expected one of {FORMATS}")
    if add_generation_prompt and continue_final_message:
        raise ValueError("add_generation_prompt and continue_final_message: give one, not both")
    system, turns = check_messages(messages)
    last = f"messages[{len(messages) - 1}]"
    if add_generation_prompt and turns[-1].role != "user":
        raise ValueError(f"{last} is the assistant's, but a reply is wanted; end with the user's")
    if continue_final_message and turns[-1].role != "assistant":
        raise ValueError(f"{last} is the user's, expected an assistant's to be continued")
    if format == "official":
        return _official_ids(tokenizer, system, turns, continue_final_message)
    if system is not None:
        raise ValueError(
            "messages[0] (system): the format 'hf' has no system prompt; take 'official', or put "
            "it into the first user message"
        )
    return _hf_ids(tokenizer, turns, continue_final_message)


def user_turn(
    tokenizer: MistralTokenizer, content: str, system: str | None = None, *, first: bool = True
) -> list[int]:
    """The ids of one user turn in the official format, <s> before them if it is the `first`.

    So that a program which keeps the cache feeds each turn alone: user turns in a row, each
    followed by the ids of its answer and </s>, are the `chat_ids` of the conversation. Its system
    prompt belongs to the first turn in v1, and to the last one in v2 and v3.
    """
    check_text(content)
    if system is not None:
        check_text(system)
    tags = _control_tags(tokenizer)
    if system and not first and tags is None:
        raise ValueError("system: in v1 it goes before the first user turn; start again to set it")
    start = [_bos_and_eos(tokenizer)[0]] if first else []
    return start + _user_ids(tokenizer, tags, content, system)


def check_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[str | None, list[Turn]]:
    """The system prompt, if there is one, and the turns: the user's first, then alternating."""
    if not isinstance(messages, (list, tuple)):
        raise ValueError(f"messages is {shown(messages)}, expected a list of messages")
    checked = [_check_message(f"messages[{i}]", message) for i, message in enumerate(messages)]
    system = checked[0].content if checked and checked[0].role == "system" else None
    skipped = 0 if system is None else 1
    turns = checked[skipped:]
    for i, turn in enumerate(turns):
        expected = ("user", "assistant")[i % 2]
        if turn.role != expected:
            raise ValueError(
                f"messages[{i + skipped}] has the role {turn.role!r}, expected {expected!r}: user "
                "and assistant alternate, the user first, a system message only before them"
            )
    if not turns:
        held = "no message" if system is None else "a system message only"
        raise ValueError(f"messages holds {held}, expected one of the user's")
    return system, turns


def _check_message(name: str, message: Any) -> Turn:
    if not isinstance(message, Mapping):
        hint = "; give one conversation at a time" if isinstance(message, (list, tuple)) else ""
        raise ValueError(f"{name} is {shown(message)}, expected a role and a content{hint}")
    missing = [key for key in ("role", "content") if message.get(key) is None]
    if missing:
        raise ValueError(f"{name} has no {missing[0]!r}, expected a role and a content")
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant"):
        raise ValueError(
            f"{name} has the role {shown(role)}, expected 'user', 'assistant' or 'system'"
        )
    others = [key for key in message if key not in ("role", "content") and message[key] is not None]
    if others:
        raise ValueError(
            f"{name} ({role}) has {others[0]!r} too, expected a role and a content alone; "
            "tools, images and names are not part of the format"
        )
    try:
        return Turn(role, check_text(content))
    except ValueError as error:
        raise ValueError(f"{name} ({role}): {error}") from None


def _official_ids(
    tokenizer: MistralTokenizer, system: str | None, turns: list[Turn], left_open: bool
) -> list[int]:
    tags = _control_tags(tokenizer)
    bos, eos = _bos_and_eos(tokenizer)
    last_user = (len(turns) - 1) // 2 * 2
    system_at = 0 if tags is None else last_user
    ids = [bos]
    for i, (role, content) in enumerate(turns):
        if role == "user":
            ids += _user_ids(tokenizer, tags, content, system if i == system_at else None)
            continue
        if not content:  # mistral-common refuses it too
            position = i + (system is not None)
            raise ValueError(f"messages[{position}] (assistant) is empty, expected a text")
        ids += tokenizer.encode(content if tags is None else content.rstrip(" "), False)
        ids += [eos]
    return ids[:-1] if left_open else ids


def _user_ids(
    tokenizer: MistralTokenizer, tags: tuple[int, int] | None, content: str, system: str | None
) -> list[int]:
    text = f"{system}\n\n{content}" if system else content
    if tags is None:
        return tokenizer.encode(f"[INST] {text} [/INST]", False)
    return [tags[0], *tokenizer.encode(text, False), tags[1]]


def _hf_ids(tokenizer: MistralTokenizer, turns: list[Turn], left_open: bool) -> list[int]:
    """One text, cut at its control tokens; each of the pieces is tokenized on its own."""
    if _control_tags(tokenizer) is not None:
        raise ValueError(
            "format 'hf' is for tokenizers of Mistral 7B v0.1 and v0.2, but in this one [INST] is "
            "a control token; take 'official'"
        )
    bos, eos = _bos_and_eos(tokenizer)
    ids, text = [bos], ""
    for role, content in turns[:-1] if left_open else turns:
        if role == "user":
            text += f"[INST] {content} [/INST]"
        else:
            ids += [*tokenizer.encode(text + content, False), eos]
            text = " "  # the template writes it after every </s>
    if left_open:
        text += turns[-1].content
    return ids + tokenizer.encode(text, False)


def _control_tags(tokenizer: MistralTokenizer) -> tuple[int, int] | None:
    """The ids of [INST] and [/INST] where they are control tokens: in v2 and v3."""
    if _control_id(tokenizer, "[SYSTEM_PROMPT]") is not None:
        raise ValueError(
            "the tokenizer has a control token [SYSTEM_PROMPT], as v7 and later ones do; their "
            "chat format is not supported, expected a tokenizer of Mistral 7B (v1, v2 or v3)"
        )
    opening, closing = _control_id(tokenizer, "[INST]"), _control_id(tokenizer, "[/INST]")
    return None if opening is None or closing is None else (opening, closing)


def _control_id(tokenizer: MistralTokenizer, piece: str) -> int | None:
    token_id = tokenizer.convert_tokens_to_ids(piece)
    return token_id if tokenizer.processor.is_control(token_id) else None


def _bos_and_eos(tokenizer: MistralTokenizer) -> tuple[int, int]:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None or eos is None:
        raise ValueError("the tokenizer lacks <s> or </s>; the chat format needs both")
    return bos, eos
