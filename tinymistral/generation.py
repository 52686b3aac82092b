"""Generation: prefill the prompts, then decode token by token until every row has finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinymistral import sampling
from tinymistral.cache import RollingCache
from tinymistral.inputs import Inputs, check_cache, check_ids, integers
from tinymistral.sampling import GenerationConfig, settle
from tinymistral.streaming import StopStrings, StreamDecoder

if TYPE_CHECKING:
    from tinymistral.heads import MistralForCausalLM
    from tinymistral.tokenizer import MistralTokenizer

# Room in the cache for up to this many new tokens is made at once; used up, it is doubled.
MOST_RESERVED = 1024


@dataclass
class GenerationStep:
    """One more token for every row; a finished row gets the fill id, with log-probability 0."""

    tokens: np.ndarray  # (B,)
    logprobs: np.ndarray  # (B,), natural logarithms, of the model itself, before temperature etc.
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

    Greedy, unless `do_sample` is given, or set in the model's `generation_config`. Shorter rows are
    padded on either side, as `attention_mask` says; finished rows are filled up. With
    `return_dict_in_generate` the log-probability of every new token is returned too. The options:

    max_new_tokens, min_new_tokens: how many (20, 0); max_length: the same with the prompt
    eos_token_id: the ids that end a row; pad_token_id: what fills it then
    stop, tokenizer: texts that end a row, and what finds them
    do_sample: draw each token, with a seed; else the likeliest is taken
    temperature, top_k, top_p, min_p: what is drawn from (1, 50, 1, None)
    num_return_sequences: how many are drawn for each prompt
    repetition_penalty: above 1 makes tokens of the row less likely
    no_repeat_ngram_size: n, if no n tokens may come twice in the same order
    suppress_tokens, bad_words_ids: ids, and lists of ids, that never come
    prompt_lookup_num_tokens: how many tokens to guess ahead (0), see `Drafts`; for one row
    past_key_values, progress: see `generate_stream`
    """
    ids = check_ids(input_ids, model.config.vocab_size)
    steps = list(generate_stream(model, ids, attention_mask, **options))
    copies = settle(model, options).num_return_sequences
    sequences = np.repeat(ids, copies, axis=0)
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
    past_key_values: RollingCache | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Iterator[GenerationStep]:
    """Continue prompts (B, T) -> a step for each new token, as it is generated.

    Arguments as for `generate`; a wrong one raises here, not at the first step.
    `progress(done, total)` is called with the number of prompt tokens computed so far. Rows are in
    the order of the prompts, each `num_return_sequences` times. With `past_key_values`, for one
    row, `input_ids` begin with the tokens that the cache holds (which is not checked), and these
    are not computed again (but for the last, if there is no other); at the end it holds all tokens
    but the last new one.
    """
    ids = check_ids(input_ids, model.config.vocab_size)
    config = settle(model, options, prompt_length=ids.shape[1], rows=len(ids))
    prompts = unpadded(ids, attention_mask)
    stoppers: list[Stopper] = []
    if stop is not None and stop != []:
        if tokenizer is None:
            raise ValueError("stop: texts are found in the decoded text; give the tokenizer too")
        tokenizer.check_vocabulary(model.config.vocab_size)
        copies = range(config.num_return_sequences)
        stoppers = [Stopper(stop, tokenizer, prompt) for prompt in prompts for _ in copies]
    if past_key_values is not None:
        check_cache(past_key_values, model)
        if len(prompts) * config.num_return_sequences * len(past_key_values.count) != 1:
            raise ValueError("past_key_values: generate continues one row, and returns one")
        held = int(past_key_values.count[0])
        if held > len(prompts[0]):
            raise ValueError(
                f"past_key_values: holds {held} tokens, but input_ids are {len(prompts[0])}; "
                "they must begin with those that it holds"
            )
    if config.max_new_tokens:  # the last new token is not computed with
        model.warn_of_far_positions(max(map(len, prompts)) + config.max_new_tokens - 2)
    return decode(model, prompts, config, stoppers, past_key_values, progress)


def unpadded(ids: np.ndarray, attention_mask: Any) -> list[np.ndarray]:
    """Return each row's tokens (n,) without its padding."""
    if attention_mask is None:
        return list(ids)
    mask = integers("attention_mask", attention_mask, kinds="iub")
    if mask.shape != ids.shape or ((mask != 0) & (mask != 1)).any():
        raise ValueError(f"attention_mask: expected 0 and 1 in shape {ids.shape}, as input_ids")
    prompts = [row[real] for row, real in zip(ids, mask.astype(bool), strict=True)]
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"attention_mask: row {row} is all padding; begin it with <s>")
    return prompts


class Stopper:
    """Looks for stop strings in the text that continues one prompt."""

    def __init__(self, stop: str | list[str], tokenizer: MistralTokenizer, prompt: np.ndarray):
        self._strings = StopStrings(stop)
        self._decoder = StreamDecoder(tokenizer)
        for token in prompt.tolist():
            self._decoder.push(token)

    def stops_after(self, token: int) -> bool:
        """Return whether the text, with that of this token, contains a stop string."""
        self._strings.push(self._decoder.push(token))
        return self._strings.matched is not None


def decode(
    model: MistralForCausalLM,
    prompts: list[np.ndarray],
    config: GenerationConfig,
    stoppers: list[Stopper],
    past_key_values: RollingCache | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[GenerationStep]:
    """Prefill, then one token at a time; a finished row is removed from the batch."""
    if config.max_new_tokens == 0:
        return
    cache = past_key_values
    if cache is None:
        cache = model.new_cache(len(prompts))
    logits = prefill(model, prompts, cache, config.max_new_tokens, progress)
    source = np.repeat(np.arange(len(prompts)), config.num_return_sequences)  # prompt of each row
    if config.num_return_sequences > 1:
        logits, cache = logits[source], cache.select(source)
    sequences = [prompts[prompt].tolist() for prompt in source]
    randoms = random_streams(config.seed, len(source)) if config.do_sample else []
    active = np.arange(len(source))  # rows of the result that are still in the batch
    finished = np.zeros(len(source), dtype=bool)
    drafts = Drafts(min(config.prompt_lookup_num_tokens, cache.chunk - 1))

    for new in range(config.max_new_tokens):
        scores = config.process(logits, sequences, new)
        chosen = sampling.draw(scores, randoms) if config.do_sample else scores.argmax(axis=-1)
        for sequence, token in zip(sequences, chosen.tolist(), strict=True):
            sequence.append(token)

        tokens = np.full(len(source), config.fill_id, dtype=np.int64)
        logprobs = np.zeros(len(source), dtype=np.float64)
        tokens[active] = chosen
        logprobs[active] = sampling.log_softmax(logits)[np.arange(len(chosen)), chosen]
        ends = np.isin(chosen, config.eos_ids)
        for n, stopper in enumerate(stoppers):
            ends[n] |= stopper.stops_after(int(chosen[n]))
        finished[active] = ends
        yield GenerationStep(tokens, logprobs, finished.copy())

        if ends.all() or new + 1 == config.max_new_tokens:
            return
        if ends.any():
            rows = np.flatnonzero(~ends)
            cache, chosen = cache.select(rows), chosen[rows]
            sequences, active = [sequences[row] for row in rows], active[rows]
            randoms = [randoms[row] for row in rows] if randoms else []
            stoppers = [stoppers[row] for row in rows] if stoppers else []
        if drafts.most:
            logits = drafts.step(model, cache, sequences[0], config.max_new_tokens - new - 2)
        else:
            logits = step(model, cache, chosen)


def prefill(
    model: MistralForCausalLM,
    prompts: list[np.ndarray],
    cache: RollingCache,
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """Compute the tokens of prompts that the cache does not hold -> logits (B, V) of the last.

    Only the last column becomes logits: for all of a 32k prompt they would take 4 GB.
    """
    # Where the cache holds all of them, the last is computed again: its logits are wanted.
    held = np.minimum(cache.count, [len(prompt) - 1 for prompt in prompts])
    new = [prompt[n:] for prompt, n in zip(prompts, held, strict=True)]
    first = cache.last + 1 - (cache.count - held)  # the position of each row's first new token
    width = max(len(row) for row in new)
    ids = np.zeros((len(new), width), dtype=np.int64)
    positions = np.full((len(new), width), -1, dtype=np.int64)
    for n, row in enumerate(new):  # padded on the left, so that all end in the last column
        ids[n, width - len(row) :] = row
        positions[n, width - len(row) :] = first[n] + np.arange(len(row), dtype=np.int64)
    cache.reserve(width + min(max_new_tokens, MOST_RESERVED))
    call, done = cache.begin(), 0
    for hidden in model.run(Inputs(ids, None, positions, call)):
        done += hidden.shape[1]
        if progress is not None:
            progress(done, width)
    logits = finite_logits(model, hidden[:, -1:])[:, 0]
    call.commit()
    return logits


def step(model: MistralForCausalLM, cache: RollingCache, tokens: np.ndarray) -> np.ndarray:
    """Compute one more token (B,) of each row -> logits (B, V)."""
    call = cache.begin()
    (hidden,) = model.run(Inputs(tokens[:, None], None, cache.last[:, None] + 1, call))
    logits = finite_logits(model, hidden[:, -1:])[:, 0]
    call.commit()
    return logits


class Drafts:
    """Speculative decoding of one row by prompt lookup: computes ahead what the text may say next.

    Where the last two tokens came before, those that followed them are the draft. It is computed in
    one piece with the last token, which takes little longer than that token alone while reading
    the weights takes most of the time. Each token is chosen as ever, from the logits after
    the text itself; they are there already while the text goes on as the draft does. So a draft
    changes no text, greedy or drawn: of a draft x the next token is x with x's own probability.

    Leviathan et al. 2022, https://arxiv.org/abs/2211.17192; Saxena 2023,
    https://github.com/apoorvumang/prompt-lookup-decoding.
    """

    def __init__(self, most: int):
        self.most = most  # tokens of a draft
        self.tokens: list[int] = []  # those of the draft that have not been chosen yet
        self.length = most  # of the whole draft; the first may be long
        self.logits = np.empty((1, 0, 0), dtype=np.float32)  # (1, 1 + length, V)
        self.follow: dict[tuple[int, ...], int] = {}  # where two tokens were last followed by one
        self.known = 2  # follow has the tokens before this one

    def step(
        self, model: MistralForCausalLM, cache: RollingCache, text: list[int], most: int
    ) -> np.ndarray:
        """Add the text's last token to the cache -> logits (1, V) of the next.

        `most` is how many tokens a draft may have here.
        """
        position = cache.last[:, None] + 1
        if self.tokens[:1] == text[-1:]:
            del self.tokens[0]
        else:
            # As long again as what was right of the last one, and one more: a text that repeats
            # nothing should not pay for long drafts.
            right = self.length - len(self.tokens)
            self.tokens = self.guess(text, min(2 * right + 1, self.most, most))
            self.length = len(self.tokens)
            ids = np.array([[text[-1], *self.tokens]], dtype=np.int64)
            ahead = cache.begin()  # and never committed: the cache holds no token of a draft
            positions = position + np.arange(ids.shape[1], dtype=np.int64)
            (hidden,) = model.run(Inputs(ids, None, positions, ahead))
            self.logits = finite_logits(model, hidden)
        call = cache.begin()
        call.admit(position)  # its keys and values lie in its slot
        call.commit()
        return self.logits[:, self.length - len(self.tokens)]

    def guess(self, text: list[int], most: int) -> list[int]:
        """Return at most `most` tokens that may follow the text, which continues the last one."""
        for end in range(self.known, len(text)):
            self.follow[text[end - 2], text[end - 1]] = end
        self.known = max(self.known, len(text))
        start = self.follow.get((*text[-2:],))
        if start is None:
            return []
        # What repeats itself is expected to do so again.
        return [text[start + n % (len(text) - start)] for n in range(most)]


def finite_logits(model: MistralForCausalLM, hidden: Any) -> np.ndarray:
    """Map hidden states (B, T, D) to logits (B, T, V) on the host, float32 at least.

    ValueError for what `check_finite` refuses.
    """
    logits = model.backend.to_numpy(model.logits(hidden))
    check_finite(logits, model.backend.dtype)
    return logits if logits.dtype == np.float64 else logits.astype(np.float32)


def check_finite(logits: np.ndarray, dtype: str) -> None:
    """Raise a ValueError where logits are no scores: where one is NaN or inf, or all are -inf."""
    if not np.isfinite(logits.max(axis=-1)).all():
        raise ValueError(
            "the model's logits are not finite: its weights are damaged (download them again), or "
            f"its numbers overflow in {dtype} (take another dtype)"
        )


def random_streams(seed: int | None, rows: int) -> list[np.random.Generator]:
    """Return a random stream for each row; row n's is the same for any number of rows."""
    if seed is None:
        from secrets import randbits  # takes milliseconds to import; greedy does not need it

        seed = randbits(63)
    return [np.random.default_rng([seed, row]) for row in range(rows)]
