"""The vocabulary of a tokenizer.json, for checkpoints that have no tokenizer.model.

The package `tokenizers` cuts a text into pieces. What else is asked of a vocabulary is here, under
the names that SentencePieceProcessor has. Mistral's family has two kinds of pieces:

with ▁ for a space          as in tokenizer.model, with <0x0A> and the like for single bytes
with a letter for a byte    as in GPT-2, "Ġthe" for " the": Mistral Nemo and later models
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tinymistral.added_tokens import JSON_FILE, LARGEST_ID, AddedTokens
from tinymistral.files import parse_json
from tinymistral.settings import TOKENIZER_FILE
from tinymistral.text import one_line, short

_BYTE = re.compile("<0x[0-9A-F]{2}>")
# GPT-2's letter for each byte: itself where it can be seen, else one of U+0100 and on.
_SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_UNSEEN = [byte for byte in range(256) if byte not in _SEEN]
BYTE_OF_LETTER = {chr(byte): byte for byte in _SEEN} | {
    chr(0x100 + n): byte for n, byte in enumerate(_UNSEEN)
}


class JsonVocabulary:
    """What a tokenizer asks of a SentencePieceProcessor, answered from a tokenizer.json.

    The added tokens of the file are put into `added`. Raises ValueError, in one line, for a file
    that cannot be read or is of another kind, and where `tokenizers` is not installed.
    """

    file_name = raw_file_name = JSON_FILE
    settings = ()  # fields of tokenizer_config.json that count: the file says itself what it adds

    def __init__(self, content: bytes, file: Path, added: AddedTokens) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ValueError(
                f"{file}: the package tokenizers, which reads it, is not installed; "
                "to install it: pip install 'tinymistral[tokenizers]'"
            ) from None
        try:
            self._fields: dict[str, Any] = parse_json(content)
            self._tokenizer = Tokenizer.from_str(content.decode("utf-8"))
            self._model: dict[str, Any] = self._fields["model"]
            decoder = json.dumps(self._fields["decoder"], ensure_ascii=False)
        except Exception as error:  # `tokenizers` raises no narrower one
            raise ValueError(f"{file}: cannot be read: {one_line(error)}") from None
        self._has_byte_letters = '"ByteLevel"' in decoder
        self._ids: dict[str, int] = self._model["vocab"]
        if not isinstance(self._ids, dict) or not (self._has_byte_letters or "▁" in decoder):
            raise ValueError(f"{file}: its pieces are not of a kind that Mistral's models have")
        self._pieces = {i: piece for piece, i in self._ids.items()}
        if self.vocab_size() - 1 > LARGEST_ID:
            raise ValueError(f"{file}: a piece has an id over {LARGEST_ID}, the largest")
        if self.vocab_size() > 100_000 and added.settings.get("fix_mistral_regex"):
            # In transformers it changes how a file of this size divides a text.
            path = file.with_name(TOKENIZER_FILE)
            raise ValueError(f"{path}: fix_mistral_regex is not supported; expected none")
        self.content, self._file, self._added = content, file, added
        tokens = added.take(self._fields, file)
        self._controls = {i for i, token in tokens.items() if token.special and i in self._pieces}

    @property
    def adds_bos_and_eos(self) -> tuple[bool, bool]:
        """Whether the file says that a text begins with <s>, and that it ends with </s>."""
        alone = self._tokenizer.encode("x", add_special_tokens=False).ids
        framed = self._tokenizer.encode("x").ids
        return framed[: len(alone)] != alone, framed[-len(alone) :] != alone

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text in which nothing is an added token."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def encode_with_added(self, text: str) -> list[int]:
        """Return the ids of a text, with those of the added tokens in it."""
        ids: list[int] = self._recognizing.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of pieces at the start of a text."""
        text: str = self._plain.decode(ids, skip_special_tokens=False)
        return text

    @cached_property
    def _plain(self) -> Any:
        return self._with([])

    @cached_property
    def _recognizing(self) -> Any:
        """The tokenizer of the file without its control tokens, and with tokens of other files."""
        listed = self._fields.get("added_tokens") or []
        own = {entry["id"]: entry for entry in listed if entry["id"] not in self._controls}
        others = {
            i: token._asdict() | {"id": i, "normalized": False}
            for i, token in self._added.by_id.items()
            if i not in own
        }
        tokenizer = self._with([entry for _, entry in sorted((own | others).items())])
        for i, token in self._added.by_id.items():
            if tokenizer.token_to_id(token.content) != i:
                raise ValueError(
                    f"{self._file}: cannot give the added token {short(token.content)} the id {i}; "
                    "expected ids that follow those of the vocabulary without a gap"
                )
        return tokenizer

    def _with(self, added_tokens: list[dict[str, Any]]) -> Any:
        fields = self._fields | {"added_tokens": added_tokens}
        return type(self._tokenizer).from_str(json.dumps(fields))

    def vocab_size(self) -> int:
        """Return one more than the largest id of a piece."""
        return max(self._pieces, default=-1) + 1

    def id_to_piece(self, token_id: int) -> str:
        """Return the piece of an id, "" if there is none."""
        return self._pieces.get(token_id, "")

    def piece_to_id(self, piece: str) -> int:
        """Return the id of a piece, that of the unknown piece if there is none."""
        return self._ids.get(piece, max(self.unk_id(), 0))

    def bos_id(self) -> int:
        """Return the id of <s>, -1 if there is none."""
        return self._ids.get("<s>", -1)

    def eos_id(self) -> int:
        """Return the id of </s>, -1 if there is none."""
        return self._ids.get("</s>", -1)

    def unk_id(self) -> int:
        """Return the id of the unknown piece, -1 if there is none."""
        return self._ids.get(self._model.get("unk_token") or "", -1)

    def pad_id(self) -> int:
        """Return -1: the file names no token for padding."""
        return -1

    def is_control(self, token_id: int) -> bool:
        """Return whether an id of the vocabulary is a special token other than <unk>."""
        return token_id in self._controls and not self.is_unknown(token_id)

    def is_unknown(self, token_id: int) -> bool:
        """Return whether an id is that of the unknown piece."""
        return token_id == self.unk_id()

    def is_byte(self, token_id: int) -> bool:
        """Return whether a piece stands for bytes, which need not be whole characters."""
        single = self._model.get("byte_fallback") and _BYTE.fullmatch(self.id_to_piece(token_id))
        return self._has_byte_letters or bool(single)

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes that such a piece stands for."""
        piece = self.id_to_piece(token_id)
        if not self._has_byte_letters:
            return bytes.fromhex(piece[3:5])
        if all(letter in BYTE_OF_LETTER for letter in piece):
            return bytes(BYTE_OF_LETTER[letter] for letter in piece)
        return piece.encode("utf-8")
