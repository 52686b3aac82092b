"""Where a command's text comes from."""

from __future__ import annotations

import sys
from pathlib import Path


def read_text(argument: str | None, file: Path | None = None) -> str:
    """Return the text given as an argument, in a file, or on standard input.

    Of a file, and of standard input, one newline at the end is not part of the text.
    """
    if argument is not None and file is not None:
        raise ValueError("give the prompt as an argument or with --prompt-file, not both")
    if argument is not None:
        return argument
    if file is not None:
        source, raw = str(file), file.read_bytes()
    elif sys.stdin is None or sys.stdin.isatty():
        raise ValueError('no text; give one, "Once upon a time" say, or pipe one in')
    else:
        source, raw = "standard input", sys.stdin.buffer.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    text = text.replace("\r\n", "\n")
    return text.removesuffix("\n")
