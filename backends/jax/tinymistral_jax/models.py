"""FlaxMistralModel and its heads: a call, parameters as a pytree, opening and saving.

The names, arguments and parameters are those of transformers 4.57, the last release that had such
classes; `generation.py` has `generate`. The forward pass is `tinymistral.model.forward`, traced.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from tinymistral import (
    MistralConfig,
    MistralForCausalLM,
    MistralForSequenceClassification,
    MistralModel,
)
from tinymistral.backend import Array
from tinymistral.checkpoint import check_tensors, find_checkpoint, load_checkpoint
from tinymistral.inputs import check_ids, integers
from tinymistral.model import forward
from tinymistral.pretrained import random_tensors, tree
from tinymistral.sampling import read_generation_config
from tinymistral_jax.backend import JaxBackend, Residual
from tinymistral_jax.generation import GenerateOutput, decode, generate
from tinymistral_jax.params import Params, placed, to_params, to_tensors
from tinymistral_jax.ring import Cache, NoCache, Ring, divided, empty_cache, slots_for


class FlaxModelOutput(NamedTuple):
    """What `FlaxMistralModel` returns; None if not asked for."""

    last_hidden_state: Array  # (B, T, D), after the final norm
    past_key_values: Cache | None = None
    hidden_states: tuple[Array, ...] | None = None  # embedding, layers; the last one normed
    attentions: tuple[Array, ...] | None = None  # each layer's (B, H, T, S)


class FlaxLogitsOutput(NamedTuple):
    """What the classes with a head return; None if not asked for."""

    logits: Array  # (B, T, V); of a text (B, num_labels)
    past_key_values: Cache | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


class FlaxPreTrainedModel:
    """A configuration and parameters; a call, which `jax.jit`, `grad` and `vmap` go through.

    Attributes: `config`; `params`, nested dicts of arrays; `mesh`; `generation_config`, a dict of
    defaults for `generate`. `dtype` is what activations are rounded to, whatever that of `params`.
    """

    reference: ClassVar[Any]  # the class of tinymistral that has the same tensors
    output: ClassVar[Any] = FlaxLogitsOutput

    def __init__(
        self,
        config: MistralConfig,
        *,
        seed: int = 0,
        dtype: Any = jnp.float32,
        params: Params | None = None,
        mesh: Mesh | None = None,
    ):
        """Make a model with the given parameters, or with random float32 ones.

        With a `mesh`, heads, feed-forward width and vocabulary are divided over its axis "model",
        the rows of a batch over its axis "data".
        """
        self._config, self.mesh = config, mesh
        self.backend = JaxBackend(jnp.dtype(dtype).name)
        self.generation_config: dict[str, Any] = {}
        shapes = self.reference.parameter_shapes(config)
        if params is None:
            params = to_params(random_tensors(shapes, config, seed))
        else:
            check_tensors(to_tensors(params), shapes, ignorable=lambda name: True)
        self.params = placed(params, mesh)
        self._call = jax.jit(self.run, static_argnames=("attentions", "hidden_states"))
        self.empty_cache = jax.jit(self._empty_cache, static_argnums=(0, 1))

    @property
    def config(self) -> MistralConfig:
        """The configuration; it is compiled into a model, so another one takes another model."""
        return self._config

    @property
    def dtype(self) -> Any:
        """The dtype of activations."""
        return jnp.dtype(self.backend.dtype)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        dtype: Any = jnp.float32,
        *,
        mesh: Mesh | None = None,
        revision: str = "main",
    ) -> Any:
        """Open a checkpoint: a folder, or a hub name in the local Hugging Face cache.

        The parameters keep the checkpoint's dtype. Raises ValueError, in one line, for anything
        but a complete Mistral checkpoint; a missing head is never filled with random numbers.
        """
        folder = find_checkpoint(name_or_path, revision)
        shapes = cls.reference.parameter_shapes
        config, tensors = load_checkpoint(folder, shapes, cls.__name__)
        model = cls(config, dtype=dtype, params=to_params(tensors), mesh=mesh)
        model.generation_config = read_generation_config(folder)
        return model

    def save_pretrained(self, folder: str | Path, params: Params | None = None) -> None:
        """Write config.json, generation_config.json and model.safetensors."""
        tensors = to_tensors(jax.tree.map(np.asarray, self.params if params is None else params))
        model = self.reference(self.config, backend="numpy", tensors=tensors)
        model.generation_config = self.generation_config
        model.save_pretrained(folder)

    def init_cache(self, batch_size: int, max_length: int) -> Cache:
        """Return an empty cache, to give as `past_key_values`.

        Positions up to `max_length` fit; a window's ring, once it is smaller than that, is reused.
        """
        cache: Cache = self.empty_cache(
            batch_size, slots_for(self.config, self.backend.chunk, max_length)
        )
        return cache

    def _empty_cache(self, rows: int, slots: int) -> Cache:
        """Compiled, so that no device ever holds more than its share."""
        return divided(empty_cache(self.config, self.backend.dtype, rows, slots), self.mesh)

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        params: Params | None = None,
        past_key_values: Cache | None = None,
        dropout_rng: Any = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run token ids (B, T) through all layers and the head.

        `attention_mask` has 0 for padding: (B, T), or with `past_key_values` for all tokens so
        far, or for all that are to come. Without `position_ids` (B, T), which rise by one, tokens
        continue from the last position, padding left out. `past_key_values`, from `init_cache` or
        an earlier call, is not changed; the output has the new one. With `return_dict=False` the
        output is a plain tuple without what was not asked for.
        """
        if train and self.config.attention_dropout:
            raise ValueError(
                f"train: dropout is not implemented, and attention_dropout is "
                f"{self.config.attention_dropout}; set it to 0 in the configuration"
            )
        ids, mask = self.check(input_ids, attention_mask)
        if past_key_values is not None and position_ids is None:
            self.check_room(past_key_values, ids.shape[1])
        output = self._call(
            self.params if params is None else params,
            ids,
            mask,
            position_ids,
            past_key_values,
            attentions=bool(output_attentions),
            hidden_states=bool(output_hidden_states),
        )
        return output if return_dict in (None, True) else tuple(x for x in output if x is not None)

    def check(self, input_ids: Any, attention_mask: Any) -> tuple[Any, Any]:
        """Return ids and mask as int32; ValueError for wrong ones, unless they are traced."""
        ids, mask = input_ids, attention_mask
        if not isinstance(ids, jax.core.Tracer):
            ids = check_ids(_host(ids), self.config.vocab_size).astype(np.int32)
        if mask is not None and not isinstance(mask, jax.core.Tracer):
            mask = integers("attention_mask", _host(mask), kinds="iub").astype(np.int32)
            if len(mask) != len(ids) or mask.shape[1] < ids.shape[1] or ((mask | 1) != 1).any():
                raise ValueError(
                    f"attention_mask: expected 0 and 1 in shape {ids.shape}, as input_ids, or "
                    f"wider with past_key_values; got shape {mask.shape}"
                )
        return ids, mask

    def check_room(self, cache: Cache, tokens: int) -> None:
        """Raise a ValueError if a cache that is not a window's ring has too few slots."""
        slots, seen = cache["positions"].shape[1], cache["columns"]
        is_ring = slots == slots_for(self.config, self.backend.chunk, slots + 1)
        if not is_ring and not isinstance(seen, jax.core.Tracer) and seen + tokens > slots:
            raise ValueError(
                f"past_key_values: has room for {slots} tokens, and {seen + tokens} come; make it "
                "longer, by init_cache(batch_size, max_length)"
            )

    def run(
        self,
        params: Params,
        ids: Array,
        mask: Array | None = None,
        position_ids: Array | None = None,
        cache: Cache | None = None,
        attentions: bool = False,
        hidden_states: bool = False,
    ) -> Any:
        """Compute a call's output; what `__call__` compiles."""
        T = ids.shape[1]
        mask = jnp.ones(ids.shape, jnp.int32) if mask is None else mask
        if cache is not None and mask.shape[1] > T:
            mask = lax.dynamic_slice_in_dim(mask, cache["columns"], T, axis=1)
        if position_ids is None:
            last = -1 if cache is None else cache["positions"].max(axis=1, keepdims=True)
            position_ids = last + jnp.cumsum(mask, axis=1, dtype=jnp.int32)
        positions = jnp.where(mask != 0, jnp.asarray(position_ids, jnp.int32), -1)
        recorder = Recorder(self.backend.dtype) if attentions or hidden_states else None
        weights = self.weights(params)
        piece = T if cache is None else self.backend.chunk
        if recorder and piece < T:
            raise ValueError(
                f"output_attentions and output_hidden_states take at most {piece} tokens at a "
                f"time with past_key_values, got {T}"
            )
        parts = []
        for start in range(0, T, piece):
            part = slice(start, start + piece)
            hidden, cache = self.forward(weights, ids[:, part], positions[:, part], cache, recorder)
            parts.append(hidden)
        hidden = jnp.concatenate(parts, axis=1)
        output = self.output(self.head(hidden, weights, ids), cache)
        if recorder and attentions:
            output = output._replace(attentions=tuple(recorder.attentions))
        if recorder and hidden_states:
            output = output._replace(hidden_states=(*recorder.residuals[:-1:2], hidden))
        return output

    def forward(
        self,
        weights: Any,
        ids: Array,
        positions: Array,
        cache: Cache | None,
        backend: JaxBackend | None = None,
    ) -> tuple[Array, Cache | None]:
        """Run a piece (B, T) through all layers -> normed hidden states, and the new cache."""
        backend, base = backend or self.backend, getattr(weights, "model", weights)
        ring: Any = NoCache() if cache is None else Ring(cache)
        x: Any = divided(backend.embedding(base.embed_tokens.weight, ids), self.mesh)
        x = Residual(x) if backend.dtype == "bfloat16" else x
        hidden = forward(x, base, positions, ring, self.config, backend)
        return hidden, divided(ring.cache(), self.mesh)

    def weights(self, params: Params) -> SimpleNamespace:
        """Return parameters in the dtype of activations, as `forward` takes them."""
        return tree(to_tensors(jax.tree.map(lambda array: array.astype(self.dtype), params)))

    @abstractmethod
    def head(self, hidden: Array, weights: Any, ids: Array) -> Array:
        """Map normed hidden states (B, T, D) of ids (B, T) to the first field of the output."""


class FlaxMistralModel(FlaxPreTrainedModel):
    """The layers without a head: ids to hidden states."""

    reference = MistralModel
    output = FlaxModelOutput

    def head(self, hidden: Array, weights: Any, ids: Array) -> Array:
        """Return the hidden states as they are."""
        return hidden


class FlaxMistralForCausalLM(FlaxPreTrainedModel):
    """The language model: ids to logits over the next token."""

    reference = MistralForCausalLM

    def __init__(self, config: MistralConfig, **arguments: Any):
        """Make a model; see `FlaxPreTrainedModel`."""
        super().__init__(config, **arguments)
        self.step = jax.jit(self.last_logits, donate_argnames="cache")
        loop = partial(decode, self)
        self.decode = jax.jit(loop, static_argnames=("room", "sample"), donate_argnames="cache")

    def head(self, hidden: Array, weights: Any, ids: Array) -> Array:
        """Return logits (B, T, V), by the embedding where the head is tied to it."""
        tied = self.config.tie_word_embeddings
        matrix = weights.model.embed_tokens if tied else weights.lm_head
        return self.backend.linear(hidden, matrix.weight)

    def last_logits(
        self, params: Params, ids: Array, positions: Array, cache: Cache
    ) -> tuple[Array, Cache | None]:
        """Run a piece (B, T) -> logits (B, V) of its last column, and the new cache."""
        weights = self.weights(params)
        hidden, new = self.forward(weights, ids, positions, cache)
        return self.head(hidden[:, -1:], weights, ids)[:, 0], new

    def generate(
        self,
        input_ids: Any,
        generation_config: dict[str, Any] | None = None,
        prng_key: Any = None,
        trace: bool = True,
        params: Params | None = None,
        attention_mask: Any = None,
        **options: Any,
    ) -> GenerateOutput:
        """Continue prompts; see `generate` in generation.py."""
        key, mask = prng_key, attention_mask
        return generate(self, input_ids, generation_config, key, trace, params, mask, **options)


FlaxMistralForCausalLM.generate.__doc__ = generate.__doc__


class FlaxMistralForSequenceClassification(FlaxPreTrainedModel):
    """Logits over labels for a text, from its last token."""

    reference = MistralForSequenceClassification

    def head(self, hidden: Array, weights: Any, ids: Array) -> Array:
        """Return logits (B, num_labels) of the rightmost id that is not `config.pad_token_id`."""
        (B, T), pad = ids.shape, self.config.pad_token_id
        if pad is None and B > 1:
            raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")
        logits = self.backend.linear(hidden, weights.score.weight)
        if pad is None:
            return logits[:, -1]
        columns = jnp.where(ids != pad, jnp.arange(T, dtype=jnp.int32), 0).max(axis=1)
        return jnp.take_along_axis(logits, columns[:, None, None], axis=1)[:, 0]


class Recorder(JaxBackend):
    """Keeps what `output_hidden_states` and `output_attentions` ask for."""

    def __init__(self, dtype: str):
        super().__init__(dtype)
        self.residuals: list[Array] = []  # what is normed: twice in a layer, once after all
        self.attentions: list[Array] = []

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """Keep x."""
        self.residuals.append(x.array if isinstance(x, Residual) else x)
        return super().rms_norm(x, weight, eps)

    def attention(
        self, q: Array, k: Array, v: Array, q_positions: Any, k_positions: Any, window: int | None
    ) -> Array:
        """Compute the weights too."""
        where = (q_positions, k_positions, window)
        self.attentions.append(self.attention_weights(q, k, *where))
        return super().attention(q, k, v, *where)


def _host(array: Any) -> Any:
    return np.asarray(array) if isinstance(array, jax.Array) else array
