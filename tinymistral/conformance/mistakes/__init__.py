"""Wrong backends and wrong caches: the mistakes that people make, each caught by a law.

They keep the laws honest: a law that none of them breaks could not fail. And they are a list of
suspects, each with a name, what is wrong and how to put it right, for whoever's numbers differ.
"""

from tinymistral.conformance.mistakes import (  # noqa: I001, in the order of the catalogue
    visibility,  # noqa: F401
    softmax,  # noqa: F401
    rotation,  # noqa: F401
    linear,  # noqa: F401
    norms,  # noqa: F401
    writing,  # noqa: F401
    arrays,  # noqa: F401
    caches,  # noqa: F401
)
from tinymistral.conformance.mistakes.catalogue import FOUND, Mistake

__all__ = ["MISTAKES", "Mistake"]

MISTAKES: tuple[Mistake, ...] = tuple(FOUND)
