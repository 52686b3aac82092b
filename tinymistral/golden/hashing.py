"""The sha256 of a file, however large: it is read a piece at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from tinymistral.files import check_is_file

PIECE = 1 << 20  # bytes


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Return the sha256 of a regular file; ValueError in one line if it cannot be read.

    `progress(size)` is told how many bytes more have been read.
    """
    found = hashlib.sha256()
    try:
        check_is_file(path)
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                found.update(piece)
                if progress is not None:
                    progress(len(piece))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot be read: {reason}") from None
    return found.hexdigest()
