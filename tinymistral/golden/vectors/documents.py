"""The cases that are texts: JSON documents which tests/fixtures/make_golden_vectors.py made.

Their ids come from sentencepiece and mistral-common, and mistral-common has the vocabularies. Both
are no part of making a suite, so the documents are taken over from v1 as they are there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tinymistral.files import read_json
from tinymistral.golden.making.drafts import Vector
from tinymistral.golden.suite import V1

DOCUMENTS = ("tokenizer-v1", "tokenizer-demo", "chat-v1", "chat-v2", "chat-v3", "chat-demo")


def cases() -> list[Vector]:
    """Read all of them."""
    return [vector(name, read_json(V1 / "cases" / f"{name}.json")) for name in DOCUMENTS]


def vector(name: str, document: Mapping[str, Any]) -> Vector:
    """Make a case of a document, which says itself what it is."""
    entry = {
        "id": name,
        "kind": name.partition("-")[0],
        "says": document["says"],
        "catches": [],
        "vocabulary": document["vocabulary"],
    }
    return Vector(entry, document=document)


def as_text(document: Mapping[str, Any]) -> str:
    """Write a document as JSON in ASCII, an entry a line, so that a change of one can be seen."""
    return (
        "{\n" + ",\n".join(f"{_text(n)}: {_part(part)}" for n, part in document.items()) + "\n}\n"
    )


def _part(part: Any) -> str:
    if not isinstance(part, list):
        return _text(part)
    return "[\n" + ",\n".join(f" {_text(entry)}" for entry in part) + "\n]"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)
