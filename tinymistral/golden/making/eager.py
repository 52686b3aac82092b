"""The operations as transformers has them in PyTorch, which in 16 bits rounds more on the way."""

from __future__ import annotations

import numpy as np

from tinymistral.golden.making.elsewhere import TRANSFORMERS, Elsewhere


class Eager(Elsewhere):
    """The numpy backend, but each step within an operation is rounded to the dtype as it comes.

    Of attention these are scores and weights, and with large scores that is far from what a kernel
    computes that rounds its result alone: a score of 100 is off by up to 0.25 in bfloat16, its
    weight by a quarter. A norm is rounded before its weight, silu before its product, cosines too.
    """

    def __init__(self, dtype: str, angles: str = "float64", pairs: np.ndarray | None = None):
        super().__init__(dtype, angles, pairs, TRANSFORMERS)
