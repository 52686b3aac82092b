"""The console: UTF-8 out, one line for what is wrong, silence when cut off, and Ctrl-C."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


def settle_streams() -> None:
    """Make standard output and error UTF-8 whatever the locale, and writable where closed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # what Python makes of `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def write(text: str) -> None:
    """Write to standard output, at once; BrokenPipeError if whoever read it has left."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # What is still buffered must not fail, and complain, once more when Python ends.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno in (errno.EPIPE, errno.EINVAL):  # EINVAL is what Windows says
            raise BrokenPipeError(error.errno, error.strerror) from None
        raise ValueError(f"standard output cannot be written to: {error.strerror}") from None


def say(text: str) -> None:
    """Write a line to standard error, if anyone reads it."""
    with suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


class Progress:
    """How much of a prompt has gone through: a line on the terminal that goes away again."""

    WIDTH = 40  # columns

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        """Show it in place of what was shown before."""
        if self.wanted:
            self._shown = True
            self._write(f"\r{f'prompt: {done} of {total} tokens':{self.WIDTH}}")

    def clear(self) -> None:
        """Make room for text, if there is something to clear."""
        if self._shown:
            self._shown = False
            self._write(f"\r{'':{self.WIDTH}}\r")

    def _write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def leave_on_interrupt() -> None:
    """Let Ctrl-C end the process at once and without a word, with exit code 130.

    KeyboardInterrupt does not do while modules are imported: raised in a callback of the import
    system, it is printed with its traceback and lost.
    """
    # Where Ctrl-C is ignored, as in a shell's background job, it stays ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def ignore_interrupt() -> None:
    """Let Ctrl-C do nothing, once all is said and Python takes itself apart."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in here, once: there is text to put in order.

    A second one, in the midst of that, ends the process at once.
    """
    leaves = signal.getsignal(signal.SIGINT) is _leave
    if leaves:
        signal.signal(signal.SIGINT, _raise_once)
    try:
        yield
    finally:
        if leaves:
            signal.signal(signal.SIGINT, _leave)


def _leave(*_: Any) -> None:
    os._exit(130)


def _raise_once(*_: Any) -> None:
    signal.signal(signal.SIGINT, _leave)
    raise KeyboardInterrupt
