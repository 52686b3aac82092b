"""Tokens beside the vocabulary of a tokenizer: those that a fine-tune adds, such as <|im_start|>.

tokenizer_config.json       added_tokens_decoder: {"32000": {"content": "<|im_end|>", ...}, ...}
special_tokens_map.json     {"eos_token": "<|im_end|>", ...}
added_tokens.json           {"<|im_end|>": 32000, ...}
tokenizer.json              added_tokens: [{"id": 32000, "content": "<|im_end|>", ...}, ...]

The last three count only where the first lists no tokens, as in transformers 5
(`_from_pretrained` in tokenization_utils_base.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tinymistral.files import is_named, json_object, read_bytes
from tinymistral.settings import TOKENIZER_FILE
from tinymistral.text import shown

ROLES_FILE = "special_tokens_map.json"
IDS_FILE = "added_tokens.json"
JSON_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
LARGEST_FILE = 100_000_000  # bytes; the tokenizer.json of 131,072 tokens is 17 million
LARGEST_ID = 2**20 - 1  # ids are counted up to the largest: one in a file must not take long
ROLES = ("bos_token", "eos_token", "pad_token")


class AddedToken(NamedTuple):
    """A token that is looked for in a text before the text is cut into pieces."""

    content: str
    special: bool = False  # it stands for no text: decoding can skip it
    lstrip: bool = False  # it takes the white space before it too
    rstrip: bool = False  # and that after it
    single_word: bool = False  # it is found only where no letter or digit touches it


class AddedTokens:
    """The added tokens of a checkpoint, and what its files say of them.

    Attributes: `by_id`, the tokens by their ids; `roles`, from a name of ROLES to the content of
    its token; `settings`, the fields of tokenizer_config.json; `files`, the names and contents of
    the files that were read.
    """

    def __init__(self) -> None:
        self.by_id: dict[int, AddedToken] = {}
        self.roles: dict[str, str] = {}
        self.settings: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self._special: list[str] = []

    @classmethod
    def read(cls, folder: Path) -> AddedTokens:
        """Read the files of a folder; ValueError for one that is not as it should be."""
        added = cls()
        if is_named(template := folder / TEMPLATE_FILE):
            added.files[TEMPLATE_FILE] = read_bytes(template, LARGEST_FILE)
        settings = added.settings = added._read(folder / TOKENIZER_FILE)
        added._read_roles(folder / TOKENIZER_FILE, settings)
        extra = ("additional_special_tokens", "extra_special_tokens")
        for name in [name for name in extra if settings.get(name)]:
            for token in _items(settings[name], folder / TOKENIZER_FILE, name):
                added._special.append(_token(token, folder / TOKENIZER_FILE, name).content)
        if isinstance(listed := settings.get("added_tokens_decoder"), dict):
            for i, token in listed.items():
                added._add(i, token, folder / TOKENIZER_FILE)
            return added
        added._read_roles(folder / ROLES_FILE, added._read(folder / ROLES_FILE))
        for content, i in added._read(folder / IDS_FILE).items():
            added._add(i, content, folder / IDS_FILE)
        added.take(added._read(folder / JSON_FILE), folder / JSON_FILE)
        return added

    def take(self, fields: Mapping[str, Any], path: Path) -> dict[int, AddedToken]:
        """Add the added tokens of a tokenizer.json; return them by their ids."""
        tokens = {}
        for token in _items(fields.get("added_tokens") or [], path, "added_tokens"):
            i = token.get("id") if isinstance(token, Mapping) else None
            tokens[int(i or 0)] = self._add(i, token, path)
        return tokens

    def _read(self, path: Path) -> dict[str, Any]:
        if not is_named(path):
            return {}
        content = self.files[path.name] = read_bytes(path, LARGEST_FILE)
        return json_object(content, path)

    def _read_roles(self, path: Path, fields: Mapping[str, Any]) -> None:
        for name in ROLES:
            if fields.get(name):
                self.roles[name] = _token(fields[name], path, name).content

    def _add(self, token_id: Any, token: Any, path: Path) -> AddedToken:
        if not re.fullmatch("[0-9]{1,10}", str(token_id)) or int(token_id) > LARGEST_ID:
            raise ValueError(
                f"{path}: an added token has the id {shown(token_id)}, expected 0 to {LARGEST_ID}"
            )
        added = self.by_id[int(token_id)] = _token(token, path, f"token {token_id}")
        return added

    def settle(
        self, size: int, find: Callable[[str], int | None], is_control: Callable[[int], bool]
    ) -> None:
        """Fit the tokens to a vocabulary of `size` pieces; `find` returns the id of one, or None.

        A token that is a piece has the piece's id; one that is a control token of the vocabulary is
        no added token. One without an id, that has a role or is special, gets the next id.
        """
        special = dict.fromkeys([*self.roles.values(), *self._special])
        listed = {token.content for token in self.by_id.values()}
        added = {}
        for i, token in self.by_id.items():
            piece = find(token.content)
            if piece is None or not is_control(piece):
                found = token._replace(special=token.special or token.content in special)
                added[i if piece is None else piece] = found
        for content in special:
            if content not in listed and find(content) is None:
                added[max([size, *(i + 1 for i in added)])] = AddedToken(content, special=True)
        self.by_id = added

    def chat_template(self) -> str | None:
        """Return the template in Jinja that the files have for conversations, if there is one."""
        if TEMPLATE_FILE in self.files:
            return self.files[TEMPLATE_FILE].decode("utf-8", "replace")
        template = self.settings.get("chat_template")  # a text, or several with names
        return str(template) if template else None

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Yield the parts of a text, perhaps empty, each with the id of the token after it."""
        end = 0
        for match in self._pattern.finditer(text) if self.by_id else ():
            yield text[end : match.start()], self._ids[match[match.lastindex or 0]]
            end = match.end()
        yield text[end:], None

    def id_of(self, content: str) -> int | None:
        """Return the id of the token with this content, if there is one."""
        return self._ids.get(content)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token.content: i for i, token in self.by_id.items()}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """The regular expression that finds a token, the longest first; its content is a group."""
        patterns = []
        for token in sorted(self.by_id.values(), key=lambda token: -len(token.content)):
            pattern = f"({re.escape(token.content)})"
            if token.single_word:
                pattern = rf"(?<!\w){pattern}(?!\w)"
            before, after = (r"\s*" if strip else "" for strip in (token.lstrip, token.rstrip))
            patterns.append(before + pattern + after)
        return re.compile("|".join(patterns))


def _items(value: Any, path: Path, name: str) -> list[Any]:
    if not isinstance(value, (list, dict)):
        raise ValueError(f"{path}: {name} is {shown(value)}, expected a list of tokens")
    return list(value.values()) if isinstance(value, dict) else value


def _token(value: Any, path: Path, name: str) -> AddedToken:
    """Return a token given as its content alone or as an object, whose other fields count too."""
    fields = value if isinstance(value, Mapping) else {"content": value}
    content = fields.get("content")
    if not isinstance(content, str) or not re.fullmatch("[^\ud800-\udfff]+", content):
        raise ValueError(f"{path}: {name} is {shown(value)}, expected a token")
    flags = {name: fields.get(name) is True for name in AddedToken._fields[1:]}
    return AddedToken(content, **flags)
