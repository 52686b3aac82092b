"""The stand-in's one stream: copies that a card may be at still, while the host goes on.

A copy from pinned memory is under way until the host has waited for it: by an event that was
recorded after it, or for numbers that came later. Here it is done at once, and its source has to
stay as it was until then: a card may read it at any time.
"""

from __future__ import annotations

import numpy as np


class Overwritten(RuntimeError):  # noqa: N818, named for what happened
    """The host wrote to pinned memory that a copy may not have read yet."""


class PinnedMemory(bytearray):
    """Memory on the host that copies read while the host goes on."""


class Stream:
    """The order of copies: how many began, and those of them that may be under way."""

    def __init__(self) -> None:
        self.begun = 0
        self._under_way: list[tuple[int, np.ndarray, bytes]] = []  # number, source, what it held

    def copy(self, target: np.ndarray, source: np.ndarray) -> None:
        """Copy from the host; from pinned memory, this is under way from now on."""
        self.check()
        target[...] = source
        self.begun += 1
        if _pinned(source):
            self._under_way.append((self.begun, source, source.tobytes()))

    def wait(self, number: int | None = None) -> None:
        """Let the host wait for the first so many copies, or all; Overwritten as `check` says."""
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


STREAM = Stream()
