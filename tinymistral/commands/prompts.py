"""Where a command's text comes from."""

from __future__ import annotations

import sys
from pathlib import Path


def read_text(argument: str | None, file: Path | None = None, *, what: str = "text") -> str:
    """Return the text given as an argument, in a file, or on standard input; `what` names it.

    Of a file, and of standard input, a newline at the end is not part of the text, nor is a byte
    order mark; Windows line ends become plain ones. A ValueError if there is no text in UTF-8.
    """
    if argument is not None:
        return as_text(argument, f"the {what}")
    if file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise ValueError(f"no {what}; give one as an argument, in quotes, or on standard input")
    source = "standard input" if file is None else str(file)
    try:
        raw = sys.stdin.buffer.read() if file is None else file.read_bytes()
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror or error}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{source} is not UTF-8: its byte {error.start} is {raw[error.start]:#04x}; "
            "save it as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").removesuffix("\n")


def as_text(argument: str, what: str) -> str:
    """Return an argument of the command line as it was typed, in UTF-8 whatever the locale.

    Python hands on each byte that is no character in the locale's encoding as a lone surrogate.
    """
    try:
        return argument.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise ValueError(f"{what} is not UTF-8; put it into a UTF-8 file or a pipe") from None
