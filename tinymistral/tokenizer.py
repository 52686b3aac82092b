"""Text to ids and back, with the SentencePiece model `tokenizer.model` of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import sentencepiece

from tinymistral.chat import chat_ids
from tinymistral.files import is_named, make_folder, read_bytes, read_json, whole_file
from tinymistral.files.hub import find_checkpoint
from tinymistral.renamed import how, refuse_unknown
from tinymistral.settings import TOKENIZER_FILE, Declared, refuse, warn_of_unknown
from tinymistral.streaming import StreamDecoder
from tinymistral.text import check_text, shown

FILE_NAME = "tokenizer.model"
# In a raw checkpoint the name may end with the version of the vocabulary.
FILE_NAMES = (FILE_NAME, *(f"{FILE_NAME}.{version}" for version in ("v3", "v2", "v1")))
LARGEST_FILE = 100_000_000  # bytes; that of v0.1 is half a million
TEMPLATE_FILE = "chat_template.jinja"
# Fields of tokenizer_config.json that count here; the others are in `settings`.
HONOURED = (
    *("add_bos_token", "add_eos_token", "add_prefix_space", "padding_side", "pad_token"),
    *("bos_token", "eos_token", "added_tokens_decoder", "additional_special_tokens"),
    *("extra_special_tokens", "legacy", "chat_template"),
)
# Appended to a SentencePiece model it replaces one field: normalizer_spec.add_dummy_prefix = false.
NO_SPACE_BEFORE_TEXT = b"\x1a\x02\x18\x00"
Ids = Sequence[int] | np.ndarray  # integers, one dimension


class BatchEncoding(dict[str, Any]):
    """The inputs of a call, `model(**model_inputs)`; its entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            says = f"no {name!r} here, only {', '.join(self)}{how(name)}"
            raise AttributeError(says) from None


class MistralTokenizer(Declared):
    """A SentencePiece model under the names that users of transformers know.

    model_file: the path of a `tokenizer.model`.
    pad_token_id: the id that pads the shorter rows of a batch. Mistral has none; then </s> is
        used, and the attention mask marks the padding.

    Attributes that can be set: `padding_side`, "left" or "right"; `add_bos_token` and
    `add_eos_token`, whether a text begins with <s> and ends with </s>; `pad_token`, or
    `pad_token_id`. `from_pretrained` reads them from tokenizer_config.json.

    Control tokens such as <s> are not recognized in a text; there they are plain text.
    """

    processor: sentencepiece.SentencePieceProcessor
    vocab_size: int
    bos_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None
    pad_token_id: int | None
    chat_template: str | None  # of the checkpoint; it only shows whether the format is Mistral's
    padding_side: str
    add_bos_token: bool
    add_eos_token: bool

    def __init__(self, model_file: str | Path, *, pad_token_id: int | None = None) -> None:
        self._model = read_bytes(Path(model_file), LARGEST_FILE)
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.load_from_serialized_proto(self._model)
        except RuntimeError as error:
            raise ValueError(
                f"{model_file} ({len(self._model)} bytes) is not a SentencePiece model, "
                f"expected the {FILE_NAME} of a Mistral checkpoint; download it again"
            ) from error
        self.vocab_size = self.processor.vocab_size()
        self.chat_template = None
        self.padding_side, self.add_bos_token, self.add_eos_token = "left", True, False
        # SentencePiece returns -1 if there is no such token.
        self.bos_token_id = _none_if_negative(self.processor.bos_id())
        self.eos_token_id = _none_if_negative(self.processor.eos_id())
        self.unk_token_id = _none_if_negative(self.processor.unk_id())
        self.pad_token_id = (
            _none_if_negative(self.processor.pad_id())
            if pad_token_id is None
            else self.check_id(pad_token_id)
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        revision: str = "main",
        *,
        pad_token_id: int | None = None,
        **unknown: Any,
    ) -> MistralTokenizer:
        """Open the tokenizer of a checkpoint: a folder, or a hub name in the local cache."""
        known = ("name_or_path", "revision", "pad_token_id")
        refuse_unknown("MistralTokenizer.from_pretrained", unknown, known)
        folder = find_checkpoint(name_or_path, revision)
        found = [folder / name for name in FILE_NAMES if is_named(folder / name)]
        if not found:
            only = ", only tokenizer.json" if (folder / "tokenizer.json").exists() else ""
            raise ValueError(
                f"{folder} has no {FILE_NAME}{only}; the SentencePiece model is needed, copy it "
                "from the original Mistral repository, for v0.1 and v0.2: "
                f"hf download mistralai/Mistral-7B-v0.1 {FILE_NAME} --local-dir {folder}; "
                "for v0.3 from mistralai/Mistral-7B-v0.3"
            )
        tokenizer = cls(found[0], pad_token_id=pad_token_id)
        tokenizer._read_settings(folder)
        return tokenizer

    def _read_settings(self, folder: Path) -> None:
        """Take over what tokenizer_config.json says, if a checkpoint has one."""
        path, template = folder / TOKENIZER_FILE, folder / TEMPLATE_FILE
        settings = read_json(path) if is_named(path) else {}
        try:
            refuse(TOKENIZER_FILE, settings)
            for name in ("padding_side", "add_bos_token", "add_eos_token"):
                if settings.get(name) is not None:
                    setattr(self, name, settings[name])
            self._check_settings()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        warn_of_unknown(TOKENIZER_FILE, settings, HONOURED)
        if settings.get("add_prefix_space") is False:
            self.processor.load_from_serialized_proto(self._model + NO_SPACE_BEFORE_TEXT)
        if is_named(template):
            self.chat_template = read_bytes(template, LARGEST_FILE).decode("utf-8", "replace")
        elif settings.get("chat_template"):  # a text, or several with names
            self.chat_template = str(settings["chat_template"])

    def _check_settings(self) -> None:
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {self.padding_side!r}, expected 'left' or 'right'")
        for name in ("add_bos_token", "add_eos_token"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected True or False")

    @property
    def bos_token(self) -> str | None:
        """The piece of `bos_token_id`."""
        return self._token_of(self.bos_token_id)

    @property
    def eos_token(self) -> str | None:
        """The piece of `eos_token_id`."""
        return self._token_of(self.eos_token_id)

    @property
    def unk_token(self) -> str | None:
        """The piece of `unk_token_id`."""
        return self._token_of(self.unk_token_id)

    @property
    def pad_token(self) -> str | None:
        """The piece of `pad_token_id`; setting it sets that."""
        return self._token_of(self.pad_token_id)

    @pad_token.setter
    def pad_token(self, token: str | None) -> None:
        token_id = None if token is None else self.convert_tokens_to_ids(token)
        if token_id is not None and self._token_of(token_id) != token:
            raise ValueError(f"pad_token: {shown(token)} is not in the vocabulary; take another")
        self.pad_token_id = token_id

    def _token_of(self, token_id: int | None) -> str | None:
        return None if token_id is None else self.convert_ids_to_tokens(token_id)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `tokenizer.model` into the folder, with the bytes that were read."""
        folder = Path(folder)
        make_folder(folder)
        with whole_file(folder / FILE_NAME) as temporary:
            temporary.write_bytes(self._model)

    def __len__(self) -> int:
        return self.vocab_size

    @cached_property
    def all_special_ids(self) -> list[int]:
        """The ids that stand for no text: control tokens and <unk>."""
        is_control, is_unknown = self.processor.is_control, self.processor.is_unknown
        return [i for i in range(self.vocab_size) if is_control(i) or is_unknown(i)]

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool = True,
        padding_side: str | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        **unknown: Any,
    ) -> BatchEncoding:
        """Return the inputs of the model: `input_ids` and `attention_mask`, both (B, T), int64.

        A single text is a batch of one. Shorter rows are padded on the `padding_side`, by default
        the attribute of that name. Without padding, rows of unequal length are returned as lists.
        """
        known = ("text", "padding", "padding_side", "add_special_tokens", "return_tensors")
        refuse_unknown("MistralTokenizer", unknown, known)
        self._check_settings()
        padding_side = self.padding_side if padding_side is None else padding_side
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not texts:
            raise ValueError(f"text is {shown(text)}, expected a text or a list of texts")
        if not isinstance(padding, bool):
            raise ValueError(f"padding is {padding!r}, expected True or False")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {padding_side!r}, expected 'left' or 'right'")
        if return_tensors not in (None, "np"):
            raise ValueError(
                f"return_tensors is {return_tensors!r}, but NumPy arrays are returned: "
                "leave it out or give 'np'"
            )
        rows = [self.encode(row, add_special_tokens) for row in texts]
        masks = [[1] * len(row) for row in rows]
        longest = max(len(row) for row in rows)
        if not padding and any(len(row) != longest for row in rows):
            return BatchEncoding(input_ids=rows, attention_mask=masks)
        return BatchEncoding(
            input_ids=_padded(rows, longest, self._fill_id, padding_side),
            attention_mask=_padded(masks, longest, 0, padding_side),
        )

    @property
    def _fill_id(self) -> int:
        candidates = (self.pad_token_id, self.eos_token_id, 0)
        return next(i for i in candidates if i is not None)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text, after <s> unless `add_special_tokens` is false.

        `add_bos_token` and `add_eos_token` say whether there is <s>, and </s> at the end.
        """
        ids: list[int] = self.processor.encode(check_text(text))
        if add_special_tokens and self.add_bos_token and self.bos_token_id is not None:
            ids = [self.bos_token_id, *ids]
        if add_special_tokens and self.add_eos_token and self.eos_token_id is not None:
            ids = [*ids, self.eos_token_id]
        return ids

    def decode(self, ids: Ids, skip_special_tokens: bool = False) -> str:
        """Return the text of a sequence of ids.

        Special tokens are shown as their piece, such as </s>, or skipped. The space that
        SentencePiece puts before a text is removed at the start of the sequence, unless a special
        token is shown before it. Each byte that is not valid UTF-8 becomes U+FFFD.
        """
        stream = StreamDecoder(self, skip_special_tokens)
        return "".join([stream.push(i) for i in _one_dimensional(ids)]) + stream.flush()

    def batch_decode(
        self, sequences: Iterable[Ids], skip_special_tokens: bool = False
    ) -> list[str]:
        """Return the text of each sequence, or of each row of an array (B, T)."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        format: str = "official",
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        tools: Sequence[Any] | None = None,
        **unknown: Any,
    ) -> list[int]:
        """Return the ids of a conversation with an Instruct model, <s> first; see `chat.chat_ids`.

        `format` is "official", as in mistral-common, or "hf", as in the hub's template for
        Instruct v0.1. The model takes a batch: `model.generate([ids])`.
        """
        if tools:
            raise ValueError("tools: tools and tool calls are not supported; leave this out")
        known = ("messages", "format", "add_generation_prompt", "continue_final_message")
        refuse_unknown("apply_chat_template", unknown, known)
        if tokenize is not True:
            raise ValueError(
                f"tokenize is {shown(tokenize)}, but only ids are returned: tokenizing a "
                "conversation's text would give other ids; decode the ids to look at it"
            )
        return chat_ids(
            self,
            messages,
            format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Ids) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: int | Ids) -> str | list[str]:
        """Return the piece of an id, or of each; U+2581 in a piece stands for a space."""
        if isinstance(ids, (int, np.integer)):
            return str(self.processor.id_to_piece(self.check_id(ids)))
        return [self.processor.id_to_piece(self.check_id(i)) for i in _one_dimensional(ids)]

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int]:
        """Return the id of a piece, or of each; that of <unk> if it is not in the vocabulary."""
        if isinstance(tokens, str):
            return int(self.processor.piece_to_id(check_text(tokens)))
        if not isinstance(tokens, (list, tuple)):
            raise ValueError(f"tokens is {shown(tokens)}, expected a piece or a list of pieces")
        return [self.processor.piece_to_id(check_text(token)) for token in tokens]

    def check_id(self, token_id: int) -> int:
        """Return the id as a Python int; raise a ValueError unless it is in the vocabulary."""
        if not isinstance(token_id, (int, np.integer)) or isinstance(token_id, bool):
            raise ValueError(f"a token id is {shown(token_id)}, expected an integer")
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(
                f"token id {token_id} is out of range, expected 0 to {self.vocab_size - 1}"
            )
        return int(token_id)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise a ValueError unless the model's `vocab_size` is that of the tokenizer.

        If the tokenizer's is larger, ids may have no embedding; if the model's is, generated ids
        may have no text.
        """
        if vocab_size != self.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.vocab_size} pieces and the model a vocabulary of "
                f"{vocab_size}, expected the same; take the {FILE_NAME} of the model's own folder"
            )


AutoTokenizer = MistralTokenizer  # its name in transformers' examples


def _none_if_negative(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None


def _one_dimensional(ids: Ids) -> Sequence[int]:
    if isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu":
        return ids.tolist()
    if isinstance(ids, (list, tuple)):
        return ids
    raise ValueError(
        f"ids is {shown(ids)}, expected a list or an integer array of one dimension; "
        "batch_decode takes several sequences"
    )


def _padded(rows: list[list[int]], width: int, fill: int, side: str) -> np.ndarray:
    array = np.full((len(rows), width), fill, dtype=np.int64)
    for n, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        array[n, start : start + len(row)] = row
    return array
