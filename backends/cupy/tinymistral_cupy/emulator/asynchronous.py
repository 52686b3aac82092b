"""Copies from global to shared memory that go on while the thread does (`cp.async`).

What is copied arrives only when the thread waits for it: until then shared memory is as it was, so
that a missing wait shows. For races, the write counts both when it is issued and when it is waited
for, as it may happen at any time between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tinymistral_cupy.emulator.accesses import Site
from tinymistral_cupy.emulator.faults import UnknownInstruction

Values = Any  # an array over lanes, or a NumPy scalar


@dataclass
class Copy:
    """A copy under way, for some lanes."""

    site: Site
    addresses: np.ndarray  # (N,) in shared memory
    values: tuple[np.ndarray, ...]
    pending: np.ndarray  # (N,) lanes for which it has not arrived
    group: np.ndarray  # (N,) how many groups each lane had committed before


def start(
    S: Any, sites: tuple[Site, Site, Site], to: Values, of: Values, nbytes: Values, m: Any
) -> None:
    """Issue a copy; of `nbytes` that is 0, zeros arrive and nothing is read."""
    load, issue, arrive = sites
    here = np.ones(S.N, dtype=bool) if m is None else m
    size = np.broadcast_to(nbytes, S.N)
    if (here & (size != 0) & (size != load.size)).any():
        raise UnknownInstruction(
            f"{load.instruction.text!r} with a part of the bytes is not known to the emulator",
            S.info.name,
            S.info.source,
            load.line,
        )
    values = load.load(S, of, here & (size != 0))
    issue.touch(S, to, here)
    parts = tuple(values) if load.vector > 1 else (values,)
    addresses = np.broadcast_to(to, S.N).copy()
    S.copies.append(Copy(arrive, addresses, parts, here.copy(), S.groups.copy()))


def commit(S: Any, m: Any) -> None:
    """End a group of copies."""
    S.groups = S.groups + (1 if m is None else m)


def wait(S: Any, left: int, m: Any) -> None:
    """Wait until at most `left` groups are under way; -1: until nothing is, committed or not."""
    here = np.ones(S.N, dtype=bool) if m is None else m
    for copy in S.copies:
        due = copy.pending & here
        if left >= 0:
            due = due & (copy.group < S.groups - left)
        if due.any():
            copy.site.store(S, copy.addresses, copy.values, due)
            copy.pending = copy.pending & ~due
    S.copies = [copy for copy in S.copies if copy.pending.any()]
