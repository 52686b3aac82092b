"""How many threads compute. That NumPy takes as many is in `test_cli_process.py`."""

import os

import pytest

from tinymistral import threads


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores, and nothing said about threads."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 5}, raising=False)
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)


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
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(ValueError, match=r"^--threads: .* set OMP_NUM_THREADS=4 before it"):
        threads.set_threads(9)
    threads.set_threads(2)
    assert [os.environ[name] for name in threads.VARIABLES] == ["2"] * len(threads.VARIABLES)
