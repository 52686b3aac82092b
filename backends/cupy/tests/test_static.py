"""What the compiler makes of the kernels, on every architecture and with no GPU.

`static.json` records how many instructions each innermost loop has. After a change to a kernel that
is meant to change that, update the record: `python tests/test_static.py --update`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import machine_code
import pytest
from machine_code import Code, Loop, Resources

from cuda_emulator.compiler import Program, compile_cuda
from tinymistral_cupy.kernels import (
    DTYPES,
    OCCUPANCY,
    SOURCE,
    TENSOR_OCCUPANCY,
    VECTOR_BYTES,
    TensorTile,
    compile_options,
    source_text,
    tensor_tile,
)

RECORD = Path(__file__).with_name("static.json")
HOW = "if it is meant to, run `python tests/test_static.py --update` and commit static.json"

REGISTERS = 64 * 1024  # of a multiprocessor; a warp takes them by 256
# Of a multiprocessor, from the CUDA C++ Programming Guide, "Compute Capabilities": bytes of shared
# memory, and threads. From 8.0 on CUDA takes 1 KB of it for itself for each block.
SHARED = {"sm_75": 64, "sm_80": 164, "sm_90": 228, "sm_100": 228, "sm_120": 100}
THREADS = {"sm_75": 1024, "sm_80": 2048, "sm_90": 2048, "sm_100": 2048, "sm_120": 1536}


class Case(NamedTuple):
    arch: str
    dtype: str
    d: int

    def __str__(self) -> str:
        return f"{self.arch} {self.dtype} d={self.d}"

    @property
    def vector(self) -> int:
        """The most numbers that can be loaded at once from rows of d."""
        numbers = VECTOR_BYTES // DTYPES[self.dtype][0].itemsize
        while self.d % numbers:
            numbers //= 2
        return numbers


# Mistral's head width on every architecture; other widths on some.
RECORDED = [
    *(Case(arch, dtype, 128) for arch in SHARED for dtype in ("float32", "bfloat16")),
    *(Case(arch, "float16", 128) for arch in ("sm_75", "sm_90")),
]
CASES = [
    *RECORDED,
    *(Case("sm_90", "bfloat16", d) for d in (32, 64, 80, 254, 256)),
    *(Case("sm_90", "float32", d) for d in (2, 256)),
    Case("sm_75", "float16", 256),
    Case("sm_80", "float16", 8),
    Case("sm_120", "float32", 256),
]
# Those with attention on tensor cores
TENSOR_CASES = [
    *(Case(arch, "bfloat16", 128) for arch in SHARED if arch != "sm_75"),
    *(Case("sm_90", "float16", d) for d in (64, 128)),
]


@cache
def compiled(case: Case) -> Program:
    options = compile_options(DTYPES[case.dtype][1], case.vector, case.d)
    source = SOURCE.read_text(encoding="utf-8")
    return compile_cuda(source, case.arch, options, SOURCE.name, cubin=True)


@cache
def code(case: Case) -> dict[str, Code]:
    return machine_code.disassemble(compiled(case).cubin)


def tile(case: Case) -> TensorTile:
    return tensor_tile(case.d, SHARED[case.arch] * 1024)


@cache
def tensor_compiled(case: Case) -> Program:
    options = compile_options(DTYPES[case.dtype][1], case.vector, case.d, tile(case))
    return compile_cuda(source_text(tensor_cores=True), case.arch, options, SOURCE.name, cubin=True)


@cache
def tensor_code(case: Case) -> dict[str, Code]:
    found = machine_code.disassemble(tensor_compiled(case).cubin)
    return {name: found[name] for name in TENSOR_OCCUPANCY}


def blocks(arch: str, threads: int, taken: Resources) -> int:
    """Return how many blocks a multiprocessor holds at once."""
    warps = threads // 32
    by_registers = REGISTERS // (warps * -(-taken.registers * 32 // 256) * 256)
    own = 0 if arch == "sm_75" else 1024
    by_shared = SHARED[arch] * 1024 // (taken.shared + own or 1)
    return min(by_registers, by_shared, THREADS[arch] // threads)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_take_what_their_occupancy_allows(case: Case) -> None:
    resources = machine_code.resources(compiled(case))
    assert resources.keys() == OCCUPANCY.keys()
    for name, taken in resources.items():
        limit = OCCUPANCY[name]
        expected = limit.blocks_sm_75 if case.arch == "sm_75" else limit.blocks
        assert taken.spills == taken.stack == 0, name
        assert taken.registers <= limit.registers, name
        assert taken.shared <= limit.shared <= 48 * 1024, name
        assert blocks(case.arch, limit.threads, taken) >= expected, name


@pytest.mark.slow
@pytest.mark.parametrize("case", TENSOR_CASES, ids=str)
def test_tensor_kernels_take_what_their_occupancy_allows(case: Case) -> None:
    resources = machine_code.resources(tensor_compiled(case))
    for name, limit in TENSOR_OCCUPANCY.items():
        taken = resources[name]
        assert taken.spills == taken.stack == 0, name
        assert taken.registers <= limit.registers, name
        expected = limit.blocks
        if name == "attention_tensor_cores":
            dynamic = tile(case).shared_bytes(case.d)
            taken = dataclasses.replace(taken, shared=taken.shared + dynamic)
            expected = 1 if case.arch == "sm_120" else limit.blocks  # which has 100 KB
        assert taken.shared <= limit.shared, name
        assert blocks(case.arch, limit.threads, taken) >= expected, name


@pytest.mark.slow
@pytest.mark.parametrize("case", TENSOR_CASES, ids=str)
def test_tensor_cores_do_all_products_and_memory_moves_16_bytes_at_a_time(case: Case) -> None:
    sizes = tile(case)
    opcodes = Counter(tensor_code(case)["attention_tensor_cores"].opcodes)
    # Scores and mix of a tile, the loops all unrolled: 16 × 16 × 8 products at a time
    mma = "HMMA.16816.F32" + ".BF16" * (case.dtype == "bfloat16")
    assert opcodes[mma] == 2 * sizes.row_tiles * (sizes.keys // 8) * (case.d // 16)
    # Four matrices of 8 × 8 at a time: queries, keys, and values, which are transposed
    squares = case.d // 16
    assert opcodes["LDSM.16.M88.4"] == squares * (sizes.row_tiles + sizes.keys // 16)
    assert opcodes["LDSM.16.MT88.4"] == squares * (sizes.keys // 16)
    assert {name for name in opcodes if name.startswith("LDGSTS")} == {"LDGSTS.E.BYPASS.128"}
    assert {name for name in opcodes if name.startswith("STG")} == {"STG.E.128"}


@pytest.mark.slow
@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_numbers_are_loaded_16_bytes_at_a_time(case: Case) -> None:
    # Only positions and slots are loaded by 8 bytes, and partial results one by one.
    widths = {
        name: {opcode.removesuffix(".SYS") for opcode in code.opcodes if opcode.startswith("LDG")}
        for name, code in code(case).items()
    }
    whole, with_integers = {"LDG.E.128"}, {"LDG.E.128", "LDG.E.64"}
    assert widths == {
        "rms_norm": whole,
        "linear": whole,
        "silu_mul": whole,
        "rope": whole,
        "scatter": with_integers,
        "attention": with_integers,
        "attention_split_4": with_integers,
        "attention_split_8": with_integers,
        "attention_combine": {"LDG.E"},
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_numbers_are_stored_16_bytes_at_a_time(case: Case) -> None:
    # A lane of attention stores four numbers of a row; partial results go one by one.
    four = "STG.E.128" if case.dtype == "float32" else "STG.E.64"
    stores = {
        name: {opcode.removesuffix(".SYS") for opcode in code.opcodes if opcode.startswith("STG")}
        for name, code in code(case).items()
    }
    whole = ("rms_norm", "silu_mul", "rope", "scatter")
    assert {name: stores[name] for name in whole} == {name: {"STG.E.128"} for name in whole}
    assert stores["attention"] == {four}


@pytest.mark.slow
@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_inner_loops_have_as_many_instructions_as_recorded(case: Case) -> None:
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    assert loops(code(case)) == recorded[str(case)], f"the machine code has changed; {HOW}"


@pytest.mark.slow
@pytest.mark.parametrize("case", TENSOR_CASES, ids=str)
def test_loops_on_tensor_cores_have_as_many_instructions_as_recorded(case: Case) -> None:
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))[f"{case}, tensor cores"]
    assert tensor_loops(case) == recorded, f"the machine code has changed; {HOW}"


@pytest.mark.slow
@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_decoding_is_bound_by_memory_on_paper(case: Case) -> None:
    # An H100 reads a key and its value, 512 bytes in 16 bits, while it issues 141 instructions, and
    # the 1024 bytes of float32 while it issues twice as many.
    if case.arch == "sm_75":
        pytest.skip("its loops are interwoven with code that waits for lanes")
    assert instructions_a_key(case) < 141 * DTYPES[case.dtype][0].itemsize / 2


def instructions_a_key(case: Case) -> float:
    """Return the warp instructions of `attention_split_4` for a key, its value, and softmax."""
    team = min(32, case.d // case.vector)  # lanes that read a row
    all_loops = code(case)["attention_split_4"].loops
    keys, *values = [loop for loop in all_loops if loop.innermost and loop.count("SHFL")]
    # The loop around them, twice if it has a `continue`.
    around = [loop for loop in all_loops if "for (int first" in source_line(loop)]

    def per_key(loop: Loop) -> float:
        return len(loop.opcodes) / (loop.count("LDG") * 32 / team)

    # For tiles where every key is visible to every row; testing the mask takes more.
    softmax = max(len(loop.opcodes) for loop in around) / 32
    return per_key(keys) + min(map(per_key, values)) + softmax


def source_line(loop: Loop) -> str:
    text = SOURCE.with_name(loop.file).read_text(encoding="utf-8")
    return text.splitlines()[loop.line - 1].strip()


def loops(kernels: dict[str, Code]) -> dict[str, list[list[str | int]]]:
    """Return for each kernel its innermost loops: source line of the branch, instructions."""
    return {
        name: [[source_line(loop), len(loop.opcodes)] for loop in code.loops if loop.innermost]
        for name, code in sorted(kernels.items())
    }


def tensor_loops(case: Case) -> dict[str, list[list[str | int]]]:
    """Return the same for the loop over tiles, which has inner loops for rare cases."""
    kernels = tensor_code(case)
    name = "attention_tensor_cores"
    tiles = [loop for loop in kernels[name].loops if loop.count("HMMA")]
    return loops(kernels) | {name: [[source_line(loop), len(loop.opcodes)] for loop in tiles]}


def update() -> None:
    record = {str(case): loops(code(case)) for case in RECORDED}
    record |= {f"{case}, tensor cores": tensor_loops(case) for case in TENSOR_CASES}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    RECORD.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("expected --update, which records static.json anew")
    update()
