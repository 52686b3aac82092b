"""How many threads compute: NumPy's linear algebra and our own pools have as many, one a core."""

from __future__ import annotations

import os
import sys

# The library that NumPy multiplies matrices with reads one of these, once, when it is loaded.
VARIABLES = (
    *(f"{library}_NUM_THREADS" for library in ("OPENBLAS", "OMP", "MKL", "BLIS")),
    "VECLIB_MAXIMUM_THREADS",
)


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads(number: int) -> None:
    """Let so many threads compute, at most one a core; ValueError once NumPy has been loaded."""
    number = min(number, cores())
    if "numpy" in sys.modules and threads() != number:
        raise ValueError(
            f"--threads: NumPy has started already; set OMP_NUM_THREADS={number} before it"
        )
    os.environ.update(dict.fromkeys(VARIABLES, str(number)))


def threads() -> int:
    """Return how many threads compute: what the first of VARIABLES says, else one a core."""
    said = next((os.environ[name] for name in VARIABLES if os.environ.get(name)), "")
    return min(int(said), cores()) if said.isdecimal() and int(said) else cores()
