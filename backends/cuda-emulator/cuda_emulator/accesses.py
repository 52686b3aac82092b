"""Loads, stores and atomics: each checks bounds and alignment, and is noted for races and costs.

A site is one such instruction of a kernel. Its methods are called with the state S of the launch,
addresses (an array, or one for all lanes), and the mask of the lanes that take part (None: all).
Lanes outside of the mask get 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuda_emulator.faults import KernelFault, Misaligned, OutOfBounds, Race, UnknownInstruction
from cuda_emulator.memory import LOCAL, REGION_BITS, SHARED
from cuda_emulator.ptx import Instruction

Values = Any  # an array over lanes, or a NumPy scalar
Mask = Any  # booleans over lanes, or None


class Site:
    """One access of a kernel: each lane accesses `vector` elements of `dtype`.

    kind: load | store | atomic | issue (a store that starts here and arrives later)
    """

    def __init__(
        self,
        index: int,
        kind: str,
        space: str,
        dtype: str,
        vector: int,
        instruction: Instruction,
        operation: str = "",
    ):
        self.index, self.kind, self.space = index, kind, space
        self.dtype, self.vector = np.dtype(dtype), vector
        self.size = self.dtype.itemsize * vector
        self.shift = self.size.bit_length() - 1
        self.instruction = instruction
        self.line = instruction.line
        self.operation = operation
        self.writes = kind != "load"
        self.key = (self.dtype, vector)

    def __str__(self) -> str:
        """Describe the access: `write of 16 bytes`."""
        does = {"load": "read", "atomic": "atomic"}.get(self.kind, "write")
        return f"{does} of {self.size} byte{'s' * (self.size > 1)}"

    # Called by the generated functions of a kernel

    def load(self, S: Any, a: Values, m: Mask) -> np.ndarray:
        """Return (N,) values, or (vector, N)."""
        lanes, a = _taking_part(S, a, m)
        values = [
            (part, view.take(index, axis=0)) for part, view, index in self._resolve(S, a, lanes)
        ]
        if lanes is None and len(values) == 1:
            return values[0][1] if self.vector == 1 else np.ascontiguousarray(values[0][1].T)
        out = np.zeros((S.N,) if self.vector == 1 else (S.N, self.vector), dtype=self.dtype)
        for part, some in values:
            out[part] = some
        return out if self.vector == 1 else np.ascontiguousarray(out.T)

    def store(self, S: Any, a: Values, values: tuple[Values, ...], m: Mask) -> None:
        """Write a value for each element of the vector."""
        lanes, a = _taking_part(S, a, m)
        for part, view, index in self._resolve(S, a, lanes):
            for i, value in enumerate(values):
                if part is not None and value.ndim:
                    value = value.take(part)
                if self.vector == 1:
                    view[index] = value
                else:
                    view[index, i] = value

    def touch(self, S: Any, a: Values, m: Mask) -> None:
        """Check and note an access without performing it."""
        lanes, a = _taking_part(S, a, m)
        self._resolve(S, a, lanes)

    def atomic(self, S: Any, a: Values, values: tuple[Values, ...], m: Mask) -> np.ndarray:
        """Update memory lane by lane, in order, and return the old values (N,)."""
        lanes, a = _taking_part(S, a, m)
        old = np.zeros(S.N, dtype=self.dtype)
        apply = ATOMICS[self.operation]
        for part, view, index in self._resolve(S, a, lanes):
            part = range(S.N) if part is None else part
            full = [np.broadcast_to(value, S.N) for value in values]
            for lane, at in zip(part, index, strict=True):
                old[lane] = view[at]
                view[at] = apply(view[at], *(value[lane] for value in full))
        return old

    # Which memory an address lies in

    def _resolve(self, S: Any, a: np.ndarray, lanes: Any) -> list[tuple[Any, np.ndarray, Any]]:
        """Check, note and count; return (lanes, memory as elements, indices) for each memory."""
        if not len(a):
            return []
        if self.space == "shared":
            return [(lanes, *self._shared(S, a, lanes))]
        if self.space == "local":
            return [(lanes, *self._local(S, a, lanes))]
        if self.space == "generic":
            tops = a >> REGION_BITS
            first = int(tops[0])
            if first in (SHARED, LOCAL) and bool((tops == first).all()):
                within = a - (first << REGION_BITS)
                place = self._shared if first == SHARED else self._local
                return [(lanes, *place(S, within, lanes))]
            if bool(((tops == SHARED) | (tops == LOCAL)).any()):
                return self._each(S, a, lanes, tops)
        return self._global(S, a, lanes)

    def _each(
        self, S: Any, a: np.ndarray, lanes: Any, group: np.ndarray
    ) -> list[tuple[Any, np.ndarray, Any]]:
        """Resolve the lanes of each group by themselves."""
        lanes = np.arange(S.N) if lanes is None else lanes
        found = []
        for which in np.unique(group):
            part = group == which
            found.extend(self._resolve(S, a[part], lanes[part]))
        return found

    def _shared(self, S: Any, a: np.ndarray, lanes: Any) -> tuple[np.ndarray, np.ndarray]:
        bits = int(np.bitwise_or.reduce(a))
        size = self.size
        limit = S.shared_limit
        if bits & (size - 1) or bits < 0 or (bits + size > limit and int(a.max()) + size > limit):
            self._refuse(S, a, lanes, S.shared_limit, "shared memory")
        if S.shared_base is not None:
            a = a + (S.shared_base if lanes is None else S.shared_base.take(lanes))
        if S.copies:
            self._check_arriving(S, a, lanes)
        S.shared_tracker.note(S, self, a, lanes)
        S.counts.shared(S, self, a, lanes)
        return S.shared_view(self.key), a >> self.shift

    def _check_arriving(self, S: Any, a: np.ndarray, lanes: Any) -> None:
        """Raise Race for the first lane that touches bytes to which a copy is under way."""
        touched = S.arriving.view(f"u{max(1, self.size // 4)}")[a // max(4, self.size)] != 0
        if touched.any():
            i = int(np.argmax(touched))
            line, thread = _copier(S, int(a[i]), self.size)
            at = f"byte {S.shared_offset(int(a[i]))} of shared memory"
            what = f"{self} at {at}, to which {thread} has a copy under way since line {line}"
            raise S.fault(Race, self.instruction, _lane(lanes, i), what)

    def _local(self, S: Any, a: np.ndarray, lanes: Any) -> tuple[np.ndarray, np.ndarray]:
        bits = int(np.bitwise_or.reduce(a))
        if bits & (self.size - 1) or bits < 0 or bits + self.size > S.local_limit:
            self._refuse(S, a, lanes, S.local_limit, "the thread's local memory")
        base = S.local_base if lanes is None else S.local_base.take(lanes)
        return S.local_view(self.key), a + base >> self.shift

    def _global(self, S: Any, a: np.ndarray, lanes: Any) -> list[tuple[Any, np.ndarray, Any]]:
        window = S.last_window.get(self.index)
        if window is not None:
            offset = a - window.base
            bits = int(np.bitwise_or.reduce(offset))
            if (
                bits & (self.size - 1)
                or bits < 0
                or (bits + self.size > window.end and int(offset.max()) + self.size > window.end)
                or (window.start and int(offset.min()) < window.start)
            ):
                window = self._find(S, a, lanes)
        else:
            window = self._find(S, a, lanes)
        if window is None:  # several arguments at once
            return self._each(S, a, lanes, S.window_numbers(a))
        offset = a - window.base
        window.tracker.note(S, self, offset, lanes)
        S.counts.touched(S, self, offset, lanes)
        return [(lanes, window.view(self.key), offset >> self.shift)]

    def _find(self, S: Any, a: np.ndarray, lanes: Any) -> Any:
        """Find the argument that all addresses lie in; None where they lie in several."""
        wrong = a & (self.size - 1) != 0
        no_multiple = f", which is no multiple of {self.size}"
        self._check(S, Misaligned, wrong, lanes, lambda i: S.describe(int(a[i])) + no_multiple)
        low, high = int(a.min()), int(a.max())
        for window in S.windows:
            if low >= window.base + window.start and high + self.size <= window.base + window.end:
                S.last_window[self.index] = window
                return window
        outside = ~S.within(a, self.size)
        self._check(S, OutOfBounds, outside, lanes, lambda i: S.describe(int(a[i])))
        return None

    def _refuse(self, S: Any, a: np.ndarray, lanes: Any, limit: int, where: str) -> None:
        """Raise a fault for the first lane whose address is wrong, if there is one."""
        outside, odd = (a < 0) | (a + self.size > limit), a & (self.size - 1) != 0
        at = f"of {where}, which"
        self._check(S, OutOfBounds, outside, lanes, lambda i: f"byte {a[i]} {at} has {limit} bytes")
        self._check(
            S, Misaligned, odd, lanes, lambda i: f"byte {a[i]} {at} is no multiple of {self.size}"
        )

    def _check(
        self,
        S: Any,
        kind: type[KernelFault],
        wrong: np.ndarray,
        lanes: Any,
        where: Callable[[int], str],
    ) -> None:
        """Raise a fault for the first lane that is wrong, if any; `where` describes its address."""
        if wrong.any():
            i = int(np.argmax(wrong))
            raise S.fault(kind, self.instruction, _lane(lanes, i), f"{self} at {where(i)}")


def _taking_part(S: Any, a: Values, m: Mask) -> tuple[Any, np.ndarray]:
    """Return the lanes that take part, None for all, and an address for each."""
    if m is None:
        return None, (a if a.ndim else np.full(S.N, a))
    lanes = np.flatnonzero(m)
    return lanes, (a.take(lanes) if a.ndim else np.full(len(lanes), a))


def _lane(lanes: Any, i: int) -> int:
    return i if lanes is None else int(lanes[i])


ATOMICS: dict[str, Callable[..., Any]] = {
    "add": lambda old, a: old + a,
    "min": min,
    "max": max,
    "and": lambda old, a: old & a,
    "or": lambda old, a: old | a,
    "xor": lambda old, a: old ^ a,
    "exch": lambda old, a: a,
    "cas": lambda old, a, b: b if old == a else old,
    "inc": lambda old, a: old.dtype.type(0) if old >= a else old + old.dtype.type(1),
    "dec": lambda old, a: a if old == 0 or old > a else old - old.dtype.type(1),
}


# Copies from global to shared memory that run while the thread goes on (`cp.async`)
#
# Here a copy arrives only when the thread waits for it, and who touches its bytes before that, the
# thread itself included, races with it. The write is noted both when it is issued and when it is
# waited for, as it may happen at any time between.


@dataclass
class Copy:
    """A copy under way, for some lanes."""

    site: Site
    addresses: np.ndarray  # (N,) in shared memory
    values: tuple[np.ndarray, ...]
    pending: np.ndarray  # (N,) lanes for which it has not arrived
    group: np.ndarray  # (N,) how many groups each lane had committed before


def start_copy(
    S: Any, sites: tuple[Site, Site, Site], to: Values, of: Values, nbytes: Values, m: Any
) -> None:
    """Issue a copy; where `nbytes` is 0, nothing is read and zeros arrive."""
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
    _mark(S, S.copies[-1], here, True)


def _words(S: Any, copy: Copy, lanes: np.ndarray) -> np.ndarray:
    """Return the words (lanes, words of a copy) that a copy writes for some lanes."""
    first = copy.addresses + (0 if S.shared_base is None else S.shared_base) >> 2
    return first[lanes][:, None] + np.arange(copy.site.size // 4)


def _mark(S: Any, copy: Copy, lanes: np.ndarray, arriving: bool) -> None:
    """Mark the words of a copy as those that one under way will write, or that it has written."""
    S.arriving[_words(S, copy, lanes)] = arriving


def _copier(S: Any, a: int, size: int) -> tuple[int, str]:
    """Return the line of the copy under way to an address, and describe the thread."""
    for copy in S.copies:
        lanes = np.flatnonzero(copy.pending)
        words = _words(S, copy, lanes)
        hit = ((words >= a >> 2) & (words <= a + size - 1 >> 2)).any(axis=1)
        if hit.any():
            return copy.site.line, S.name_of(int(S.threads[lanes[int(np.argmax(hit))]]))
    raise AssertionError("no copy is under way to this address")


def commit_copies(S: Any, m: Any) -> None:
    """End a group of copies."""
    S.groups = S.groups + (1 if m is None else m)


def wait_for_copies(S: Any, left: int, m: Any) -> None:
    """Wait until at most `left` groups are under way; -1: for all copies, committed or not."""
    here = np.ones(S.N, dtype=bool) if m is None else m
    for copy in S.copies:
        due = copy.pending & here
        if left >= 0:
            due = due & (copy.group < S.groups - left)
        if due.any():
            _mark(S, copy, due, False)
            copy.site.store(S, copy.addresses, copy.values, due)
            copy.pending = copy.pending & ~due
    S.copies = [copy for copy in S.copies if copy.pending.any()]
