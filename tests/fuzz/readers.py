"""What is opened in a process of its own: its end, or its memory, is not that of the tests.

`Readers.open` is called by the tests, the rest runs in that process.
"""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import gguf  # noqa: F401 - imported here, its time is not that of a reader

from tinymistral import MistralForCausalLM, MistralTokenizer
from tinymistral.checkpoint import CheckpointError
from tinymistral.checkpoint.gguf import open_gguf
from tinymistral.files.pth import read_pth
from tinymistral.sampling import settle

SECONDS = 10  # of which an example takes some thousandth
MEMORY = 500_000_000  # bytes of address space, beside those of a process that has just started


def open_checkpoint(folder: Path) -> None:
    model = MistralForCausalLM.from_pretrained(folder)
    settle(model, {})  # which checks generation_config.json
    for array in model.tensors.values():
        array.tobytes()


def open_pth(path: Path) -> None:
    for array in read_pth(path).values():
        array.tobytes()


def open_gguf_file(path: Path) -> None:
    opened = open_gguf(path)
    for name in opened.tensors:
        opened.read(name)


def open_tokenizer(path: Path) -> None:
    folder = path.is_dir()
    tokenizer = MistralTokenizer.from_pretrained(path) if folder else MistralTokenizer(path)
    ids = tokenizer.encode("Once upon a time,\n  日本語 🙂 <s> 1789 <|im_end|>")
    everything = [*range(len(tokenizer))]
    for some in (ids, everything, everything[::-1]):
        tokenizer.decode(some)
        tokenizer.decode(some, skip_special_tokens=True)
    tokenizer.convert_ids_to_tokens(everything)


def limit() -> None:
    """Limit the address space of this process; a reader that takes more gets a MemoryError."""
    warnings.simplefilter("ignore")
    import resource  # not on Windows

    with Path("/proc/self/statm").open() as file:
        pages = int(file.read().split()[0])
    size = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def refusal(read: str, path: Path) -> str | None:
    """Return the message with which a path is refused, None if it opens; raise anything else."""
    signal.alarm(SECONDS)  # which ends the process
    try:
        globals()[read](path)
    except ValueError as error:
        if type(error) not in (ValueError, CheckpointError):
            raise
        return str(error)
    finally:
        signal.alarm(0)
    return None


class Readers:
    """A process for readers, and another one whenever one has ended."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None

    def open(self, read: str, path: Path) -> str | None:
        """Return what `refusal` does; raise what it raises, or AssertionError if it ends."""
        if self.pool is None:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(1, context, initializer=limit)
        try:
            return self.pool.submit(refusal, read, path).result()
        except BrokenProcessPool:
            self.pool = None
            raise AssertionError(f"{read} ended its process, or took {SECONDS} s") from None
