"""Upload: copy integers that change with every piece to the card, into memory that is reused."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinymistral.backend import Array


class Upload:
    """Copies one kind of int64 array (positions, slots, ids, ...) to the device, again and again.

    All layers of a piece ask for the same numbers, which are copied once. They are compared by
    content, since the cache changes its positions in place. The next numbers overwrite the memory
    on the device, so a caller must not keep what a call returned. A kernel that was launched before
    still reads its own numbers, since copies and kernels run in the stream's order. So use one
    object for one stream and one thread only.
    """

    def __init__(self, cp: Any):
        """Begin with no memory; `cp` is cupy or its stand-in."""
        self._cp = cp
        self._device: Array = None  # (n,), as many numbers as _host
        self._host = np.empty(0, dtype=np.int64)
        self._sent: np.ndarray | None = None  # a view of _host, in the shape last asked for
        self._view: Array = None  # the same view of _device
        self._copied = cp.cuda.Event(disable_timing=True)

    def __call__(self, numbers: np.ndarray) -> Array:
        """Return int64 `numbers` on the device, contiguous, in memory that the next call reuses."""
        if self._sent is not None and np.array_equal(numbers, self._sent):
            return self._view
        self._sent = None
        if self._device is None or numbers.size > len(self._host):
            self._grow(max(numbers.size, 2 * len(self._host)))
        self._copied.synchronize()  # until then the last copy may still read _host
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
