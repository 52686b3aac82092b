"""The vocabulary of a tokenizer.model, a SentencePiece model."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from tinymistral.added_tokens import AddedTokens

FILE_NAME = "tokenizer.model"
# The version by the newest control token that a vocabulary has; v1 has none of these.
VERSIONS = {"[SYSTEM_PROMPT]": "v7", "[PREFIX]": "v3", "[INST]": "v2"}
# In a raw checkpoint the name may end with the version.
FILE_NAMES = (FILE_NAME, *(f"{FILE_NAME}.{version}" for version in (*VERSIONS.values(), "v1")))
# Appended to a SentencePiece model it replaces one field: normalizer_spec.add_dummy_prefix = false.
NO_SPACE_BEFORE_TEXT = b"\x1a\x02\x18\x00"


class SentencePieceVocabulary(SentencePieceProcessor):
    """A SentencePieceProcessor, and what else `MistralTokenizer` asks of a vocabulary.

    Raises ValueError, in one line, for a file that is no SentencePiece model.
    """

    file_name = FILE_NAME
    settings = ("add_bos_token", "add_eos_token")  # fields of tokenizer_config.json that count
    adds_bos_and_eos = True, False  # whether a text begins with <s> and ends with </s> without them

    def __init__(self, content: bytes, file: Path, added: AddedTokens) -> None:
        super().__init__()
        self.content, self._file, self._added = content, file, added
        no_space = added.settings.get("add_prefix_space") is False
        try:
            self.load_from_serialized_proto(content + NO_SPACE_BEFORE_TEXT * no_space)
            self.id_to_piece(list(range(self.vocab_size())))
        except (RuntimeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{file} ({len(content)} bytes) is not a SentencePiece model in UTF-8, "
                f"expected the {FILE_NAME} of a Mistral checkpoint; download it again"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:  # for pickle: how the base class does it varies
        return type(self), (self.content, self._file, self._added)

    def encode_with_added(self, text: str) -> list[int]:
        """Return the ids of a text, with those of the added tokens in it."""
        ids: list[int] = []
        for part, token in self._added.split(text):
            if part:
                ids += (self._later if ids else self).encode(part)
            if token is not None:
                ids.append(token)
        return ids

    @cached_property
    def _later(self) -> SentencePieceProcessor:
        """What encodes a part of a text that follows an added token."""
        if self._added.settings.get("legacy", True):
            return self
        return SentencePieceProcessor(model_proto=self.content + NO_SPACE_BEFORE_TEXT)

    def bytes_of(self, token_id: int) -> bytes:
        """Return the byte that a piece such as <0x0A> stands for."""
        return bytes.fromhex(self.id_to_piece(token_id)[3:5])

    @property
    def raw_file_name(self) -> str:
        """The name in a raw checkpoint: there nothing else says the version, if it is not v1."""
        for control, version in VERSIONS.items():
            if self.is_control(self.piece_to_id(control)):
                return f"{FILE_NAME}.{version}"
        return FILE_NAME
