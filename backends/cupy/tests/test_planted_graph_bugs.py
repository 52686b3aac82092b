"""Captured steps with a bug planted are caught, by the emulator or by a step without a graph."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from graph_checks import CHECKS

from tinymistral_cupy import EmulatedBackend, graphs


@dataclass(frozen=True)
class Bug:
    """A bug: its edit of a file, and the one of CHECKS that catches it."""

    name: str
    old: str
    new: str
    check: str
    file: str = "graphs.py"


IDS = "numbers.ids[...], numbers.positions[...], numbers.slots[...] = ids, positions, cache.slots"
SEND = "        numbers.send()\n        self._graph.launch()"
OUT = "        return out\n\n\nclass Graphs"
WHAT = "(forward, config, *addresses(weights, cache))"
RUN = "            run()  # which"
SCRATCH = "captured._kernels = backend._kernels.with_own_scratch()"
KEPT = (
    "captured._kernels = backend.__dict__.setdefault('kept', backend._kernels.with_own_scratch())"
)

BUGS = [
    Bug(*bug)
    for bug in [
        # Numbers that are not those of the step
        ("a stale block is replayed", SEND, "        self._graph.launch()", "a_step_has_padding"),
        (
            "the block is sent after the launch",
            SEND,
            "        self._graph.launch()\n        numbers.send()",
            "a_step_has_padding",
        ),
        (
            "the block is written to while it is copied",
            "        numbers.wait()\n",
            "",
            "results_are_kept",
        ),
        (
            "stale ids",
            IDS,
            "numbers.positions[...], numbers.slots[...] = positions, cache.slots",
            "a_step_has_padding",
        ),
        (
            "stale positions",
            IDS,
            "numbers.ids[...], numbers.slots[...] = ids, cache.slots",
            "a_step_has_padding",
        ),
        (
            "stale slots",
            IDS,
            "numbers.ids[...], numbers.positions[...] = ids, positions",
            "ring_wraps",
        ),
        ("stale angles", "        numbers.angles[...] = angles\n", "", "ring_wraps"),
        (
            "positions of keys do not go back",
            "numbers.k_positions[...] = cache.positions",
            "np.maximum(numbers.k_positions, cache.positions, out=numbers.k_positions)",
            "a_row_goes_back",
        ),
        (
            "the last slot is left out",
            "numbers.k_positions[...] = cache.positions",
            "numbers.k_positions[:, :-1] = cache.positions[:, :-1]",
            "ring_wraps",
        ),
        (
            "padding is written",
            "ids, positions, cache.slots",
            "ids, positions, np.maximum(cache.slots, 0)",
            "a_step_has_padding",
        ),
        # A graph that is not that of the step
        ("another cache's", WHAT, WHAT.replace("cache))", "cache)[:2])"), "a_cache_is_copied"),
        (
            "that of rows that left",
            WHAT,
            WHAT.replace("cache))", "cache)[:2])"),
            "rows_leave",
        ),
        (
            "that of the storage before it grew",
            WHAT,
            WHAT.replace("cache))", "cache)[:2])"),
            "storage_doubles",
        ),
        (
            "another batch's",
            "(array.data.ptr, array.shape) for",
            "array.data.ptr for",
            "a_batch_lies_where_another_lay",
        ),
        (
            "another model's",
            WHAT,
            WHAT.replace("cache))", "cache)[2:])"),
            "two_models_take_turns",
        ),
        (
            "that of replaced weights",
            "(ends, layers, sto",
            "(ends, [], sto",
            "weights_are_replaced",
        ),
        ("that of another config", WHAT, WHAT.replace("config", "0"), "a_config_changes"),
        # Memory
        (
            "the next step overwrites a result",
            OUT,
            OUT.replace("out", "self._hidden"),
            "results_are_kept",
        ),
        (
            "scratch memory is shared",
            SCRATCH,
            SCRATCH.replace(".with_own_scratch()", ""),
            "other_pieces_come_between",
        ),
        ("spans of keys are not captured", SCRATCH, KEPT, "heads_share_many_queries"),
        (
            "the pool is not kept",
            "                raise\n\n    def __call__",
            "                raise\n        del self._pool\n\n    def __call__",
            "a_step_has_padding",
        ),
        (
            "memory is that of all others",
            "cp.cuda.using_allocator(self._pool.malloc), stream",
            "stream",
            "a_step_has_padding",
        ),
        # Capture
        ("no run before it", RUN, "            # which", "a_step_has_padding"),
        (
            "the run before it is on another stream",
            RUN,
            "            with cp.cuda.Stream() as s: cublas.use(s), run(), cublas.use(stream)  #",
            "a_step_has_padding",
        ),
        (
            "cuBLAS by CuPy",
            "        captured._product = cublas.product\n",
            "",
            "a_step_has_padding",
        ),
        ("cuBLAS on another stream", "            cublas.use(stream)\n", "", "a_step_has_padding"),
        (
            "ids of the host",
            "numbers.ids, weights",
            "numbers.ids.copy(), weights",
            "a_step_has_padding",
        ),
        (
            "angles of the host",
            "        captured._angles = lambda _: n",
            "        _ = n",
            "a_step_has_padding",
        ),
        # Calls of cuBLAS
        (
            "no workspace",
            'self._call("cublasSetWorkspace_v2"',
            '(lambda *_: 0)("cublasSetWorkspace_v2"',
            "a_step_has_padding",
            "cublas.py",
        ),
        (
            "the workspace before the stream",
            'self._call("cublasSetStream_v2", self._handle, stream.ptr)',
            "pass",
            "a_step_has_padding",
            "cublas.py",
        ),
        (
            "not transposed",
            "(TRANSPOSED, NORMAL,",
            "(NORMAL, NORMAL,",
            "a_step_has_padding",
            "cublas.py",
        ),
        ("rows for columns", "m, rows, n)", "rows, m, n)", "a_step_has_padding", "cublas.py"),
        (
            "matrices are swapped",
            "weight.data.ptr, self._type, n),\n            *(x.data.ptr",
            "x.data.ptr, self._type, n),\n            *(weight.data.ptr",
            "a_step_has_padding",
            "cublas.py",
        ),
        (
            "a wrong distance of columns",
            "out.data.ptr, self._type, m)",
            "out.data.ptr, self._type, n)",
            "a_step_has_padding",
            "cublas.py",
        ),
        (
            "another dtype",
            "out.data.ptr, self._type, m)",
            "out.data.ptr, 0, m)",
            "a_step_has_padding",
            "cublas.py",
        ),
    ]
]


def loaded_with(bug: Bug, folder: Path) -> ModuleType:
    """Return a copy of a module that has the bug."""
    text = Path(graphs.__file__).with_name(bug.file).read_text("utf-8")
    assert text.count(bug.old) == 1, f"{bug.old!r} is {text.count(bug.old)} times in {bug.file}"
    path = folder / bug.file
    path.write_text(text.replace(bug.old, bug.new), "utf-8")
    spec = importlib.util.spec_from_file_location("module_with_a_bug", path)
    module = sys.modules["module_with_a_bug"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_it_is_caught(bug, tmp_path, monkeypatch):
    """What is refused in a capture comes as a warning, which is an error here."""
    module = loaded_with(bug, tmp_path)
    if bug.file == "cublas.py":
        monkeypatch.setattr(graphs, "Cublas", module.Cublas)
        module = graphs
    backend = EmulatedBackend("float16")
    backend.graphs = module.Graphs()
    with pytest.raises((AssertionError, UserWarning, ValueError, RuntimeError, IndexError)):
        CHECKS[bug.check](backend)


def test_every_check_catches_something():
    assert {bug.check for bug in BUGS} == CHECKS.keys()
    assert len({bug.name for bug in BUGS}) == len(BUGS)
