"""The Instruct format, as the ids that Mistral's chat models were trained on, and conversations.

A *turn* is one user or assistant message. Functions here return ids, never text: tokenizing a text
again would give other ids and a second <s>. A message is plain text even where it contains `</s>`
or `[INST]`; control tokens come only from the code here, between the messages.

The formats, for a user's a, the assistant's b and the user's c; `…` is a text tokenized on its own:

official        <s> `[INST] a [/INST]` `b` </s> `[INST] c [/INST]`      v1: Mistral 7B v0.1 and v0.2
official        <s> [INST] `a` [/INST] `b` </s> [INST] `c` [/INST]      v2 and v3: Mistral 7B v0.3
hf              <s> `[INST] a [/INST]b` </s> ` [INST] c [/INST]`        v1 only

In v1 `[INST]` is text; in v2 and v3 it is a control token, which shows which version a tokenizer
is. The official formats are those of mistral-common's instruct tokenizers. A system prompt and two
newlines go before the user's text: in v1 the first user's, in v2 and v3 the last one's.

`hf` is the chat template of Mistral-7B-Instruct-v0.1 on the Hugging Face hub, as published in 2023
(later ones differ in spaces), with the tokenizer.json beside it. It has no system prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tinymistral.files import read_json, write_json
from tinymistral.streaming import StreamDecoder
from tinymistral.text import check_text, shown

if TYPE_CHECKING:
    from tinymistral.heads import MistralForCausalLM
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
    """Return the ids of a conversation, <s> first; an assistant's turn ends with </s>.

    messages: `{"role": ..., "content": text}`, the role "user" and "assistant" in turn, before
        them at most one "system".
    add_generation_prompt: check that the last turn is the user's, as a reply will be generated.
        The ids are the same: Mistral's models answer after [/INST].
    continue_final_message: the last turn is the assistant's, and no </s> is put after it.

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
    """Return the ids of one user turn in the official format, with <s> if it is the `first`.

    A program that keeps the cache need compute each turn only once: the user turns, each followed
    by the ids of its answer and </s>, are the `chat_ids` of the conversation. The system prompt
    belongs to the first turn in v1, and to the last one in v2 and v3.
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
    """Return the system prompt, if any, and the turns: the user's first, then alternating."""
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
    """Split the text at its control tokens and tokenize each piece on its own."""
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
            text = " "  # the template writes a space after every </s>
    if left_open:
        text += turns[-1].content
    return ids + tokenizer.encode(text, False)


def _control_tags(tokenizer: MistralTokenizer) -> tuple[int, int] | None:
    """Return the ids of [INST] and [/INST] where they are control tokens: in v2 and v3."""
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


class Conversation:
    """A conversation with an Instruct model in the official format; each token is computed once.

    The rolling cache is kept between turns, so a turn costs only its own tokens. For this an
    answer is kept as the ids that were generated; tokenizing its text again may give other ids.

    The system prompt goes before the first message. The format of v2 and v3 has it before the
    last one, but then the cache could not be used again.

    Attributes: `messages`, as `apply_chat_template` takes them (an answer is empty where the model
    ended it at once); `ids`, those of the whole conversation; `cache`; `seconds` and `new_tokens`
    of the last answer.
    """

    def __init__(
        self, model: MistralForCausalLM, tokenizer: MistralTokenizer, system: str | None = None
    ):
        """Begin a conversation, with a system prompt if there is one."""
        self.model, self.tokenizer, self.system = model, tokenizer, system
        self.messages: list[dict[str, str]] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self.ids: list[int] = []
        self.cache = model.new_cache(rows=1)
        self.seconds, self.new_tokens = 0.0, 0

    def ask(
        self,
        content: str,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Generator[str, None, None]:
        """Add a user's message, and yield the text of the answer as it is generated.

        The options are those of `generate`. If the caller stops reading, or an exception is raised,
        the answer ends there and the conversation can go on. Before the first token, the message is
        removed again.
        """
        first = not self.ids
        new = user_turn(self.tokenizer, content, self.system if first else None, first=first)
        eos = self.model.config.eos_token_id
        ends = eos if isinstance(eos, list) else [eos]
        steps = self.model.generate_stream(
            [self.ids + new], past_key_values=self.cache, progress=progress, **options
        )
        self.messages.append({"role": "user", "content": content})
        self.ids += new
        decoder, answer = StreamDecoder(self.tokenizer), ""
        self.new_tokens, start = 0, time.perf_counter()
        try:
            for step in steps:
                token = int(step.tokens[0])
                self.ids.append(token)
                self.new_tokens += 1
                text = decoder.push(token)
                answer += text
                yield text
            text = decoder.flush()
            answer += text
            yield text
        finally:
            self.seconds = time.perf_counter() - start
            if self.new_tokens:
                if self.ids[-1] not in ends:
                    self.ids.append(self.tokenizer.eos_token_id or 0)
                self.messages.append({"role": "assistant", "content": answer})
            else:  # the cache may hold part of the message: compute the conversation again
                self.messages.pop()
                del self.ids[len(self.ids) - len(new) :]
                self.cache = self.model.new_cache(rows=1)

    def save(self, file: Path) -> None:
        """Write the messages as JSON; the file appears complete or not at all."""
        write_json(file, {"messages": self.messages})


def is_instruct(folder: Path) -> bool:
    """Return whether a checkpoint seems to be an Instruct model: by its chat template or its name.

    The name is that of the folder, or of the repository whose snapshot it is; raw checkpoints have
    no template.
    """
    names = (folder.name, folder.parent.parent.name)
    if (
        any("instruct" in name.lower() for name in names)
        or (folder / "chat_template.jinja").exists()
    ):
        return True
    settings = folder / "tokenizer_config.json"
    return settings.exists() and bool(read_json(settings).get("chat_template"))
