"""What must come out: in float64, by an oracle of plain loops that has no cache.

It takes a whole text at once, by positions, and shares no code with any backend
(`conformance/oracle.py`). The numpy backend in float64, with its cache and its calls, has to come
to the same, or making fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.conformance import oracle
from tinymistral.golden.making import calls
from tinymistral.golden.making.drafts import Draft

Arrays = dict[str, np.ndarray]


def stages_of(
    config: MistralConfig, tensors: Mapping[str, np.ndarray], ids: np.ndarray, positions: np.ndarray
) -> Arrays:
    """Return every stage of a whole text, attention weights by token."""
    whole = oracle.forward(config, tensors, ids, positions)
    return {
        name: calls.by_token(array, positions) if name.endswith("attention_weights") else array
        for name, array in whole.items()
    }


def of_calls(config: MistralConfig, tensors: Mapping[str, np.ndarray], draft: Draft) -> Arrays:
    """Return what is expected of a case of kind model."""
    ids, positions, _ = calls.text_of(draft.inputs)
    return calls.cut(stages_of(config, tensors, ids, positions), draft.inputs)


def of_operation(draft: Draft) -> Arrays:
    """Return what is expected of a case of kind operation."""
    arguments: dict[str, Any] = {**draft.inputs, **draft.parameters}
    expected = {"out": getattr(oracle, draft.operation or "")(**arguments)}
    if draft.operation == "attention":
        del arguments["v"]
        expected["weights"] = oracle.attention_weights(**arguments)
    return expected


def of_continuation(
    config: MistralConfig,
    tensors: Mapping[str, np.ndarray],
    sequences: np.ndarray,
    mask: np.ndarray,
) -> Arrays:
    """Return what sequences (B, T + new) that continue prompts with a mask (B, T) are chosen by.

    The `scores` (B, new, V), which are logits, and the `logprobs` (B, new) of what was chosen.
    """
    T = mask.shape[1]
    whole = oracle.forward(config, tensors, sequences, positions_of(sequences, mask))
    scores = whole["logits"][:, T - 1 : -1]
    return {"scores": scores, "logprobs": logprobs(scores, sequences[:, T:])}


def positions_of(sequences: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the positions of prompts and what continues them, -1 for padding."""
    new = np.ones((len(mask), sequences.shape[1] - mask.shape[1]), dtype=np.int64)
    real = np.concatenate([mask, new], axis=1)
    return np.where(real == 1, np.cumsum(real, axis=1) - 1, -1)


def logprobs(scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the natural logarithms of the probabilities of tokens (B, n) by logits (B, n, V)."""
    scores = scores.astype(np.float64)
    scores = scores - scores.max(axis=-1, keepdims=True)
    picked = np.take_along_axis(scores, chosen[..., None], axis=-1)[..., 0]
    return np.asarray(picked - np.log(np.exp(scores).sum(axis=-1)))
