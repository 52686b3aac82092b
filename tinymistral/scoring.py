"""How likely a text is to a model: the log-probability of each token, for any length."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinymistral.generation import finite_logits
from tinymistral.inputs import Inputs, check_ids
from tinymistral.sampling import log_softmax

if TYPE_CHECKING:
    from tinymistral.heads import MistralForCausalLM

# Logits are computed for this many columns at once: 64 of 32,000 float64 take 16 MB.
COLUMNS_AT_ONCE = 64


@dataclass(frozen=True)
class Score:
    """Natural log-probabilities (T - 1,) of all tokens of a text but the first."""

    logprobs: np.ndarray

    @property
    def total(self) -> float:
        """The log-probability of the text, given its first token."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp(-mean): as uncertain as a choice among so many equally likely tokens."""
        try:
            return math.exp(-self.total / len(self.logprobs))
        except OverflowError:
            return math.inf


def score(
    model: MistralForCausalLM,
    input_ids: Any,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Score a text (1, T) of two tokens or more, the first one <s> as a rule.

    The text goes through in pieces, and the rolling cache carries the context from one to the
    next: each token is predicted from all earlier tokens in its window, also where the text is
    longer than the window, whose size bounds the memory.
    """
    ids = check_ids(input_ids, model.config.vocab_size)
    if len(ids) != 1 or ids.shape[1] < 2:
        raise ValueError(
            f"input_ids: expected one row of at least 2 tokens to score, got shape {ids.shape}"
        )
    cache = model.new_cache(rows=1)
    positions = np.arange(ids.shape[1] - 1, dtype=np.int64)[None]
    parts: list[np.ndarray] = []
    done = 0
    for hidden in model.run(Inputs(ids[:, :-1], None, positions, cache)):
        for start in range(0, hidden.shape[1], COLUMNS_AT_ONCE):
            logits = finite_logits(model, hidden[:, start : start + COLUMNS_AT_ONCE])
            logprobs = log_softmax(logits[0])
            next_ids = ids[0, done + 1 : done + 1 + len(logprobs)]
            parts.append(logprobs[np.arange(len(logprobs)), next_ids])
            done += len(logprobs)
        if progress is not None:
            progress(done, ids.shape[1] - 1)
    return Score(np.concatenate(parts))
