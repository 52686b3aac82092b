"""Mistakes in encoding texts and conversations, and in decoding ids.

Some can be made only with the vocabulary, to encode anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from tinymistral.mistakes.mistake import mistake
from tinymistral.tokenizer import MistralTokenizer

Entry = Mapping[str, Any]
Tokenizer = MistralTokenizer | None

BOS, EOS = 1, 2  # the same in all of Mistral's vocabularies


@mistake("strings")
def bos_in_the_ids(entry, _):
    """<s>, id 1, is put before the ids of each text.
    Fix: Put <s> before a text once, where the prompt is made."""
    return {"ids": [BOS, *entry["ids"]]}


@mistake("strings", needs_vocabulary=True)
def no_space_before_the_text(entry, tokenizer):
    """No space is put before the text, so its first word becomes another token.
    Fix: SentencePiece puts a space before a text: add_dummy_prefix is true in Mistral's model."""
    if not entry["text"]:
        return None
    space = tokenizer.encode("\n", False)  # the space, and a newline, which merges with nothing
    return {"ids": tokenizer.encode("\n" + entry["text"], False)[len(space) :]}


@mistake("strings", needs_vocabulary=True)
def unknown_for_bytes(entry, tokenizer):
    """Characters that are not in the vocabulary become <unk>, id 0, rather than their bytes.
    Fix: Encode a character that is not in the vocabulary as its UTF-8 bytes, <0xE2> and so on."""
    pieces = tokenizer.convert_ids_to_tokens(entry["ids"])
    ids = []
    for token, piece in zip(entry["ids"], pieces, strict=True):
        if not re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
            ids.append(token)
        elif not ids or ids[-1] != 0:
            ids.append(0)
    return {"ids": ids}


@mistake("strings", needs_vocabulary=True)
def control_tokens_read_from_text(entry, tokenizer):
    """`<s>`, `</s>` and `[INST]` in a text are read as control tokens.
    Fix: What is typed is text: encode `</s>` as its characters, and insert control tokens by id."""
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    known = {n: tokenizer.convert_tokens_to_ids(n) for n in names}
    known = {name: token for name, token in known.items() if token or name == "<unk>"}
    ids = []
    for part in re.split(f"({'|'.join(map(re.escape, known))})", entry["text"]):
        ids += [known[part]] if part in known else tokenizer.encode(part, False)
    return {"ids": ids}


@mistake("strings", needs_vocabulary=True)
def text_stripped(entry, tokenizer):
    """White space at the beginning and the end of a text is removed.
    Fix: Encode a text as it is, with its spaces and newlines."""
    ids = tokenizer.encode(entry["text"].strip(), False)
    return {"ids": ids, "decoded": tokenizer.decode(ids)}


@mistake("strings", "decodings")
def space_kept_in_decoding(entry, tokenizer):
    """Decoded text begins with the space that SentencePiece put before the text.
    Fix: Remove one space, which SentencePiece adds, from the beginning of decoded text."""
    spaced = "text" in entry and bool(entry["ids"])
    if "text" not in entry:
        if tokenizer is None:
            return None
        spaced = any(p.startswith("▁") for p in tokenizer.convert_ids_to_tokens(entry["ids"][:1]))
    return {"ids": entry["ids"], "decoded": " " * spaced + entry["decoded"]}


@mistake("strings", "decodings")
def decoding_stripped(entry, _):
    """White space at the beginning and the end of decoded text is removed.
    Fix: Remove one space at the beginning of decoded text, and no other white space."""
    return {"ids": entry["ids"], "decoded": entry["decoded"].strip()}


@mistake("conversations")
def bos_twice(entry, _):
    """There are two <s> at the beginning: one from the template, one from the tokenizer.
    Fix: A conversation begins with one <s>."""
    return {"ids": [BOS, *entry["ids"]]}


@mistake("conversations")
def bos_missing(entry, _):
    """There is no <s> at the beginning.
    Fix: A conversation begins with <s>, id 1."""
    return {"ids": entry["ids"][1:]}


@mistake("conversations")
def bos_before_every_turn(entry, _):
    """Each </s> after an answer is followed by another <s>, as in Llama 2.
    Fix: Use one <s>, before the first turn."""
    ids = entry["ids"]
    again = [(t, BOS) if t == EOS and n < len(ids) - 1 else (t,) for n, t in enumerate(ids)]
    return {"ids": list(chain.from_iterable(again))}


@mistake("conversations")
def eos_missing(entry, _):
    """Answers do not end with </s>.
    Fix: Each answer of the assistant ends with </s>, id 2."""
    return {"ids": [token for token in entry["ids"] if token != EOS]}


@mistake("conversations")
def eos_after_the_prompt(entry, _):
    """</s> is put after the last user's turn, where the answer should begin.
    Fix: </s>, id 2, ends only answers: the answer to the last user's turn is still to come."""
    of_user = entry["messages"][-1]["role"] == "user"
    return {"ids": [*entry["ids"], *[EOS] * of_user]}


@mistake("conversations", needs_vocabulary=True)
def eos_after_every_turn(entry, tokenizer):
    """</s> is put after the user's turns too.
    Fix: </s>, id 2, ends only answers: the user's turns end with [/INST]."""
    answers = [m["content"] for m in entry["messages"] if m["role"] == "assistant"]
    *turns, rest = _cut(entry["ids"], EOS)
    if len(turns) != len(answers):
        return None
    ids = []
    for turn, answer in zip(turns, answers, strict=True):
        of_answer = tokenizer.encode(answer, False)
        prompt = len(turn) - len(of_answer)
        if turn[prompt:] != of_answer:
            return None
        ids += [*turn[:prompt], EOS, *of_answer, EOS]
    return {"ids": [*ids, *rest, *[EOS] * bool(rest)]}


def _cut(ids: Sequence[int], at: int) -> list[list[int]]:
    """Split ids at each token `at`, which is left out."""
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == at:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


@mistake("conversations", needs_vocabulary=True)
def hf_spaces(entry, tokenizer):
    """The spaces are those of the hub's chat template of 2023, not mistral-common's.
    Fix: Encode each turn by itself, as mistral-common does: `[INST] a [/INST]`, `b`, </s>; the chat
    template on the hub joins an answer to the text before it, and puts a space after </s>."""
    try:
        return {"ids": tokenizer.apply_chat_template(entry["messages"], format="hf")}
    except ValueError:  # a system prompt, or a later vocabulary: it supports neither
        return None


@mistake("conversations", needs_vocabulary=True)
def no_spaces_inside_inst(entry, tokenizer):
    """There are no spaces between [INST], the user's text and [/INST].
    Fix: In v1 put a space after [INST] and before [/INST]."""
    return _encoded(entry, tokenizer, "[INST]{}[/INST]")


@mistake("conversations", needs_vocabulary=True)
def inst_as_text(entry, tokenizer):
    """[INST] and [/INST] are encoded as text, as in v1, though they are control tokens.
    Fix: From v2 on [INST] and [/INST] are control tokens: put their ids around the user's text."""
    if not tokenizer.processor.is_control(tokenizer.convert_tokens_to_ids("[INST]")):
        return None
    return _encoded(entry, tokenizer, "[INST] {} [/INST]")


def _encoded(entry: Entry, tokenizer: MistralTokenizer, form: str) -> Entry:
    """Encode the user's messages as text in this form."""
    ids = [BOS]
    for message in _with_system(entry, first=True):
        if message["role"] == "user":
            ids += tokenizer.encode(form.format(message["content"]), False)
        else:
            ids += [*tokenizer.encode(message["content"], False), EOS]
    return {"ids": ids}


@mistake("conversations", needs_vocabulary=True)
def system_prompt_in_the_first_turn(entry, tokenizer):
    """The system prompt is put before the first user's text.
    Fix: From v2 on put the system prompt in the last user's turn."""
    return {"ids": tokenizer.apply_chat_template(_with_system(entry, first=True))}


@mistake("conversations", needs_vocabulary=True)
def system_prompt_in_the_last_turn(entry, tokenizer):
    """The system prompt is put before the last user's text.
    Fix: In v1 put the system prompt in the first user's turn."""
    return {"ids": tokenizer.apply_chat_template(_with_system(entry, first=False))}


@mistake("conversations", needs_vocabulary=True)
def system_prompt_dropped(entry, tokenizer):
    """The system prompt is left out.
    Fix: Put the system prompt and two newlines before the first user's text in v1, before the last
    from v2 on."""
    messages = [message for message in entry["messages"] if message["role"] != "system"]
    return {"ids": tokenizer.apply_chat_template(messages)}


def _with_system(entry: Entry, first: bool) -> list[dict[str, str]]:
    """Return the messages with the system prompt in the first user's text, or in the last one's."""
    system = [m["content"] for m in entry["messages"] if m["role"] == "system"]
    messages = [dict(m) for m in entry["messages"] if m["role"] != "system"]
    users = [message for message in messages if message["role"] == "user"]
    if system and system[0]:
        user = users[0 if first else -1]
        user["content"] = f"{system[0]}\n\n{user['content']}"
    return messages
