"""The emulator: the CUDA kernels, as NVRTC compiles them, on NumPy; and the backend on it."""

from __future__ import annotations

from typing import Any

from tinymistral_cupy.backend import CupyBackend


class EmulatedBackend(CupyBackend):
    """The backend `cupy` where `import cupy` gives the stand-in: the same code and no GPU."""

    name = "cupy-emulated"

    @classmethod
    def module(cls) -> Any:
        """Return the stand-in; BackendUnavailable where NVRTC is not installed."""
        from tinymistral_cupy.emulator import cupy_stand_in
        from tinymistral_cupy.emulator.compiler import compile_cuda

        compile_cuda("", "sm_90")
        return cupy_stand_in
