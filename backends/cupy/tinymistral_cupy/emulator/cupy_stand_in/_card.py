"""The card that is pretended to be there: its architecture, its memory, and what of it is used."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass

import numpy as np

from tinymistral.backend import BackendUnavailable
from tinymistral_cupy.emulator.memory import Memory

VARIABLE = "TINYMISTRAL_EMULATED_ARCH"
DEFAULT = "sm_90"

# What new memory holds: NaN in float16, bfloat16, float32 and float64, and far out as an integer.
GARBAGE = np.frombuffer(b"\xc1\x7f", dtype=np.uint16)[0]

SHARED_BYTES = 48 * 1024  # of a block on any card, unless its kernel opts in to more
MOST_THREADS = 1024  # of a block


@dataclass(frozen=True)
class Model:
    """Of cards of one architecture: multiprocessors, and most shared memory of a block, opted in.

    The latter is from the table of compute capabilities in the CUDA C++ Programming Guide.
    """

    multiprocessors: int
    shared_bytes: int


MODELS = {
    "sm_75": Model(40, 64 * 1024),
    "sm_80": Model(108, 163 * 1024),
    "sm_86": Model(84, 99 * 1024),
    "sm_87": Model(16, 163 * 1024),
    "sm_89": Model(128, 99 * 1024),
    "sm_90": Model(132, 227 * 1024),
    "sm_100": Model(148, 227 * 1024),
    "sm_103": Model(160, 227 * 1024),
    "sm_120": Model(170, 99 * 1024),
    "sm_121": Model(48, 99 * 1024),
}


def arch() -> str:
    """Return the architecture, such as "sm_90", that TINYMISTRAL_EMULATED_ARCH says."""
    name = os.environ.get(VARIABLE) or DEFAULT
    if name not in MODELS:
        known = ", ".join(MODELS)
        raise BackendUnavailable(f"{VARIABLE} is {name!r}", f"unset it, or choose one of {known}")
    return name


def capability() -> int:
    """Return the same as a number: 90."""
    return int(arch().removeprefix("sm_"))


def model() -> Model:
    """Return what such a card has."""
    return MODELS[arch()]


class Card:
    """Memory that is handed out in blocks, and counted.

    Attributes: `memory`, that of the interpreter; `total` bytes; `used` bytes of blocks that are
    alive; `allocations` so far.
    """

    def __init__(self, total: int):
        """Begin with all of it free."""
        self.memory = Memory()
        self.total = total
        self.used = 0
        self.allocations = 0

    def free(self, address: int, nbytes: int) -> None:
        """Take a block back."""
        self.memory.free(address)
        self.used -= nbytes


class Block:
    """An allocation: its `address`, its `size`, and its `bytes` on the host; freed when it dies."""

    def __init__(self, card: Card, nbytes: int):
        """Allocate; the caller has seen that there is room."""
        self.size = nbytes
        card.allocations += 1
        if nbytes == 0:  # as on a GPU: no memory, and the address 0
            self.address, self.bytes = 0, np.empty(0, dtype=np.uint8)
            return
        self.address = card.memory.allocate(nbytes)
        self.bytes = card.memory.bytes(self.address, nbytes)
        self.bytes[: nbytes // 2 * 2].view(np.uint16)[:] = GARBAGE
        card.used += nbytes
        weakref.finalize(self, card.free, self.address, nbytes).atexit = False


CARD = Card(total=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
