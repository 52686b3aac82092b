"""Say what a launch cost, line by line, beside the CUDA source."""

from __future__ import annotations

from tinymistral_cupy.emulator.counts import LineCounts
from tinymistral_cupy.emulator.machine import Launch

CONTEXT = 1  # lines shown around those that cost something

HEADINGS = ("instructions", "conflicts", "sectors", "fewest", "bytes")
LEGEND = """\
instructions  PTX instructions issued, once for a warp
conflicts     wavefronts of shared memory beyond the fewest that the width of the access needs
sectors       32-byte sectors of global memory touched by warps; fewest: that would have done
bytes         read and written in global memory, lane by lane"""


def report(source: str, launch: Launch) -> str:
    """Return a table: what each line of `source` cost in a launch, and the sum.

    `source` is the text that the kernel was compiled from. Lines that cost nothing are left out,
    but for those next to others.
    """
    lines = source.splitlines()
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
