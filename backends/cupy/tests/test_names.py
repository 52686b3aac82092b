"""The names of cupy that are used exist in its wheel, which can be imported without a GPU.

Three things: the names and calls in the sources; that the stand-in has nothing that cupy lacks,
with the same parameters; and that both have the same views, on memory that is never touched. What
stays unchecked: what an operator (`+`) takes, and what the values mean.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from signatures import signature
from uses import uses_of_cupy

import tinymistral_cupy
from cuda_emulator import cupy_stand_in
from cuda_emulator.cupy_stand_in import _raw

cupy = pytest.importorskip("cupy", reason="CuPy, whose names are checked, is not installed")

PACKAGE = Path(tinymistral_cupy.__file__)
SOURCES = [
    PACKAGE.with_name(f"{name}.py")
    for name in ("backend", "bench", "card", "compiling", "cublas", "graphs", "kernels", "uploads")
]


# The sources


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_names_in_the_source_exist_and_accept_their_arguments(source):
    uses = uses_of_cupy(source, cupy)
    assert not uses.missing
    assert uses.calls
    for text, called, method, positional, keywords in uses.calls:
        known = signature(called, method=method)
        assert known is not None, f"{text}: its signature is unknown"
        assert takes(known, positional, keywords), f"{text}: it takes {known}"


def takes(known: inspect.Signature, positional: int, keywords: tuple[str, ...]) -> bool:
    """Return whether a call with so many positional arguments and these keywords is possible."""
    try:
        known.bind(*[None] * positional, **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True


def test_known_uses_are_found():
    """A few uses of each kind, listed by hand from the sources, are found."""
    found = set().union(*(uses_of_cupy(source, cupy).found for source in SOURCES))
    assert {
        "cupy.copyto",
        "cupy.cuda.get_elapsed_time",
        "cupy.matmul",
        "cupy.RawModule",
        "cupy.cuda.memory.OutOfMemoryError",
        "cupy_backends.cuda.api.runtime.driverGetVersion",
        "Device.compute_capability",
        "Device.mem_info",
        "Device.use",
        "Event.synchronize",
        "MemoryPool.free_bytes",
        "MemoryPointer.ptr",
        "ndarray.set",
        "ndarray.strides",
        "ndarray.reshape",
    } <= found


def test_a_name_that_is_not_there_and_a_wrong_call_are_found(tmp_path):
    (tmp_path / "wrong.py").write_text(
        "def f(cp, x: Array):\n"
        "    cp.matmull(x)\n"
        "    y = cp.zeros((2, 3), kind=float)\n"
        "    y.reshap(6)\n"
        "    cp.cuda.Device().memory_info\n"
        "    x[0].get(1, 2, 3, 4, 5)\n",
        "utf-8",
    )
    uses = uses_of_cupy(tmp_path / "wrong.py", cupy)
    assert [text.partition(": ")[2] for text in uses.missing] == [
        "cp.matmull",
        "y.reshap",
        "cp.cuda.Device().memory_info",
    ]
    wrong = [
        text
        for text, called, method, positional, keywords in uses.calls
        if not takes(signature(called, method=method), positional, keywords)
    ]
    assert wrong == ["cp.zeros((2, 3), kind=float)", "x[0].get(1, 2, 3, 4, 5)"]


def test_attributes_of_a_device_are_cudas():
    """CuPy takes the keys from cudaDeviceAttr, whose names are constants of its runtime."""
    for key in cupy_stand_in.cuda.Device().attributes:
        assert hasattr(cupy.cuda.runtime, f"cudaDevAttr{key}")


# The stand-in

OPERATORS = ("__call__", "__getitem__", "__add__")
HANDED_OUT = [  # classes that functions return objects of
    ("RawKernel", _raw.RawKernel, cupy.RawKernel),
    ("Graph", cupy_stand_in.cuda.Graph, cupy.cuda.Graph),
    ("MemoryPool", cupy_stand_in.cuda.MemoryPool, cupy.cuda.MemoryPool),
]


def names_of(ours: Any, real: Any, path: str) -> list[tuple[str, Any, Any]]:
    """List (path, the stand-in's, cupy's) of a module or class, and of what is in it."""
    public = (
        ours.__all__
        if isinstance(ours, ModuleType)
        else [name for name in vars(ours) if not name.startswith("_") or name in OPERATORS]
    )
    out = []
    for name in public:
        below, mine = f"{path}.{name}".lstrip("."), getattr(ours, name)
        out.append((below, mine, getattr(real, name, None)))
        if isinstance(mine, ModuleType | type) and out[-1][2] is not None:
            out += names_of(mine, out[-1][2], below)
    return out


NAMES = names_of(cupy_stand_in, cupy, "")
for handed, mine, real in HANDED_OUT:
    NAMES += names_of(mine, real, handed)


@pytest.mark.parametrize(("path", "ours", "real"), NAMES, ids=[name for name, _, _ in NAMES])
def test_the_stand_in_has_only_what_cupy_has(path, ours, real):
    assert real is not None, f"cupy has no {path}"
    assert isinstance(ours, type) == isinstance(real, type)
    method = not isinstance(ours, type) and path.rpartition(".")[0] not in ("", *MODULES)
    if not callable(ours):
        assert not inspect.isroutine(real), f"{path} is to be called in cupy"
        return
    theirs = signature(real, method=method)
    if path == "ndarray.__add__":
        assert theirs is None, "its signature can be checked now"
        return
    mine = signature(ours, method=method)
    assert mine is not None
    assert theirs is not None
    check_parameters(mine, theirs)


MODULES = [name for name, ours, _ in NAMES if isinstance(ours, ModuleType)]


def check_parameters(mine: inspect.Signature, theirs: inspect.Signature) -> None:
    """Check that any call that `mine` allows means the same to `theirs`."""
    by_position = [p for p in theirs.parameters.values() if p.kind <= p.VAR_POSITIONAL]
    for n, parameter in enumerate(mine.parameters.values()):
        other = theirs.parameters.get(parameter.name)
        if parameter.kind == parameter.VAR_POSITIONAL:
            assert other is not None
            assert other.kind == parameter.kind
            continue
        assert other is not None, f"{parameter.name} is not in {theirs}"
        if parameter.kind == parameter.KEYWORD_ONLY:
            assert other.kind != other.POSITIONAL_ONLY
        else:
            assert by_position[n] is other, f"{parameter.name} is not number {n} of {theirs}"
            assert parameter.kind <= other.kind, f"{parameter.name} has no name in {theirs}"
        if parameter.default is not parameter.empty:
            assert parameter.default == other.default, f"{parameter.name} in {theirs}"
    required = {
        name
        for name, p in theirs.parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    assert required <= set(mine.parameters), f"{required} have to be given"


def test_parameters_that_differ_are_found():
    def cupys(a, b=1, *, c="x"): ...

    def no_b(a, c=0): ...
    def keyword_first(b=1): ...
    def another_default(a, b=2): ...
    def by_position(a, b, c): ...
    def another_name(x): ...

    for mine in (no_b, keyword_first, another_default, by_position, another_name):
        with pytest.raises((AssertionError, IndexError)):
            check_parameters(signature(mine), signature(cupys))

    def fewer(a, *, c="x"): ...

    check_parameters(signature(fewer), signature(cupys))


# Views: shapes, strides and addresses are computed without a GPU, on memory that is never touched

sizes = st.integers(0, 5)
bounds = st.none() | st.integers(-6, 6)
slices = st.builds(slice, bounds, bounds, st.sampled_from([None, 1, 2, -1]))


@given(st.lists(sizes, min_size=1, max_size=4), st.data())
def test_views_are_cupys(shape, data):
    both = []
    for module in (cupy_stand_in, cupy):
        if module is cupy:
            memory = cupy.cuda.UnownedMemory(1 << 40, 4 * 5**4, None, 0)
            pointer = cupy.cuda.MemoryPointer(memory, 0)
        else:
            pointer = module.cuda.alloc(4 * 5**4)
        both.append((module.ndarray(tuple(shape), np.float32, pointer), pointer.ptr))
    key = tuple(
        data.draw(slices | st.integers(0, n - 1) if n else slices)
        for n in shape[: data.draw(st.integers(1, len(shape)))]
    )
    ours, cupys = (
        [
            facts(view, start)
            for view in (array, array[key], array[key].T, array.reshape(*array.shape[::-1]))
        ]
        for array, start in both
    )
    assert ours == cupys


def facts(view: Any, start: int) -> tuple[Any, ...]:
    """Describe a view without its numbers, which are on no card; an empty one has no address."""
    where = (view.strides, view.data.ptr - start) if view.size else ()
    sizes = (view.ndim, view.size, view.itemsize, view.nbytes, view.data.mem.size)
    return view.shape, view.dtype, view.flags.c_contiguous, *sizes, *where
