"""The tokenizer that a GGUF file's metadata holds, as the files of a checkpoint.

tokenizer.ggml.model        what becomes of it
llama                       tokenizer.model: SentencePiece's pieces, their scores and types
gpt2                        tokenizer.json: pieces with a letter for each byte, and their merges

Beside it tokenizer_config.json, with the chat template and the special tokens. Pieces that follow
the last ordinary one were added after the vocabulary had been made, such as <|im_end|>: they become
added tokens, which are recognized in a text, as they do in the checkpoints that were converted.
Source: https://github.com/ggml-org/llama.cpp, src/llama-vocab.cpp, conversion/base.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.added_tokens import JSON_FILE, AddedTokens
from tinymistral.settings import TOKENIZER_FILE
from tinymistral.text import short
from tinymistral.tokenizer_json import JsonVocabulary
from tinymistral.tokenizer_model import FILE_NAME, SentencePieceVocabulary

# Types of tokens, with the numbers that SentencePiece gives them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
NAMED = (UNKNOWN, CONTROL, USER_DEFINED)  # which are not made by merging letters

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


_DIGITS = {"type": "Digits", "individual_digits": True}
# tokenizer.ggml.pre -> what cuts a text into words, before it cuts them as GPT-2 does or alone.
BEFORE: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [],
    "smollm": [_DIGITS],
    "llama-bpe": [_split(_LLAMA_3)],
    "tekken": [_split(_TEKKEN)],
}
ALONE = ("llama-bpe", "tekken")  # these begin with <s>, and take a word that is a piece as it is

KNOWN = {  # keys after "tokenizer.ggml." that are used, or say nothing of a text's ids
    *("model", "pre", "tokens", "scores", "token_type", "merges", "add_space_prefix"),
    *("add_bos_token", "add_eos_token", "bos_token_id", "eos_token_id", "eot_token_id"),
    *("eom_token_id", "padding_token_id", "unknown_token_id", "seperator_token_id"),
    *("mask_token_id", "cls_token_id", "prefix_token_id", "suffix_token_id", "middle_token_id"),
    *("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id", "fim_pad_token_id"),
    *("fim_rep_token_id", "fim_sep_token_id", "token_type_count"),
}
REFUSED = ("remove_extra_whitespaces", "add_sep_token")  # if they are true


def tokenizer_files(metadata: Mapping[str, Any], vocab_size: int, path: Path) -> dict[str, bytes]:
    """Return the names and contents of the files of a tokenizer; ValueError if it is not known.

    vocab_size: of the model, which may have rows for more ids. path: of the GGUF file, for errors.
    """
    ggml = "tokenizer.ggml."
    own = {k.removeprefix(ggml): v for k, v in metadata.items() if k.startswith(ggml)}
    for key, value in own.items():
        if key not in KNOWN and not (key in REFUSED and value is False):
            raise ValueError(f"{ggml}{key}: {short(value)} is not supported")
    model = own.get("model")
    if model in (None, "none", "no_vocab"):
        return {}
    tokens = own.get("tokens")
    if not isinstance(tokens, list) or not 1 <= len(set(tokens)) == len(tokens) <= vocab_size:
        raise ValueError(
            f"{ggml}tokens: expected 1 to {vocab_size} tokens, which the embedding has, none twice"
        )
    types = [int(kind) for kind in _numbers(own, "token_type")]
    if not {*types} <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE}:
        raise ValueError(f"{ggml}token_type: expected numbers from {NORMAL} to {BYTE}")
    unknown = special_id(metadata, "unknown")
    if UNKNOWN not in types and isinstance(unknown, int) and 0 <= unknown < len(types):
        types[unknown] = UNKNOWN  # llama.cpp's converter calls it a control token, if files list it
    size = 1 + max((i for i, kind in enumerate(types) if kind in (NORMAL, BYTE)), default=-1)
    named = [_added(i, tokens[i], kind) for i, kind in enumerate(types) if kind in NAMED]
    settings: dict[str, Any] = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        i = special_id(metadata, key)
        if isinstance(i, int) and 0 <= i < len(tokens):
            settings[f"{name}_token"] = tokens[i]
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        settings["chat_template"] = template
    begins = own.get("add_bos_token", model == "llama" or own.get("pre") in ALONE) is True
    ends = own.get("add_eos_token") is True
    first, last = ("bos_token",) * begins, ("eos_token",) * ends
    if model == "llama":
        settings |= {"add_bos_token": begins, "add_eos_token": ends}
        settings["tokenizer_class"] = "LlamaTokenizer"
        settings["added_tokens_decoder"] = {
            str(token["id"]): token for token in named if token["id"] >= size
        }
        name, content = FILE_NAME, _sentencepiece(own, tokens[:size], types)
        SentencePieceVocabulary(content, path, AddedTokens())  # raises ValueError if it is none
    elif model == "gpt2":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        frame = [[settings[name] for name in names if name in settings] for names in (first, last)]
        name, content = JSON_FILE, _json(own, tokens[:size], named, *frame)
        JsonVocabulary(content, path, AddedTokens())
    else:
        raise ValueError(f"{ggml}model: {short(model)} is not supported; expected llama or gpt2")
    return {name: content, TOKENIZER_FILE: json.dumps(settings, indent=2).encode("utf-8")}


def special_id(metadata: Mapping[str, Any], name: str) -> Any:
    """Return the id of `bos`, `eos`, `padding` and so on; what is absent is as in llama.cpp."""
    llama = metadata.get("tokenizer.ggml.model") == "llama"
    absent = {"unknown": 0, "bos": 1, "eos": 2}.get(name) if llama else None
    return metadata.get(f"tokenizer.ggml.{name}_token_id", absent)


def _numbers(own: Mapping[str, Any], key: str) -> np.ndarray:
    """Return the numbers of a key, one for each token."""
    found = own.get(key)
    if not isinstance(found, np.ndarray) or len(found) != len(own["tokens"]):
        raise ValueError(f"tokenizer.ggml.{key}: expected a number for each token")
    return found


def _added(i: int, content: str, kind: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": content, "special": kind != USER_DEFINED, **flags}


def _json(
    own: Mapping[str, Any],
    tokens: list[str],
    named: list[dict[str, Any]],
    first: list[str],
    last: list[str],
) -> bytes:
    pre = own.get("pre")
    if not isinstance(pre, str) or pre not in BEFORE:
        raise ValueError(
            f"tokenizer.ggml.pre: {short(pre)} is not supported; "
            f"expected one of {', '.join(BEFORE)}"
        )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    ids = vocabulary | {token["content"]: token["id"] for token in named}
    begin, end = (
        [{"SpecialToken": {"id": t, "type_id": 0}} for t in part] for part in (first, last)
    )
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    fields = {
        "version": "1.0",
        "added_tokens": named,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*BEFORE[pre], byte_level | {"use_regex": pre not in ALONE}],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*begin, one, *end],
            "pair": [*begin, one, two, *end],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]}
                for token in first + last
            },
        },
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": pre in ALONE,
            "vocab": vocabulary,
            "merges": own.get("merges"),
        },
    }
    return json.dumps(fields, ensure_ascii=False).encode("utf-8")


def _sentencepiece(own: Mapping[str, Any], tokens: list[str], types: list[int]) -> bytes:
    """Return a SentencePiece model, sentencepiece_model.proto, of BPE without normalization."""
    content = b""
    for token, score, kind in zip(tokens, _numbers(own, "scores").tolist(), types, strict=False):
        piece = _field(1, 2, token.encode("utf-8")) + _field(2, 5, np.float32(score).tobytes())
        content += _field(1, 2, piece + _field(3, 0, kind))
    trainer = _field(3, 0, 2) + _field(35, 0, int(BYTE in types))  # BPE; byte_fallback
    space = own.get("add_space_prefix", True) is True
    normalizer = _field(1, 2, b"identity") + _field(3, 0, int(space)) + _field(4, 0, 0)
    return content + _field(2, 2, trainer) + _field(3, 2, normalizer)


def _field(number: int, wire: int, value: bytes | int) -> bytes:
    """Return a field of a protocol buffer; wire type 0 is an integer, 2 has its length before."""
    if isinstance(value, int):
        return _varint(8 * number + wire) + _varint(value)
    return _varint(8 * number + wire) + (_varint(len(value)) if wire == 2 else b"") + value


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)
