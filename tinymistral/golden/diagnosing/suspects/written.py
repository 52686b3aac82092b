"""Suspects about how texts and conversations become ids.

Where ids have to be made anew it takes the vocabulary; without it nothing can be told of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from tinymistral.golden.diagnosing.suspects.suspect import Suspect
from tinymistral.tokenizer import MistralTokenizer

Entry = Mapping[str, Any]
Tokenizer = MistralTokenizer | None
# What is answered to an entry of a case; None where it cannot be told.
Answer = Callable[[Entry, Tokenizer], Mapping[str, Any] | None]

BOS, EOS = 1, 2  # the same in all of Mistral's vocabularies

ASKED = ("text", "messages")

FOUND: list[Suspect] = []


def suspect(name: str, of: str, fix: str) -> Callable[[Answer], Answer]:
    """Enter a function into the list; `of` names the parts of a document that it answers to."""

    def enter(answer: Answer) -> Answer:
        def document(whole: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any] | None:
            told: dict[str, Any] = {}
            for part in of.split():
                for entry in whole.get(part, ()):
                    answered = answer(entry, tokenizer)
                    if answered is not None:
                        asked = {name: x for name, x in entry.items() if name in ASKED}
                        told.setdefault(part, []).append({**asked, **answered})
            return told or None

        says = " ".join((answer.__doc__ or "").split())
        FOUND.append(Suspect(name, says, fix, answers=document))
        return answer

    return enter


def suspects() -> Iterator[Suspect]:
    """Give all of them."""
    yield from FOUND


@suspect("bos-in-the-ids", "strings", "Put <s> before a text once, where the prompt is made.")
def _bos(entry: Entry, _: Tokenizer) -> Entry:
    """<s>, id 1, is put before the ids of each text."""
    return {"ids": [BOS, *entry["ids"]]}


@suspect(
    "no-space-before-the-text",
    "strings",
    "SentencePiece puts a space before a text: add_dummy_prefix is true in Mistral's model.",
)
def _no_prefix(entry: Entry, tokenizer: Tokenizer) -> Entry | None:
    """No space is put before the text, so that its first word is another token."""
    if tokenizer is None or not entry["text"]:
        return None
    space = tokenizer.encode("\n", False)  # the space, and a newline that joins with nothing
    return {"ids": tokenizer.encode("\n" + entry["text"], False)[len(space) :]}


@suspect(
    "unknown-for-bytes",
    "strings",
    "Write a character that is no piece as the bytes of its UTF-8, <0xE2> and so on.",
)
def _no_bytes(entry: Entry, tokenizer: Tokenizer) -> Entry | None:
    """Characters that are no pieces become <unk>, id 0, rather than their bytes."""
    if tokenizer is None:
        return None
    pieces = tokenizer.convert_ids_to_tokens(entry["ids"])
    ids: list[int] = []
    for token, piece in zip(entry["ids"], pieces, strict=True):
        if not re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
            ids.append(token)
        elif not ids or ids[-1] != 0:
            ids.append(0)
    return {"ids": ids}


@suspect(
    "control-tokens-read-from-text",
    "strings",
    "What is typed is text: encode `</s>` as its characters, and put control tokens in by id.",
)
def _control(entry: Entry, tokenizer: Tokenizer) -> Entry | None:
    """`<s>`, `</s>` and `[INST]` in a text are read as control tokens."""
    if tokenizer is None:
        return None
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    known = {n: tokenizer.convert_tokens_to_ids(n) for n in names}
    known = {name: token for name, token in known.items() if token or name == "<unk>"}
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, known))})", entry["text"]):
        ids += [known[part]] if part in known else tokenizer.encode(part, False)
    return {"ids": ids}


@suspect("text-stripped", "strings", "Encode a text as it is, with its spaces and newlines.")
def _stripped(entry: Entry, tokenizer: Tokenizer) -> Entry | None:
    """White space at the beginning and the end of a text is cut off."""
    if tokenizer is None:
        return None
    ids = tokenizer.encode(entry["text"].strip(), False)
    return {"ids": ids, "decoded": tokenizer.decode(ids)}


@suspect(
    "space-kept-in-decoding",
    "strings decodings",
    "Drop the space that SentencePiece puts before a text from the beginning of what is decoded.",
)
def _space_kept(entry: Entry, tokenizer: Tokenizer) -> Entry | None:
    """What is decoded begins with the space that was put before the text."""
    spaced = "text" in entry and bool(entry["ids"])
    if "text" not in entry:
        if tokenizer is None:
            return None
        spaced = any(p.startswith("▁") for p in tokenizer.convert_ids_to_tokens(entry["ids"][:1]))
    return {"ids": entry["ids"], "decoded": " " * spaced + entry["decoded"]}


@suspect(
    "decoding-stripped",
    "strings decodings",
    "Of what is decoded drop one space at the beginning, and no other white space.",
)
def _decoding_stripped(entry: Entry, _: Tokenizer) -> Entry:
    """White space at the beginning and the end of what is decoded is cut off."""
    return {"ids": entry["ids"], "decoded": entry["decoded"].strip()}


@suspect("bos-twice", "conversations", "A conversation begins with one <s>.")
def _bos_twice(entry: Entry, _: Tokenizer) -> Entry:
    """There are two <s> at the beginning: the template writes one, and the tokenizer another."""
    return {"ids": [BOS, *entry["ids"]]}


@suspect("bos-missing", "conversations", "A conversation begins with <s>, id 1.")
def _no_bos(entry: Entry, _: Tokenizer) -> Entry:
    """There is no <s> at the beginning."""
    return {"ids": entry["ids"][1:]}


@suspect("bos-before-every-turn", "conversations", "There is one <s>, before the first turn.")
def _bos_again(entry: Entry, _: Tokenizer) -> Entry:
    """After each answer, and its </s>, there is another <s>, as in Llama 2."""
    ids = entry["ids"]
    again = [(t, BOS) if t == EOS and n < len(ids) - 1 else (t,) for n, t in enumerate(ids)]
    return {"ids": list(chain.from_iterable(again))}


@suspect("eos-missing", "conversations", "Each answer of the assistant ends with </s>, id 2.")
def _no_eos(entry: Entry, _: Tokenizer) -> Entry:
    """Answers do not end with </s>."""
    return {"ids": [token for token in entry["ids"] if token != EOS]}


@suspect(
    "eos-after-the-prompt",
    "conversations",
    "</s>, id 2, ends answers alone: the answer to the last user's turn is still to come.",
)
def _eos_last(entry: Entry, _: Tokenizer) -> Entry:
    """</s> is put after the last user's turn, where the answer should begin."""
    asked = entry["messages"][-1]["role"] == "user"
    return {"ids": [*entry["ids"], *[EOS] * asked]}


@suspect(
    "eos-after-every-turn",
    "conversations",
    "</s>, id 2, ends answers alone: the user's turns end with [/INST].",
)
def _eos_always(entry: Entry, tokenizer: Tokenizer) -> Entry | None:
    """</s> is put after the user's turns too."""
    if tokenizer is None:
        return None
    answers = [m["content"] for m in entry["messages"] if m["role"] == "assistant"]
    *turns, rest = _cut(entry["ids"], EOS)
    if len(turns) != len(answers):
        return None
    ids: list[int] = []
    for turn, answer in zip(turns, answers, strict=True):
        written = tokenizer.encode(answer, False)
        asked = len(turn) - len(written)
        if turn[asked:] != written:
            return None
        ids += [*turn[:asked], EOS, *written, EOS]
    return {"ids": [*ids, *rest, *[EOS] * bool(rest)]}


def _cut(ids: Sequence[int], at: int) -> list[list[int]]:
    """Return what is between the tokens `at`, and what is before and after them."""
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == at:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


@suspect(
    "hf-spaces",
    "conversations",
    "Encode each turn by itself, as mistral-common does: `[INST] a [/INST]`, `b`, </s>; the chat "
    "template on the hub joins an answer to the text before it, and puts a space after </s>.",
)
def _hf(entry: Entry, tokenizer: Tokenizer) -> Entry | None:
    """The spaces are those of the hub's chat template of 2023, not mistral-common's."""
    if tokenizer is None:
        return None
    try:
        return {"ids": tokenizer.apply_chat_template(entry["messages"], format="hf")}
    except ValueError:  # a system prompt, which it does not know; or a later vocabulary
        return None


@suspect(
    "no-spaces-inside-inst",
    "conversations",
    "In v1 there is a space after [INST] and before [/INST].",
)
def _no_spaces(entry: Entry, tokenizer: Tokenizer) -> Entry | None:
    """The user's text stands between [INST] and [/INST] without spaces."""
    return _as_text(entry, tokenizer, "[INST]{}[/INST]")


@suspect(
    "inst-as-text",
    "conversations",
    "From v2 on [INST] and [/INST] are control tokens: put their ids around the user's text.",
)
def _typed(entry: Entry, tokenizer: Tokenizer) -> Entry | None:
    """[INST] and [/INST] are encoded as text, as in v1, though they are control tokens."""
    if tokenizer is None or not tokenizer.processor.is_control(
        tokenizer.convert_tokens_to_ids("[INST]")
    ):
        return None
    return _as_text(entry, tokenizer, "[INST] {} [/INST]")


def _as_text(entry: Entry, tokenizer: Tokenizer, form: str) -> Entry | None:
    if tokenizer is None:
        return None
    messages = _merged(entry, first=True)
    ids = [BOS]
    for message in messages:
        if message["role"] == "user":
            ids += tokenizer.encode(form.format(message["content"]), False)
        else:
            ids += [*tokenizer.encode(message["content"], False), EOS]
    return {"ids": ids}


@suspect(
    "system-prompt-in-the-first-turn",
    "conversations",
    "From v2 on the system prompt stands in the last user's turn.",
)
def _system_first(entry: Entry, tokenizer: Tokenizer) -> Entry | None:
    """The system prompt is put before the first user's text."""
    if tokenizer is None:
        return None
    return {"ids": tokenizer.apply_chat_template(_merged(entry, first=True))}


@suspect(
    "system-prompt-in-the-last-turn",
    "conversations",
    "In v1 the system prompt stands in the first user's turn.",
)
def _system_last(entry: Entry, tokenizer: Tokenizer) -> Entry | None:
    """The system prompt is put before the last user's text."""
    if tokenizer is None:
        return None
    return {"ids": tokenizer.apply_chat_template(_merged(entry, first=False))}


@suspect(
    "system-prompt-dropped",
    "conversations",
    "Put the system prompt and two newlines before a user's text: v1 the first, from v2 the last.",
)
def _no_system(entry: Entry, tokenizer: Tokenizer) -> Entry | None:
    """The system prompt is left out."""
    if tokenizer is None:
        return None
    messages = [message for message in entry["messages"] if message["role"] != "system"]
    return {"ids": tokenizer.apply_chat_template(messages)}


def _merged(entry: Entry, first: bool) -> list[dict[str, str]]:
    """Return the messages with the system prompt in the first user's text, or in the last one's."""
    system = [m["content"] for m in entry["messages"] if m["role"] == "system"]
    messages = [dict(m) for m in entry["messages"] if m["role"] != "system"]
    users = [message for message in messages if message["role"] == "user"]
    if system and system[0]:
        user = users[0 if first else -1]
        user["content"] = f"{system[0]}\n\n{user['content']}"
    return messages
