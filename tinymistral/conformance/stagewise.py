"""Judges a whole forward pass a stage at a time: each must follow from what came before it.

The oracle is given the backend's own numbers of the stages before, so the bound is that of one
operation, narrow in 16 bits too, and the first stage that is wrong is the one that is named. What
attention finds in the cache is taken from `Kept`, a list of all tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinymistral.cache import RollingCache
from tinymistral.conformance import oracle
from tinymistral.conformance.bounds import (
    UNIT,
    agree,
    attention_error,
    linear_error,
    rms_norm_error,
    rope_error,
    silu_mul_error,
    softmax_error,
)
from tinymistral.conformance.kept import Kept
from tinymistral.conformance.models import Stream

Take = Callable[[RollingCache, Kept, np.ndarray, int], None]  # (cache, kept, positions, seed)


class Judge:
    """A model, and calls of it that are checked."""

    def __init__(self, model: Any):
        """Take the model, whose weights are known by name."""
        self.model, self.config, self.backend = model, model.config, model.backend
        self.dtype: str = model.backend.dtype

    def walk(self, case: Stream, take: Take) -> None:
        """Take each step of a stream by `take`, a copy's before its original's."""
        cache, kept = self.model.new_cache(case.rows, case.chunk), Kept(case.rows)
        for n, step in enumerate(case.steps):
            branches = [(cache, kept)]
            if step.copy is not None:
                copied = cache.select(np.array(step.copy, dtype=np.int64))
                branches.insert(0, (copied, kept.select(step.copy)))
            for m, (each, tokens) in enumerate(branches):
                last = (tokens.before(row, back, case.chunk) for row, back in enumerate(step.back))
                take(each, tokens, step.positions(last), 2 * n + m)
                self.remembers(each, tokens)
            cache, kept = branches[0]

    def call(self, cache: RollingCache, kept: Kept, ids: np.ndarray, positions: np.ndarray) -> None:
        """Send ids at positions (B, T) through the model, check all stages, keep the tokens."""
        stages: dict[str, np.ndarray] = {}
        self.model(
            ids,
            position_ids=positions,
            past_key_values=cache,
            tap=lambda n, x: stages.update({n: x}),
        )
        real = positions >= 0
        held = [self.written(cache, n, positions) for n in range(self.config.num_hidden_layers)]
        kept.add(positions, *(np.stack(arrays) for arrays in zip(*held, strict=True)))
        if real.any():
            self.stages(stages, real, ids, positions, held, kept)

    def written(
        self, cache: RollingCache, layer: int, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the cache holds of a layer at positions (B, T): (B, T, K, d) each."""
        k, v = (self.backend.to_numpy(array) for array in cache.read(layer))
        at = cache.key_positions
        out = [
            np.zeros((*positions.shape, *array.shape[2:]), dtype=array.dtype) for array in (k, v)
        ]
        for b, t in np.argwhere(positions >= 0):
            slots = np.flatnonzero(at[b] == positions[b, t])
            assert len(slots) == 1, f"position {positions[b, t]} is in {len(slots)} slots"
            out[0][b, t], out[1][b, t] = k[b, slots[0]], v[b, slots[0]]
        return out[0], out[1]

    def remembers(self, cache: RollingCache, kept: Kept) -> None:
        """Check that the next token of each row will find what it sees, and nothing else."""
        for n in range(self.config.num_hidden_layers):
            k, v = (self.backend.to_numpy(array) for array in cache.read(n))
            at = cache.key_positions
            for b, row in enumerate(kept.rows):
                i = row[-1].position + 1 if row else 0
                window = self.config.sliding_window
                due = [token for token in row if oracle.sees(i, token.position, window)]
                slots = [s for s in np.argsort(at[b]) if oracle.sees(i, int(at[b, s]), window)]
                assert [int(at[b, s]) for s in slots] == [token.position for token in due]
                for slot, token in zip(slots, due, strict=True):
                    np.testing.assert_array_equal(k[b, slot], token.k[n])
                    np.testing.assert_array_equal(v[b, slot], token.v[n])

    def stages(
        self,
        stages: dict[str, np.ndarray],
        real: np.ndarray,
        ids: np.ndarray,
        positions: np.ndarray,
        held: list[tuple[np.ndarray, np.ndarray]],
        kept: Kept,
    ) -> None:
        """Check all stages, of real tokens; `held` is what each layer wrote into the cache."""
        weights, eps, dtype = self.model.tensors, self.config.rms_norm_eps, self.dtype

        def check(name: str, exact: np.ndarray, error: np.ndarray | float) -> None:
            try:
                error = np.broadcast_to(error, exact.shape)[real]
                agree(stages[name][real], exact[real], error, dtype)
            except AssertionError as problem:
                raise AssertionError(f"{name}: {problem}") from None

        def linear(name: str, x: str, weight: str) -> None:
            flat = stages[x].reshape(*real.shape, -1)
            exact, error = (
                oracle.linear(flat, weights[weight]),
                linear_error(flat, weights[weight], dtype),
            )
            shape = stages[name].shape
            check(name, exact.reshape(shape), error.reshape(shape))

        def norm(name: str, x: str, weight: str) -> None:
            exact = oracle.rms_norm(stages[x], weights[weight], eps)
            fused = 2 * UNIT[dtype] / (1 - 2 * UNIT[dtype])  # of a sum not rounded yet
            check(name, exact, rms_norm_error(exact, dtype) * (1 + fused) + fused * np.abs(exact))

        def added(name: str, x: str, y: str) -> None:
            check(name, stages[x].astype(np.float64) + stages[y].astype(np.float64), 0.0)

        def turned(name: str, x: str, array: np.ndarray) -> None:
            exact = oracle.rope(stages[x], positions, self.config.rope_theta)
            error = rope_error(stages[x], positions, self.config.rope_theta, dtype)
            stages[name] = array
            check(name, exact, error)

        check("embedding", oracle.embedding(weights["model.embed_tokens.weight"], ids), 0.0)
        x = "embedding"
        for n in range(self.config.num_hidden_layers):
            at, of = f"layers.{n}.", f"model.layers.{n}."
            norm(at + "input_layernorm", x, of + "input_layernorm.weight")
            for p in "qkv":
                linear(at + p, at + "input_layernorm", f"{of}self_attn.{p}_proj.weight")
            for p in "qk":
                turned(f"{at}{p}_rotated", at + p, stages[f"{at}{p}_rotated"])
            turned(at + "k in the cache", at + "k", held[n][0])
            np.testing.assert_array_equal(
                held[n][1][real], stages[at + "v"][real], f"{at}v in the cache"
            )

            k, v, k_positions = kept.read(n)
            q, where = (
                stages[at + "q_rotated"],
                (positions, k_positions, self.config.sliding_window),
            )
            shares = oracle.attention_weights(q, k, *where)
            if self.backend.has_attention_weights:  # B H T S, and what is checked is (B, T, ...)
                name, error = at + "attention_weights", softmax_error(q, k, shares, dtype) * shares
                stages[name] = stages[name].swapaxes(1, 2)
                check(name, shares.swapaxes(1, 2), error.swapaxes(1, 2))
            exact = oracle.attention(q, k, v, *where)
            check(at + "attention_mix", exact, attention_error(q, k, v, shares, dtype))
            assert not stages[at + "attention_mix"][~real].any(), "padding attends to nothing"

            linear(at + "attention_output", at + "attention_mix", of + "self_attn.o_proj.weight")
            added(at + "attention_residual", x, at + "attention_output")
            norm(
                at + "post_attention_layernorm",
                at + "attention_residual",
                of + "post_attention_layernorm.weight",
            )
            for p in ("gate", "up"):
                linear(at + p, at + "post_attention_layernorm", f"{of}mlp.{p}_proj.weight")
            gate, up = stages[at + "gate"], stages[at + "up"]
            exact = oracle.silu_mul(gate, up)
            check(at + "silu_mul", exact, silu_mul_error(gate, up, exact, dtype))
            linear(at + "mlp_output", at + "silu_mul", of + "mlp.down_proj.weight")
            added(at + "output", at + "attention_residual", at + "mlp_output")
            x = at + "output"
        norm("norm", x, "model.norm.weight")
        tied = self.config.tie_word_embeddings
        linear("logits", "norm", "model.embed_tokens.weight" if tied else "lm_head.weight")
