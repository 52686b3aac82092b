"""Numbers and texts that others published of a real checkpoint, to compare a model with.

`published/mistral-7b-v0.1.json` has those of Mistral-7B-v0.1:

    model       its name
    config      fields of config.json that identify it
    logits      ids; the mean logit of each position and the first logits of the first position,
                and a tolerance for both
    greedy      greedy continuations: a prompt, or its ids, each part so many times; `new` tokens;
                the text that they begin with, or the ids that they end with
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.files import read_json
from tinymistral.heads import MistralForCausalLM
from tinymistral.tokenizer import MistralTokenizer

MISTRAL_7B = Path(__file__).parent / "published" / "mistral-7b-v0.1.json"


@dataclass(frozen=True)
class Finding:
    """How one of the published numbers or texts compares."""

    name: str
    agrees: bool
    says: str


def check_model(
    numbers: Mapping[str, Any],
    model: MistralForCausalLM,
    tokenizer: MistralTokenizer,
    long: bool = False,
) -> Iterator[Finding]:
    """Compute the published numbers with a model; texts past the window only if `long`.

    Raises ValueError for a model with another configuration.
    """
    for name, value in numbers["config"].items():
        found = getattr(model.config, name, None)
        if found != value:
            raise ValueError(
                f"this is not {numbers['model']}: its {name} is {found}, expected {value}"
            )
    ids = numbers["logits"]["ids"]
    yield from check_logits(numbers, model([ids]).logits)
    for text in numbers["greedy"]:
        if long or not text.get("long"):
            yield check_text(text, model, tokenizer)


def check_logits(numbers: Mapping[str, Any], logits: np.ndarray) -> list[Finding]:
    """Compare logits (1, T, V), or (T, V), of the published ids; ValueError for another shape."""
    expected = numbers["logits"]
    first, mean = np.array(expected["first"]), np.array(expected["mean"])
    logits = logits[0] if logits.ndim == 3 and len(logits) == 1 else logits
    if logits.ndim != 2 or len(logits) != len(mean) or logits.shape[1] < len(first):
        raise ValueError(
            f"the logits have shape {logits.shape}, expected ({len(mean)}, V): those of ids "
            f"{expected['ids']}"
        )
    wide, near = logits.astype(np.float64), expected["tolerance"]
    return [
        _near("mean logits", wide.mean(axis=1), mean, near),
        _near("first logits", wide[0, : len(first)], first, near),
    ]


def check_text(
    text: Mapping[str, Any], model: MistralForCausalLM, tokenizer: MistralTokenizer
) -> Finding:
    """Continue a prompt greedily, and compare."""
    prompt = "".join(part * times for part, times in text.get("prompt", []))
    ids = [token for part, times in text.get("ids", []) for token in part * times]
    if prompt:
        encoded = tokenizer.encode(prompt)
        if ids and encoded != ids:
            return Finding(text["id"], False, f"the prompt is encoded as {encoded}, expected {ids}")
        ids = encoded
    output = model.generate([ids], max_new_tokens=text["new"], do_sample=False, eos_token_id=[])
    new = output[0, len(ids) :].tolist()
    if "end" in text:
        good = new[-len(text["end"]) :] == text["end"]
        return Finding(text["id"], good, f"ends with {new}, expected {text['end']} at the end")
    found = tokenizer.decode([*ids, *new]).removeprefix(tokenizer.decode(ids))
    good = found.startswith(text["text"])
    return Finding(
        text["id"], good, f"{found!r}" + ("" if good else f", expected {text['text']!r}")
    )


def read_published() -> dict[str, Any]:
    """Read the published numbers of Mistral-7B-v0.1."""
    return read_json(MISTRAL_7B)


def _near(name: str, found: np.ndarray, expected: np.ndarray, near: float) -> Finding:
    error = np.abs(found - expected)
    worst = int(np.nan_to_num(error, nan=np.inf).argmax())
    says = f"{error[worst]:.2g} off at {worst}, of {near:g} allowed"
    return Finding(name, bool(error[worst] <= near), says)
