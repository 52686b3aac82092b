"""Random numbers that come out the same on any machine, and that 16 bits hold exactly.

NumPy promises the raw bits of PCG64 for all versions, but not its normal numbers. So these are
made of the bits by whole-number sums: four uniform ones add up to something close to normal.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

SMALLEST = 2.0**-14  # of float16's normal numbers; GPUs flush to zero what is smaller


def normal(seed: list[int], *shape: int) -> np.ndarray:
    """Draw numbers with mean 0 and standard deviation 1, at most 3.5 of these from 0."""
    bits = np.random.PCG64(seed).random_raw(math.prod(shape))
    sums = sum((bits >> np.uint64(16 * n)) & np.uint64(0xFFFF) for n in range(4))
    uniform = np.asarray(sums).astype(np.float64) - 2 * 0xFFFF
    return (uniform / (2.0**16 * math.sqrt(4 / 12))).reshape(shape)


def integers(seed: list[int], most: int, *shape: int) -> np.ndarray:
    """Draw from 0 to `most` - 1."""
    bits = np.random.PCG64(seed).random_raw(math.prod(shape))
    return (bits % np.uint64(most)).astype(np.int64).reshape(shape)


def exact(x: np.ndarray) -> np.ndarray:
    """Round to what bfloat16 and float16 both hold: 8 bits, and 0 for what is very small."""
    rounded = x.astype(ml_dtypes.bfloat16).astype(np.float64)
    if np.abs(rounded).max(initial=0) >= 2.0**16:
        raise ValueError("float16 does not hold numbers this large; choose smaller ones")
    return np.where(np.abs(rounded) < SMALLEST, 0.0, rounded)
