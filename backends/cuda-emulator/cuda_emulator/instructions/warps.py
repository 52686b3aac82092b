"""What the lanes of a warp, or the threads of a block, do together: shuffles, votes, `mma`.

Called from the functions of a kernel with the state S of the launch. `lanes` is the member mask of
the instruction (bit i: lane i); `m` is the mask of active lanes, None for all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cuda_emulator.faults import LostLane
from cuda_emulator.instructions.floating import WIDEN
from cuda_emulator.ptx import Instruction

Values = Any  # an array over lanes, or a NumPy scalar
Mask = Any  # booleans over lanes, or None

_ALL = -1


def sync_lanes(
    S: Any, lanes: Values, m: Mask, instruction: Instruction, orders: bool = True
) -> None:
    """Check that the lanes that an instruction names are active.

    Where it `orders`, their accesses to memory before it come before those after it.
    """
    if not orders:
        tick, clocks = S.tick, S.clocks
        sync_lanes(S, lanes, m, instruction)
        S.tick, S.clocks = tick, clocks
        return
    S.tick += 1
    if m is None and S.whole_warps and not lanes.ndim and lanes == _ALL:
        S.clocks = None
        return
    if m is not None and S.complete and not lanes.ndim and lanes == _ALL:
        S.clocks = np.where(m, S.tick, S.tick - 1 if S.clocks is None else S.clocks)
        return
    present = np.ones(S.N, dtype=bool) if m is None else m
    named = np.broadcast_to(lanes, S.N).view(np.uint32)
    here = _here(S, present)
    missing = present & (named & ~here != 0)
    if missing.any():
        lane = int(np.argmax(missing))
        absent = int(named[lane] & ~here[lane])
        raise S.fault(
            LostLane,
            instruction,
            lane,
            f"{instruction.opcode} names lanes {_list(absent)} of its warp, "
            f"which {S.whereabouts(lane, absent)}",
        )
    outside = present & (named & S.layout.bit == 0)
    if outside.any():
        lane = int(np.argmax(outside))
        raise S.fault(
            LostLane,
            instruction,
            lane,
            f"{instruction.opcode} is executed by lane {int(S.layout.lane[lane])}, which its mask "
            f"{int(named[lane]):#010x} does not name",
        )
    if lanes.ndim:
        _check_agreement(S, named, present, instruction)
    if m is None:
        S.clocks = None
    else:
        before = S.clocks if S.clocks is not None else np.full(S.N, S.tick - 1)
        S.clocks = np.where(m, S.tick, before)


def complete(S: Any, lanes: Values, m: np.ndarray) -> np.ndarray:
    """Return the active lanes for which all named lanes of the warp are active too."""
    if S.whole_warps and not lanes.ndim and lanes == _ALL:
        whole = m.reshape(-1, 32).all(axis=1)
        if 32 * np.count_nonzero(whole) == np.count_nonzero(m):
            return m
        return np.repeat(whole, 32)
    named = np.broadcast_to(lanes, S.N).view(np.uint32)
    return m & (named & ~_here(S, m) == 0)


def _here(S: Any, present: np.ndarray) -> np.ndarray:
    """Return for each lane the bits of its warp's active lanes."""
    bits = np.where(present, S.layout.bit, np.uint32(0))
    return np.bitwise_or.reduceat(bits, S.layout.warp_starts)[S.layout.warp]


def _check_agreement(
    S: Any, named: np.ndarray, present: np.ndarray, instruction: Instruction
) -> None:
    """Check that lanes that synchronize name the same mask."""
    masks = by_warp(S, np.where(present, named, np.uint32(0)))
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    sees = (masks[:, :, None] & bits != 0) & (masks[:, None, :] != masks[:, :, None])
    if sees.any():
        warp, lane, other = (int(i) for i in np.argwhere(sees)[0])
        raise S.fault(
            LostLane,
            instruction,
            int(S.layout.warp_starts[warp]) + lane,
            f"{instruction.opcode}: lane {lane} names {int(masks[warp, lane]):#010x}, "
            f"lane {other} names {int(masks[warp, other]):#010x}",
        )


def by_warp(S: Any, values: Values) -> np.ndarray:
    """Arrange values over lanes as (warps, 32), 0 where there is no thread."""
    values = np.broadcast_to(values, S.N)
    if S.whole_warps:
        return values.reshape(-1, 32)
    out = np.zeros((S.warps, 32), dtype=values.dtype)
    out[S.layout.warp, S.layout.lane] = values
    return out


def shuffle(
    S: Any,
    mode: str,
    value: Values,
    b: Values,
    c: Values,
    lanes: Values,
    m: Mask,
    instruction: Instruction,
) -> tuple[Values, Values]:
    """Return another lane's value, and whether that lane was in range (`shfl.sync`)."""
    if b.ndim or c.ndim:
        source, valid = _sources(S, mode, b, c)
    else:
        key = (mode, int(b), int(c))
        plans = S.layout.shuffles
        if key not in plans:
            plans[key] = _sources(S, mode, b, c)
        source, valid = plans[key]
    if lanes.ndim or lanes != _ALL:  # else all lanes are there, as they have synchronized
        named = np.broadcast_to(lanes, S.N).view(np.uint32)
        lost = named >> source.astype(np.uint32) & np.uint32(1) == 0
        if m is not None:
            lost = lost & m
        if lost.any():
            lane = int(np.argmax(lost))
            raise S.fault(
                LostLane,
                instruction,
                lane,
                f"{instruction.opcode} reads lane {int(source[lane])}, which the mask "
                f"{int(named[lane]):#010x} does not name",
            )
    if not value.ndim:
        return value, valid
    return value.take(np.minimum(source + S.layout.warp_first, S.N - 1)), valid


def _sources(S: Any, mode: str, b: Values, c: Values) -> tuple[np.ndarray, np.ndarray]:
    """Return which lane of its warp each lane reads, and whether that is in range (see manual)."""
    lane = S.layout.lane
    b, clamp, segment = b & 31, c & 31, c >> 8 & 31
    highest = (lane & segment) | (clamp & ~segment)
    lowest = lane & segment
    if mode == "up":
        source = lane - b
        valid = source >= highest
    elif mode == "down":
        source = lane + b
        valid = source <= highest
    elif mode == "bfly":
        source = lane ^ b
        valid = source <= highest
    elif mode == "idx":
        source = lowest | (b & ~segment)
        valid = source <= highest
    else:
        raise ValueError(f"no shuffle is called {mode!r}")
    return np.where(valid, source, lane).astype(np.int64), valid


def vote(S: Any, how: str, predicate: Values, lanes: Values) -> Values:
    """Reduce a predicate over the lanes named (`vote.sync`)."""
    bits = np.where(predicate, S.layout.bit, np.uint32(0))
    votes = np.bitwise_or.reduceat(bits, S.layout.warp_starts)[S.layout.warp]
    named = lanes.view(np.uint32)
    votes = votes & named
    if how == "ballot":
        return votes.view(np.int32)
    if how == "any":
        return votes != 0
    if how == "all":
        return votes == named
    return (votes == 0) | (votes == named)


def match(S: Any, how: str, value: Values, lanes: Values) -> tuple[Values, Values]:
    """Return which of the lanes named have the same value (`match.sync`), and whether all have."""
    values, named = by_warp(S, value), by_warp(S, lanes.view(np.uint32))
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    same = np.where(values[:, :, None] == values[:, None, :], bits, np.uint32(0))
    same = np.bitwise_or.reduce(same, axis=2) & named
    if how == "all":
        agree = same == named
        same = np.where(agree, named, np.uint32(0))
    else:
        agree = np.ones(same.shape, dtype=bool)
    at = (S.layout.warp, S.layout.lane)
    return same[at].view(np.int32), agree[at]


REDUCTIONS = {
    "add": (np.add, 0),
    "min": (np.minimum, "max"),
    "max": (np.maximum, "min"),
    "and": (np.bitwise_and, -1),
    "or": (np.bitwise_or, 0),
    "xor": (np.bitwise_xor, 0),
}


def reduce_warp(S: Any, how: str, value: Values, lanes: Values) -> Values:
    """Reduce an integer over the lanes named (`redux.sync`)."""
    function, neutral = REDUCTIONS[how]
    values, named = by_warp(S, value), by_warp(S, lanes.view(np.uint32))
    if isinstance(neutral, str):
        neutral = getattr(np.iinfo(values.dtype), neutral)
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    filler = np.array(neutral).astype(values.dtype)
    chosen = np.where(named[:, :, None] & bits != 0, values[:, None, :], filler)
    out = function.reduce(chosen, axis=2, dtype=values.dtype)
    return out[S.layout.warp, S.layout.lane]


def active_lanes(S: Any, m: Mask) -> Values:
    """Return the active lanes of the warp, as bits."""
    return _here(S, np.ones(S.N, dtype=bool) if m is None else m).view(np.int32)


def reduce_block(S: Any, how: str, predicate: Values, m: Mask) -> Values:
    """Reduce a predicate over all threads of each block (`bar.red`)."""
    values = np.broadcast_to(predicate, S.N).reshape(-1, S.T)
    if how == "popc":
        return np.repeat(values.sum(axis=1, dtype=np.uint32), S.T)
    reduced = values.all(axis=1) if how == "and" else values.any(axis=1)
    return np.repeat(reduced, S.T)


def chosen(S: Any, predicate: Values, m: Mask) -> Mask:
    """Return the active lanes for which a predicate holds."""
    if not predicate.ndim:
        return m if predicate else np.zeros(S.N, dtype=bool)
    return predicate if m is None else predicate & m


def _list(bits: int) -> str:
    lanes = [str(i) for i in range(32) if bits >> i & 1]
    return ", ".join(lanes if len(lanes) <= 4 else [*lanes[:3], "...", lanes[-1]])


# Matrix instructions: `mma` with 16-bit factors, and `ldmatrix`
#
# A matrix is spread over the lanes of a warp. With g = lane // 4 and t = lane % 4, element i of a
# lane is, in `mma.m16n8k16` (PTX ISA manual, "Matrix fragments for mma.m16n8k16"):
#
#     A (16, 16): row g for i in 0, 1, 4, 5, else g + 8; column 2t + (i & 1), plus 8 for i >= 4
#     B (16, 8): row 2t + (i & 1), plus 8 for i >= 2; column g
#     C, D (16, 8): row g for i < 2, else g + 8; column 2t + (i & 1)
#
# `mma.m16n8k8` has the first half of A's and B's. Two elements are in a register, the first lower.
#
# The products are summed in float64 and rounded once. Hardware sums in an unspecified order, in at
# least single precision, as the manual says; so a GPU's last digits may differ.

_LANE = np.arange(32)[:, None]
_G, _T = _LANE // 4, _LANE % 4


def places(matrix: str, elements: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns (32, elements) of the elements of a, b or c that each lane holds."""
    i = np.arange(elements)
    if matrix == "a":
        return _G + 8 * (i // 2 % 2), 2 * _T + i % 2 + 8 * (i // 4)
    if matrix == "b":
        return 2 * _T + i % 2 + 8 * (i // 2), _G + 0 * i
    return _G + 8 * (i // 2), 2 * _T + i % 2


def multiply_matrices(
    S: Any,
    kind: str,
    a: tuple[Values, ...],
    b: tuple[Values, ...],
    c: tuple[Values, ...],
) -> list[np.ndarray]:
    """D = A · B + C for each warp; registers a, b have two 16-bit numbers each, c, d a float32."""
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
    """Unpack registers into elements (warps, 32, 2 · registers), float64."""
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

    Each lane receives, in one register for each matrix, columns 2t and 2t + 1 of row g.
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
