"""Saving a checkpoint as a whole: what a stopped save leaves never opens as a mixture of two.

All that is written is first complete under a name of `files.unfinished`. A process that is killed
leaves it there, for the next one that writes to the same place to remove.
"""

from __future__ import annotations

import ctypes
import errno
import filecmp
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from tinymistral.files import (
    UNFINISHED_NAME,
    CheckpointError,
    is_named,
    leftovers,
    make_folder,
    move,
    only_writer,
    parse_size,
    sync,
    unfinished,
)
from tinymistral.files.consolidated import CONFIG_FILE
from tinymistral.files.safetensors import (
    INDEX_FILE,
    SINGLE_FILE,
    WEIGHTS_NAME,
    check_writable,
    write_shards,
)

# The files that are written as a checkpoint: in a folder that is replaced, no other is removed.
WRITTEN = re.compile(
    r"config\.json|generation_config\.json|params\.json"
    r"|tokenizer\.model(\.v[237])?|tokenizer\.json|tokenizer_config\.json"
    r"|special_tokens_map\.json|added_tokens\.json|chat_template\.jinja"
    rf"|consolidated\.safetensors|{WEIGHTS_NAME.pattern}|{UNFINISHED_NAME.pattern}"
)
_EXCHANGE = 2  # RENAME_EXCHANGE in linux/fs.h
_HERE = -100  # AT_FDCWD in fcntl.h


def write_tensors(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    max_shard_size: int | str = "5GB",
    beside: Callable[[Path], None] = lambda new: None,
) -> None:
    """Write floating-point arrays to `folder`, which is made if it does not exist.

    They become `model.safetensors` or, if they are larger than `max_shard_size` (see `parse_size`),
    `model-00001-of-0000N.safetensors` ... and `model.safetensors.index.json`. A shard is larger
    only if it holds a single tensor that is. `beside(new)` writes the checkpoint's other files to
    the empty folder `new`.

    All files are complete before the first is renamed into place, so the arrays may be views of
    the files that are replaced. An earlier save in the same folder is removed. At every moment
    `folder` opens as the earlier save, as the new one, or not at all. Raises ValueError, also if
    another process is saving there.
    """
    folder = Path(folder)
    size = parse_size(max_shard_size)
    check_writable(tensors)
    make_folder(folder)
    try:
        with only_writer(folder), _new_folder(folder / "checkpoint") as new:
            names = write_shards(new, tensors, size)
            beside(new)
            try:
                _move_all(new, folder, names)
            except KeyboardInterrupt:
                _move_all(new, folder, names)  # a part would open as neither
                raise
    except OSError as error:
        raise CheckpointError(f"cannot write the weights to {folder}: {error}") from error


def _move_all(new: Path, folder: Path, weights: list[str]) -> None:
    """Move the files of a checkpoint over those of an earlier one, and remove its other weights.

    A checkpoint opens by `model.safetensors` or else by its index. This is moved last; and first
    the earlier ones are removed, unless all but the weights stays the same, and the old weights
    can be read until the new ones are.
    """
    entry = weights[-1]
    others = [path.name for path in new.iterdir() if path.name not in weights]
    if (entry == INDEX_FILE and (folder / INDEX_FILE).exists()) or not all(
        (folder / name).is_file() and filecmp.cmp(new / name, folder / name, shallow=False)
        for name in others
    ):
        for name in (INDEX_FILE, SINGLE_FILE):  # if both are there, the second counts
            (folder / name).unlink(missing_ok=True)
        sync(folder)
    # A config.json first: with it, a raw checkpoint that is there does not count.
    for name in [*sorted(others, key=lambda name: name != CONFIG_FILE), *weights]:
        if name == entry:
            sync(folder)
        if (new / name).exists():
            move(new / name, folder / name)
    sync(folder)
    for path in list(folder.iterdir()):
        if WEIGHTS_NAME.fullmatch(path.name) and path.name not in weights:
            path.unlink()


@contextmanager
def whole_folder(path: Path, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `path`, renamed to it on success and removed on failure.

    There must be nothing at `path` at that moment, or an empty folder. With `force` it may also be
    the folder that is there at the start, if it holds no `strangers`: this is replaced in one step
    where the system can (Linux), and its files are removed. Raises ValueError or OSError.
    """
    replaced = _identity(path) if force and path.is_dir() and any(path.iterdir()) else None
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _new_folder(path) as new:
            yield new
            if replaced is None:
                try:
                    move(new, path)
                except OSError:
                    if not is_named(path):
                        raise
                    raise ValueError(
                        f"{path}: something has appeared there meanwhile, and is left as it is; "
                        "give another folder"
                    ) from None
            else:
                move(new, path, exchange)
                if _identity(new) != replaced or strangers(new):
                    exchange(new, path)
                    raise ValueError(
                        f"{path}: has changed meanwhile, and is left as it is; give another folder"
                    )
            sync(path.parent)
    finally:
        for folder in missing:
            with suppress(OSError):  # on success it is not empty
                folder.rmdir()


def strangers(folder: Path) -> list[str]:
    """Return what a folder holds beside the regular files that are written as a checkpoint.

    What a killed save left in it is removed. ValueError if another process is saving there.
    """
    _remove_leftovers(folder / "checkpoint")
    return sorted(path.name for path in folder.iterdir() if not _is_ours(path))


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder, which has a name of `unfinished(path)`, and remove it if it is there.

    ValueError if another process is about to write to `path`.
    """
    _remove_leftovers(path)
    new = unfinished(path)
    new.mkdir()
    try:
        with only_writer(new):
            yield new
    finally:
        _remove(new)


def _remove_leftovers(path: Path) -> None:
    for leftover in leftovers(path):
        with suppress(FileNotFoundError), only_writer(leftover, path):  # it may have been renamed
            _remove(leftover)


def _remove(folder: Path) -> None:
    """Remove a folder and, of what it holds, the files that are written as a checkpoint."""
    with suppress(OSError):
        for path in folder.iterdir():
            if _is_ours(path):
                path.unlink()
        folder.rmdir()


def _is_ours(path: Path) -> bool:
    return bool(WRITTEN.fullmatch(path.name)) and path.is_file() and not path.is_symlink()


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def exchange(one: Path, other: Path) -> None:
    """Give each of two folders the other's name; OSError.

    Linux does it in one step. Elsewhere `other` has a name of `unfinished` for a moment.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, TypeError):  # an old library; Windows
        code = errno.ENOSYS
    else:
        names = os.fsencode(one), os.fsencode(other)
        if rename(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
    if code not in (errno.ENOSYS, errno.EINVAL):  # what a file system says that cannot do it
        raise OSError(code, os.strerror(code))
    aside = unfinished(other)
    other.rename(aside)
    one.rename(other)
    aside.rename(one)
