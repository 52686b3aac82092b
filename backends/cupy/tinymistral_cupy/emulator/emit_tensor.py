"""Matrix instructions and asynchronous copies, as calls of Python (see `writer.py`)."""

from __future__ import annotations

from tinymistral_cupy.emulator.accesses import Site
from tinymistral_cupy.emulator.emit_memory import HINT, address_of
from tinymistral_cupy.emulator.ptx import Instruction
from tinymistral_cupy.emulator.writer import Writer

SHAPES = {"m16n8k16": (4, 2), "m16n8k8": (2, 1)}  # registers of A and B


def emit_mma(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """D = A · B + C, 16-bit factors, float32 sums."""
    if len(modifiers) != 9 or modifiers[:2] != ["sync", "aligned"] or modifiers[2] not in SHAPES:
        raise w.unknown()
    kind = modifiers[6]
    if modifiers[3:] != ["row", "col", "f32", kind, kind, "f32"] or kind not in ("f16", "bf16"):
        raise w.unknown()
    d, a, b, c = (operand.parts for operand in ins.operands)
    if (len(a), len(b), len(c), len(d)) != (*SHAPES[modifiers[2]], 4, 4):
        raise w.unknown()
    _meet(w, ins)
    groups = []
    for parts, type_ in ((a, "b32"), (b, "b32"), (c, "f32")):
        groups.append(f"({', '.join(w.value(part, type_) for part in parts)},)")
    result = w.temporary(f'multiply(S, "{kind}", {", ".join(groups)})')
    for i, part in enumerate(d):
        w.set(part, f"{result}[{i}]", "f32")


def emit_ldmatrix(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Load 8 × 8 matrices of 16-bit numbers from shared memory."""
    transposed = "trans" in modifiers
    rest = [m for m in modifiers if m not in ("trans", "cta")]
    if len(rest) != 6 or rest[:3] != ["sync", "aligned", "m8n8"] or rest[4:] != ["shared", "b16"]:
        raise w.unknown()
    target, address = ins.operands
    parts = target.parts if target.kind == "vector" else (target,)
    if rest[3] not in ("x1", "x2", "x4") or len(parts) != int(rest[3][1]):
        raise w.unknown()
    _meet(w, ins)
    site = _site(w, "load", "shared", "i4", 4)
    name = w.names.name("site", site)
    call = f"load_matrices(S, {name}, {len(parts)}, {transposed}, {address_of(w, address)}, m)"
    result = w.temporary(call)
    for i, part in enumerate(parts):
        w.set(part, f"{result}[{i}]", "b32")


def emit_cp(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """`cp.async`: copies, groups of them, and waiting."""
    if modifiers[:1] != ["async"] or (ins.guard and modifiers[1] not in ("ca", "cg")):
        raise w.unknown()
    if modifiers[1] == "commit_group":
        w.lines.append("commit(S, m)")
        return
    if modifiers[1] in ("wait_group", "wait_all"):
        left = ins.operands[0].value if modifiers[1] == "wait_group" else -1
        w.lines.append(f"wait(S, {left}, m)")
        return
    rest = [m for m in modifiers[1:] if not HINT.match(m) and m not in ("ca", "cg", "cta")]
    if rest != ["shared", "global"] or len(ins.operands) not in (3, 4):
        raise w.unknown()
    to, of, size = ins.operands[:3]
    if size.kind != "integer" or size.value not in (4, 8, 16):
        raise w.unknown()
    vector = size.value // 4
    sites = tuple(
        _site(w, kind, space, "i4", vector)
        for kind, space in (("load", "global"), ("issue", "shared"), ("store", "shared"))
    )
    name = w.names.name("sites", sites)
    nbytes = w.value(ins.operands[-1], "s32")
    call = f"start(S, {name}, {address_of(w, to)}, {address_of(w, of)}, {nbytes}, {w.mask()})"
    w.lines.append(call)


def _site(w: Writer, kind: str, space: str, dtype: str, vector: int) -> Site:
    site = Site(len(w.kernel.sites), kind, space, dtype, vector, w.instruction)
    w.kernel.sites.append(site)
    return site


def _meet(w: Writer, ins: Instruction) -> None:
    """All lanes must be here; what they did to memory before is not ordered by it."""
    at = w.names.name("at", ins)
    w.lines.append(f"meet(S, {w.names.constant(-1, 'i4')}, m, {at}, orders=False)")


TENSOR = {"mma": emit_mma, "ldmatrix": emit_ldmatrix, "cp": emit_cp}
