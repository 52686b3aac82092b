"""Vectors for what surrounds the model: sampling, the tokenizer, the chat format.

`cases` is what the suite's maker takes; `run_vectors` is how tinymistral itself computes one.
"""

from __future__ import annotations

from tinymistral.golden.making.drafts import Vector
from tinymistral.golden.vectors import documents, sampling
from tinymistral.golden.vectors.running import run_vectors

__all__ = ["cases", "run_vectors"]


def cases() -> list[Vector]:
    """Return all cases of these kinds, in the order of the manifest."""
    return [*sampling.cases(), *documents.cases()]
