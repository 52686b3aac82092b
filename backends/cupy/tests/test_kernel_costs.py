"""What kernels cost: bytes, sectors, conflicts, as the emulator counts them."""

from __future__ import annotations

import kernel_checks as check
import numpy as np
import pytest
from kernel_cases import SPLIT, TILES, every_dtype, kernels_for
from kernel_checks import attend, drawn

from cuda_emulator.counts import LineCounts
from cuda_emulator.report import Launch
from tinymistral.conformance.cases import filled
from tinymistral.operations import NUMPY_DTYPES
from tinymistral_cupy.kernels import SOURCE, Kernels

S, D_HEAD, WINDOW = 256, 32, 20
D_TILES = 24  # not a width for tensor cores
T, GROUP = 8, 5  # 40 rows, two blocks of 32


def in_order(T: int, last: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The positions of T tokens up to a last one, and of S keys whose slots are in order."""
    return np.arange(last - T + 1, last + 1)[None], np.arange(S)[None], WINDOW


MOVES = ("load", "store", "load_floats", "store_floats", "copy")  # functions of mistral.cu


def bytes_loaded(launch: Launch) -> int:
    """Return the bytes loaded by `load`: of q, k and v in attention."""
    return lines(launch)["load"].bytes


def lines(launch: Launch) -> dict[str, LineCounts]:
    """Sum the counts by the function that moves numbers, else by the source line's text."""
    out: dict[str, LineCounts] = {}
    names: dict[int, str] = {}
    function = ""
    for number, text in enumerate(SOURCE.read_text(encoding="utf-8").splitlines(), 1):
        if text.startswith(("__device__ void ", "extern")):
            function = text.removeprefix("__device__ void ").partition("(")[0]
        names[number] = function if function in MOVES else text.strip()
    for number, counts in launch.lines.items():
        if number:
            out.setdefault(names[number], LineCounts()).add(counts)
    return out


@every_dtype
@pytest.mark.parametrize("last, tiles", [(S - 1, 1), (63, 1), (70, 2), (S + 40, 0)])
def test_tiles_without_a_visible_key_are_not_fetched(launches, dtype, last, tiles):
    size = NUMPY_DTYPES[dtype].itemsize
    q = drawn(dtype, 1, T, GROUP, D_TILES)
    k, v = (drawn(dtype, 1, S, 1, D_TILES, seed=seed) for seed in (1, 2))
    where = in_order(T, last)
    masked = ~((where[1] > last - T - WINDOW + 1) & (where[1] <= last))
    unread = (filled(array, masked, np.nan) for array in (k, v))
    check.mix_agrees(attend(kernels_for(dtype), q, *unread, where), q, k, v, where, dtype)
    assert bytes_loaded(launches[0]) == 2 * (32 + tiles * 2 * 32) * D_TILES * size


@every_dtype
def test_a_tile_in_any_order_is_fetched_by_its_positions(launches, dtype):
    """Only the last key of one tile is visible: that tile is fetched, and no other."""
    size = NUMPY_DTYPES[dtype].itemsize
    q = drawn(dtype, 1, T, GROUP, D_TILES)
    k, v = (drawn(dtype, 1, S, 1, D_TILES, seed=seed) for seed in (1, 2))
    k_positions = np.arange(1000, 1000 + S)[None]
    k_positions[0, 95] = 500
    where = (np.arange(500, 500 + T)[None], k_positions, 100)
    out = attend(kernels_for(dtype), q, k, v, where)
    np.testing.assert_array_equal(out, np.broadcast_to(v[:, 95:96], out.shape))
    assert bytes_loaded(launches[0]) == 2 * (32 + 2 * 32) * D_TILES * size


@every_dtype
@pytest.mark.parametrize("last, warps", [(31, 1), (S - 1, 1), (70, 2), (S + 40, 0)])
def test_decoding_reads_a_key_once_for_its_group(launches, dtype, last, warps):
    """One token, four heads: each tile of 32 keys with a visible one is read once, no other is."""
    group, size = 4, NUMPY_DTYPES[dtype].itemsize
    q = drawn(dtype, 1, 1, group, D_HEAD)
    k, v = (drawn(dtype, 1, S, 1, D_HEAD, seed=seed) for seed in (1, 2))
    attend(kernels_for(dtype), q, k, v, in_order(1, last))
    split, _ = launches
    # Each team of lanes has a copy of a query, in each of four warps of the two blocks.
    team = D_HEAD * size // 16
    copies = 32 // team * 4 * 2
    assert bytes_loaded(split) == (copies * group + warps * 2 * 32) * D_HEAD * size


# In 16 bits lanes move floats that are 32 bytes apart: twice the fewest sectors or wavefronts.
TWICE = {"load_floats": "sectors", "store_floats": "conflicts"}


@every_dtype
def test_accesses_are_coalesced_and_free_of_conflicts(monkeypatch, launches, dtype):
    monkeypatch.setattr(Kernels, "has_tensor_cores", lambda *_: False)  # see test_tensor_cores.py
    kernels = kernels_for(dtype)
    check.norms(kernels, dtype, 2, 512)
    check.products(kernels, dtype, 6, 1024)
    check.silu(kernels, dtype, 1024)
    check.rotations(kernels, dtype, 2, 4, 128)
    check.writes(kernels, dtype, 5, 9, 4, 128)
    for case in (SPLIT[0], TILES[0]):
        check.mixes(kernels, dtype, case)
    assert {launch.kernel for launch in launches} == {
        *("rms_norm", "linear", "silu_mul", "rope", "scatter"),
        *("attention", "attention_split_4", "attention_combine"),
    }
    for launch in launches:
        for name, counts in lines(launch).items():
            more = TWICE.get(name) if NUMPY_DTYPES[dtype].itemsize == 2 else None
            where = f"{launch.kernel}: {name}"
            assert counts.sectors == counts.fewest_sectors * (1 + (more == "sectors")), where
            assert counts.conflicts * 2 == counts.wavefronts * (more == "conflicts"), where
