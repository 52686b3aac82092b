"""A launch of a kernel, what each line of its source cost, and a table of these costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from cuda_emulator.counts import LineCounts
from cuda_emulator.state import Launched

Dim = tuple[int, int, int]


@dataclass
class Launch:
    """A launch of a kernel; its costs are computed when `lines` is first read."""

    kernel: str
    source: str
    grid: Dim
    block: Dim
    shared: int  # bytes a block
    launched: Launched
    text: str  # of the source, where it is known

    @cached_property
    def lines(self) -> dict[int, LineCounts]:
        """The counts by line of the CUDA source; line 0 has the instructions without a line."""
        info = self.launched.info
        lines = self.launched.counts.lines()
        for segment, times in zip(info.flow.segments, self.launched.issued, strict=True):
            for line, instructions in segment.lines.items():
                if times:
                    lines.setdefault(line, LineCounts()).instructions += times * instructions
        return dict(sorted(lines.items()))

    @property
    def total(self) -> LineCounts:
        """The sum over all lines."""
        total = LineCounts()
        for line in self.lines.values():
            total.add(line)
        return total


collectors: list[list[Launch]] = []


@contextmanager
def collecting() -> Iterator[list[Launch]]:
    """Return a context that yields a list, to which every launch within it is added."""
    launches: list[Launch] = []
    collectors.append(launches)
    try:
        yield launches
    finally:
        collectors[:] = [each for each in collectors if each is not launches]


CONTEXT = 1  # lines shown around those that cost something

HEADINGS = ("instructions", "conflicts", "sectors", "fewest", "bytes")
LEGEND = """\
instructions  PTX instructions issued, once for a warp
conflicts     wavefronts of shared memory beyond the fewest that the width of the access needs
sectors       32-byte sectors of global memory touched by warps; fewest: the least possible
bytes         read and written in global memory, lane by lane"""


def report(launch: Launch) -> str:
    """Return a table: what each line of the source cost in a launch, and the sum.

    Lines that cost nothing are left out, except next to one that does.
    """
    lines = _file(launch.text, launch.source)
    shown = sorted(
        {
            near
            for number in launch.lines
            for near in range(number - CONTEXT, number + CONTEXT + 1)
            if number and 1 <= near <= len(lines)
        }
    )
    width = max(len(heading) for heading in HEADINGS)
    blank = " " * ((width + 1) * len(HEADINGS))
    rows = ["".join(f"{heading:>{width}} " for heading in HEADINGS) + "  line"]
    before = 0
    for number in shown:
        if before and number != before + 1:
            rows.append(f"{blank}   ...")
        before = number
        counts = launch.lines.get(number)
        left = _columns(counts, width) if counts else blank
        rows.append(f"{left}{number:6}  {lines[number - 1]}".rstrip())
    if 0 in launch.lines:
        rows.append(f"{_columns(launch.lines[0], width)}        of no line of this source")
    rows.append(f"{_columns(launch.total, width)}        in all")
    return "\n".join([_title(launch), "", *rows, "", LEGEND])


def _file(text: str, name: str) -> list[str]:
    """Return the lines of the file in a source that `#line 1 "name"` begins; all if none does."""
    lines = text.splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith("#line 1 ")]
    for n, start in enumerate(starts, 1):
        if lines[start] == f'#line 1 "{name}"':
            return lines[start + 1 : starts[n] if n < len(starts) else None]
    return lines


def _title(launch: Launch) -> str:
    blocks, threads = launch.grid, launch.block
    return (
        f"{launch.kernel}: {_times(blocks)} blocks of {_times(threads)} threads, "
        f"{launch.shared} bytes of shared memory each"
    )


def _times(size: tuple[int, int, int]) -> str:
    used = [n for i, n in enumerate(size) if n > 1 or i == 0]
    return " × ".join(str(n) for n in used)


def _columns(counts: LineCounts, width: int) -> str:
    values = (
        counts.instructions,
        counts.conflicts,
        counts.sectors,
        counts.fewest_sectors,
        counts.bytes,
    )
    return "".join(f"{value or '':>{width}} " for value in values)
