"""Kill or interrupt a writer before each of its file operations, to look at what is there then.

An audit hook of Python raises `Killed` at an operation and at all later ones. So what a writer does
to clean up fails too, and the files are those of a process that was killed at that moment. Any
other exception, such as KeyboardInterrupt, is raised at one operation only.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_OPERATIONS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink"}


class Killed(BaseException):
    """Raised at the operation that is not done."""


_folder: str | None = None  # where operations count; None: nowhere
_left = 0  # operations until the kill
_error: type[BaseException] = Killed


def _hook(event: str, arguments: tuple) -> None:
    global _left
    if _folder is None:
        return
    if event == "ctypes.dlsym":
        if arguments[1] != "renameat2":  # which has no event of its own
            return
    elif event == "open":
        path, _, flags = arguments
        if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR):
            return
    elif event not in _OPERATIONS:
        return
    if event != "ctypes.dlsym" and not os.fsdecode(arguments[0]).startswith(_folder):
        return
    _left -= 1
    if _left == -1 or (_left < 0 and _error is Killed):
        raise _error


sys.addaudithook(_hook)


def killed_after(
    operations: int,
    folder: Path,
    write: Callable[[], object],
    error: type[BaseException] = Killed,
) -> bool:
    """Call `write`, killed after this number of operations in `folder`; return whether it was."""
    global _folder, _left, _error
    _folder, _left, _error = str(folder), operations, error
    try:
        write()
    except error:
        return True
    finally:
        _folder = None
    return False


def kills(
    folder: Path,
    restore: Callable[[], object],
    write: Callable[[], object],
    error: type[BaseException] = Killed,
) -> Iterator[int]:
    """Kill `write` before its first operation in `folder`, then before its second, and so on.

    `restore` is called before each. Yields the number of operations that were done.
    """
    for operations in range(1000):
        restore()
        if not killed_after(operations, folder, write, error):
            assert operations >= 3
            return
        yield operations
    raise AssertionError("the writer does not end")
