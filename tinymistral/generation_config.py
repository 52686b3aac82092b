"""GenerationConfig: what `generate` can be asked for, and what a checkpoint says of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinymistral import sampling
from tinymistral.config import plain_ids
from tinymistral.files import is_named, read_json
from tinymistral.text import shorten

if TYPE_CHECKING:
    from tinymistral.model import MistralForCausalLM

FILE_NAME = "generation_config.json"
LARGEST = 2**63 - 1  # of integers that have no bound of their own
# What bears on nothing unless `do_sample`; files often have values there that could not be drawn by
DRAWING = ("temperature", "top_k", "top_p", "min_p", "seed")


@dataclass(frozen=True)
class GenerationConfig:
    """What `generate` can be asked for; the defaults are those of transformers.

    A checkpoint's generation_config.json gives other defaults. The processors apply in the order
    in which they stand here; all but the first only with `do_sample`.
    """

    max_new_tokens: int = 20
    max_length: int | None = None  # prompt included; counts where max_new_tokens is not given
    do_sample: bool = False  # draw from the distribution, rather than take the likeliest
    repetition_penalty: float = 1.0  # over 1: what a row already has becomes less likely
    temperature: float = 1.0
    top_k: int = 50  # 0: all
    top_p: float = 1.0
    min_p: float | None = None
    eos_token_id: int | list[int] | None = None  # None or []: never stop
    pad_token_id: int | None = None  # fills finished rows; None: the first eos, else 0
    seed: int | None = None  # None: another each time
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "eos_token_id", plain_ids(self.eos_token_id))
        _check("max_new_tokens", self.max_new_tokens, int, 0)
        _check("repetition_penalty", self.repetition_penalty, float, 1e-6, 1e6)
        _check("temperature", self.temperature, float, 1e-6, 1e6)
        _check("top_k", self.top_k, int, 0)
        _check("top_p", self.top_p, float, 0, 1)
        _check("num_return_sequences", self.num_return_sequences, int, 1)
        if self.max_length is not None:
            _check("max_length", self.max_length, int, 0)
        if self.min_p is not None:
            _check("min_p", self.min_p, float, 0, 1)
        if self.seed is not None:
            _check("seed", self.seed, int, 0)
        if not isinstance(self.do_sample, bool):
            raise ValueError(f"do_sample: expected True or False, got {str(self.do_sample)[:40]!r}")
        for token in self.eos_ids:
            _check("eos_token_id", token, int, 0)
        if self.pad_token_id is not None:
            _check("pad_token_id", self.pad_token_id, int, 0)
        if self.num_return_sequences > 1 and not self.do_sample:
            raise ValueError(
                f"num_return_sequences: {self.num_return_sequences} without do_sample would "
                "return the same text each time; set do_sample=True"
            )

    @property
    def eos_ids(self) -> list[int]:
        """The ids that end a row."""
        if self.eos_token_id is None:
            return []
        return self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]

    @property
    def fill_id(self) -> int:
        """What a finished row is filled with."""
        return self.pad_token_id if self.pad_token_id is not None else (self.eos_ids or [0])[0]

    def process(self, logits: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Apply what was asked for to logits (B, V), in transformers' order.

        `seen` (B, V) tells which tokens each row has so far.
        """
        if self.repetition_penalty != 1:
            logits = sampling.penalize_repetition(logits, seen, self.repetition_penalty)
        if self.do_sample:
            if self.temperature != 1:
                logits = sampling.scale_temperature(logits, self.temperature)
            if self.top_k:
                logits = sampling.keep_top_k(logits, self.top_k)
            if self.top_p < 1:
                logits = sampling.keep_top_p(logits, self.top_p)
            if self.min_p is not None:
                logits = sampling.keep_min_p(logits, self.min_p)
        return logits


def settle(
    model: MistralForCausalLM, options: dict[str, Any], prompt_length: int = 0
) -> GenerationConfig:
    """Combine options, the checkpoint's generation_config.json, and its config, in this order.

    `max_length` becomes `max_new_tokens` for prompts of `prompt_length` tokens, padding included,
    where that is not given itself. Raises ValueError for a wrong value, of the file only if it
    would be used, and TypeError for an unknown option.
    """
    fields = {field.name for field in dataclasses.fields(GenerationConfig)}
    known = fields | {"stop", "tokenizer", "past_key_values", "progress"}
    if unknown := set(options) - known:
        raise TypeError(
            f"generate: unknown argument {', '.join(sorted(unknown))}; known are "
            f"input_ids, attention_mask, return_dict_in_generate, {', '.join(sorted(known))}"
        )
    given = {n: v for n, v in options.items() if n in fields and v is not None}
    file = _what_counts(model, given)
    model_ids = {
        "eos_token_id": model.config.eos_token_id,
        "pad_token_id": model.config.pad_token_id,
    }
    values = model_ids | file | given
    try:
        config = GenerationConfig(**values)
        for name, ids in (("eos_token_id", config.eos_ids), ("pad_token_id", [config.fill_id])):
            if max(ids, default=0) >= model.config.vocab_size:
                raise ValueError(
                    f"{name}: {max(ids)} is not in the vocabulary; "
                    f"expected 0 to {model.config.vocab_size - 1}"
                )
    except ValueError as error:
        name = str(error).partition(":")[0]  # each message begins with the field's
        of_file = name in file and name not in given
        raise ValueError(f"{FILE_NAME}: {error}" if of_file else str(error)) from None
    if config.max_length is not None and "max_new_tokens" not in values:
        new = max(0, config.max_length - prompt_length)
        config = dataclasses.replace(config, max_new_tokens=new)
    return config


def _what_counts(model: MistralForCausalLM, given: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint's file says, less what makes no difference beside the options."""
    file = {n: v for n, v in model.generation_config.items() if v is not None}
    if not given.get("do_sample", file.get("do_sample")):
        file = {n: v for n, v in file.items() if n not in DRAWING}
    if "max_length" in given:
        file.pop("max_new_tokens", None)
    if file.get("pad_token_id") == -1:  # how old conversions of Llama say none
        del file["pad_token_id"]
    if "eos_token_id" in file:
        eos = plain_ids(file["eos_token_id"])
        V = model.config.vocab_size
        eos = eos if isinstance(eos, list) else [eos]
        # An id outside the vocabulary never comes; what is no id at all is an error later.
        file["eos_token_id"] = [i for i in eos if not isinstance(i, int) or 0 <= i < V]
    return file


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Read the defaults of `generate` from a checkpoint's generation_config.json, if it has one.

    Entries that `generate` does not know are left out; the others are checked where they are used.
    """
    path = folder / FILE_NAME
    if not is_named(path):
        return {}
    known = {field.name for field in dataclasses.fields(GenerationConfig)}
    return {n: v for n, v in read_json(path).items() if n in known and v is not None}


def _check(name: str, value: Any, kind: type, least: float, most: float | None = None) -> None:
    kinds = (int, np.integer) if kind is int else (int, float, np.integer, np.floating)
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    if not fits or not least <= value <= (LARGEST if most is None else most):  # nan is neither
        noun = "an integer" if kind is int else "a number"
        up_to = "on" if most is None else f"to {most:g}"
        if most is None and fits and value > LARGEST:
            up_to = "to 2**63 - 1"
        shown = shorten(repr(value), 40)
        raise ValueError(f"{name}: expected {noun} from {least:g} {up_to}, got {shown}")
