"""Upload: integers that change with every piece, copied to the card into memory that is kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinymistral.backend import Array


class Upload:
    """Copies one kind of int64 array (positions, slots, ids, ...) to the device, again and again.

    All layers of a piece ask for the same numbers: these are copied once. They are compared by
    content, since the cache changes its positions in place. The memory on the device is overwritten
    by other numbers, so a caller must not keep what a call returned; a kernel that was launched
    before still reads its own, since copies and kernels run in the stream's order. So one object
    serves one stream, and one thread.
    """

    def __init__(self, cp: Any):
        """Begin with no memory; `cp` is cupy, or what stands in for it."""
        self._cp = cp
        self._device: Array = None  # (n,), and as many numbers on the host
        self._host = np.empty(0, dtype=np.int64)
        self._sent: np.ndarray | None = None  # a view of _host, in the shape last asked for
        self._view: Array = None  # the same of _device
        self._copied = cp.cuda.Event(disable_timing=True)

    def __call__(self, numbers: np.ndarray) -> Array:
        """Return int64 `numbers` on the device, contiguous, in memory that the next call reuses."""
        if self._sent is not None and np.array_equal(numbers, self._sent):
            return self._view
        self._sent = None
        if self._device is None or numbers.size > len(self._host):
            self._grow(max(numbers.size, 2 * len(self._host)))
        self._copied.synchronize()  # the last copy reads _host, until it is done
        sent = self._host[: numbers.size].reshape(numbers.shape)
        sent[...] = numbers
        self._view = self._device[: numbers.size].reshape(numbers.shape)
        self._view.set(sent)
        self._copied.record()
        self._sent = sent
        return self._view

    def _grow(self, n: int) -> None:
        n = max(n, 1)
        self._device = self._cp.empty(n, dtype=np.int64)
        # Pinned: a copy from other host memory would make the host wait for the device.
        pinned = self._cp.cuda.alloc_pinned_memory(8 * n)
        self._host = np.frombuffer(pinned, dtype=np.int64, count=n)
