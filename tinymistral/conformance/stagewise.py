"""Checks a forward pass stage by stage: each stage has to follow from those before it.

The oracle gets the backend's own numbers of the stages before. So the bound is that of a single
operation, narrow also in 16 bits, and the first wrong stage is the one that is named. The keys and
values that attention should find in the cache come from `ExpectedCache`, a list of all tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from tinymistral.conformance.models import Stream


@dataclass
class Token:
    """A position, with its keys and values (layers, K, d)."""

    position: int
    k: np.ndarray
    v: np.ndarray


class ExpectedCache:
    """What a cache should hold: a list of tokens for each row, oldest first, which never wraps."""

    def __init__(self, rows: int):
        """Start empty."""
        self.rows: list[list[Token]] = [[] for _ in range(rows)]
        self.most = [0] * rows  # tokens that a row ever had: how far the ring was written

    def select(self, rows: tuple[int, ...]) -> ExpectedCache:
        """Return a copy that has these rows."""
        new = ExpectedCache(0)
        new.rows = [list(self.rows[row]) for row in rows]
        new.most = [self.most[row] for row in rows]
        return new

    def before(self, row: int, back: int, chunk: int) -> int:
        """Return the last position of a row after going back by up to `back` tokens.

        A ring allows no more than `chunk` tokens back from the furthest position it has held.
        """
        tokens = self.rows[row]
        back = max(0, min(back, len(tokens), chunk - (self.most[row] - len(tokens))))
        tokens = tokens[: len(tokens) - back]
        return tokens[-1].position if tokens else -1

    def add(self, positions: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
        """Add tokens at positions (B, T), k and v (layers, B, T, K, d); later ones are dropped."""
        for b, t in np.argwhere(positions >= 0):
            position, row = int(positions[b, t]), self.rows[b]
            while row and row[-1].position >= position:
                row.pop()
            row.append(Token(position, k[:, b, t].copy(), v[:, b, t].copy()))
            self.most[b] = max(self.most[b], len(row))

    def read(self, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return k and v (B, S, K, d) of a layer and positions (B, S), -1 where a row has fewer."""
        S = max(map(len, self.rows))
        one = next((row[0] for row in self.rows if row), None)
        assert one is not None, "no tokens yet"
        k = np.zeros((len(self.rows), S, *one.k.shape[1:]), dtype=one.k.dtype)
        v = np.zeros_like(k)
        positions = np.full((len(self.rows), S), -1, dtype=np.int64)
        for b, row in enumerate(self.rows):
            for s, token in enumerate(row):
                k[b, s], v[b, s], positions[b, s] = token.k[layer], token.v[layer], token.position
        return k, v, positions


# (cache, its expected contents, positions, seed)
Take = Callable[[RollingCache, ExpectedCache, np.ndarray, int], None]


class StageChecker:
    """Calls a model, and checks each stage and the cache after each call."""

    def __init__(self, model: Any):
        """Take the model; it has `tensors`, its weights by name."""
        self.model, self.config, self.backend = model, model.config, model.backend
        self.dtype: str = model.backend.dtype

    def walk(self, case: Stream, take: Take) -> None:
        """Take each step of a stream by `take`; if it has a copy, with the copy first."""
        cache, expected = self.model.new_cache(case.rows, case.chunk), ExpectedCache(case.rows)
        for n, step in enumerate(case.steps):
            branches = [(cache, expected)]
            if step.copy is not None:
                copied = cache.select(np.array(step.copy, dtype=np.int64))
                branches.insert(0, (copied, expected.select(step.copy)))
            for m, (each, tokens) in enumerate(branches):
                last = (tokens.before(row, back, case.chunk) for row, back in enumerate(step.back))
                take(each, tokens, step.positions(last), 2 * n + m)
                self.check_cache(each, tokens)
            cache, expected = branches[0]

    def call(
        self, cache: RollingCache, expected: ExpectedCache, ids: np.ndarray, positions: np.ndarray
    ) -> None:
        """Call the model with ids at positions (B, T), check all stages, and add the tokens."""
        stages: dict[str, np.ndarray] = {}
        self.model(
            ids,
            position_ids=positions,
            past_key_values=cache,
            tap=lambda n, x: stages.update({n: x}),
        )
        real = positions >= 0
        held = [self.cached(cache, n, positions) for n in range(self.config.num_hidden_layers)]
        expected.add(positions, *(np.stack(arrays) for arrays in zip(*held, strict=True)))
        if real.any():
            self.check_stages(stages, real, ids, positions, held, expected)

    def cached(
        self, cache: RollingCache, layer: int, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the cached keys and values of a layer at positions (B, T): (B, T, K, d) each."""
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

    def check_cache(self, cache: RollingCache, expected: ExpectedCache) -> None:
        """Check that the next token of each row would see the expected tokens, and no others."""
        for n in range(self.config.num_hidden_layers):
            k, v = (self.backend.to_numpy(array) for array in cache.read(n))
            at = cache.key_positions
            for b, row in enumerate(expected.rows):
                i = row[-1].position + 1 if row else 0
                window = self.config.sliding_window
                due = [token for token in row if oracle.visible(i, token.position, window)]
                slots = [s for s in np.argsort(at[b]) if oracle.visible(i, int(at[b, s]), window)]
                assert [int(at[b, s]) for s in slots] == [token.position for token in due]
                for slot, token in zip(slots, due, strict=True):
                    np.testing.assert_array_equal(k[b, slot], token.k[n])
                    np.testing.assert_array_equal(v[b, slot], token.v[n])

    def check_stages(
        self,
        stages: dict[str, np.ndarray],
        real: np.ndarray,
        ids: np.ndarray,
        positions: np.ndarray,
        held: list[tuple[np.ndarray, np.ndarray]],
        expected: ExpectedCache,
    ) -> None:
        """Check all stages of real tokens; `held` is what each layer wrote into the cache."""
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
            fused = 2 * UNIT[dtype] / (1 - 2 * UNIT[dtype])  # for a sum that is not rounded
            check(name, exact, rms_norm_error(exact, dtype) * (1 + fused) + fused * np.abs(exact))

        def added(name: str, x: str, y: str) -> None:
            check(name, stages[x].astype(np.float64) + stages[y].astype(np.float64), 0.0)

        def rotated(name: str, x: str, array: np.ndarray) -> None:
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
                rotated(f"{at}{p}_rotated", at + p, stages[f"{at}{p}_rotated"])
            rotated(at + "k in the cache", at + "k", held[n][0])
            np.testing.assert_array_equal(
                held[n][1][real], stages[at + "v"][real], f"{at}v in the cache"
            )

            k, v, k_positions = expected.read(n)
            q, visibility = (
                stages[at + "q_rotated"],
                (positions, k_positions, self.config.sliding_window),
            )
            shares = oracle.attention_weights(q, k, *visibility)
            if self.backend.has_attention_weights:  # B H T S, and what is checked is (B, T, ...)
                name, error = at + "attention_weights", softmax_error(q, k, shares, dtype) * shares
                stages[name] = stages[name].swapaxes(1, 2)
                check(name, shares.swapaxes(1, 2), error.swapaxes(1, 2))
            exact = oracle.attention(q, k, v, *visibility)
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
