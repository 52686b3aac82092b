"""The named stages of a forward pass, and who is shown them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinymistral.backend import Array, Backend

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
    "logits": "B T V",  # of a head with labels, their number in the place of V
}

Tap = Callable[[str, np.ndarray], None]


class Watcher:
    """Shows each stage to the user's `tap` and keeps those that a call was asked to return."""

    def __init__(
        self,
        backend: Backend,
        tap: Tap | None = None,
        states: bool = False,
        attentions: bool = False,
    ):
        if attentions and not backend.has_attention_weights:
            raise ValueError(
                f"output_attentions: backend {backend.name!r} does not give attention weights; "
                "leave it out, or use backend 'numpy'"
            )
        self.backend = backend
        self.tap = tap
        self._keeps_states, self._keeps_attentions = states, attentions
        self._watched = tap is not None or states or attentions
        self._states: dict[str, list[np.ndarray]] = {}  # of each stage, the pieces
        self._attentions: list[np.ndarray] = []

    @property
    def wants_all(self) -> bool:
        """Tell whether stages that cost work of their own are wanted too."""
        return self.tap is not None or self._keeps_attentions

    def __call__(self, name: str, array: Array) -> None:
        """Show the stage `name`, once a piece."""
        if not self._watched:  # as a rule, and then it should cost nothing
            return
        stage = name.rpartition(".")[2]
        keep_state = self._keeps_states and stage in ("embedding", "output", "norm")
        keep_weights = self._keeps_attentions and stage == "attention_weights"
        if self.tap is None and not keep_state and not keep_weights:
            return
        shown = array if isinstance(array, np.ndarray) else self.backend.to_numpy(array)
        if keep_state:
            self._states.setdefault(name, []).append(shown)
        if keep_weights:
            self._attentions.append(shown)
        if self.tap is not None:
            shown = shown.view()
            shown.flags.writeable = False
            self.tap(name, shown)

    def hidden_states(self) -> tuple[np.ndarray, ...] | None:
        """Return (B, T, D) arrays: the embedding, then each layer's output, the last one normed."""
        if not self._keeps_states:
            return None
        *states, _, normed = (np.concatenate(pieces, axis=1) for pieces in self._states.values())
        return (*states, normed)

    def all_attentions(self) -> tuple[np.ndarray, ...] | None:
        """Return each layer's attention weights (B, H, T, tokens so far)."""
        return tuple(self._attentions) if self._keeps_attentions else None
