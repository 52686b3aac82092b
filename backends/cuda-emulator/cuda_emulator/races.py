"""Find races: two threads touch the same bytes, one of them writes, and nothing orders them.

What orders two accesses of threads of one block is a barrier between them; within one warp also a
`__syncwarp` or a shuffle or vote that both lanes take part in, and of one thread its program. Two
blocks are never ordered. (PTX ISA manual, "Memory consistency model".)

Accesses are only noted while the kernel runs. They are looked through at each barrier, for shared
memory, and at the end of the launch, for global memory: a few operations on long arrays.

What is not seen: where lanes meet in groups smaller than a warp, a meeting of one group may pass
for one of another; and of global memory, races of accesses with more than `LOOK_BACK` between.
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
READING, WRITING = ("load", "atomic"), ("store", "atomic")  # what needs, and makes, initialised


class Note(NamedTuple):
    """One access site executed once, for many lanes."""

    site: Site
    offsets: np.ndarray  # in bytes
    lanes: Any  # None: all
    threads: np.ndarray  # of all lanes, numbered through the launch
    epoch: int  # how many barriers came before
    clock: Any  # how many meetings of the warp came before, one number or one a lane


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
        """Tell whether so much is noted that it should be looked through."""
        return self._size > LOOK_BACK

    def check(self, S: Any) -> None:
        """Look through what was noted, and forget it. Raises Race or Uninitialised."""
        notes, self.notes = self.notes, []
        written, self.written = self.written, False
        self._size = 0
        if not notes or not (written or self._initialised is not None):
            return
        wheres = [self._where(note) for note in notes]
        if self._initialised is not None:
            self._check_initialised(S, notes, wheres)
        if written:
            clash = self._clash(S, notes, wheres)
            if clash:
                raise S.race(clash)

    def _check_initialised(self, S: Any, notes: list[Note], wheres: list[np.ndarray]) -> None:
        done = self._initialised
        assert done is not None
        pairs = list(zip(notes, wheres, strict=True))
        reads = [where for note, where in pairs if note.site.kind in READING]
        if reads and not done.take(np.concatenate(reads)).all():
            for note, where in pairs:
                if note.site.kind in READING and not done[where].all():
                    i = int(np.argmin(done[where])) // self._each(note)
                    lane = i if note.lanes is None else int(note.lanes[i])
                    raise S.fault(
                        Uninitialised,
                        note.site.instruction,
                        lane,
                        f"{note.site} at byte {S.shared_offset(int(note.offsets[i]))} of shared "
                        "memory, which nothing was written to",
                    )
                if note.site.kind in WRITING:
                    done[where] = True
        for note, where in pairs:
            if note.site.kind in WRITING:
                done[where] = True

    def _each(self, note: Note) -> int:
        return max(1, note.site.size >> self.shift)

    def _where(self, note: Note) -> np.ndarray:
        """The units that a note's lanes touch, those of a lane side by side."""
        units = note.offsets >> self.shift
        each = self._each(note)
        if each == 1:
            return units
        return (units[:, None] + np.arange(each)).ravel()

    def _who(self, note: Note) -> np.ndarray:
        threads = note.threads if note.lanes is None else note.threads.take(note.lanes)
        each = self._each(note)
        return threads if each == 1 else np.repeat(threads, each)

    def _clash(self, S: Any, notes: list[Note], wheres: list[np.ndarray]) -> Clash | None:
        """Find two accesses that nothing orders; first whatever two threads touched at all."""
        if self._owner is None:
            self._owner = np.zeros(self.units, dtype=np.int64)
        marks = np.zeros(self.units, dtype=bool)
        for note, where in zip(notes, wheres, strict=True):
            if note.site.writes:
                marks[where] = True
        kept = []  # what is written at all: a note's number, positions in it, units, threads
        for i, (note, where) in enumerate(zip(notes, wheres, strict=True)):
            chosen = np.flatnonzero(marks[where])
            if len(chosen):
                kept.append((i, chosen, where[chosen], self._who(note)[chosen]))
        where = np.concatenate([k[2] for k in kept])
        who = np.concatenate([k[3] for k in kept])
        self._owner[where] = who
        shared = self._owner[where] != who
        if not shared.any():
            return None
        marks[:] = False
        marks[where[shared]] = True
        chosen = np.flatnonzero(marks[where])
        number = np.concatenate([np.full(len(k[1]), k[0]) for k in kept])[chosen]
        position = np.concatenate([k[1] for k in kept])[chosen]
        return self._exact(S, notes, where[chosen], who[chosen], number, position)

    def _exact(
        self,
        S: Any,
        notes: list[Note],
        where: np.ndarray,
        who: np.ndarray,
        number: np.ndarray,
        position: np.ndarray,
    ) -> Clash | None:
        """Compare blocks, then warps between barriers, then threads between meetings."""
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
        blocks = who // S.T
        warps = blocks * S.warps_a_block + who % S.T // 32
        group = np.unique(where, return_inverse=True)[1]
        for party, refine in ((blocks, (blocks, epochs)), (warps, (warps, clocks)), (who, ())):
            pair = _clashing(group, party, kinds)
            if pair is not None:
                i, j = sorted(pair, key=lambda at: (number[at], position[at]))
                return Clash(
                    notes[number[i]], int(who[i]), notes[number[j]], int(who[j]),
                    int(where[i]) << self.shift,
                )  # fmt: skip
            for values in refine:
                ranks = np.unique(values, return_inverse=True)[1]
                group = np.unique(group * (ranks.max() + 1) + ranks, return_inverse=True)[1]
        return None


def _clashing(group: np.ndarray, party: np.ndarray, kinds: np.ndarray) -> tuple[int, int] | None:
    """Two members of a group, of different parties, whose kinds do not go together."""
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
