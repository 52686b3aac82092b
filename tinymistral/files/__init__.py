"""Files: what is read is checked, what is written appears complete or not at all.

The modules beside this one read checkpoints' files to tensors; none knows of a configuration.
"""

from __future__ import annotations

import json
import mmap
import operator
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from tinymistral.text import short

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

JSON_LIMIT = 10_000_000  # bytes: an index of 100,000 tensors, a 7B model has 291; some 300 MB
JSON_LEVELS = 100  # of objects and lists in each other
UNFINISHED_NAME = re.compile(r"\.(.+)\.unfinished-[0-9a-f]{16}", re.DOTALL)  # see `unfinished`
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(?:([KMGT])(I?)B)?", re.ASCII)


class CheckpointError(ValueError):
    """A checkpoint that is missing, broken or not the one that its config describes.

    Its message is one line: line breaks and control codes that a file contains are escaped.
    """

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


def check_is_file(path: Path) -> None:
    """Raise a ValueError, without the path in its message, unless it is a regular file."""
    if path.is_file():
        return
    if path.exists():
        raise ValueError("it is no regular file")  # a pipe would block, a device never end
    if path.is_symlink():
        raise ValueError("it is a symbolic link to a file that is not there")
    raise ValueError("there is no such file")


class MappedFile(mmap.mmap):
    """An open file, mapped for reading; arrays that are views of it keep it open.

    The file may be replaced or deleted meanwhile. But if it is cut, the system ends a process that
    reads what was cut off (SIGBUS), and what is written into it shows in the arrays. `check` comes
    before each use of many: what happens between a check and the end of that use is not noticed,
    and neither is a change that keeps the length.
    """

    def __new__(cls, file: IO[bytes]) -> MappedFile:
        """Map the whole file. Raises OSError, and ValueError for an empty one."""
        return super().__new__(cls, file.fileno(), 0, access=mmap.ACCESS_READ)

    def __init__(self, file: IO[bytes]) -> None:
        self.path = file.name

    def check(self) -> None:
        """Raise a CheckpointError if the file's length is not that with which it was opened."""
        if self.size() != len(self):
            raise CheckpointError(
                f"{self.path} was {len(self)} bytes when it was opened, and has become "
                f"{self.size()}; open it again once it is complete"
            )


def mapped_files(arrays: Iterable[Any]) -> set[MappedFile]:
    """Return the mapped files that NumPy arrays are views of."""
    bases = set()
    for array in arrays:
        while (base := getattr(array, "base", None)) is not None:
            array = base
        if isinstance(array, MappedFile):
            bases.add(array)
    return bases


def is_named(path: Path) -> bool:
    """Return whether a path exists; a link to nothing counts too."""
    return path.is_symlink() or path.exists()


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes; ValueError in one line for anything else."""
    try:
        check_is_file(path)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise ValueError(f"it is {size} bytes, expected {limit} at most; download it again")
            return file.read(size)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot be read: {reason}") from None


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Read the JSON object in a UTF-8 file; ValueError in one line for anything else."""
    return json_object(read_bytes(path, limit), path)


def json_object(content: bytes, path: Path) -> dict[str, Any]:
    """Return the JSON object that is the content of a file; ValueError for anything else."""
    try:
        value = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def parse_json(content: bytes) -> Any:
    """Parse JSON in UTF-8 whose objects have each name once, of few levels; ValueError."""
    deep = f"expected {JSON_LEVELS} levels of objects and lists at most"
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError(deep) from None
    level: list[Any] = [[value]]
    for _ in range(JSON_LEVELS + 1):
        items = (x.values() if isinstance(x, dict) else x for x in level)
        level = [x for x in chain.from_iterable(items) if isinstance(x, dict | list)]
    if level:
        raise ValueError(deep)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique:
            raise ValueError(f"the name {name!r:.120} appears twice")
        unique[name] = value
    return unique


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object as Hugging Face does: two spaces, sorted keys, a final newline."""
    with whole_file(path) as temporary:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it on success and removed on failure.

    What a killed process left of an earlier try is removed first. A device or a pipe, such as
    /dev/stdout, is copied to: renaming would replace it by a file.
    """
    if _is_device(path):
        with TemporaryDirectory() as folder:
            temporary = Path(folder, "content")
            yield temporary
            with temporary.open("rb") as content, path.open("wb") as device:
                shutil.copyfileobj(content, device)
        return
    with suppress(OSError):  # whatever it is, the next line says it
        for leftover in leftovers(path):
            with suppress(OSError, ValueError), only_writer(leftover):
                leftover.unlink()
    temporary = _make_beside(path)
    try:
        with only_writer(temporary):
            yield temporary
            move(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move(
    finished: Path,
    path: Path,
    rename: Callable[[Path, Path], object] = lambda finished, path: finished.replace(path),
) -> None:
    """Rename a file or a flat folder to `path`, once all of it is on the disk. All writers end so.

    A file is replaced; of folders, only an empty one. OSError.
    """
    for part in [*finished.iterdir(), finished] if finished.is_dir() else [finished]:
        sync(part)
    rename(finished, path)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, would survive a loss of power."""
    if os.name != "posix":  # Windows syncs only what is opened to be written to
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # not every file system can sync a folder
            raise
    finally:
        os.close(handle)


def unfinished(path: Path) -> Path:
    """Return a new name beside `path`, which says what it is, for what will be renamed to it."""
    return path.with_name(f".{path.name}.unfinished-{os.urandom(8).hex()}")


def leftovers(path: Path) -> list[Path]:
    """Return what has a name of `unfinished(path)`: locked or, if its process was killed, not."""
    found = [(there, UNFINISHED_NAME.fullmatch(there.name)) for there in path.parent.iterdir()]
    return [there for there, match in found if match and match[1] == path.name]


@contextmanager
def only_writer(path: Path, of: Path | None = None) -> Iterator[None]:
    """Lock a file or a folder against others that would lock it; ValueError if another has.

    `of` is what `path` will be renamed to, for the error. A process that ends, or is killed, lets
    go. Windows and some file systems have no such locks.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{of or path}: another process is writing to it; wait until that has ended"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def _is_device(path: Path) -> bool:
    return path.exists() and not (path.is_file() or path.is_dir())


def _make_beside(path: Path) -> Path:
    temporary = unfinished(path)
    temporary.open("xb").close()  # with the umask's permissions, unlike mkstemp
    return temporary


def check_can_be_written(path: Path) -> None:
    """Raise a ValueError if `whole_file` could not write this file: call it before long work."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected the name of a file to write")
    try:
        if not _is_device(path):
            _make_beside(path).unlink()
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be written: {error.strerror}; give a file in a "
            "folder that is there and can be written to"
        ) from None


def make_folder(path: Path) -> None:
    """Make a folder and those above it where they do not exist; ValueError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{path} is a file, expected a folder to write to") from None
    except OSError as error:
        raise ValueError(f"{path}: this folder cannot be made: {error.strerror}") from None


def parse_size(size: int | str) -> int:
    """Return a size such as "5GB", or bytes, in bytes; KB to TB are decimal, KiB to TiB binary.

    The units are those of transformers' `max_shard_size`. Raises ValueError below one byte.
    """
    number: Any = size
    if isinstance(size, str) and (match := _SIZE.fullmatch(size.strip().upper())):
        value, unit, binary = match.groups()
        power = " KMGT".index(unit or " ")
        number = round(float(value) * (1024 if binary else 1000) ** power)
    try:
        number = 0 if isinstance(number, bool) else operator.index(number)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(
            f"a size is {short(size)}, expected 1 byte or more, "
            "as a number or such as '5GB', '2GiB'"
        )
    return int(number)
