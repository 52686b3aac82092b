"""tinymistral-cupy: the backends `cupy`, for NVIDIA GPUs, and `cupy-emulated`, for any machine.

CuPy is imported when one of them is asked for, never before.
"""

from tinymistral_cupy.backend import CupyBackend

__all__ = ["CupyBackend"]
