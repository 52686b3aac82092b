"""The forward pass of Mistral, top to bottom.

The letters, here and everywhere in this project:

    B  batch: rows of tokens              D  model width (hidden_size)
    T  new tokens of a row                F  feed-forward width (intermediate_size)
    S  cached keys of a row               V  vocabulary size
    H  query heads                        W  window: keys visible to a query, its own included
    K  key/value heads                    C  chunk: most tokens that go through at once
    d  head width (head_dim)

Every token has an absolute position, -1 for padding. Tokens go through in pieces of at most C;
each layer writes a piece's keys and values into a ring (`cache.py`), then attends to all of it.
There is no mask: `backend.attention` sees from positions alone which key is visible to a query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinymistral.backend import Array, Backend
from tinymistral.cache import RollingCache
from tinymistral.checkpoint.tensors import base_shapes, causal_lm_shapes
from tinymistral.config import MistralConfig
from tinymistral.inputs import Inputs, kept_columns, prepare
from tinymistral.labels import next_token_labels
from tinymistral.losses import causal_lm_loss
from tinymistral.outputs import CausalLMOutput, ModelOutput
from tinymistral.pretrained import PreTrainedModel, Shapes, refuse_unknown
from tinymistral.stages import Tap, Watcher


@dataclass
class Piece:
    """What all layers share while one piece of T tokens goes through them."""

    config: MistralConfig
    backend: Backend
    cache: RollingCache
    positions: np.ndarray  # (B, T)
    slots: np.ndarray  # (B, T), where the cache takes the piece's keys and values
    table: Array  # of rotary angles
    see: Watcher  # is shown each stage


def attention(x: Array, layer: Any, n: int, piece: Piece) -> Array:
    """Grouped-query attention of layer n for its normed input x (B, T, D) -> (B, T, D)."""
    backend, config, cache, see = piece.backend, piece.config, piece.cache, piece.see
    B, T, _ = x.shape
    H, K, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    q = backend.linear(x, layer.q_proj.weight).reshape(B, T, H, d)
    k = backend.linear(x, layer.k_proj.weight).reshape(B, T, K, d)
    v = backend.linear(x, layer.v_proj.weight).reshape(B, T, K, d)
    see(f"layers.{n}.q", q)
    see(f"layers.{n}.k", k)
    see(f"layers.{n}.v", v)

    q = backend.rope(q, piece.table)
    see(f"layers.{n}.q_rotated", q)
    cache.k[n], cache.v[n] = backend.store(k, v, piece.table, (cache.k[n], cache.v[n]), piece.slots)
    keys, values = cache.read(n)
    where = (piece.positions, cache.read_positions(), config.sliding_window)
    if see.wants_all:
        see(f"layers.{n}.k_rotated", backend.rope(k, piece.table))
        if backend.has_attention_weights:
            weights = backend.to_numpy(backend.attention_weights(q, keys, *where))
            see(f"layers.{n}.attention_weights", cache.in_token_order(weights))

    mix = backend.attention(q, keys, values, *where)
    see(f"layers.{n}.attention_mix", mix)
    return backend.linear(mix.reshape(B, T, H * d), layer.o_proj.weight)


def mlp(x: Array, layer: Any, n: int, piece: Piece) -> Array:
    """SwiGLU, down(silu(gate(x)) · up(x)), for the normed x (B, T, D) -> (B, T, D)."""
    gate = piece.backend.linear(x, layer.gate_proj.weight)
    up = piece.backend.linear(x, layer.up_proj.weight)
    product = piece.backend.silu_mul(gate, up)
    piece.see(f"layers.{n}.gate", gate)
    piece.see(f"layers.{n}.up", up)
    piece.see(f"layers.{n}.silu_mul", product)
    return piece.backend.linear(product, layer.down_proj.weight)


def forward(x: Array, weights: Any, piece: Piece) -> Array:
    """Run embedded tokens x (B, T, D) through all layers -> (B, T, D), after the final norm.

    A layer is h = x + attention(norm(x)), then h + mlp(norm(h)). Each sum is normed by what
    reads it next: within the layer, by the layer after it, by the final norm.
    """
    backend, eps, see = piece.backend, piece.config.rms_norm_eps, piece.see
    see("embedding", x)
    next_norms = [layer.input_layernorm for layer in weights.layers[1:]] + [weights.norm]
    normed = backend.rms_norm(x, weights.layers[0].input_layernorm.weight, eps)
    for n, (layer, next_norm) in enumerate(zip(weights.layers, next_norms, strict=True)):
        see(f"layers.{n}.input_layernorm", normed)
        mixed = attention(normed, layer.self_attn, n, piece)
        see(f"layers.{n}.attention_output", mixed)
        x, normed = backend.add_rms_norm(x, mixed, layer.post_attention_layernorm.weight, eps)
        see(f"layers.{n}.attention_residual", x)
        see(f"layers.{n}.post_attention_layernorm", normed)
        mixed = mlp(normed, layer.mlp, n, piece)
        see(f"layers.{n}.mlp_output", mixed)
        x, normed = backend.add_rms_norm(x, mixed, next_norm.weight, eps)
        see(f"layers.{n}.output", x)
    see("norm", normed)
    return normed


def run(model: PreTrainedModel, inputs: Inputs, see: Watcher) -> Iterator[Array]:
    """Send the inputs through the layers, piece by piece -> (B, at most C, D), normed."""
    config, backend, cache, weights = model.config, model.backend, inputs.cache, model.base_weights
    model.warn_of_far_positions(inputs.positions)
    cache.reserve(inputs.positions.shape[1])
    for start in range(0, inputs.positions.shape[1], cache.chunk):
        part = slice(start, start + cache.chunk)
        if inputs.embeds is not None:
            x = inputs.embeds[:, part]
        else:
            x = backend.embedding(weights.embed_tokens.weight, inputs.ids[:, part])
        positions = inputs.positions[:, part]
        table = backend.rope_table(positions, config.rope_theta, config.head_dim)
        slots = cache.admit(positions)
        try:
            hidden = forward(
                x, weights, Piece(config, backend, cache, positions, slots, table, see)
            )
        except BaseException:  # an interrupt too: the pieces before this one stay, it has not been
            cache.withdraw(slots)
            raise
        cache.commit(positions)
        yield hidden


class Call:
    """What is the same in a call of any model: inputs checked, stages watched, pieces run."""

    def __init__(
        self,
        model: PreTrainedModel,
        given: tuple[Any, Any, Any, Any, Any],
        watched: tuple[Tap | None, bool, bool],
    ):
        """Take the arguments of `prepare` from input_ids on, those of `Watcher` from tap on."""
        self.model = model
        self.see = Watcher(model.backend, *watched)
        whole = self.see.wants_all
        self.inputs = prepare(model, *given, in_one_piece=whole)
        self.real = self.inputs.positions >= 0  # (B, T), false where there is padding

    def hidden(self) -> Iterator[Array]:
        """Send the inputs through the layers, piece by piece -> (B, at most C, D), normed."""
        return run(self.model, self.inputs, self.see)

    def shared_output(self, use_cache: bool | None) -> dict[str, Any]:
        """Return the fields that all outputs have."""
        return {
            "past_key_values": self.inputs.cache if self.model.wants_cache(use_cache) else None,
            "hidden_states": self.see.hidden_states(),
            "attentions": self.see.all_attentions(),
        }


class MistralModel(PreTrainedModel):
    """The layers without a head: ids to hidden states."""

    @property
    def base_weights(self) -> Any:
        """All of them."""
        return self.weights

    @classmethod
    def parameter_shapes(cls, config: MistralConfig) -> Shapes:
        """Return the names and shapes of a base model's tensors."""
        return base_shapes(config)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: RollingCache | None = None,
        inputs_embeds: Any = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        tap: Tap | None = None,
        **unknown: Any,
    ) -> ModelOutput:
        """Run token ids (B, T), or embeddings (B, T, D), through all layers.

        `attention_mask` (B, T), or for all tokens so far, has 0 for padding; `position_ids`
        (B, T) say positions outright. `past_key_values`, as an earlier call returned it, is
        continued, and written to; a position that is given again takes back all from there on (a
        mask is then given for the new tokens alone). `tap(name, array)` is shown every stage of
        `stages.STAGES`; the input then goes through in one piece. Raises ValueError for inputs
        that do not fit.
        """
        refuse_unknown(MistralModel.__call__, unknown)
        given = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        call = Call(self, given, (tap, output_hidden_states, output_attentions))
        hidden = [self.backend.to_numpy(x) for x in call.hidden()]
        return ModelOutput(
            last_hidden_state=np.concatenate(hidden, axis=1), **call.shared_output(use_cache)
        )


class MistralForCausalLM(PreTrainedModel):
    """The language model: ids to logits over the next token."""

    @classmethod
    def parameter_shapes(cls, config: MistralConfig) -> Shapes:
        """Return the base model's tensors after `model.`, and the head unless it is tied."""
        return causal_lm_shapes(config)

    def logits(self, hidden: Array) -> Array:
        """Map normed hidden states (B, T, D) -> (B, T, V); tied: by the embedding itself."""
        tied = self.config.tie_word_embeddings
        head = self.weights.model.embed_tokens if tied else self.weights.lm_head
        return self.backend.linear(hidden, head.weight)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: RollingCache | None = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        logits_to_keep: int | Any = 0,
        tap: Tap | None = None,
        **unknown: Any,
    ) -> CausalLMOutput:
        """Run token ids (B, T), or embeddings (B, T, D) -> logits (B, T, V).

        `logits_to_keep`: how many of the last columns to give logits for, 0 for all, or a list
        of columns. `labels` (B, T), usually the ids themselves, give a `loss`: the mean
        cross-entropy of each column's logits with the next column's label, where that is not
        -100 and neither column is padding. Everything else as for `MistralModel`.
        """
        refuse_unknown(MistralForCausalLM.__call__, unknown)
        given = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        call = Call(self, given, (tap, output_hidden_states, output_attentions))
        T = call.real.shape[1]
        columns = kept_columns(logits_to_keep, T)
        if labels is not None:
            labels = next_token_labels(labels, self.config.vocab_size, call.real)
            if len(columns) < T:
                raise ValueError(
                    f"logits_to_keep: leaves {T - len(columns)} of {T} columns out, and with "
                    "labels the loss is over all of them; leave out one of the two"
                )
        parts, start = [], 0
        for hidden in call.hidden():
            stop = start + hidden.shape[1]
            kept = columns[(start <= columns) & (columns < stop)] - start
            if len(kept):
                whole = len(kept) == hidden.shape[1]
                part = hidden if whole else self.backend.take(hidden, kept, axis=1)
                parts.append(self.logits(part))
                call.see("logits", parts[-1])
            start = stop
        logits = np.concatenate([self.backend.to_numpy(part) for part in parts], axis=1)
        return CausalLMOutput(
            loss=None if labels is None else causal_lm_loss(logits, labels),
            logits=logits,
            **call.shared_output(use_cache),
        )

    def generate(self, input_ids: Any, attention_mask: Any = None, **options: Any) -> Any:
        """Continue prompts; see `tinymistral.generation.generate`."""
        from tinymistral.generation import generate

        return generate(self, input_ids, attention_mask, **options)

    def generate_stream(self, input_ids: Any, attention_mask: Any = None, **options: Any) -> Any:
        """Continue prompts, a token at a time; see `tinymistral.generation.generate_stream`."""
        from tinymistral.generation import generate_stream

        return generate_stream(self, input_ids, attention_mask, **options)
