"""Laws of generation on a backend."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
from hypothesis import strategies as st

from tinymistral.backend import Backend
from tinymistral.conformance.bounds import within
from tinymistral.conformance.cases import sizes
from tinymistral.conformance.law import law
from tinymistral.conformance.models import Tiny, tinies
from tinymistral.conformance.test_model import WIDE, bounds, one_layer


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log of the softmax by its definition; the logits are few and small."""
    exp = np.exp(logits.astype(np.float64))
    return np.asarray(np.log(exp / exp.sum(axis=-1, keepdims=True)))


@law(
    lambda b: st.tuples(
        tinies(b, one_layer, sharpness=0.7),
        sizes(3).flatmap(lambda rows: st.tuples(*[sizes(6)] * rows)),
        sizes(10),
        sizes(4),
        st.booleans(),
    ),
    dtypes=WIDE,
)
def test_log_probabilities_are_those_of_scoring_the_text_at_once(
    backend: Backend, case: tuple[Tiny, tuple[int, ...], int, int, bool]
) -> None:
    """The log-probabilities of `generate` are those of the whole text, row by row."""
    # An error of the logits moves log_softmax by no more than twice as much.
    tiny, lengths, new, chunk, do_sample = case
    model, width = tiny.model(backend), max(lengths)
    ids = tiny.ids(len(lengths), width)
    mask = (np.arange(width) >= width - np.array(lengths)[:, None]).astype(np.int64)
    options = {"do_sample": do_sample, "seed": tiny.seed, "temperature": 3.0} if do_sample else {}
    options |= {"prompt_lookup_num_tokens": 3} if len(lengths) == 1 else {}
    with patch.object(type(backend), "chunk", chunk):
        out = model.generate(ids, mask, max_new_tokens=new, return_dict_in_generate=True, **options)
    for row, length in enumerate(lengths):
        text = out.sequences[row, width - length :]
        logits = model([text.tolist()]).logits[0, length - 1 : -1]
        chosen = (np.arange(new), text[length:])
        exact, error = (array[0, length - 1 : -1] for array in bounds(tiny, backend, text[None]))
        slack = 2 * error.max(axis=-1)
        logprobs = out.logprobs[row]
        within(logprobs, log_softmax(exact)[chosen], slack)
        within(logprobs, log_softmax(logits)[chosen], 2 * slack)
