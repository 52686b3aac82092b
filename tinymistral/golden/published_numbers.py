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
from tinymistral.golden.manifest import MOST_NEW_TOKENS
from tinymistral.golden.schema import (
    LINE,
    NOT_EMPTY,
    TOKENS,
    Check,
    a_string,
    an_object,
    fields,
    inside,
    integer,
    list_of,
    number,
    one_of,
    positive,
)
from tinymistral.heads import MistralForCausalLM
from tinymistral.tokenizer import MistralTokenizer

MISTRAL_7B = Path(__file__).parent / "published" / "mistral-7b-v0.1.json"
LONGEST = 1_000_000  # characters, or tokens, of a prompt


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
    for name, value in numbers.get("config", {}).items():
        found = getattr(model.config, name, None)
        if found != value:
            raise ValueError(
                f"this is not {numbers.get('model', 'the model')}: its {name} is {found}, "
                f"expected {value}"
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


def read_published(path: Path = MISTRAL_7B) -> dict[str, Any]:
    """Read a file of published numbers; ValueError for anything else."""
    numbers = read_json(path)
    try:
        _NUMBERS(numbers)
        if len(numbers["logits"]["mean"]) != len(numbers["logits"]["ids"]):
            raise ValueError("logits: expected as many mean logits as ids")
        for text in numbers["greedy"]:
            inside(f"greedy: {text['id']}", _check_text, text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; an example is {MISTRAL_7B}") from None
    return numbers


def _repeated(part: Check) -> Check:
    """Expect a list of pairs, of a part and how often it is repeated."""

    def pair(value: Any) -> None:
        list_of(lambda _: None, 2)(value)
        part(value[0])
        integer(1, LONGEST)(value[1])
        if len(value) > 2 or not 0 < len(value[0]) * value[1] <= LONGEST:
            raise ValueError(f"expected a part and how often, {LONGEST} long at most")

    return list_of(pair, 1)


_NUMBERS = fields(
    {
        "logits": fields(
            {
                "ids": TOKENS,
                "mean": list_of(number(-1e30, 1e30), 1),
                "first": list_of(number(-1e30, 1e30), 1),
                "tolerance": positive,
            },
            {"says": a_string},
        ),
        "greedy": list_of(
            fields(
                {"id": LINE, "new": integer(1, MOST_NEW_TOKENS)},
                {
                    "prompt": _repeated(a_string),
                    "ids": _repeated(TOKENS),
                    "text": NOT_EMPTY,
                    "end": list_of(integer(0), 1),
                    "long": one_of(False, True),
                    "says": a_string,
                },
            )
        ),
    },
    {"id": LINE, "says": a_string, "model": LINE, "config": an_object},
)


def _check_text(given: Mapping[str, Any]) -> None:
    """Expect something to continue and something to compare, both of them short enough."""
    for one, other in (("prompt", "ids"), ("text", "end")):
        if one not in given and other not in given:
            raise ValueError(f"{one!r} is missing, or {other!r}")
    for name in ("prompt", "ids"):
        if sum(len(part) * times for part, times in given.get(name, [])) > LONGEST:
            raise ValueError(f"{name}: expected {LONGEST} characters or tokens at most")
    if len(given.get("end", [])) > given["new"]:
        raise ValueError(f"end: expected {given['new']} tokens at most, as many as are new")


def _near(name: str, found: np.ndarray, expected: np.ndarray, near: float) -> Finding:
    error = np.abs(found - expected)
    worst = int(np.nan_to_num(error, nan=np.inf).argmax())
    says = f"{error[worst]:.2g} off at {worst}, of {near:g} allowed"
    return Finding(name, bool(error[worst] <= near), says)
