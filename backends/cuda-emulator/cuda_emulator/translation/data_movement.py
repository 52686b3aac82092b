"""Loads, stores, atomics, shuffles, votes and `mma` as Python calls (see `writer.py`)."""

from __future__ import annotations

import re

from cuda_emulator.accesses import Site
from cuda_emulator.ptx import TYPE_BYTES, Instruction, Operand
from cuda_emulator.translation.arithmetic import BOOLEAN
from cuda_emulator.translation.writer import Writer, seen_as, stored_as

SPACES = ("global", "shared", "local", "const", "param")
# Modifiers for caching, vectors and ordering, which do not change what is read.
HINTS = {
    "nc", "ca", "cg", "cs", "cv", "lu", "wb", "wt", "weak", "volatile", "relaxed", "cta", "gpu",
    "sys", "cluster", "acquire", "release", "acq_rel", "evict_first", "evict_last", "no_allocate",
    "evict_normal", "evict_unchanged",
}  # fmt: skip
HINT = re.compile(r"(L1|L2|64B|128B|256B)$")
OPERATIONS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")


def _access(w: Writer, modifiers: list[str], kind: str) -> tuple[Site, str]:
    """Describe an access by its modifiers; also return its type."""
    *rest, type_ = modifiers
    space = next((m for m in rest if m in SPACES), "generic")
    vector = next((int(m[1]) for m in rest if m in ("v2", "v4", "v8")), 1)
    operation = next((m for m in rest if m in OPERATIONS), "")
    unused = set(rest) - {space, f"v{vector}", operation} - HINTS
    if any(not HINT.match(m) for m in unused) or type_ not in TYPE_BYTES:
        raise w.unknown()
    width = TYPE_BYTES[type_]
    if width > 8 or width * vector > 32:
        raise w.unknown()
    dtype = seen_as(type_)
    if type_ in ("b8", "b16", "b32", "b64"):  # widened with zeros
        dtype = f"u{width}" if width < 4 else dtype
    site = Site(len(w.kernel.sites), kind, space, dtype, vector, w.instruction, operation)
    w.kernel.sites.append(site)
    return site, type_


def address_of(w: Writer, operand: Operand) -> str:
    """Return the address as an expression, of 32 or 64 bits as the register is."""
    if operand.kind != "address":
        raise w.unknown()
    if not operand.parts:
        return w.names.constant(operand.value, "i8")
    base = operand.parts[0]
    if base.kind == "symbol":
        if base.name not in w.kernel.addresses:
            raise w.unknown(f"no variable {base.name}")
        return w.names.constant(w.kernel.addresses[base.name] + operand.value, "i8")
    dtype = stored_as(w.kernel.registers[base.name])
    name = w.value(base, f"s{8 * int(dtype[1:])}")
    return f"{name} + {w.names.constant(operand.value, dtype)}" if operand.value else name


def emit_ld(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Load a value or a vector; parameters come from the state, not from memory."""
    target, address = ins.operands[:2]
    if "param" in modifiers:
        name = address.parts[0].name if address.parts else ""
        if name not in w.kernel.parameters or address.value:
            raise w.unknown()
        type_ = modifiers[-1]
        w.set(target, f"S.parameters[{w.kernel.parameters[name]}].view({seen_as(type_)})", type_)
        return
    site, type_ = _access(w, modifiers, "load")
    name = w.names.name("load", site.load)
    call = f"{name}(S, {address_of(w, address)}, {w.mask()})"
    unsigned = f"u{type_[1:]}" if type_ in ("b8", "b16") else type_
    if target.kind != "vector":
        if site.vector != 1:
            raise w.unknown()
        w.set(target, call, unsigned)
        return
    if len(target.parts) != site.vector:
        raise w.unknown()
    whole = w.temporary(call)
    for i, part in enumerate(target.parts):
        w.set(part, f"{whole}[{i}]", unsigned)


def emit_st(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Store a value or a vector."""
    if "param" in modifiers:
        raise w.unknown()
    site, type_ = _access(w, modifiers, "store")
    address, source = ins.operands[:2]
    parts = source.parts if source.kind == "vector" else (source,)
    if len(parts) != site.vector:
        raise w.unknown()
    wanted = f"u{type_[1:]}" if type_ in ("b8", "b16") else type_
    values = ", ".join(w.value(part, wanted) for part in parts)
    name = w.names.name("store", site.store)
    w.lines.append(f"{name}(S, {address_of(w, address)}, ({values},), {w.mask()})")


def emit_atom(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Atomic operations that return the old value."""
    site, type_ = _access(w, modifiers, "atomic")
    target, address, *sources = ins.operands
    _atomic(w, site, type_, target, address, sources)


def emit_red(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Atomic operations that return nothing."""
    if modifiers[0] == "async":
        raise w.unknown()
    site, type_ = _access(w, modifiers, "atomic")
    address, *sources = ins.operands
    _atomic(w, site, type_, Operand("sink"), address, sources)


def _atomic(
    w: Writer, site: Site, type_: str, target: Operand, address: Operand, sources: list[Operand]
) -> None:
    if not site.operation or site.vector != 1 or type_ in ("f16", "bf16", "f16x2", "bf16x2"):
        raise w.unknown()
    if type_[0] == "f" and site.operation not in ("add", "exch"):
        raise w.unknown()
    if len(sources) != (2 if site.operation == "cas" else 1):
        raise w.unknown()
    values = ", ".join(w.value(source, type_) for source in sources)
    name = w.names.name("atomic", site.atomic)
    old = w.temporary(f"{name}(S, {address_of(w, address)}, ({values},), {w.mask()})")
    w.set(target, old, type_)


def _sync_members(w: Writer, ins: Instruction) -> str:
    """Write the check that the lanes named by the last operand are active; return that operand."""
    lanes = w.value(ins.operands[-1], "b32")
    name = w.names.name("at", ins)
    w.lines.append(f"sync_lanes(S, {lanes}, m, {name})")
    return lanes


def emit_shfl(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Read another lane's register."""
    if len(modifiers) != 3 or modifiers[0] != "sync" or modifiers[2] != "b32":
        raise w.unknown()
    lanes = _sync_members(w, ins)
    target, a, b, c = ins.operands[:4]
    value, lane, clamp = (w.value(operand, "b32") for operand in (a, b, c))
    at = w.names.name("at", ins)
    call = f'shuffle(S, "{modifiers[1]}", {value}, {lane}, {clamp}, {lanes}, m, {at})'
    result = w.temporary(call)
    parts = target.parts if target.kind == "pair" else (target,)
    w.set(parts[0], f"{result}[0]", "b32")
    if len(parts) == 2:
        w.set(parts[1], f"{result}[1]", "pred")


def emit_vote(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Reduce a predicate over a warp."""
    if modifiers[:1] != ["sync"] or modifiers[1] not in ("all", "any", "uni", "ballot"):
        raise w.unknown()
    lanes = _sync_members(w, ins)
    call = f'vote(S, "{modifiers[1]}", {w.predicate(ins.operands[1])}, {lanes})'
    w.set(ins.operands[0], call, "b32" if modifiers[1] == "ballot" else "pred")


def emit_match(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Find the lanes with the same value."""
    if modifiers[1:2] != ["sync"] or modifiers[0] not in ("any", "all"):
        raise w.unknown()
    lanes = _sync_members(w, ins)
    value = w.value(ins.operands[1], modifiers[2])
    result = w.temporary(f'match(S, "{modifiers[0]}", {value}, {lanes})')
    target = ins.operands[0]
    parts = target.parts if target.kind == "pair" else (target,)
    w.set(parts[0], f"{result}[0]", "b32")
    if len(parts) == 2:
        w.set(parts[1], f"{result}[1]", "pred")


def emit_redux(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Reduce over the lanes of a warp."""
    if modifiers[0] != "sync" or len(modifiers) != 3 or modifiers[2] not in ("s32", "u32", "b32"):
        raise w.unknown()
    if modifiers[1] not in ("add", "min", "max", "and", "or", "xor"):
        raise w.unknown()
    lanes = _sync_members(w, ins)
    value = w.value(ins.operands[1], modifiers[2])
    w.set(ins.operands[0], f'reduce_warp(S, "{modifiers[1]}", {value}, {lanes})', modifiers[2])


def emit_activemask(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Write the mask of the active lanes."""
    w.set(ins.operands[0], "active_lanes(S, m)", "b32")


def emit_bar(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """`bar.warp.sync`, or the result of `bar.red` once all threads have arrived."""
    if modifiers[0] == "warp":
        _sync_members(w, ins)
        return
    while modifiers[0] in ("cta", "aligned"):
        modifiers = modifiers[1:]
    if modifiers[0] == "red" and len(ins.operands) == 3:
        how = next((m for m in modifiers if m in ("popc", *BOOLEAN)), "")
        if how not in ("popc", "and", "or"):
            raise w.unknown()
        call = f'reduce_block(S, "{how}", {w.predicate(ins.operands[2])}, m)'
        w.set(ins.operands[0], call, "u32" if how == "popc" else "pred")
        return
    raise w.unknown()


def emit_nothing(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Fences do nothing: here every write is visible at once, and races are found by barriers."""


# Matrix instructions and asynchronous copies

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
    _sync_warp(w, ins)
    groups = []
    for parts, type_ in ((a, "b32"), (b, "b32"), (c, "f32")):
        groups.append(f"({', '.join(w.value(part, type_) for part in parts)},)")
    result = w.temporary(f'multiply_matrices(S, "{kind}", {", ".join(groups)})')
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
    _sync_warp(w, ins)
    site = _site(w, "load", "shared", "i4", 4)
    name = w.names.name("site", site)
    call = f"load_matrices(S, {name}, {len(parts)}, {transposed}, {address_of(w, address)}, m)"
    result = w.temporary(call)
    for i, part in enumerate(parts):
        w.set(part, f"{result}[{i}]", "b32")


def emit_cp(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """`cp.async`: start copies, end groups of them, and wait."""
    if modifiers[:1] != ["async"] or (ins.guard and modifiers[1] not in ("ca", "cg")):
        raise w.unknown()
    if modifiers[1] == "commit_group":
        w.lines.append("commit_copies(S, m)")
        return
    if modifiers[1] in ("wait_group", "wait_all"):
        left = ins.operands[0].value if modifiers[1] == "wait_group" else -1
        w.lines.append(f"wait_for_copies(S, {left}, m)")
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
    call = f"start_copy(S, {name}, {address_of(w, to)}, {address_of(w, of)}, {nbytes}, {w.mask()})"
    w.lines.append(call)


def _site(w: Writer, kind: str, space: str, dtype: str, vector: int) -> Site:
    site = Site(len(w.kernel.sites), kind, space, dtype, vector, w.instruction)
    w.kernel.sites.append(site)
    return site


def _sync_warp(w: Writer, ins: Instruction) -> None:
    """Write the check that all lanes are active. This does not order their accesses to memory."""
    at = w.names.name("at", ins)
    w.lines.append(f"sync_lanes(S, {w.names.constant(-1, 'i4')}, m, {at}, orders=False)")


DATA_MOVEMENT = {
    "ld": emit_ld,
    "ldu": emit_ld,
    "st": emit_st,
    "atom": emit_atom,
    "red": emit_red,
    "shfl": emit_shfl,
    "vote": emit_vote,
    "match": emit_match,
    "redux": emit_redux,
    "activemask": emit_activemask,
    "bar": emit_bar,
    "barrier": emit_bar,
    "membar": emit_nothing,
    "fence": emit_nothing,
    "prefetch": emit_nothing,
    "mma": emit_mma,
    "ldmatrix": emit_ldmatrix,
    "cp": emit_cp,
}
