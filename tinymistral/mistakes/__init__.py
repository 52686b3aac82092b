"""Common mistakes in implementations of Mistral, each with what is wrong and how to fix it.

They test the laws of `tinymistral.conformance`: each law has to catch at least one of them. And
`golden diagnose` runs the reference with each, and compares a program's numbers with the results.
A mistake's function has the mistake's name, with underscores.
"""

from tinymistral.mistakes import (  # noqa: I001, in the order of the catalogue
    masking,  # noqa: F401
    attention,  # noqa: F401
    rope,  # noqa: F401
    norms,  # noqa: F401
    precision,  # noqa: F401
    cache,  # noqa: F401
    weights,  # noqa: F401
    inputs,  # noqa: F401
    sampling,  # noqa: F401
    tokenizer_chat,  # noqa: F401
)
from tinymistral.mistakes.mistake import ENTRIES, Mistake

__all__ = ["FORWARD", "MISTAKES", "OF_LAWS", "SAMPLING", "TEXTS", "Mistake"]

MISTAKES: tuple[Mistake, ...] = tuple(ENTRIES)
OF_LAWS = tuple(m for m in MISTAKES if m.law)  # those that a law catches

# Those that `golden diagnose` tries. If several fit equally well the first is named first: those
# that a law catches come first.
SAMPLING = tuple(m for m in MISTAKES if m.replacing("sampling"))
TEXTS = tuple(m for m in MISTAKES if m.replacing("strings") or m.replacing("conversations"))
_others = [m for m in MISTAKES if not m.not_diagnosed and m not in SAMPLING and m not in TEXTS]
FORWARD = tuple(sorted(_others, key=lambda m: m.law is None))
