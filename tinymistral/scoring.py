"""How likely a model finds a text: the log-probability of every token, however long the text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinymistral.inputs import Inputs, check_ids
from tinymistral.sampling import log_softmax

if TYPE_CHECKING:
    from tinymistral.heads import MistralForCausalLM

# Columns whose logits are made at once: 64 of 32,000 float64 take 16 MB.
COLUMNS_AT_ONCE = 64


@dataclass(frozen=True)
class Score:
    """Log-probabilities (T - 1,), natural, of all tokens of a text but the first."""

    logprobs: np.ndarray

    @property
    def total(self) -> float:
        """The log-probability of the text, given its first token."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """The exponential of minus the mean: between how many tokens the model wavers."""
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
    next: every token is judged by all that the model can see before it, also where the text is
    longer than any window, and memory does not grow with it.
    """
    ids = check_ids(input_ids, model.config.vocab_size)
    if len(ids) != 1 or ids.shape[1] < 2:
        raise ValueError(
            f"input_ids: expected one row of at least 2 tokens to score, got shape {ids.shape}"
        )
    cache = model.new_cache(rows=1)
    positions = np.arange(ids.shape[1] - 1, dtype=np.int64)[None]
    logprobs: list[np.ndarray] = []
    done = 0
    for hidden in model.run(Inputs(ids[:, :-1], None, positions, cache)):
        for start in range(0, hidden.shape[1], COLUMNS_AT_ONCE):
            part = hidden[:, start : start + COLUMNS_AT_ONCE]
            logits = log_softmax(model.backend.to_numpy(model.logits(part))[0])
            next_ids = ids[0, done + 1 : done + 1 + len(logits)]
            logprobs.append(logits[np.arange(len(logits)), next_ids])
            done += len(logits)
        if progress is not None:
            progress(done, ids.shape[1] - 1)
    return Score(np.concatenate(logprobs))
