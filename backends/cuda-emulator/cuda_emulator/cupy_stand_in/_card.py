"""The emulated card: its architecture, its memory, its copies, and what a stream captures."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np

from cuda_emulator.compiler import Unavailable
from cuda_emulator.memory import Memory

VARIABLE = "CUDA_EMULATOR_ARCH"
DEFAULT = "sm_90"

# What new memory holds: NaN in float16, bfloat16, float32 and float64; a huge number as an integer.
GARBAGE = np.frombuffer(b"\xc1\x7f", dtype=np.uint16)[0]

SHARED_BYTES = 48 * 1024  # of a block on any card, unless its kernel opts in to more
MOST_THREADS = 1024  # of a block


@dataclass(frozen=True)
class Model:
    """The multiprocessors of a card, and their shared memory.

    Of it 1 KB less can be opted in to by a block, except on sm_75, where a block may have all of it
    (CUDA C++ Programming Guide, the table of compute capabilities).
    """

    multiprocessors: int
    shared_bytes: int  # of a block, at most

    @property
    def multiprocessor_bytes(self) -> int:
        """Return the shared memory of a multiprocessor."""
        return self.shared_bytes + (self.shared_bytes != 64 * 1024) * 1024


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
    """Return the architecture that CUDA_EMULATOR_ARCH names, such as "sm_90"."""
    name = os.environ.get(VARIABLE) or DEFAULT
    if name not in MODELS:
        known = ", ".join(MODELS)
        raise Unavailable(f"{VARIABLE} is {name!r}", f"unset it, or choose one of {known}")
    return name


def capability() -> int:
    """Return the compute capability as a number: 90."""
    return int(arch().removeprefix("sm_"))


def model() -> Model:
    """Return the limits of the emulated architecture."""
    return MODELS[arch()]


class Card:
    """The card's memory, which is allocated in blocks.

    Attributes: `memory`, the interpreter's; `total` bytes; `used` bytes, of blocks that are
    alive; `allocations`, their number so far.
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
        """Allocate; the caller has checked that there is room, and that no stream captures."""
        self.size = nbytes
        card.allocations += 1
        if nbytes == 0:  # as on a GPU: no memory, and the address 0
            self.address, self.bytes = 0, np.empty(0, dtype=np.uint8)
            return
        self.address = card.memory.allocate(nbytes)
        self.bytes = card.memory.bytes(self.address, nbytes)
        self.soil()
        card.used += nbytes
        weakref.finalize(self, card.free, self.address, nbytes).atexit = False

    def soil(self) -> None:
        """Fill it with garbage."""
        self.bytes[: self.size // 2 * 2].view(np.uint16)[:] = GARBAGE


CARD = Card(total=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


# Copies that may still be under way while the host goes on. Streams are not told apart: all work is
# done in the order in which it is given.
#
# A copy from pinned memory is under way until the host has waited for it: by an event that was
# recorded after it, or by fetching an array after it. Here it is made at once, but its source must
# not change until the host has waited, since a card may read it at any time.


class Overwritten(RuntimeError):  # noqa: N818, named for what happened
    """The host wrote to pinned memory that a copy may not have read yet."""


class PinnedMemory(bytearray):
    """Host memory from which copies run while the host goes on."""


class Copies:
    """The copies in order: how many were started, and which may still be under way."""

    def __init__(self) -> None:
        self.begun = 0
        self._under_way: list[tuple[int, np.ndarray, bytes]] = []  # number, source, its bytes then

    def copy(self, target: np.ndarray, source: np.ndarray) -> None:
        """Copy from the host; a copy from pinned memory then counts as under way."""
        WORK.refuse("a copy from the host")
        self.check()
        target[...] = source
        self.begun += 1
        if _pinned(source):
            self._under_way.append((self.begun, source, source.tobytes()))

    def wait(self, number: int | None = None) -> None:
        """Wait for the first `number` copies, or all; raise Overwritten as `check` does."""
        WORK.refuse("waiting")
        self.check()
        last = self.begun if number is None else number
        self._under_way = [copy for copy in self._under_way if copy[0] > last]

    def check(self) -> None:
        """Raise Overwritten, once, if the source of a copy under way has changed."""
        if any(source.tobytes() != held for _, source, held in self._under_way):
            self._under_way = []
            raise Overwritten(
                "pinned memory was written to while it may be copied; wait first, by "
                "synchronize() of an event that is recorded after the copy"
            )


def _pinned(array: np.ndarray) -> bool:
    base = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, PinnedMemory)


COPIES = Copies()


# Work on the card: done at once, or kept for a graph while a stream captures


class Work:
    """What kernels do: at once, or by a graph later if the current stream captures.

    What is captured must have run before: then all kernels are loaded, and the pool has the memory.
    Each piece of work finds its arrays by address. So one whose memory was freed since is noticed.
    """

    def __init__(self) -> None:
        self.stream = 0  # the current one's address; 0 is the default stream
        self.captures: dict[int, list[Callable[[], object]]] = {}  # by the address of the stream
        self._loaded: set[Hashable] = set()

    @property
    def captured(self) -> list[Callable[[], object]] | None:
        """What the current stream has captured so far; None if it does not capture."""
        return self.captures.get(self.stream)

    def do(self, kernel: Hashable, work: Callable[[], object]) -> None:
        """Do the work of a kernel, or keep it."""
        if kernel not in self._loaded:
            self.refuse(f"loading a kernel, {kernel}")
            self._loaded.add(kernel)
        if self.captured is None:
            work()
        else:
            self.captured.append(work)

    def refuse(self, what: str, error: type[Exception] = RuntimeError) -> None:
        """Raise an error if a stream captures."""
        if self.captured is not None:
            raise error(f"the current stream is capturing, which {what} would end")


WORK = Work()
