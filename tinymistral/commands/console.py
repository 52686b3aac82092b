"""The console: UTF-8 output, a line of progress, readers that leave early, and Ctrl-C.

Commands print with `write`, `print_json`, `say` and `Progress` alone: what comes from a checkpoint,
a suite or a file's name must not control the terminal.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from tinymistral.text import one_line

# What a terminal would obey, and what it is given instead. C0, except tab and newline: a symbol (␛
# for ESC). DEL, C1, and the marks that turn the direction of writing for the rest of a line: the
# escape of JSON, in which these stand as they are, and which so keeps its meaning.
CONTROLS = {n: chr(0x2400 + n) for n in range(0x20) if chr(n) not in "\t\n"} | {
    n: f"\\u{n:04x}" for n in (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}

at_line_start = True  # whether standard output is at the start of a line


def settle_streams() -> None:
    """Make standard output and error UTF-8 whatever the locale. ValueError if output is closed."""
    global at_line_start
    at_line_start = True
    if sys.stderr is None:  # closed by `2>&-`
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if sys.stdout is None:  # closed by `>&-`
        raise ValueError("standard output is closed; direct it to a file, or to /dev/null")


def visible(text: str, stream: TextIO) -> str:
    """Return the text for this stream: on a terminal, control characters become visible."""
    return text.translate(CONTROLS) if stream.isatty() else text


def write(text: str) -> None:
    """Write to standard output without buffering; BrokenPipeError if the reader has left."""
    global at_line_start
    try:
        sys.stdout.write(visible(text, sys.stdout))
        sys.stdout.flush()
        at_line_start = text.endswith("\n") if text else at_line_start
    except OSError as error:
        # What is still buffered must not fail again, with a message, when Python ends.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno in (errno.EPIPE, errno.EINVAL):  # EINVAL on Windows
            raise BrokenPipeError(error.errno, error.strerror) from None
        raise ValueError(f"standard output cannot be written to: {error.strerror}") from None


def print_json(fields: Mapping[str, Any]) -> None:
    """Write a JSON object on one line, of the standard: without NaN."""
    import json  # takes a tenth of the time of --help, which does not need it

    write(f"{json.dumps(fields, ensure_ascii=False, allow_nan=False)}\n")


def finite(x: float) -> float | None:
    """Return a number for JSON, which has no infinity, and no NaN of a broken checkpoint."""
    return x if math.isfinite(x) else None


def say(text: str) -> None:
    """Write a line to standard error, in place of one of progress; no error if nobody reads it."""
    Progress.clear()
    with suppress(OSError):
        sys.stderr.write(visible(f"{text}\n", sys.stderr))
        sys.stderr.flush()


def terminal_columns() -> int:
    """Return the width of the terminal that standard error is; 80 where it does not say."""
    with suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return 80


def fitted(line: str, columns: int) -> str:
    """Shorten a line, such as "step 9 of 10, loss 2.1": its last clauses go, then first words."""
    while len(line) > columns and ", " in line:
        line = line.rpartition(", ")[0]
    while len(line) > columns and " " in line:
        line = line.partition(" ")[2]
    return line[:columns]


class Progress:
    """A line on the terminal that says how far something is, and disappears when it is done.

    `text` is a format string for the values that each call gives, such as "case {} of {}".
    """

    _shown = 0  # columns of the line that is there, whichever Progress it is of

    def __init__(self, text: str, wanted: bool = True) -> None:
        self.text = text
        self.wanted = wanted and sys.stderr.isatty()

    def __call__(self, *values: object) -> None:
        """Show the line in place of the one before."""
        if self.wanted:
            # A line that wraps could not be replaced, and one in the last column may.
            line = fitted(one_line(self.text.format(*values)), terminal_columns() - 1)
            self._write(f"\r{line.ljust(Progress._shown)}")
            Progress._shown = len(line)

    @staticmethod
    def clear() -> None:
        """Remove the line, if there is one, so that text can be printed in its place."""
        if Progress._shown:
            Progress._write(f"\r{' ' * Progress._shown}\r")
            Progress._shown = 0

    @staticmethod
    def _write(text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()


def leave_on_interrupt() -> None:
    """Let Ctrl-C end the process at once and silently, with exit code 130.

    KeyboardInterrupt does not work while modules are imported: raised in a callback of the import
    system, it is printed with its traceback and lost.
    """
    # Where Ctrl-C is ignored, as in a shell's background job, it stays ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def ignore_interrupt() -> None:
    """Ignore Ctrl-C from here on, while Python shuts down."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in this block, which has something to finish or remove.

    A second Ctrl-C, while it does, ends the process at once.
    """
    leaves = signal.getsignal(signal.SIGINT) is _leave
    if leaves:
        signal.signal(signal.SIGINT, _raise_once)
    try:
        yield
    finally:
        if leaves:
            signal.signal(signal.SIGINT, _leave)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C only be noted in this block; yield a function that returns whether it was.

    For a long loop that stops between two steps. A second Ctrl-C ends the process at once.
    """
    pressed = False

    def note(*_: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, _leave)

    leaves = signal.getsignal(signal.SIGINT) is _leave
    if leaves:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        if leaves:
            signal.signal(signal.SIGINT, _leave)


def _leave(*_: Any) -> None:
    os._exit(130)


def _raise_once(*_: Any) -> None:
    signal.signal(signal.SIGINT, _leave)
    raise KeyboardInterrupt
