"""The named stages of a forward pass, and a wrapper around a backend that shows them.

The model knows nothing of this: the wrapper names a stage by its operation and its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tinymistral.backend import Array, Backend
from tinymistral.cache import RollingCache

# Every stage that `tap` is called with, in order, and its shape in the letters of `model.py`
# (N counts layers; S here counts the row's tokens so far, oldest first).
STAGES = {
    "embedding": "B T D",
    "layers.N.input_layernorm": "B T D",
    "layers.N.q": "B T H d",
    "layers.N.k": "B T K d",
    "layers.N.v": "B T K d",
    "layers.N.q_rotated": "B T H d",
    "layers.N.k_rotated": "B T K d",
    "layers.N.attention_weights": "B H T S",  # only from backends that give them
    "layers.N.attention_mix": "B T H d",
    "layers.N.attention_output": "B T D",
    "layers.N.attention_residual": "B T D",
    "layers.N.post_attention_layernorm": "B T D",
    "layers.N.gate": "B T F",
    "layers.N.up": "B T F",
    "layers.N.silu_mul": "B T F",
    "layers.N.mlp_output": "B T D",
    "layers.N.output": "B T D",
    "norm": "B T D",
    "logits": "B T V",  # with a head for labels: the number of labels instead of V
}

# The stage that `linear` computes with a weight of this name.
OF_PROJECTION = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "attention_output",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "mlp_output",
}
HEADS = ("lm_head", "embed_tokens", "score", "qa_outputs")  # `linear` with these: logits

Tap = Callable[[str, np.ndarray], None]


class Tapped:
    """A backend that passes each stage to `tap`, and collects those that a call returns.

    Made for one call of a model: `weights` are its arrays by name, `cache` the one that the call
    writes to. A residual sum is shown when it is normed, the first operation that reads it.
    """

    def __init__(
        self,
        backend: Backend,
        weights: Mapping[str, Array],
        cache: RollingCache,
        tap: Tap | None = None,
        hidden_states: bool = False,
        attentions: bool = False,
    ):
        if attentions and not backend.has_attention_weights:
            raise ValueError(
                f"output_attentions: backend {backend.name!r} does not give attention weights; "
                "leave it out, or use backend 'numpy'"
            )
        self._backend, self._cache, self._tap = backend, cache, tap
        self._wants_states, self._wants_attentions = hidden_states, attentions
        # Attention weights are computed for this alone.
        self.weighs = backend.has_attention_weights and (tap is not None or attentions)
        self._names = {id(array): name.removeprefix("model.") for name, array in weights.items()}
        self._biases = {name: x for name, x in weights.items() if name.endswith(".bias")}
        self._layer = ""  # "layers.N." while the last weight used is one of layer N's
        self._last = ""  # the stage shown last
        self._states: dict[str, list[np.ndarray]] = {}  # by stage: its pieces
        self._attentions: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """Show the sum, which is the input, and its norm."""
        before, stage = self._layer, self._enter(weight)
        if stage == "post_attention_layernorm":
            self._show(f"{before}attention_residual", x)
        else:
            self._show(f"{before}output" if before else "embedding", x)
        return self._show(self._layer + stage, self._backend.rms_norm(x, weight, eps))

    def linear(self, x: Array, weight: Array) -> Array:
        """Show a projection, or logits."""
        out, name = self._backend.linear(x, weight), self._enter(weight)
        if name in HEADS:
            bias = self._biases.get(f"{name}.bias")
            self._show("logits", out if bias is None else out + bias)
            return out
        stage, d = OF_PROJECTION[name], self._cache.config.head_dim
        heads = (out.shape[-1] // d, d) if stage in ("q", "k", "v") else out.shape[-1:]
        self._show(self._layer + stage, out.reshape(*out.shape[:-1], *heads))
        return out

    def rope(self, x: Array, table: Array) -> Array:
        """Show the rotated queries, then the rotated keys."""
        stage = "q_rotated" if self._last.endswith(".v") else "k_rotated"
        return self._show(self._layer + stage, self._backend.rope(x, table))

    def attention(self, q: Array, k: Array, v: Array, *positions_and_window: Any) -> Array:
        """Show the attention weights, in token order, and the mix of values."""
        if self.weighs:
            weights = self.to_numpy(self._backend.attention_weights(q, k, *positions_and_window))
            in_order = self._cache.in_token_order(weights)
            self._show(f"{self._layer}attention_weights", in_order)
            if self._wants_attentions:
                self._attentions.append(in_order)
        mix = self._backend.attention(q, k, v, *positions_and_window)
        return self._show(f"{self._layer}attention_mix", mix)

    def silu_mul(self, gate: Array, up: Array) -> Array:
        """Show the product."""
        return self._show(f"{self._layer}silu_mul", self._backend.silu_mul(gate, up))

    def _enter(self, weight: Array) -> str:
        """Record the layer of a weight, and return its module's name: q_proj, norm, lm_head."""
        *path, name, _ = self._names[id(weight)].split(".")
        self._layer = f"layers.{path[1]}." if path else ""
        return name

    def _show(self, name: str, array: Array) -> Array:
        self._last = name
        keep = self._wants_states and name.rpartition(".")[2] in ("embedding", "output", "norm")
        if self._tap is None and not keep:
            return array
        shown = array if isinstance(array, np.ndarray) else self.to_numpy(array)
        if keep:
            self._states.setdefault(name, []).append(shown)
        if self._tap is not None:
            shown = shown.view()
            shown.flags.writeable = False
            self._tap(name, shown)
        return array

    def hidden_states(self) -> tuple[np.ndarray, ...] | None:
        """Return (B, T, D) arrays: the embedding, then each layer's output, the last one normed."""
        if not self._wants_states:
            return None
        *states, _, normed = (np.concatenate(pieces, axis=1) for pieces in self._states.values())
        return (*states, normed)

    def attentions(self) -> tuple[np.ndarray, ...] | None:
        """Return each layer's attention weights (B, H, T, tokens so far)."""
        return tuple(self._attentions) if self._wants_attentions else None
