"""Cases for the kernels: dtypes, and attention of all shapes."""

from __future__ import annotations

from functools import cache

import pytest

from cuda_emulator import cupy_stand_in as cp
from tinymistral.conformance.cases import Attention
from tinymistral_cupy.kernels import DTYPES, Kernels

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@cache
def kernels_for(dtype: str) -> Kernels:
    return Kernels(cp, dtype)


# Attention uses splits for up to 32 rows (tokens times heads of a group), else tiles of 32 rows (8
# for heads wider than 128). A tile takes 32 keys at a time, a block of a split 128.

SPLIT = [
    Attention(B=1, T=1, S=200, K=2, group=4, d=128, window=None, first=0, seed=1),
    Attention(B=2, T=1, S=130, K=1, group=1, d=64, window=50, first=32_760, seed=2),
    Attention(B=1, T=2, S=65, K=2, group=4, d=32, window=33, first=0, seed=3),
    Attention(B=2, T=5, S=33, K=1, group=3, d=6, window=7, first=2**24 + 1, seed=4),
    Attention(B=1, T=1, S=1, K=3, group=2, d=2, window=1, first=0, seed=5),
    Attention(B=1, T=3, S=300, K=1, group=5, d=80, window=None, first=5, seed=6),
    Attention(B=1, T=1, S=40, K=1, group=2, d=256, window=20, first=0, seed=7),
    Attention(B=1, T=1, S=37, K=1, group=16, d=254, window=None, first=0, seed=8),
]
TILES = [
    Attention(B=1, T=17, S=200, K=1, group=4, d=128, window=50, first=0, seed=1),
    Attention(B=2, T=40, S=65, K=2, group=1, d=64, window=None, first=5, seed=2),
    Attention(B=1, T=17, S=33, K=3, group=2, d=6, window=10, first=32_760, seed=3),
    Attention(B=1, T=33, S=70, K=1, group=3, d=32, window=7, first=2**24 + 1, seed=4),
    Attention(B=1, T=5, S=35, K=1, group=8, d=256, window=20, first=0, seed=5),
    Attention(B=2, T=33, S=31, K=2, group=1, d=2, window=None, first=0, seed=6),
    Attention(B=1, T=12, S=96, K=1, group=3, d=80, window=1, first=0, seed=7),
]
