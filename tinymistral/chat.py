"""The Instruct format, as the ids that Mistral's chat models were trained on, and conversations.

A *turn* is what the user or the assistant says, in one message or several in a row. Functions here
return ids, never text: tokenizing a text again would give other ids and a second <s>. A message is
plain text even where it contains `</s>` or `[INST]`; control tokens come only from the code here,
between the turns.

The formats, for a user's a, the assistant's b and the user's c; `…` is a text tokenized on its own:

official        <s> `[INST] a [/INST]` `b` </s> `[INST] c [/INST]`      v1: Mistral 7B v0.1 and v0.2
official        <s> [INST] `a` [/INST] `b` </s> [INST] `c` [/INST]      v2 and v3: Mistral 7B v0.3
hf              <s> `[INST] a [/INST]b` </s> ` [INST] c [/INST]`        v1 only

In v1 `[INST]` is text; in v2 and v3 it is a control token, which shows which version a tokenizer
is. The official formats are those of mistral-common's instruct tokenizers. A system prompt and two
newlines go before the user's text: in v1 the first user's, in v2 and v3 the last one's. As there,
two newlines join the messages of a turn, a system message between two of the user's keeps them
apart, and a conversation that begins with the assistant gets an empty user turn.

`hf` is the chat template of Mistral-7B-Instruct-v0.1 on the Hugging Face hub, as published in 2023
(later ones differ in spaces), with the tokenizer.json beside it. It has no system prompt, and user
and assistant must alternate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tinymistral.files import write_json
from tinymistral.streaming import StreamDecoder
from tinymistral.text import check_text, shown

if TYPE_CHECKING:
    from tinymistral.heads import MistralForCausalLM
    from tinymistral.tokenizer import MistralTokenizer

FORMATS = ("official", "hf")


class Message(NamedTuple):
    """One message, checked; a list is of its text parts, and a prefix is to be continued."""

    role: str
    content: str | list[str]
    prefix: bool


def chat_ids(
    tokenizer: MistralTokenizer,
    messages: Sequence[Mapping[str, Any]],
    format: str = "official",
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
) -> list[int]:
    """Return the ids of a conversation, <s> first; an assistant's turn ends with </s>.

    messages: `{"role": "user", "assistant" or "system", "content": a text}`; in the official format
        also a list of text parts, `{"type": "text", "text": ...}`, which two newlines join. A
        system message may not follow an assistant's. `"prefix": True` in the last message, if it is
        the assistant's, means the same as `continue_final_message`.
    add_generation_prompt: check that the last turn is the user's, as a reply will be generated.
        The ids are the same: Mistral's models answer after [/INST].
    continue_final_message: the last turn is the assistant's, and no </s> is put after it.

    A ValueError names the message that is wrong.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {shown(format)}, expected one of {FORMATS}")
    if add_generation_prompt and continue_final_message:
        raise ValueError("add_generation_prompt and continue_final_message: give one, not both")
    checked = _check_messages(messages)
    last, name = checked[-1], f"messages[{len(checked) - 1}]"
    if add_generation_prompt and last.role == "assistant":
        raise ValueError(f"{name} is the assistant's, but a reply is wanted; end with the user's")
    if continue_final_message and last.role != "assistant":
        raise ValueError(f"{name} is the {last.role}'s, expected an assistant's to be continued")
    if format == "hf":
        return _hf_ids(tokenizer, checked, continue_final_message)
    return _official_ids(tokenizer, checked, continue_final_message or last.prefix)


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


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    if not isinstance(messages, (list, tuple)):
        raise ValueError(f"messages is {shown(messages)}, expected a list of messages")
    if not messages:
        raise ValueError("messages holds no message, expected one of the user's")
    return [_check_message(f"messages[{i}]", message) for i, message in enumerate(messages)]


def _check_message(name: str, message: Any) -> Message:
    if not isinstance(message, Mapping):
        hint = "; give one conversation at a time" if isinstance(message, (list, tuple)) else ""
        raise ValueError(f"{name} is {shown(message)}, expected a role and a content{hint}")
    role, content = message.get("role"), message.get("content")
    if role is None:
        raise ValueError(f"{name} has no 'role', expected a role and a content")
    if role not in ("system", "user", "assistant"):
        raise ValueError(
            f"{name} has the role {shown(role)}, expected 'user', 'assistant' or 'system'; tools "
            "are not supported"
        )
    name = f"{name} ({role})"
    for key, value in message.items():
        nothing = value is None or (isinstance(value, list) and not value)
        if key not in ("role", "content", "prefix") and not nothing:
            raise ValueError(
                f"{name} has {key!r} too, expected a role and a content alone; tool calls, images "
                "and names are not supported"
            )
    prefix = message.get("prefix") or False
    if prefix and (prefix is not True or role != "assistant"):
        raise ValueError(
            f"{name} has the prefix {shown(prefix)}, expected True, in an assistant's message"
        )
    if content is None:
        raise ValueError(f"{name} has no 'content', expected a role and a content")
    try:
        if isinstance(content, (list, tuple)):
            return Message(role, [_check_part(part) for part in content], prefix)
        return Message(role, check_text(content), prefix)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _check_part(part: Any) -> str:
    match part:
        case {"type": "text", "text": text} if len(part) == 2:
            return check_text(text)
        case {"type": kind} if kind != "text":
            raise ValueError(
                f"a part has the type {shown(kind)}, expected 'text'; images and sounds are not "
                "supported"
            )
    raise ValueError(f"a part is {shown(part)}, expected a type and a text alone")


def _official_ids(
    tokenizer: MistralTokenizer, messages: list[Message], left_open: bool
) -> list[int]:
    tags = _control_tags(tokenizer)
    bos, eos = _bos_and_eos(tokenizer)
    _check_order(messages)
    system = "\n\n".join(_text([m]) for m in messages if m.role == "system" and m.content)
    by_role = groupby(messages, key=lambda message: message.role)
    turns = [(role, _text(group)) for role, group in by_role if role != "system"]
    if not turns or turns[0][0] == "assistant":
        turns.insert(0, ("user", ""))
    last_user = max(i for i, (role, _) in enumerate(turns) if role == "user")
    system_at = 0 if tags is None else last_user
    ids = [bos]
    for i, (role, text) in enumerate(turns):
        if role == "user":
            ids += _user_ids(tokenizer, tags, text, system if i == system_at else None)
        else:
            ids += _plain_ids(tokenizer, text if tags is None else text.rstrip(" "))
            ids += [eos]
    return ids[:-1] if left_open else ids


def _check_order(messages: list[Message]) -> None:
    """Raise a ValueError for what mistral-common refuses too."""
    if len(messages) == 1 and messages[0].role == "assistant":
        raise ValueError("messages holds one message, the assistant's; expected one of the user's")
    for i, message in enumerate(messages):
        name = f"messages[{i}] ({message.role})"
        if message.role == "system" and i and messages[i - 1].role == "assistant":
            raise ValueError(f"{name} comes after an assistant's; put it before or after a user's")
        if message.role == "assistant" and not _text([message]):
            raise ValueError(f"{name} is empty, expected a text")
        if message.prefix and i < len(messages) - 1:
            raise ValueError(f"{name} has the prefix True, which is for the last message alone")


def _text(messages: Iterable[Message]) -> str:
    """Return what messages of one role say, as one text; empty ones leave no trace in it."""
    texts: list[str] = []
    for message in messages:
        texts += [message.content] if isinstance(message.content, str) else message.content
    return "\n\n".join(filter(None, texts))


def _user_ids(
    tokenizer: MistralTokenizer, tags: tuple[int, int] | None, content: str, system: str | None
) -> list[int]:
    text = f"{system}\n\n{content}" if system else content
    if tags is None:
        return _plain_ids(tokenizer, f"[INST] {text} [/INST]")
    return [tags[0], *_plain_ids(tokenizer, text), tags[1]]


def _hf_ids(tokenizer: MistralTokenizer, messages: list[Message], left_open: bool) -> list[int]:
    """Split the text at its control tokens and tokenize each piece on its own."""
    if _control_tags(tokenizer) is not None:
        raise ValueError(
            "format 'hf' is for tokenizers of Mistral 7B v0.1 and v0.2, but in this one [INST] is "
            "a control token; take 'official'"
        )
    bos, eos = _bos_and_eos(tokenizer)
    ids, text = [bos], ""
    for i, (role, content, prefix) in enumerate(messages):
        if role != ("user", "assistant")[i % 2]:
            raise ValueError(
                f"messages[{i}] has the role {role!r}; in the format 'hf' user and assistant "
                "alternate, the user first, with no system prompt; take 'official'"
            )
        if prefix or not isinstance(content, str):
            given = "a prefix" if prefix else "a list of parts as its content"
            expected = "continue_final_message" if prefix else "a text"
            raise ValueError(
                f"messages[{i}] has {given}, which the format 'hf' does not know; give {expected}"
            )
        if role == "user":
            text += f"[INST] {content} [/INST]"
        elif left_open and i == len(messages) - 1:
            text += content
        else:
            ids += [*_plain_ids(tokenizer, text + content), eos]
            text = " "  # the template writes a space after every </s>
    return ids + _plain_ids(tokenizer, text)


def _plain_ids(tokenizer: MistralTokenizer, text: str) -> list[int]:
    """Return the ids of a text in which added tokens are plain text too."""
    return tokenizer.encode(text, False, split_special_tokens=True)


def _control_tags(tokenizer: MistralTokenizer) -> tuple[int, int] | None:
    """Return the ids of [INST] and [/INST] where they are control tokens: in v2 and v3."""
    if tokenizer.control_id("[SYSTEM_PROMPT]") is not None:
        raise ValueError(
            "the tokenizer has a control token [SYSTEM_PROMPT], as v7 and later ones do; their "
            "chat format is not supported, expected a tokenizer of Mistral 7B (v1, v2 or v3)"
        )
    if tokenizer.chat_template and "[INST]" not in tokenizer.chat_template:
        raise ValueError(
            "the model's chat template is not Mistral's, it has no [INST]; conversations in "
            "another format are not supported: write the format out, and continue it as a text"
        )
    opening, closing = tokenizer.control_id("[INST]"), tokenizer.control_id("[/INST]")
    return None if opening is None or closing is None else (opening, closing)


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
        _control_tags(tokenizer)  # raises where the format is not supported
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
        the answer ends there and the conversation can go on. Before the first token, the
        conversation is as if the message had not been given.
        """
        first = not self.ids
        new = user_turn(self.tokenizer, content, self.system if first else None, first=first)
        eos = self.model.config.eos_token_id
        ends = eos if isinstance(eos, list) else [eos]
        ids, cache = self.ids + new, self.cache
        steps = self.model.generate_stream(
            [ids], past_key_values=cache, progress=progress, **options
        )
        decoder, start = StreamDecoder(self.tokenizer), time.perf_counter()
        said: list[tuple[int, str]] = []  # each token, and the text that it completes
        rest = ""
        # Whatever happens to the cache until there is an answer: an empty one is right, only slow.
        self.cache = self.model.new_cache(rows=1)
        try:
            for step in steps:
                token = int(step.tokens[0])
                said.append((token, decoder.push(token)))
                yield said[-1][1]
            rest = decoder.flush()
            yield rest
        finally:
            if said:
                tokens, texts = zip(*said, strict=True)
                end = [] if tokens[-1] in ends else [self.tokenizer.eos_token_id or 0]
                turns = [
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": "".join(texts) + rest},
                ]
                vars(self).update(  # at once, so that an interrupt leaves no half of a turn
                    messages=self.messages + turns,
                    ids=[*ids, *tokens, *end],
                    cache=cache,
                    seconds=time.perf_counter() - start,
                    new_tokens=len(tokens),
                )

    def save(self, file: Path) -> None:
        """Write the messages as JSON; the file appears complete or not at all."""
        write_json(file, {"messages": self.messages})


def is_instruct(folder: Path, tokenizer: MistralTokenizer) -> bool:
    """Return whether a checkpoint seems to be an Instruct model: by its chat template or its name.

    The name is that of the folder, or of the repository whose snapshot it is; raw checkpoints have
    no template.
    """
    names = (folder.name, folder.parent.parent.name)
    return bool(tokenizer.chat_template) or any("instruct" in name.lower() for name in names)
