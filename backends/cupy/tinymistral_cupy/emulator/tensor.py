"""Matrix instructions of a warp: `mma` with 16-bit factors, and `ldmatrix`.

A matrix is spread over the lanes of a warp. With g = lane // 4 and t = lane % 4, element i of a
lane is, in `mma.m16n8k16` (PTX ISA manual, "Matrix fragments for mma.m16n8k16"):

    A (16, 16): row g for i in 0, 1, 4, 5, else g + 8; column 2t + (i & 1), plus 8 for i >= 4
    B (16, 8): row 2t + (i & 1), plus 8 for i >= 2; column g
    C, D (16, 8): row g for i < 2, else g + 8; column 2t + (i & 1)

`mma.m16n8k8` has the first half of A's and B's. Two elements are in a register, the first lower.

The products are summed in float64 and rounded once. Hardware sums in an order of its own, in at
least single precision, as the manual says; so a GPU's last digits may differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinymistral_cupy.emulator.faults import LostLane
from tinymistral_cupy.emulator.halves import WIDEN
from tinymistral_cupy.emulator.warps import by_warp

Values = Any  # an array over lanes, or a NumPy scalar

_LANE = np.arange(32)[:, None]
_G, _T = _LANE // 4, _LANE % 4


def places(matrix: str, elements: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (32, elements) of what each lane holds of a, b or c."""
    i = np.arange(elements)
    if matrix == "a":
        return _G + 8 * (i // 2 % 2), 2 * _T + i % 2 + 8 * (i // 4)
    if matrix == "b":
        return 2 * _T + i % 2 + 8 * (i // 2), _G + 0 * i
    return _G + 8 * (i // 2), 2 * _T + i % 2


def multiply(
    S: Any,
    kind: str,
    a: tuple[Values, ...],
    b: tuple[Values, ...],
    c: tuple[Values, ...],
) -> list[np.ndarray]:
    """D = A · B + C for each warp: registers a and b of two 16-bit numbers, c and d of float32."""
    if not S.whole_warps:
        raise ValueError("mma in a block that is no multiple of 32 threads")
    k = 4 * len(a)
    left = _gather(S, "a", (16, k), _unpacked(S, kind, a))
    right = _gather(S, "b", (k, 8), _unpacked(S, kind, b))
    start = np.stack([by_warp(S, value) for value in c], axis=2).astype(np.float64)
    total = left @ right + _gather(S, "c", (16, 8), start)
    rows, columns = places("c", 4)
    out = total.astype(np.float32)[:, rows, columns]  # (warps, 32, 4)
    return [np.ascontiguousarray(out[:, :, i]).ravel() for i in range(4)]


def _unpacked(S: Any, kind: str, registers: tuple[Values, ...]) -> np.ndarray:
    """Registers as elements (warps, 32, 2 · registers), float64."""
    packed = np.stack([by_warp(S, register) for register in registers], axis=2)
    return WIDEN[kind](packed.view(np.int16)).astype(np.float64)


def _gather(S: Any, matrix: str, shape: tuple[int, int], elements: np.ndarray) -> np.ndarray:
    rows, columns = places(matrix, elements.shape[2])
    out = np.zeros((S.warps, *shape))
    out[:, rows, columns] = elements
    return out


def load_matrices(
    S: Any, site: Any, count: int, transposed: bool, a: Values, m: Any
) -> list[np.ndarray]:
    """`ldmatrix`: lanes 8i .. 8i + 7 give the addresses of the rows of matrix i, 8 numbers each.

    Each lane receives of each matrix row g, columns 2t and 2t + 1, in one register.
    """
    lane = S.layout.lane
    if not S.whole_warps:
        raise S.fault(LostLane, site.instruction, 0, "the block is no multiple of 32 threads")
    giving = lane < 8 * count
    if m is not None:
        giving = giving & m
    elif count == 4:
        giving = None
    rows = site.load(S, a, giving)  # (4, N): a lane's row, two numbers to an int32
    first = S.layout.warp_first
    g, t = lane // 4, lane % 4
    loaded = []
    for i in range(count):
        if not transposed:
            loaded.append(rows[t, first + 8 * i + g])
            continue
        pair = [rows[g // 2, first + 8 * i + 2 * t + j] >> 16 * (g % 2) & 0xFFFF for j in (0, 1)]
        loaded.append(pair[0] | pair[1] << 16)
    return loaded
