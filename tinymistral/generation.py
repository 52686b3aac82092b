"""Generation: prefill the prompts, then decode token by token until every row has finished."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinymistral import sampling
from tinymistral.cache import RollingCache
from tinymistral.files import read_json
from tinymistral.inputs import check_ids, integers, prepare
from tinymistral.model import run
from tinymistral.stages import Watcher
from tinymistral.streaming import StopStrings, StreamDecoder

if TYPE_CHECKING:
    from tinymistral.model import MistralForCausalLM
    from tinymistral.tokenizer import MistralTokenizer

# A cache's room for new tokens is made at once up to this many; it doubles when they are used.
MOST_RESERVED = 1024


@dataclass(frozen=True)
class GenerationConfig:
    """What `generate` can be asked for; the defaults are those of transformers.

    A checkpoint's generation_config.json gives other defaults. The processors apply in the order
    in which they stand here; all but the first only with `do_sample`.
    """

    max_new_tokens: int = 20
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
        _check("max_new_tokens", self.max_new_tokens, int, 0)
        _check("repetition_penalty", self.repetition_penalty, float, 0, exclusive=True)
        _check("temperature", self.temperature, float, 0, exclusive=True)
        _check("top_k", self.top_k, int, 0)
        _check("top_p", self.top_p, float, 0, 1)
        _check("num_return_sequences", self.num_return_sequences, int, 1)
        if self.min_p is not None:
            _check("min_p", self.min_p, float, 0, 1)
        if self.seed is not None:
            _check("seed", self.seed, int, 0)
        if not isinstance(self.do_sample, bool):
            raise ValueError(f"do_sample: expected True or False, got {self.do_sample!r}")
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


@dataclass
class GenerationStep:
    """One more token for every row; a finished row gets the fill id, with log-probability 0."""

    tokens: np.ndarray  # (B,)
    logprobs: np.ndarray  # (B,), natural logarithms, of the model itself: before any processor
    finished: np.ndarray  # (B,), rows that end with this token or have ended before


@dataclass
class GenerationOutput:
    """What `generate` returns with `return_dict_in_generate=True`."""

    sequences: np.ndarray  # (B, T + new), prompt and continuation
    logprobs: np.ndarray  # (B, new), as in `GenerationStep`


def generate(
    model: MistralForCausalLM,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    return_dict_in_generate: bool = False,
    **options: Any,
) -> np.ndarray | GenerationOutput:
    """Continue prompts (B, T) -> prompts and continuations (B, T + new), as transformers does.

    Greedy, unless `do_sample`. The options are the fields of `GenerationConfig`, and `stop`,
    texts that end a row, for which a `tokenizer` is needed. Rows of unequal length are padded
    on either side, and `attention_mask` says where; finished rows are filled up. With
    `return_dict_in_generate` the log-probability of every new token is returned too.
    """
    ids = check_ids(input_ids, model.config.vocab_size)
    steps = list(generate_stream(model, ids, attention_mask, **options))
    each = settle(model, options).num_return_sequences
    sequences = np.repeat(ids, each, axis=0)
    logprobs = np.empty((len(sequences), len(steps)), dtype=np.float64)
    if steps:
        sequences = np.column_stack([sequences, *(step.tokens for step in steps)])
        logprobs = np.column_stack([step.logprobs for step in steps])
    return GenerationOutput(sequences, logprobs) if return_dict_in_generate else sequences


def generate_stream(
    model: MistralForCausalLM,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    stop: str | list[str] | None = None,
    tokenizer: MistralTokenizer | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Iterator[GenerationStep]:
    """Continue prompts (B, T) -> a step for each new token, as it comes.

    Arguments as for `generate`; what is wrong with them is said at once, not at the first step.
    `progress(done, total)` is told how many prompt tokens have gone through. Rows come in the
    order of the prompts, each `num_return_sequences` times.
    """
    config = settle(model, options)
    ids = check_ids(input_ids, model.config.vocab_size)
    prompts = unpadded(ids, attention_mask)
    stoppers: list[Stopper] = []
    if stop is not None:
        if tokenizer is None:
            raise ValueError("stop: texts are found in the decoded text; give the tokenizer too")
        each = range(config.num_return_sequences)
        stoppers = [Stopper(stop, tokenizer, prompt) for prompt in prompts for _ in each]
    return decode(model, prompts, config, stoppers, progress)


def settle(model: MistralForCausalLM, options: dict[str, Any]) -> GenerationConfig:
    """Combine options, the checkpoint's generation_config.json, and its config, in this order."""
    fields = {field.name for field in dataclasses.fields(GenerationConfig)}
    known = fields | {"stop", "tokenizer", "progress"}
    if unknown := set(options) - known:
        raise TypeError(
            f"generate: unknown argument {', '.join(sorted(unknown))}; known are "
            f"input_ids, attention_mask, return_dict_in_generate, {', '.join(sorted(known))}"
        )
    model_ids = {
        "eos_token_id": model.config.eos_token_id,
        "pad_token_id": model.config.pad_token_id,
    }
    given = {n: v for n, v in options.items() if n in fields and v is not None}
    config = GenerationConfig(**(model_ids | model.generation_config | given))
    for token in (*config.eos_ids, config.fill_id):
        if token >= model.config.vocab_size:
            raise ValueError(
                f"eos_token_id or pad_token_id: {token} is not in the vocabulary; "
                f"expected 0 to {model.config.vocab_size - 1}"
            )
    return config


def unpadded(ids: np.ndarray, attention_mask: Any) -> list[np.ndarray]:
    """Return each row's tokens (n,) without its padding."""
    if attention_mask is None:
        return list(ids)
    mask = integers("attention_mask", attention_mask, kinds="iub")
    if mask.shape != ids.shape or ((mask != 0) & (mask != 1)).any():
        raise ValueError(f"attention_mask: expected 0 and 1 in shape {ids.shape}, as input_ids")
    prompts = [row[kept] for row, kept in zip(ids, mask.astype(bool), strict=True)]
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"attention_mask: row {row} is all padding; begin it with <s>")
    return prompts


class Stopper:
    """Tells when the text that continues a prompt contains a stop string."""

    def __init__(self, stop: str | list[str], tokenizer: MistralTokenizer, prompt: np.ndarray):
        self._strings = StopStrings(stop)
        self._decoder = StreamDecoder(tokenizer)
        for token in prompt.tolist():
            self._decoder.push(token)

    def stops_after(self, token: int) -> bool:
        """Tell whether the text, this token's included, contains a stop string."""
        self._strings.push(self._decoder.push(token))
        return self._strings.matched is not None


def decode(
    model: MistralForCausalLM,
    prompts: list[np.ndarray],
    config: GenerationConfig,
    stoppers: list[Stopper],
    progress: Callable[[int, int], None] | None,
) -> Iterator[GenerationStep]:
    """Prefill, then one token at a time; a finished row leaves the batch and costs nothing."""
    if config.max_new_tokens == 0:
        return
    logits, cache = prefill(model, prompts, config.max_new_tokens, progress)
    source = np.repeat(np.arange(len(prompts)), config.num_return_sequences)
    if config.num_return_sequences > 1:
        logits, cache = logits[source], cache.select(source)
    seen = np.zeros(logits.shape, dtype=bool)
    for has, row in zip(seen, source, strict=True):
        has[prompts[row]] = True
    randoms = random_streams(config.seed, len(source)) if config.do_sample else []
    active = np.arange(len(source))  # rows of the result that the batch still holds
    finished = np.zeros(len(source), dtype=bool)

    for left in reversed(range(config.max_new_tokens)):
        scores = config.process(logits, seen)
        drawn = sampling.draw(scores, randoms) if config.do_sample else scores.argmax(axis=-1)
        seen[np.arange(len(drawn)), drawn] = True

        tokens = np.full(len(source), config.fill_id, dtype=np.int64)
        logprobs = np.zeros(len(source), dtype=np.float64)
        tokens[active] = drawn
        logprobs[active] = sampling.log_softmax(logits)[np.arange(len(drawn)), drawn]
        ends = np.isin(drawn, config.eos_ids)
        for row, stopper in enumerate(stoppers):
            ends[row] |= stopper.stops_after(int(drawn[row]))
        finished[active] = ends
        yield GenerationStep(tokens, logprobs, finished.copy())

        if ends.all() or not left:
            return
        if ends.any():
            kept = np.flatnonzero(~ends)
            cache, drawn, seen, active = cache.select(kept), drawn[kept], seen[kept], active[kept]
            randoms = [randoms[row] for row in kept] if randoms else []
            stoppers = [stoppers[row] for row in kept] if stoppers else []
        logits = step(model, cache, drawn)


def prefill(
    model: MistralForCausalLM,
    prompts: list[np.ndarray],
    max_new_tokens: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, RollingCache]:
    """Send prompts through, padded on the left -> logits (B, V) of their ends, and the cache.

    Only the last column becomes logits: for all of a 32k prompt they would take 4 GB.
    """
    width = max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), width), dtype=np.int64)
    mask = np.zeros((len(prompts), width), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    cache = RollingCache(model.config, model.backend, len(prompts))
    cache.reserve(width + min(max_new_tokens, MOST_RESERVED))
    inputs = prepare(model.config, model.backend, ids, mask, past_key_values=cache)
    done = 0
    for hidden in run(model, inputs, Watcher(model.backend)):
        done += hidden.shape[1]
        if progress is not None:
            progress(done, width)
    return last_logits(model, hidden), cache


def step(model: MistralForCausalLM, cache: RollingCache, tokens: np.ndarray) -> np.ndarray:
    """Send one more token (B,) through -> logits (B, V)."""
    inputs = prepare(model.config, model.backend, tokens[:, None], past_key_values=cache)
    (hidden,) = run(model, inputs, Watcher(model.backend))
    return last_logits(model, hidden)


def last_logits(model: MistralForCausalLM, hidden: Any) -> np.ndarray:
    """Map the last column of hidden states (B, T, D) to logits (B, V), float32 at least."""
    logits = model.backend.to_numpy(model.logits(hidden[:, -1:]))[:, 0]
    return logits if logits.dtype == np.float64 else logits.astype(np.float32)


def random_streams(seed: int | None, rows: int) -> list[np.random.Generator]:
    """Make a random stream for each row: the same for a row whatever the batch it is in."""
    if seed is None:
        seed = secrets.randbits(64)
    return [np.random.default_rng([seed, row]) for row in range(rows)]


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Read the defaults of `generate` from a checkpoint's generation_config.json, if it has one.

    Entries that `generate` does not know are left out; a wrong value is a ValueError.
    """
    path = folder / "generation_config.json"
    if not path.exists():
        return {}
    known = {field.name for field in dataclasses.fields(GenerationConfig)}
    found = {n: v for n, v in read_json(path).items() if n in known and v is not None}
    try:
        GenerationConfig(**found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return found


def _check(
    name: str,
    value: Any,
    kind: type,
    least: float,
    most: float = math.inf,
    exclusive: bool = False,
) -> None:
    kinds = (int, np.integer) if kind is int else (int, float, np.integer, np.floating)
    fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not least <= value <= most or (exclusive and value == least):
        noun = "an integer" if kind is int else "a number"
        bound = f"{'over' if exclusive else 'of at least'} {least}"
        above = "" if most == math.inf else f" and at most {most}"
        raise ValueError(f"{name}: expected {noun} {bound}{above}, got {value!r}")
