"""From logits to the next token: the options of `generate`, and the functions that apply them.

The processors are those of transformers, in its order and with its meaning. Each takes and returns
scores (B, V); a token that may not be drawn has score -inf. Checked against transformers 5
(generation/logits_process.py), whose classes are named beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinymistral.config import MistralConfig, plain_ids
from tinymistral.files import is_named, read_json, write_json
from tinymistral.renamed import refuse_unknown
from tinymistral.settings import CONFIG_FILE, REFUSED, refuse, warn_of_unknown
from tinymistral.settings import GENERATION_FILE as FILE_NAME
from tinymistral.text import short

if TYPE_CHECKING:
    from tinymistral.heads import MistralForCausalLM

LARGEST = 2**63 - 1  # of integers that have no other bound
MOST_SEQUENCES = 1024  # of each prompt, at once: a number in a file must not fill the memory
# Used only with `do_sample`; files often contain values of these that are not valid.
ONLY_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")
OTHER_SAMPLING = ("epsilon_cutoff", "eta_cutoff", "top_h", "typical_p")  # refused, if used

Sequences = Sequence[Sequence[int]]  # the ids of each row, those of its prompt included


def penalize_repetition(scores: np.ndarray, present: np.ndarray, penalty: float) -> np.ndarray:
    """Divide positive scores, and multiply negative ones, of the tokens that a row contains.

    RepetitionPenaltyLogitsProcessor; Keskar et al. 2019, https://arxiv.org/abs/1909.05858.
    `present` (B, V) is true for the tokens of a row, those of its prompt included.
    """
    penalized = np.where(scores < 0, scores * penalty, scores / penalty)
    return np.where(present, penalized, scores)


def forbid_repeated_ngrams(scores: np.ndarray, sequences: Sequences, n: int) -> np.ndarray:
    """Forbid each token that would repeat n tokens of its row (NoRepeatNGramLogitsProcessor)."""
    scores = scores.copy()
    for row, ids in enumerate(sequences):
        last = len(ids) + 1 - n  # where the n-gram begins that the next token completes
        for start in range(last):
            if ids[start : start + n - 1] == ids[last:]:
                scores[row, ids[start + n - 1]] = -np.inf
    return scores


def forbid_words(scores: np.ndarray, sequences: Sequences, words: Sequences) -> np.ndarray:
    """Forbid each token that would complete one of the words (NoBadWordsLogitsProcessor)."""
    scores = scores.copy()
    for row, ids in enumerate(sequences):
        for *before, last in words:
            if ids[len(ids) - len(before) :] == before:
                scores[row, last] = -np.inf
    return scores


def forbid_tokens(scores: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """Forbid tokens (SuppressTokensLogitsProcessor, MinNewTokensLengthLogitsProcessor)."""
    scores = scores.copy()
    scores[:, list(tokens)] = -np.inf
    return scores


def scale_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Divide by the temperature; below 1 favours likely tokens (TemperatureLogitsWarper)."""
    return scores / temperature


def keep_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Keep the k highest scores of a row, and ties with the lowest of them (TopKLogitsWarper)."""
    k = min(k, scores.shape[-1])
    lowest = np.partition(scores, -k, axis=-1)[:, -k, None]
    return np.where(scores < lowest, -np.inf, scores)


def keep_top_p(scores: np.ndarray, p: float) -> np.ndarray:
    """Keep the likeliest tokens that together reach probability p, at least one.

    TopPLogitsWarper; Holtzman et al. 2019, https://arxiv.org/abs/1904.09751.
    """
    order = np.argsort(scores, axis=-1, kind="stable")
    up_to_here = np.cumsum(np.take_along_axis(softmax(scores), order, axis=-1), axis=-1)
    remove = up_to_here <= 1 - p
    remove[:, -1] = False
    removed = np.empty_like(remove)
    np.put_along_axis(removed, order, remove, axis=-1)
    return np.where(removed, -np.inf, scores)


def keep_min_p(scores: np.ndarray, p: float) -> np.ndarray:
    """Keep tokens with at least p times the probability of the likeliest (MinPLogitsWarper)."""
    probabilities = softmax(scores)
    lowest = p * probabilities.max(axis=-1, keepdims=True)
    return np.where(probabilities < lowest, -np.inf, scores)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Turn scores (..., V) into probabilities."""
    exps = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Turn scores (B, V) into log-probabilities, in float64."""
    scores = scores.astype(np.float64)
    scores = scores - scores.max(axis=-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def draw(scores: np.ndarray, randoms: Sequence[np.random.Generator]) -> np.ndarray:
    """Draw a token for each row (B, V) with the probabilities of its scores -> (B,).

    Each row has its own random stream, so that its draws do not depend on the other rows.
    """
    sums = np.cumsum(softmax(scores.astype(np.float64)), axis=-1)
    thresholds = [random.random() * row[-1] for random, row in zip(randoms, sums, strict=True)]
    return np.array(
        # `right`: the first sum above the threshold, so never a token of probability 0
        [np.searchsorted(row, u, side="right") for row, u in zip(sums, thresholds, strict=True)],
        dtype=np.int64,
    )


@dataclass(frozen=True)
class GenerationConfig:
    """The options of `generate`; the defaults are those of transformers.

    A checkpoint's generation_config.json gives other defaults. The processors are applied in the
    order of the fields, those from `temperature` on only with `do_sample`.
    """

    max_new_tokens: int = 20
    max_length: int | None = None  # with the prompt; used if max_new_tokens is not given
    do_sample: bool = False  # draw from the distribution; else take the likeliest
    repetition_penalty: float = 1.0  # above 1: tokens of the row are less likely
    no_repeat_ngram_size: int = 0  # n: no n tokens come twice in the same order; 0: off
    bad_words_ids: list[list[int]] | None = None  # sequences of ids that never come
    min_new_tokens: int = 0  # no eos before so many
    suppress_tokens: list[int] | None = None  # ids that never come
    temperature: float = 1.0
    top_k: int = 50  # 0: all
    top_p: float = 1.0
    min_p: float | None = None
    eos_token_id: int | list[int] | None = None  # None or []: never stop
    pad_token_id: int | None = None  # fills finished rows; None: the first eos, else 0
    seed: int | None = None  # None: a new one each time
    num_return_sequences: int = 1
    prompt_lookup_num_tokens: int = 0  # how many tokens to guess ahead; changes no text; 0: off

    def __post_init__(self) -> None:
        for name in ("eos_token_id", "suppress_tokens"):
            object.__setattr__(self, name, plain_ids(getattr(self, name)))
        if not isinstance(self.suppress_tokens, list | None):
            raise ValueError(
                f"suppress_tokens: expected a list of ids, got {short(self.suppress_tokens)}"
            )
        if self.bad_words_ids is not None:
            object.__setattr__(self, "bad_words_ids", _words(self.bad_words_ids))
        for name in (
            *("max_new_tokens", "min_new_tokens", "no_repeat_ngram_size"),
            "prompt_lookup_num_tokens",
        ):
            _check(name, getattr(self, name), int, 0)
        _check("repetition_penalty", self.repetition_penalty, float, 1e-6, 1e6)
        _check("temperature", self.temperature, float, 1e-6, 1e6)
        _check("top_k", self.top_k, int, 0)
        _check("top_p", self.top_p, float, 0, 1)
        _check("num_return_sequences", self.num_return_sequences, int, 1, MOST_SEQUENCES)
        if self.max_length is not None:
            _check("max_length", self.max_length, int, 0)
        if self.min_p is not None:
            _check("min_p", self.min_p, float, 0, 1)
        if self.seed is not None:
            _check("seed", self.seed, int, 0)
        if not isinstance(self.do_sample, bool):
            raise ValueError(f"do_sample: expected True or False, got {short(self.do_sample)}")
        for name, ids in self.ids().items():
            for token in ids:
                _check(name, token, int, 0)
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
        """The id that a finished row is padded with."""
        return self.pad_token_id if self.pad_token_id is not None else (self.eos_ids or [0])[0]

    def ids(self) -> dict[str, list[int]]:
        """Return the ids that each option names."""
        words = self.bad_words_ids or []
        return {
            "eos_token_id": self.eos_ids,
            "pad_token_id": [self.fill_id],
            "suppress_tokens": self.suppress_tokens or [],
            "bad_words_ids": [token for word in words for token in word],
        }

    def process(self, logits: np.ndarray, sequences: Sequences, new: int = 0) -> np.ndarray:
        """Apply the processors that the options ask for to logits (B, V).

        `sequences` are the ids of each row so far, `new` of which have been generated.
        """
        if self.repetition_penalty != 1:
            present = np.zeros(logits.shape, dtype=bool)
            for row, ids in enumerate(sequences):
                present[row, ids] = True
            logits = penalize_repetition(logits, present, self.repetition_penalty)
        if self.no_repeat_ngram_size:
            logits = forbid_repeated_ngrams(logits, sequences, self.no_repeat_ngram_size)
        if self.bad_words_ids:
            words = [word for word in self.bad_words_ids if word not in [[i] for i in self.eos_ids]]
            logits = forbid_words(logits, sequences, words)
        if new < self.min_new_tokens:
            logits = forbid_tokens(logits, self.eos_ids)
        if self.suppress_tokens:
            logits = forbid_tokens(logits, self.suppress_tokens)
        if (logits.max(axis=-1) == -np.inf).any():
            raise ValueError(
                "no token is left to choose: no_repeat_ngram_size, bad_words_ids, min_new_tokens "
                "and suppress_tokens forbid all; forbid less"
            )
        if self.do_sample:
            if self.temperature != 1:
                logits = scale_temperature(logits, self.temperature)
            if self.top_k:
                logits = keep_top_k(logits, self.top_k)
            if self.top_p < 1:
                logits = keep_top_p(logits, self.top_p)
            if self.min_p is not None:
                logits = keep_min_p(logits, self.min_p)
        return logits


FIELDS = {field.name: field.default for field in dataclasses.fields(GenerationConfig)}
# What `generate` and `generate_stream` take
ARGUMENTS = (
    *("input_ids", "attention_mask", "return_dict_in_generate"),
    *sorted({*FIELDS, "stop", "tokenizer", "past_key_values", "progress"}),
)


def settle(
    model: MistralForCausalLM, options: dict[str, Any], prompt_length: int = 0, rows: int = 1
) -> GenerationConfig:
    """Return the settings: from options, else generation_config.json, else the model's config.

    If `max_new_tokens` is not given, it follows from `max_length` for prompts of `prompt_length`
    tokens, padding included. Of several rows, `rows` times `num_return_sequences`, those that end
    first are padded. Raises ValueError for a wrong value, one in the file only if it would be used,
    and TypeError for an unknown option.
    """
    refuse(FILE_NAME, options)
    refuse_unknown("generate", [n for n in options if n not in REFUSED[FILE_NAME]], ARGUMENTS)
    explicit = {n: v for n, v in options.items() if n in FIELDS and v is not None}
    file = _used_defaults(model, options)
    refuse_unknown("generation_config", file, [*FIELDS, *REFUSED[FILE_NAME]])
    values = file | explicit
    try:
        refuse(FILE_NAME, file)
        config = GenerationConfig(**{n: v for n, v in values.items() if n in FIELDS})
        rows *= config.num_return_sequences
        if config.prompt_lookup_num_tokens and rows > 1:
            raise ValueError(
                f"prompt_lookup_num_tokens: expected one row, got {rows}; give one prompt at a "
                "time, or set it to 0"
            )
        pads = rows > 1 or "pad_token_id" in explicit
        for name, ids in config.ids().items():
            if name == "pad_token_id" and not pads:
                continue
            if max(ids, default=0) >= model.config.vocab_size:
                raise ValueError(
                    f"{name}: {max(ids)} is not in the vocabulary; "
                    f"expected 0 to {model.config.vocab_size - 1}"
                )
        if config.max_length is not None and "max_new_tokens" not in values:
            new = config.max_length - prompt_length
            if new < 1:
                raise ValueError(
                    f"max_length: {config.max_length} tokens leave none after a prompt of "
                    f"{prompt_length}; give a larger one, or max_new_tokens"
                )
            config = dataclasses.replace(config, max_new_tokens=new)
    except ValueError as error:
        name = str(error).partition(":")[0]  # each message begins with the field's
        from_file = name in file and name not in explicit
        raise ValueError(f"{FILE_NAME}: {error}" if from_file else str(error)) from None
    for name in ONLY_SAMPLING:
        if not config.do_sample and explicit.get(name, FIELDS[name]) != FIELDS[name]:
            raise ValueError(f"{name}: has no effect without do_sample=True; leave one of the two")
    return config


def _used_defaults(model: MistralForCausalLM, options: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults of the checkpoint's files that apply beside the options."""
    explicit = {n: v for n, v in options.items() if v is not None}
    from_config = {n: getattr(model.config, n) for n in ("eos_token_id", "pad_token_id")}
    entries = (*from_config.items(), *model.generation_config.items())
    # A padding id of -1 means none in old conversions of Llama.
    file = {n: v for n, v in entries if v is not None and not (n == "pad_token_id" and v == -1)}
    if not explicit.get("do_sample", file.get("do_sample")):
        file = {n: v for n, v in file.items() if n not in (*ONLY_SAMPLING, *OTHER_SAMPLING)}
    if "max_length" in explicit:
        file.pop("max_new_tokens", None)
    V = model.config.vocab_size
    for name in {"eos_token_id", "suppress_tokens"} & file.keys():
        ids = plain_ids(file[name])
        ids = ids if isinstance(ids, list) else [ids]
        # An id outside the vocabulary never occurs; what is not an id is an error later.
        file[name] = [i for i in ids if not isinstance(i, int) or 0 <= i < V]
    return {n: v for n, v in file.items() if n in FIELDS or n not in explicit}


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Read the defaults of `generate` from a checkpoint's generation_config.json, if it has one.

    Older checkpoints without this file may have some in config.json. What has no effect is left
    out; the values are checked when they are used.
    """
    path = folder / FILE_NAME
    if is_named(path):
        settings = read_json(path)
        warn_of_unknown(FILE_NAME, settings, FIELDS)
        known = {*FIELDS, *REFUSED[FILE_NAME]}
    elif is_named(folder / CONFIG_FILE):
        settings = read_json(folder / CONFIG_FILE)
        known = {*FIELDS, *REFUSED[FILE_NAME]} - {"eos_token_id", "pad_token_id"}  # MistralConfig's
    else:
        return {}
    return {n: v for n, v in settings.items() if n in known and v is not None}


def write_generation_config(
    folder: Path, config: MistralConfig, defaults: Mapping[str, Any] | None = None
) -> None:
    """Write generation_config.json: the ids that begin and end a text, then other defaults."""
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    write_json(folder / FILE_NAME, ids | dict(defaults or {}))


def _words(value: Any) -> list[list[int]]:
    words = plain_ids(value)
    words = [plain_ids(word) for word in words] if isinstance(words, list) else [words]
    if not all(isinstance(word, list) and word for word in words):
        raise ValueError(f"bad_words_ids: expected lists of ids, none empty, got {short(value)}")
    return words


def _check(name: str, value: Any, kind: type, least: float, most: float | None = None) -> None:
    kinds = (int, np.integer) if kind is int else (int, float, np.integer, np.floating)
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    if not fits or not least <= value <= (LARGEST if most is None else most):  # nan too
        noun = "an integer" if kind is int else "a number"
        up_to = "on" if most is None else f"to {most:g}"
        if most is None and fits and value > LARGEST:
            up_to = "to 2**63 - 1"
        raise ValueError(f"{name}: expected {noun} from {least:g} {up_to}, got {short(value)}")
