"""Find races: two threads access the same bytes, one of them writes, and nothing orders them.

Accesses of one thread are ordered by its program. Those of two threads of a block are ordered by a
barrier between them, or, in one warp, by a `__syncwarp`, shuffle or vote that both lanes take part
in. Those of two blocks are never ordered. (PTX ISA manual, "Memory consistency model".)

Accesses are only noted while the kernel runs. Those of shared memory are checked at each barrier,
those of global memory at the end of the launch, by a few operations on long arrays.

Two kinds of races may be missed: where lanes synchronize in groups smaller than a warp, since one
group's synchronization may be taken for another's; and in global memory, where more than
`LOOK_BACK` accesses lie between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cuda_emulator.accesses import Site
from cuda_emulator.faults import Uninitialised

LOOK_BACK = 1 << 24
READ, WRITE, ATOMIC = 0, 1, 2
KINDS = {"load": READ, "store": WRITE, "issue": WRITE, "atomic": ATOMIC}
# Reads need initialised memory; writes initialise it.
READING, WRITING = ("load", "atomic"), ("store", "atomic")


class Note(NamedTuple):
    """One access site executed once, for many lanes."""

    site: Site
    offsets: np.ndarray  # in bytes
    lanes: Any  # None: all
    threads: np.ndarray  # of all lanes, numbered through the launch
    epoch: int  # how many barriers came before
    clock: Any  # how often the warp synchronized before: one number, or one for each lane


@dataclass
class Clash:
    """Two accesses that nothing orders: the notes, and the threads."""

    first: Note
    first_thread: int
    second: Note
    second_thread: int
    offset: int


class Tracker:
    """Notes accesses to one memory, in units of 2^shift bytes."""

    def __init__(self, nbytes: int, shift: int, initialised: bool):
        self.units = -(-nbytes >> shift)
        self.shift = shift
        self.notes: list[Note] = []
        self.written = False
        self._size = 0
        self._owner: np.ndarray | None = None
        self._initialised = None if initialised else np.zeros(self.units, dtype=bool)

    def note(self, S: Any, site: Site, offsets: np.ndarray, lanes: Any) -> None:
        """Remember an access."""
        clock = S.tick if S.clocks is None else S.clocks
        self.notes.append(Note(site, offsets, lanes, S.threads, S.epoch, clock))
        self._size += len(offsets)
        if site.writes:
            self.written = True

    def full(self) -> bool:
        """Return whether so many accesses are noted that they should be checked."""
        return self._size > LOOK_BACK

    def check(self, S: Any) -> None:
        """Check the noted accesses, and forget them. Raises Race or Uninitialised."""
        notes, self.notes = self.notes, []
        written, self.written = self.written, False
        self._size = 0
        if not notes or not (written or self._initialised is not None):
            return
        all_units = [self._units(note) for note in notes]
        if self._initialised is not None:
            self._check_initialised(S, notes, all_units)
        if written:
            clash = self._clash(S, notes, all_units)
            if clash:
                raise S.race(clash)

    def _check_initialised(self, S: Any, notes: list[Note], all_units: list[np.ndarray]) -> None:
        done = self._initialised
        assert done is not None
        pairs = list(zip(notes, all_units, strict=True))
        reads = [units for note, units in pairs if note.site.kind in READING]
        if reads and not done.take(np.concatenate(reads)).all():
            for note, units in pairs:
                if note.site.kind in READING and not done[units].all():
                    i = int(np.argmin(done[units])) // self._each(note)
                    lane = i if note.lanes is None else int(note.lanes[i])
                    raise S.fault(
                        Uninitialised,
                        note.site.instruction,
                        lane,
                        f"{note.site} at byte {S.shared_offset(int(note.offsets[i]))} of shared "
                        "memory, which nothing was written to",
                    )
                if note.site.kind in WRITING:
                    done[units] = True
        for note, units in pairs:
            if note.site.kind in WRITING:
                done[units] = True

    def _each(self, note: Note) -> int:
        return max(1, note.site.size >> self.shift)

    def _units(self, note: Note) -> np.ndarray:
        """Return the units that a note's lanes touch; those of one lane are consecutive."""
        units = note.offsets >> self.shift
        each = self._each(note)
        if each == 1:
            return units
        return (units[:, None] + np.arange(each)).ravel()

    def _threads(self, note: Note) -> np.ndarray:
        threads = note.threads if note.lanes is None else note.threads.take(note.lanes)
        each = self._each(note)
        return threads if each == 1 else np.repeat(threads, each)

    def _clash(self, S: Any, notes: list[Note], all_units: list[np.ndarray]) -> Clash | None:
        """Find two accesses that nothing orders, among the units that several threads touched."""
        if self._owner is None:
            self._owner = np.zeros(self.units, dtype=np.int64)
        marks = np.zeros(self.units, dtype=bool)
        for note, units in zip(notes, all_units, strict=True):
            if note.site.writes:
                marks[units] = True
        written = []  # accesses of units that are written: note number, positions, units, threads
        for i, (note, units) in enumerate(zip(notes, all_units, strict=True)):
            chosen = np.flatnonzero(marks[units])
            if len(chosen):
                written.append((i, chosen, units[chosen], self._threads(note)[chosen]))
        units = np.concatenate([k[2] for k in written])
        threads = np.concatenate([k[3] for k in written])
        self._owner[units] = threads
        shared = self._owner[units] != threads
        if not shared.any():
            return None
        marks[:] = False
        marks[units[shared]] = True
        chosen = np.flatnonzero(marks[units])
        number = np.concatenate([np.full(len(k[1]), k[0]) for k in written])[chosen]
        position = np.concatenate([k[1] for k in written])[chosen]
        return self._exact(S, notes, units[chosen], threads[chosen], number, position)

    def _exact(
        self,
        S: Any,
        notes: list[Note],
        units: np.ndarray,
        threads: np.ndarray,
        number: np.ndarray,
        position: np.ndarray,
    ) -> Clash | None:
        """Compare blocks, then warps between barriers, then threads between synchronizations."""
        kinds = np.array([KINDS[note.site.kind] for note in notes])[number]
        epochs = np.array([note.epoch for note in notes])[number]
        clocks = np.empty(len(number), dtype=np.int64)
        for i in np.unique(number):
            note, of = notes[i], number == i
            if isinstance(note.clock, int):
                clocks[of] = note.clock
            else:
                lanes = position[of] // self._each(note)
                clocks[of] = note.clock[lanes if note.lanes is None else note.lanes[lanes]]
        blocks = threads // S.T
        warps = blocks * S.warps_a_block + threads % S.T // 32
        group = np.unique(units, return_inverse=True)[1]
        for party, refine in ((blocks, (blocks, epochs)), (warps, (warps, clocks)), (threads, ())):
            pair = _clashing(group, party, kinds)
            if pair is not None:
                i, j = sorted(pair, key=lambda at: (number[at], position[at]))
                return Clash(
                    notes[number[i]], int(threads[i]), notes[number[j]], int(threads[j]),
                    int(units[i]) << self.shift,
                )  # fmt: skip
            for values in refine:
                ranks = np.unique(values, return_inverse=True)[1]
                group = np.unique(group * (ranks.max() + 1) + ranks, return_inverse=True)[1]
        return None


def _clashing(group: np.ndarray, party: np.ndarray, kinds: np.ndarray) -> tuple[int, int] | None:
    """Return two members of a group, of different parties, whose kinds of access conflict."""
    count = int(group.max()) + 1
    low = np.full(count, np.iinfo(np.int64).max)
    high = np.full(count, -1)
    np.minimum.at(low, group, party)
    np.maximum.at(high, group, party)
    has = [np.zeros(count, dtype=bool) for _ in KINDS]
    for kind in (READ, WRITE, ATOMIC):
        has[kind][group[kinds == kind]] = True
    bad = (low < high) & (has[WRITE] | (has[ATOMIC] & has[READ]))
    if not bad.any():
        return None
    inside = np.flatnonzero(group == int(np.argmax(bad)))
    for kind, against in ((WRITE, (READ, WRITE, ATOMIC)), (ATOMIC, (READ,))):
        for i in inside[kinds[inside] == kind]:
            others = inside[(party[inside] != party[i]) & np.isin(kinds[inside], against)]
            if len(others):
                return int(i), int(others[0])
    return None
