"""The stand-in's `cupy.cuda.runtime`: there is one device, and it works."""

from __future__ import annotations

from typing import Any

from cuda_emulator.cupy_stand_in import _card

__all__ = ["CUDARuntimeError", "getDeviceCount", "getDeviceProperties"]


class CUDARuntimeError(RuntimeError):
    """An error of CUDA; `status` is its number."""

    def __init__(self, status: int):
        """Make the error with a number."""
        self.status = status
        super().__init__(f"CUDA error {status}")


def getDeviceCount() -> int:  # noqa: N802, cupy's name
    """Return 1."""
    return 1


def getDeviceProperties(device: int) -> dict[str, Any]:  # noqa: N802, cupy's name
    """Return the device's name; cupy's dictionary has much more."""
    return {"name": f"CPU, emulating {_card.arch()}".encode()}
