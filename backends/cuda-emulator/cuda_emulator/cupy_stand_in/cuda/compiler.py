"""The stand-in's `cupy.cuda.compiler`."""

from __future__ import annotations

__all__ = ["CompileException"]


class CompileException(Exception):  # noqa: N818, cupy's name
    """NVRTC refused a source; `str` of it is what NVRTC said."""

    def __init__(self, msg: str, source: str, name: str, options: tuple[str, ...]):
        """Keep the message; the rest says what was compiled."""
        super().__init__(msg)
