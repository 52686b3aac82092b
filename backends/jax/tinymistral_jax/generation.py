"""Generation on the device: prefill in pieces, then one compiled loop over the new tokens.

Lengths are rounded up to powers of two, so that few are compiled: a prompt's piece by padding, the
loop by the room for its results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tinymistral.backend import Array
from tinymistral.generation import check_finite
from tinymistral.sampling import settle
from tinymistral_jax.ring import Cache, slots_for

if TYPE_CHECKING:
    from tinymistral_jax.models import FlaxMistralForCausalLM

# Options of tinymistral's own `generate` that the loop here does not have, with what they are off.
ON_THE_HOST = {
    "repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "prompt_lookup_num_tokens": 0,
}


class GenerateOutput(NamedTuple):
    """What `generate` returns."""

    sequences: Array  # (B, T + max_new_tokens): prompts, continuations, padding


class Choice(NamedTuple):
    """How a token is chosen; numbers, so that others need no new compilation."""

    is_eos: Any  # (V,) booleans
    is_suppressed: Any  # (V,)
    min_new_tokens: Any
    fill_id: Any
    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any


def generate(
    model: FlaxMistralForCausalLM,
    input_ids: Any,
    generation_config: dict[str, Any] | None = None,
    prng_key: Any = None,
    trace: bool = True,
    params: Any = None,
    attention_mask: Any = None,
    **options: Any,
) -> GenerateOutput:
    """Continue prompts (B, T) -> `sequences` (B, T + max_new_tokens).

    Greedy, unless `do_sample` is given, or set in the model's `generation_config`. Rows are padded
    on either side, as `attention_mask` says. `generation_config` is a dict of options, which go
    first. The options, explained at `tinymistral.generation.generate`: max_new_tokens,
    min_new_tokens, max_length, eos_token_id, pad_token_id, do_sample, temperature, top_k, top_p,
    min_p, seed (instead of `prng_key`), num_return_sequences, suppress_tokens.
    Each row has its own random stream, derived from `prng_key`. `trace=False` runs the loop in
    Python, to look inside. `jax.jit` goes through, with prompts as arguments.
    """
    ids, mask = model.check(input_ids, attention_mask)
    traced = isinstance(ids, jax.core.Tracer) or isinstance(mask, jax.core.Tracer)
    xp: Any = jnp if traced else np
    how: Any = model  # it has what `settle` reads
    config = settle(how, {**(generation_config or {}), **options}, ids.shape[1], len(ids))
    for name, off in ON_THE_HOST.items():
        if getattr(config, name) != off:
            raise ValueError(
                f"{name}: not in the compiled loop; leave it out, or use "
                'MistralForCausalLM.from_pretrained(folder, backend="jax")'
            )
    mask = xp.ones(ids.shape, np.int32) if mask is None else mask
    ids, mask = (xp.repeat(x, config.num_return_sequences, axis=0) for x in (ids, mask))
    (B, T), new = ids.shape, config.max_new_tokens
    if new == 0:
        return GenerateOutput(jax.device_put(ids))
    if not traced and not mask.any(axis=1).all():
        row = int(np.argmin(mask.any(axis=1)))
        raise ValueError(f"attention_mask: row {row} is all padding; begin it with <s>")

    # Padding to the left, so that each row ends in the last column, and to a length of few.
    order = xp.argsort(xp.arange(T) + T * mask, axis=1)
    chunk = model.backend.chunk
    width = -(-T // chunk) * chunk if chunk < T else power_of_two(T)
    left = ((0, 0), (width - T, 0))
    tokens = xp.pad(xp.take_along_axis(ids, order, axis=1), left)
    real = xp.pad(xp.take_along_axis(mask, order, axis=1), left)
    positions = xp.where(real == 1, xp.cumsum(real, axis=1) - 1, -1).astype(np.int32)

    params = model.params if params is None else params
    with jax.disable_jit(not trace):
        slots = slots_for(model.config, chunk, power_of_two(T + new))
        cache = model.empty_cache(B, slots)
        for start in range(0, width, chunk):
            piece = slice(start, start + chunk)
            logits, cache = model.step(params, tokens[:, piece], positions[:, piece], cache)
        key = jax.random.PRNGKey(config.seed or 0) if prng_key is None else prng_key
        made, taint, _ = model.decode(
            params,
            cache,
            logits,
            positions[:, -1],
            key,
            np.int32(new),
            choice_of(config, model.config.vocab_size),
            room=power_of_two(new),
            sample=config.do_sample,
        )
    if not traced and not isinstance(taint, jax.core.Tracer):
        check_finite(np.asarray(taint)[:, None], model.backend.dtype)
        made = np.asarray(made)
    return GenerateOutput(jax.device_put(xp.concatenate([ids, made[:, :new]], axis=1)))


def decode(
    model: FlaxMistralForCausalLM,
    params: Any,
    cache: Cache,
    logits: Array,
    last: Array,
    key: Array,
    limit: Array,
    choice: Choice,
    *,
    room: int,
    sample: bool,
) -> tuple[Array, Array, Cache]:
    """Choose from logits (B, V), and compute each next token, until `limit` or every row ends.

    Returns tokens (B, room); (B,) zeros, NaN where a row's logits were not finite; and the cache,
    so that its memory is not copied.
    """
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(len(last)))

    def choose(state: Any, logits: Array) -> Any:
        n, made, ended, taint = state
        scores = logits.astype(model.backend.wide)
        taint = taint + 0 * scores.max(axis=-1)  # 0, or NaN for what is not finite
        forbidden = choice.is_suppressed | (choice.is_eos & (n < choice.min_new_tokens))
        scores = jnp.where(forbidden, -jnp.inf, scores)
        if sample:
            now = jax.vmap(lambda key: jax.random.fold_in(key, n))(keys)
            scores, ids = kept(scores, choice)
            drawn = jax.vmap(jax.random.categorical)(now, scores)
            tokens = jnp.take_along_axis(ids, drawn[:, None], axis=1)[:, 0]
        else:
            tokens = scores.argmax(axis=-1)
        tokens = jnp.where(ended, choice.fill_id, tokens).astype(jnp.int32)
        made = lax.dynamic_update_index_in_dim(made, tokens, n, axis=1)
        return n + 1, made, ended | choice.is_eos[tokens], taint

    def step(carry: Any) -> Any:
        cache, last, state = carry
        n, made, ended, _ = state
        tokens = lax.dynamic_index_in_dim(made, n - 1, axis=1)
        last = jnp.where(ended, -1, last + 1)  # a row that has ended is padding
        logits, cache = model.last_logits(params, tokens, last[:, None], cache)
        return cache, last, choose(state, jnp.where(ended[:, None], 0, logits))

    def goes_on(carry: Any) -> Array:
        n, _, ended, _ = carry[2]
        return (n < limit) & ~ended.all()

    made = jnp.full((len(last), room), choice.fill_id, jnp.int32)
    state = (jnp.int32(0), made, last < -1, jnp.zeros(len(last), model.backend.wide))
    params = jax.tree.map(lambda array: array.astype(model.dtype), params)  # once, not every token
    carry = (cache, last, choose(state, logits))
    cache, _, (_, made, _, taint) = lax.while_loop(goes_on, step, carry)
    return made, taint, cache


def kept(scores: Array, choice: Choice) -> tuple[Array, Array]:
    """Apply temperature, top-k, top-p and min-p as tinymistral/sampling.py does, which cites them.

    All of them always, since they may change from call to call without a compilation. Returns
    scores (B, V) in ascending order, -inf for what may not be drawn, and the ids of these.
    """
    V = scores.shape[-1]
    ids = lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    scores, ids = lax.sort_key_val(scores / choice.temperature, ids)
    lowest = lax.dynamic_index_in_dim(scores, V - choice.top_k, axis=-1)
    scores = jnp.where(scores < lowest, -jnp.inf, scores)
    up_to_here = jnp.cumsum(jax.nn.softmax(scores, axis=-1), axis=-1)
    removed = (up_to_here <= 1 - choice.top_p).at[:, -1].set(False)
    scores = jnp.where(removed, -jnp.inf, scores)
    probabilities = jax.nn.softmax(scores, axis=-1)
    least = choice.min_p * probabilities[:, -1:]
    return jnp.where(probabilities < least, -jnp.inf, scores), ids


def choice_of(config: Any, V: int) -> Choice:
    """Return the options of a `GenerationConfig` as numbers."""
    ids = np.arange(V, dtype=np.int32)
    return Choice(
        is_eos=np.isin(ids, config.eos_ids),
        is_suppressed=np.isin(ids, config.suppress_tokens or []),
        min_new_tokens=np.int32(config.min_new_tokens),
        fill_id=np.int32(config.fill_id),
        temperature=np.float32(config.temperature),
        top_k=np.int32(min(config.top_k or V, V)),
        top_p=np.float32(config.top_p),
        min_p=np.float32(config.min_p or 0),
    )


def power_of_two(n: int) -> int:
    """Return the least power of two that is n or more."""
    return 1 << (n - 1).bit_length()
