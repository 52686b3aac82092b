"""The named stages of a forward pass, and a wrapper around a backend that shows them.

The model knows nothing of this: the order of its operations tells which stage a result is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

# The stages that `linear` computes one after the other, by the norm before them.
PROJECTIONS = {
    "input_layernorm": ("q", "k", "v", "attention_output"),
    "post_attention_layernorm": ("gate", "up", "mlp_output"),
    "norm": (),  # from here on, logits
}

Tap = Callable[[str, np.ndarray], None]


class Tapped:
    """A backend that passes each stage to `tap`, and collects those that a call returns.

    Made for one call of a model, which writes to `cache`; `bias` is that of its head. Stages are
    named by the order in which `model.py` computes them. A residual sum is shown when it is normed,
    the first operation that reads it.
    """

    def __init__(
        self,
        backend: Backend,
        cache: RollingCache,
        bias: Array | None = None,
        tap: Tap | None = None,
        hidden_states: bool = False,
        attentions: bool = False,
    ):
        self._backend, self._cache, self._bias, self._tap = backend, cache, bias, tap
        self._wants_states, self._wants_attentions = hidden_states, attentions
        # Attention weights are computed for this alone.
        self.weighs = backend.has_attention_weights and (tap is not None or attentions)
        self._norms = 0  # so many of the piece's norms are done: two a layer, and the last
        self._layer = ""  # "layers.N."
        self._projections: Iterator[str] = iter(())  # those that come next
        self._rotated: Iterator[str] = iter(())
        self._states: dict[str, list[np.ndarray]] = {}  # by stage: its pieces
        self._attentions: list[np.ndarray] = []

    run_piece = Backend.run_piece  # by the operations below

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """Show the sum, which is the input, and its norm."""
        layers = self._cache.config.num_hidden_layers
        n, second = divmod(self._norms, 2)
        if second:
            self._show(f"{self._layer}attention_residual", x)
            stage = "post_attention_layernorm"
        else:
            self._show(f"{self._layer}output" if n else "embedding", x)
            stage = "input_layernorm" if n < layers else "norm"
            self._layer = f"layers.{n}." if n < layers else ""
        self._norms = (self._norms + 1) % (2 * layers + 1)
        self._projections = iter(PROJECTIONS[stage])
        self._rotated = iter(("q_rotated", "k_rotated"))
        return self._show(self._layer + stage, self._backend.rms_norm(x, weight, eps))

    def linear(self, x: Array, weight: Array) -> Array:
        """Show a projection, heads apart, or logits."""
        out, d = self._backend.linear(x, weight), self._cache.config.head_dim
        stage = next(self._projections, "logits")
        if stage == "logits":
            self._show(stage, out if self._bias is None else out + self._bias)
        elif stage in ("q", "k", "v"):
            heads = out.reshape(*out.shape[:-1], out.shape[-1] // d, d)
            self._show(self._layer + stage, heads)
        else:
            self._show(self._layer + stage, out)
        return out

    def rope(self, x: Array, table: Array) -> Array:
        """Show rotated queries, then rotated keys."""
        return self._show(self._layer + next(self._rotated), self._backend.rope(x, table))

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

    def _show(self, name: str, array: Array) -> Array:
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
