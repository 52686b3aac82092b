"""How tinymistral itself computes a case of kind sampling, tokenizer or chat."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.demo import DEMO
from tinymistral.files import read_bytes
from tinymistral.golden.suite import LARGEST_FILE, Case, Suite
from tinymistral.sampling import GenerationConfig, softmax
from tinymistral.tokenizer import MistralTokenizer


def run_vectors(
    suite: Suite,
    case: Case,
    tokenizer: MistralTokenizer | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Compute a case: of kind sampling its arrays, in float32; else a document like the suite's.

    A tokenizer is needed where the vocabulary is not the demo's, see `open_vocabulary`; `inputs`
    are taken in the place of the case's.
    """
    if case.kind == "sampling":
        inputs = suite.read(case).inputs if inputs is None else inputs
        assert case.parameters is not None
        return run_sampling(inputs, case.parameters)
    if case.kind not in ("tokenizer", "chat"):
        raise ValueError(f"case {case.id}: cases of kind {case.kind!r} are computed by a backend")
    tokenizer = open_vocabulary(case) if tokenizer is None else tokenizer
    run = run_tokenizer if case.kind == "tokenizer" else run_chat
    return run(suite.document(case), tokenizer)


def run_sampling(
    inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any], dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Return the probabilities (B, V) after logits (B, V); what is no parameter is switched off."""
    logits = inputs["logits"].astype(dtype)
    seen = np.zeros(logits.shape, dtype=np.bool_)
    np.put_along_axis(seen, inputs["previous_ids"], True, axis=1)
    options = {"do_sample": True, "top_k": 0} | dict(parameters)
    return {"probabilities": softmax(GenerationConfig(**options).process(logits, seen))}


def run_tokenizer(document: Mapping[str, Any], tokenizer: MistralTokenizer) -> dict[str, Any]:
    """Encode the texts of a document, and decode its ids."""
    strings = []
    for entry in document["strings"]:
        ids = tokenizer.encode(entry["text"], add_special_tokens=False)
        strings.append({**entry, "ids": ids, "decoded": tokenizer.decode(ids)})
    decodings = [
        {"ids": entry["ids"], "decoded": tokenizer.decode(entry["ids"])}
        for entry in document.get("decodings", [])
    ]
    return {**document, "strings": strings, "decodings": decodings}


def run_chat(document: Mapping[str, Any], tokenizer: MistralTokenizer) -> dict[str, Any]:
    """Encode the conversations of a document."""
    conversations = [
        {**entry, "ids": tokenizer.apply_chat_template(entry["messages"])}
        for entry in document["conversations"]
    ]
    return {**document, "conversations": conversations}


def open_vocabulary(case: Case, path: str | Path | None = None) -> MistralTokenizer:
    """Open the vocabulary of a case: the demo's, or the file at `path`, if it is the right one."""
    vocabulary = case.vocabulary or {}
    of_demo = DEMO / "tokenizer.model"
    found = _sha256(of_demo if path is None else Path(path))
    if found == vocabulary.get("sha256"):
        return MistralTokenizer(of_demo if path is None else path)
    if path is None:
        raise ValueError(
            f"case {case.id}: its vocabulary {vocabulary.get('name')!r:.100} does not come with "
            f"tinymistral; give the path of {vocabulary.get('where', 'that file')!s:.200}"
        )
    raise ValueError(
        f"case {case.id}: {path} is not the vocabulary {vocabulary.get('name')!r:.100}: its sha256 "
        f"is {found[:12]}..., expected {str(vocabulary.get('sha256'))[:12]}...; "
        f"take {vocabulary.get('where', 'that file')!s:.200}"
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_bytes(path, LARGEST_FILE)).hexdigest()
