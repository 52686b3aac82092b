"""The command line. Nothing here imports NumPy before `--threads` has been read."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from tinymistral import __version__
from tinymistral.commands.arguments import make_parser
from tinymistral.commands.console import say, settle_streams, write

# Whichever library NumPy multiplies with reads one of these, once, when it is loaded.
THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
MOST_THREADS = 1024  # the libraries complain, in their own words, of numbers they cannot take


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0, or what the command returns; 2 for a user's error, which is told in one line (with its
    traceback under `python -X dev`); 130 for Ctrl-C; 141, as a shell has it, where the reader of
    the output left early.
    """
    settle_streams()
    with _warnings_at_the_end():
        try:
            return _run(arguments)
        except BrokenPipeError:
            return 141
        except KeyboardInterrupt:
            return 130
        except (ValueError, OSError, MemoryError) as error:
            if sys.flags.dev_mode:
                raise
            _tell("error", error)
            return 2


def _run(arguments: Sequence[str] | None) -> int:
    parser = make_parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit:  # after --help
        return 0
    if options.version:
        write(f"tinymistral {__version__}\n")
        return 0
    if options.command is None:
        parser.print_help()
        return 0
    _set_threads(getattr(options, "threads", None))
    code = import_module(f"tinymistral.commands.{options.command}").run(options)
    return int(code or 0)


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    if not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"--threads: expected 1 to {MOST_THREADS}, got {threads}")
    if "numpy" in sys.modules:
        raise ValueError("--threads: NumPy has started already; set OMP_NUM_THREADS before it")
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)


@contextmanager
def _warnings_at_the_end() -> Iterator[None]:
    """Keep warnings until a command is done: one must not stand in the middle of a text."""
    kept: list[Any] = []
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: kept.append(message)
        try:
            yield
        finally:
            for message in kept:
                _tell("warning", message)


def _tell(kind: str, message: object) -> None:
    """Say what is wrong, on one line."""
    text = " ".join(str(message).split()) or type(message).__name__
    if isinstance(message, MemoryError):
        text = f"out of memory ({text}); take a shorter text or a smaller model"
    say(f"tinymistral: {kind}: {text}")
