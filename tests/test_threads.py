"""How many threads compute. That NumPy takes as many is in `test_cli_process.py`."""

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tinymistral import threads


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four cores, and nothing said about threads."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 5}, raising=False)
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    threads.threads.cache_clear()
    yield
    threads.threads.cache_clear()


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ({}, 4),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "64"}, 4),
        # OpenBLAS takes its own before OpenMP's
        ({"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": ""}, 4),
        ({"OMP_NUM_THREADS": "0"}, 4),
        ({"OMP_NUM_THREADS": "all"}, 4),
    ],
)
def test_it_is_what_the_environment_says_and_at_most_one_a_core(
    said: dict[str, str], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert threads.threads() == number


def test_it_cannot_change_once_numpy_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", object())
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(ValueError, match=r"^--threads: .* set OMP_NUM_THREADS=4 before it"):
        threads.set_threads(9)
    threads.set_threads(2)
    assert [os.environ[name] for name in threads.VARIABLES] == ["2"] * len(threads.VARIABLES)


# Work shared out among threads


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let three threads compute, and NumPy have OpenBLAS with five, whatever it has."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads._pool.cache_clear()  # it may be for fewer cores
    of_blas = [5]
    monkeypatch.setattr(threads, "_openblas", lambda: (lambda: of_blas[-1], of_blas.append))
    monkeypatch.setattr(threads, "of_blas", of_blas, raising=False)


def test_each_part_is_done_once_by_as_many_threads(three_threads: None) -> None:
    together = threading.Barrier(3, timeout=60)  # passed by three at once
    done = []

    def task(part: int) -> None:
        if part < 3:
            together.wait()
        done.append(part)

    threads.in_parallel(task, range(20))
    assert sorted(done) == list(range(20))


def test_blas_has_one_thread_meanwhile_and_then_as_many_as_before(three_threads: None) -> None:
    def task(part: int) -> None:
        assert threads.of_blas[-1] == 1
        if part < 2:
            threads.in_parallel(lambda _: None, range(2))  # as another thread of a user's might
        if part == 3:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"):
        threads.in_parallel(task, range(9))
    assert threads.of_blas == [5, 1, 5]


def test_without_openblas_one_thread_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_openblas", lambda: None)
    here = []
    threads.in_parallel(lambda _: here.append(threading.get_ident()), range(5))
    assert here == [threading.get_ident()] * 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child by fork")
def test_a_forked_child_has_threads_of_its_own(three_threads: None) -> None:
    threads.in_parallel(len, [[], []])  # ours have started
    child = os.fork()
    if not child:
        done: list[int] = []
        threads.in_parallel(done.append, range(5))
        os._exit(len(done))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5


# Memory

COUNT_PAGE_FAULTS = """
import resource, sys
import numpy as np
from tinymistral.threads import keep_freed_memory

def fill_arrays():
    for array in [np.empty(1 << 19, np.float32) for _ in range(8)]:  # 2 MB each
        array.fill(1)

if sys.argv[1] == "keep":
    keep_freed_memory()
fill_arrays()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill_arrays()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again() -> None:
    def page_faults(keep: str) -> int:
        command = [sys.executable, "-c", COUNT_PAGE_FAULTS, keep]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert page_faults("keep") < page_faults("default") / 10
