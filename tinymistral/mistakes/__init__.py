"""The mistakes that people make in a Mistral, each with what is wrong and what is right.

They keep the laws of `tinymistral.conformance` honest: a law that none of them breaks could not
fail. And they are what `golden diagnose` compares a program's numbers with. A mistake's function
has its name, with underscores.
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
from tinymistral.mistakes.mistake import FOUND, Mistake

__all__ = ["FORWARD", "MISTAKES", "OF_LAWS", "SAMPLING", "TEXTS", "Mistake"]

MISTAKES: tuple[Mistake, ...] = tuple(FOUND)
OF_LAWS = tuple(m for m in MISTAKES if m.law)  # those that a law catches

# Those that `golden diagnose` tries: about sampling; about texts and conversations; others. Where
# several have the same results the first is named first, and those that a law catches come first.
SAMPLING = tuple(m for m in MISTAKES if m.replacing("sampling"))
TEXTS = tuple(m for m in MISTAKES if m.replacing("strings") or m.replacing("conversations"))
_others = [m for m in MISTAKES if not m.not_diagnosed and m not in SAMPLING and m not in TEXTS]
FORWARD = tuple(sorted(_others, key=lambda m: m.law is None))
