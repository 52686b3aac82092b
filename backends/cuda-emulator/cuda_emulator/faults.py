"""The faults of kernels: an exception for each kind, which says where it happened."""

from __future__ import annotations


class KernelFault(Exception):  # noqa: N818, the subclasses are named for what happened
    """An error of a kernel; the message says which one, where, and what was touched.

    `line` is the CUDA source's, 0 where unknown; `block` and `thread` are indices.
    """

    def __init__(
        self,
        what: str,
        kernel: str = "",
        source: str = "",
        line: int = 0,
        block: tuple[int, ...] | None = None,
        thread: tuple[int, ...] | None = None,
    ):
        super().__init__(what, kernel, source, line, block, thread)
        self.what = what
        self.kernel = kernel
        self.source = source
        self.line = line
        self.block = block
        self.thread = thread

    def __str__(self) -> str:
        """Return one line: `Race: kernel k, m.cu:7, block (0, 0, 0), thread (3, 0, 0): what`."""
        place = [f"kernel {self.kernel}"] if self.kernel else []
        if self.line:
            place.append(f"{self.source}:{self.line}")
        if self.block is not None:
            place.append(f"block {self.block}")
        if self.thread is not None:
            place.append(f"thread {self.thread}")
        return f"{type(self).__name__}: {', '.join(place)}: {self.what}"


class OutOfBounds(KernelFault):
    """An address that lies in no argument of the launch, or beyond the shared memory declared."""


class Misaligned(KernelFault):
    """An address that is not a multiple of the width of the access."""


class Uninitialised(KernelFault):
    """Shared memory was read that nothing had been written to."""


class Race(KernelFault):
    """Two threads touched the same bytes, one of them writing, and nothing ordered them.

    Also: bytes were touched while an asynchronous copy to them was under way.
    """


class DivergentBarrier(KernelFault):
    """Some threads of a block wait at a barrier that others never reach."""


class LostLane(KernelFault):
    """A shuffle or vote that names, or reads, a lane that does not take part."""


class Trap(KernelFault):
    """The kernel executed `trap`."""


class TooLong(KernelFault):
    """The kernel used up its budget of instructions; a loop may be endless."""


class UnknownInstruction(KernelFault):
    """An instruction, or a variant of one, that the emulator does not know."""
