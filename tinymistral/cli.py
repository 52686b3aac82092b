"""The command line. NumPy is imported only after `--threads` has been read."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tinymistral import __version__, commands
from tinymistral.commands import console
from tinymistral.commands.arguments import Parser, add_commands, check_range
from tinymistral.commands.console import say, settle_streams, write
from tinymistral.threads import set_threads


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0, or what the command returns; 2 for a user's error, which is reported in one line (with its
    traceback under `python -X dev`); 130 for Ctrl-C; 141, as in a shell, if the reader of the
    output left early.
    """
    with _warnings_between_lines():
        try:
            settle_streams()
            return _run(arguments)
        except BrokenPipeError:
            return 141
        except KeyboardInterrupt:
            return 130
        except (ValueError, OSError, MemoryError) as error:
            if sys.flags.dev_mode:
                raise
            _report("error", error)
            return 2


def _run(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog="tinymistral", description=commands.__doc__)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    add_commands(parser, commands)
    try:
        options = parser.parse_args(arguments)
    except SystemExit:  # after --help
        return 0
    if options.version:
        write(f"tinymistral {__version__}\n")
        return 0
    if getattr(options, "threads", None) is not None:
        check_range("--threads", options.threads, 1, 2**31 - 1)
        set_threads(options.threads)
    return options.run(options) or 0


@contextmanager
def _warnings_between_lines() -> Iterator[None]:
    """Report warnings at once, but those in the middle of a line of text when the command ends."""
    kept: list[Any] = []

    def show(message: Any, *_: Any, **__: Any) -> None:
        if console.at_line_start:
            _report("warning", message)
        else:
            kept.append(message)

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield
        finally:
            for message in kept:
                _report("warning", message)


def _report(kind: str, message: object) -> None:
    text = " ".join(str(message).split()) or type(message).__name__
    if isinstance(message, MemoryError):
        text = f"out of memory ({text}); take a shorter text or a smaller model"
    say(f"tinymistral: {kind}: {text}")
