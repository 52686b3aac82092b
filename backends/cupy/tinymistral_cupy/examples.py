"""A small example for each kernel: a program for `python -m cuda_emulator report`.

    python -m cuda_emulator report tinymistral_cupy.examples float16 --kernel rms_norm

The letters B, T, S, ... are explained at the top of `mistral.cu`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from tinymistral_cupy.kernels import DTYPES, Kernels

B, T, S, H, K, d = 2, 16, 128, 8, 2, 64
D = 256
WINDOW = 48


class Example:
    """Random arrays on the card, and the kernels for one dtype."""

    def __init__(self, cp: Any, dtype: str):
        """Make kernels for "float32", "float16" or "bfloat16"; `cp` is cupy or its stand-in."""
        self._cp = cp
        self._kind = DTYPES[dtype][0]
        self._random = np.random.default_rng(0)
        self.kernels = Kernels(cp, dtype)

    def floats(self, *shape: int) -> Any:
        """Draw random numbers in the kernels' dtype."""
        return self._cp.asarray(self._random.standard_normal(shape).astype(self._kind))

    def table(self, tokens: int) -> tuple[Any, Any]:
        """Make cosines and sines for `rope`."""
        angles = self._random.uniform(-3, 3, (B, tokens, d // 2))
        return tuple(self._cp.asarray(f(angles).astype(np.float32)) for f in (np.cos, np.sin))

    def numbers(self, first: int, last: int) -> Any:
        """Make positions or slots, the same in each row."""
        return self._cp.asarray(np.tile(np.arange(first, last, dtype=np.int64), (B, 1)))

    def attention(self, tokens: int, d: int = d) -> None:
        """Attend from the last `tokens` positions to all keys, with heads of width d."""
        self.kernels.attention(
            self.floats(B, tokens, H, d),
            self.floats(B, S, K, d),
            self.floats(B, S, K, d),
            self.numbers(S - tokens, S),
            self.numbers(0, S),
            WINDOW,
        )


EXAMPLES: dict[str, Callable[[Example], Any]] = {
    "rms_norm": lambda e: e.kernels.rms_norm(e.floats(B, T, D), e.floats(D), 1e-5),
    "linear": lambda e: e.kernels.linear(e.floats(1, D), e.floats(D, D)),
    "silu_mul": lambda e: e.kernels.silu_mul(e.floats(B, T, D), e.floats(B, T, D)),
    "rope": lambda e: e.kernels.rope(e.floats(B, T, H, d), *e.table(T)),
    "scatter": lambda e: e.kernels.scatter(
        e.floats(B, S, K, d), e.numbers(0, T), e.floats(B, T, K, d)
    ),
    "attention": lambda e: e.attention(T, d=48),  # not a width for tensor cores
    "attention_split_4": lambda e: e.attention(1),
    "attention_split_8": lambda e: e.attention(2),
    "attention_combine": lambda e: e.attention(1),  # after attention_split_4
}
TENSOR_EXAMPLES: dict[str, Callable[[Example], Any]] = {  # in 16 bits, on cards with tensor cores
    "key_spans": lambda e: e.attention(T),
    "attention_tensor_cores": lambda e: e.attention(T),  # after key_spans
}


def main(dtype: str = "float32") -> None:
    """Run all examples for a dtype, on a GPU or on the stand-in for CuPy."""
    import cupy

    for run in EXAMPLES.values():
        run(Example(cupy, dtype))
    example = Example(cupy, dtype)
    if example.kernels.has_tensor_cores(d):
        TENSOR_EXAMPLES["attention_tensor_cores"](example)


if __name__ == "__main__":
    main(*sys.argv[1:])
