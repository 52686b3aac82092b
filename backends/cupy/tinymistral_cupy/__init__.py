"""tinymistral-cupy: the backends `cupy`, for NVIDIA GPUs, and `cupy-emulated`, for any machine.

CuPy or the emulator is imported when its backend is asked for, never before.
"""

from tinymistral_cupy.backend import CupyBackend, EmulatedBackend

__all__ = ["CupyBackend", "EmulatedBackend"]
