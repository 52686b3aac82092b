"""Text to ids and back, with a checkpoint's SentencePiece model or its tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from tinymistral.added_tokens import JSON_FILE, LARGEST_FILE, AddedTokens
from tinymistral.chat import chat_ids
from tinymistral.files import is_named, make_folder, read_bytes, read_json, whole_file
from tinymistral.files.consolidated import CONFIG_FILE, PARAMS_FILE
from tinymistral.files.hub import download_command, find_checkpoint
from tinymistral.files.recognition import refuse_folder
from tinymistral.renamed import Declared, how, refuse_unknown
from tinymistral.settings import TOKENIZER_FILE, refuse, warn_of_unknown
from tinymistral.streaming import StreamDecoder
from tinymistral.text import check_text, shown
from tinymistral.tokenizer_json import JsonVocabulary
from tinymistral.tokenizer_model import FILE_NAME, FILE_NAMES, SentencePieceVocabulary

# Embeddings are often padded to a multiple of 8 to 256; more ids than that are another tokenizer's.
MOST_PADDING = 255
NO_PIECE = "<no piece>"  # what is shown for an id of such padding
# Fields of tokenizer_config.json that count here; the others are in `settings`.
HONOURED = (
    *("add_bos_token", "add_eos_token", "add_prefix_space", "padding_side", "pad_token"),
    *("bos_token", "eos_token", "added_tokens_decoder", "additional_special_tokens"),
    *("extra_special_tokens", "legacy", "chat_template"),
)
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
    """A SentencePiece model, or a tokenizer.json, under the names that transformers' users know.

    model_file: the path of a `tokenizer.model`, or of a `tokenizer.json`.
    pad_token_id: the id that pads the shorter rows of a batch. Mistral has none; then </s> is
        used, and the attention mask marks the padding.
    added: tokens beside those of the model, such as <|im_start|>. `from_pretrained` reads them.
    model_vocab_size: ids from `len(self)` up to here have an embedding, but no piece: they decode
        to no text.

    Attributes that can be set: `padding_side`, "left" or "right"; `add_bos_token` and
    `add_eos_token`, whether a text begins with <s> and ends with </s>; `pad_token`, or
    `pad_token_id`. `from_pretrained` reads them from tokenizer_config.json.

    Added tokens are recognized in a text. Control tokens of the model file, such as <s>, are not;
    there they are plain text.
    """

    processor: SentencePieceVocabulary | JsonVocabulary
    added: AddedTokens
    vocab_size: int
    model_vocab_size: int
    bos_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None
    pad_token_id: int | None
    chat_template: str | None  # of the checkpoint; it only shows whether the format is Mistral's
    padding_side: str
    add_bos_token: bool
    add_eos_token: bool

    def __init__(
        self,
        model_file: str | Path,
        *,
        pad_token_id: int | None = None,
        added: AddedTokens | None = None,
        model_vocab_size: int = 0,
    ) -> None:
        path = Path(model_file)
        self.added = AddedTokens() if added is None else added
        self.chat_template = self.added.chat_template()
        kind = JsonVocabulary if path.suffix == ".json" else SentencePieceVocabulary
        self.processor = kind(read_bytes(path, LARGEST_FILE), path, self.added)
        self.padding_side = "left"
        self.add_bos_token, self.add_eos_token = self.processor.adds_bos_and_eos
        self.vocab_size = self.processor.vocab_size()
        # SentencePiece returns -1 if there is no such token.
        self.unk_token_id = _none_if_negative(self.processor.unk_id())
        self.added.settle(self.vocab_size, self._find_piece, self._is_control)
        self._length = max([self.vocab_size, *(i + 1 for i in self.added.by_id)])
        padded = model_vocab_size if model_vocab_size - len(self) <= MOST_PADDING else 0
        self.model_vocab_size = max(len(self), padded)
        self.bos_token_id = self._id_of("bos_token", self.processor.bos_id())
        self.eos_token_id = self._id_of("eos_token", self.processor.eos_id())
        self.pad_token_id = (
            self._id_of("pad_token", self.processor.pad_id())
            if pad_token_id is None
            else self.check_id(pad_token_id)
        )

    def _is_control(self, token_id: int) -> bool:
        """Return whether a piece of the vocabulary is a control token or <unk>."""
        return bool(self.processor.is_control(token_id) or self.processor.is_unknown(token_id))

    def _find_piece(self, piece: str) -> int | None:
        token_id: int = self.processor.piece_to_id(piece)
        found = self.processor.id_to_piece(token_id) == piece
        return token_id if found else None

    def control_id(self, piece: str) -> int | None:
        """Return the id of a control token of the vocabulary, such as [INST]; None without it."""
        token_id = self._find_piece(piece)
        return None if token_id is None or not self.processor.is_control(token_id) else token_id

    def _id_of(self, role: str, otherwise: int) -> int | None:
        """Return the id of the token that a checkpoint's files give a role, such as eos_token."""
        if role in self.added.roles:
            return self.convert_tokens_to_ids(self.added.roles[role])
        return _none_if_negative(otherwise)

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
        names = (*FILE_NAMES, JSON_FILE)
        found = [folder / name for name in names if is_named(folder / name)]
        if not found and is_named(folder / "tekken.json"):
            raise ValueError(
                f"{folder} has tekken.json alone, which only mistral-common reads; put the "
                f"model's {JSON_FILE} beside it, from its repository on the Hugging Face hub"
            )
        size = _vocab_size_of_model(folder)
        if not found:
            refuse_folder(folder)
            remedy = "copy that of the repository which the model comes from"
            if size in (0, 32000, 32768):  # not known, or a Mistral 7B's
                download = f"mistralai/Mistral-7B-v0.1 {FILE_NAME} --local-dir {folder}"
                remedy = (
                    "copy the SentencePiece model from the original Mistral repository, for v0.1 "
                    f"and v0.2: {download_command(download)}; for v0.3 from "
                    "mistralai/Mistral-7B-v0.3"
                )
            raise ValueError(f"{folder} has no {FILE_NAME} and no {JSON_FILE}; {remedy}")
        tokenizer = cls(
            found[0],
            pad_token_id=pad_token_id,
            added=AddedTokens.read(folder),
            model_vocab_size=size,
        )
        tokenizer._take_settings(folder / TOKENIZER_FILE)
        return tokenizer

    def _take_settings(self, path: Path) -> None:
        settings = self.added.settings
        try:
            refuse(TOKENIZER_FILE, settings)
            for name in ("padding_side", *self.processor.settings):
                if settings.get(name) is not None:
                    setattr(self, name, settings[name])
            self._check_settings(self.padding_side)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        warn_of_unknown(TOKENIZER_FILE, settings, HONOURED)

    def _check_settings(self, padding_side: str) -> None:
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {padding_side!r}, expected 'left' or 'right'")
        for name in ("add_bos_token", "add_eos_token"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected True or False")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if (token_id := getattr(self, name)) is not None:
                try:
                    self.check_id(token_id)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None

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

    def save_pretrained(self, folder: str | Path, *, raw: bool = False) -> None:
        """Write the model file, and the files read beside it, with the bytes that were read.

        `raw`: a tokenizer.model has the name that it has in a raw checkpoint, such as
        tokenizer.model.v3.
        """
        folder = Path(folder)
        make_folder(folder)
        own = self.processor.raw_file_name if raw else self.processor.file_name
        for name, content in (self.added.files | {own: self.processor.content}).items():
            with whole_file(folder / name) as temporary:
                temporary.write_bytes(content)

    def __len__(self) -> int:
        return self._length

    @cached_property
    def all_special_ids(self) -> list[int]:
        """The ids that stand for no text: control tokens, <unk>, and special added tokens."""
        ids = {*range(self.vocab_size), *self.added.by_id}
        return [i for i in sorted(ids) if self.is_special(i)]

    def is_special(self, token_id: int) -> bool:
        """Return whether an id stands for no text: a control token, <unk>, a special added one."""
        if token_id in self.added.by_id:
            return self.added.by_id[token_id].special
        return token_id < self.vocab_size and self._is_control(token_id)

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
        padding_side = self.padding_side if padding_side is None else padding_side
        self._check_settings(padding_side)
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not texts:
            raise ValueError(f"text is {shown(text)}, expected a text or a list of texts")
        if not isinstance(padding, bool):
            raise ValueError(f"padding is {padding!r}, expected True or False")
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
        fill = next(i for i in (self.pad_token_id, self.eos_token_id, 0) if i is not None)
        return BatchEncoding(
            input_ids=_padded(rows, longest, fill, padding_side),
            attention_mask=_padded(masks, longest, 0, padding_side),
        )

    def encode(
        self, text: str, add_special_tokens: bool = True, *, split_special_tokens: bool = False
    ) -> list[int]:
        """Return the ids of a text, after <s> unless `add_special_tokens` is false.

        `add_bos_token` and `add_eos_token` say whether there is <s>, and </s> at the end. With
        `split_special_tokens` added tokens in the text are plain text too.
        """
        check_text(text)
        processor = self.processor
        encode = processor.encode if split_special_tokens else processor.encode_with_added
        ids = encode(text)
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
            return self._piece(self.check_id(ids))
        return [self._piece(self.check_id(i)) for i in _one_dimensional(ids)]

    def _piece(self, token_id: int) -> str:
        if token_id in self.added.by_id:
            return self.added.by_id[token_id].content
        return self.processor.id_to_piece(token_id) if token_id < self.vocab_size else NO_PIECE

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int]:
        """Return the id of a piece, or of each; that of <unk> if it is not in the vocabulary."""
        if isinstance(tokens, str):
            added = self.added.id_of(check_text(tokens))
            return int(self.processor.piece_to_id(tokens)) if added is None else added
        if not isinstance(tokens, (list, tuple)):
            raise ValueError(f"tokens is {shown(tokens)}, expected a piece or a list of pieces")
        return [self.convert_tokens_to_ids(check_text(token)) for token in tokens]

    def check_id(self, token_id: int) -> int:
        """Return the id as a Python int; raise a ValueError unless the model can have it."""
        if not isinstance(token_id, (int, np.integer)) or isinstance(token_id, bool):
            raise ValueError(f"a token id is {shown(token_id)}, expected an integer")
        if not 0 <= token_id < self.model_vocab_size:
            raise ValueError(
                f"token id {token_id} is out of range, expected 0 to {self.model_vocab_size - 1}"
            )
        return int(token_id)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise a ValueError unless a model's `vocab_size` fits the tokenizer.

        It may end before the added tokens, if no text contains them, and after them by what the
        embedding is padded with.
        """
        if not self.vocab_size <= vocab_size <= self.model_vocab_size:
            raise ValueError(
                f"the tokenizer has {self.vocab_size} pieces and the model a vocabulary of "
                f"{vocab_size}, expected the same; take the {FILE_NAME} of the model's own folder"
            )


AutoTokenizer = MistralTokenizer  # its name in transformers' examples


def _none_if_negative(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None


def _vocab_size_of_model(folder: Path) -> int:
    """Return what a checkpoint's configuration says, or 0: a tokenizer needs none."""
    for name in (CONFIG_FILE, PARAMS_FILE):
        if is_named(folder / name):
            with suppress(ValueError):  # opening the model says what is wrong with the file
                size = read_json(folder / name).get("vocab_size")
                return size if isinstance(size, int) else 0
    return 0


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
