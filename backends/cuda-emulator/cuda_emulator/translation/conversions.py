"""`mov`, `cvt` and `cvta` of PTX as Python expressions (see `writer.py`)."""

from __future__ import annotations

from cuda_emulator.memory import LOCAL, REGION_BITS, SHARED
from cuda_emulator.ptx import TYPE_BYTES, Instruction, Operand
from cuda_emulator.translation.writer import Writer, seen_as, stored_as

FLOATS = ("f16", "bf16", "f32", "f64")
WHOLE = ("rni", "rzi", "rmi", "rpi")


def emit_mov(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Copy, pack a vector into a register, or unpack one."""
    target, source = ins.operands
    (type_,) = modifiers
    if target.kind == "vector":
        _unpack(w, target, source, type_)
    elif source.kind == "vector":
        _pack(w, target, source, type_)
    else:
        w.set(target, w.value(source, type_), type_)


def _unpack(w: Writer, target: Operand, source: Operand, type_: str) -> None:
    bits = 8 * TYPE_BYTES[type_] // len(target.parts)
    if bits not in (16, 32):
        raise w.unknown()
    whole = w.temporary(w.value(source, f"b{bits * len(target.parts)}"))
    for i, part in enumerate(target.parts):
        shifted = f"({whole} >> {i * bits})" if i else whole
        w.set(part, f"{shifted}.astype(i{bits // 8})", f"b{bits}")


def _pack(w: Writer, target: Operand, source: Operand, type_: str) -> None:
    whole = TYPE_BYTES[type_]
    part = whole // len(source.parts)
    if part not in (2, 4):
        raise w.unknown()
    terms = []
    for i, operand in enumerate(source.parts):
        term = f"{w.value(operand, f'u{8 * part}')}.astype(i{whole})"
        terms.append(f"({term} << {8 * part * i})" if i else term)
    w.set(target, " | ".join(terms), f"b{8 * whole}")


def emit_cvt(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Convert between types."""
    *rest, to, of = modifiers
    given = set(rest)
    target, sources = ins.operands[0], ins.operands[1:]
    if to in ("f16x2", "bf16x2") and of == "f32" and given == {"rn"} and len(sources) == 2:
        high, low = (f"to_{to[:-2]}({w.value(operand, of)})" for operand in sources)
        w.set(target, f"pack({low}, {high})", "b32")
        return
    if len(sources) != 1 or TYPE_BYTES.get(to) is None or TYPE_BYTES.get(of) is None:
        raise w.unknown()
    if of in FLOATS and to in FLOATS:
        _float_to_float(w, ins, given, to, of)
    elif of in FLOATS and to[0] in "us":
        _float_to_integer(w, ins, given, to, of)
    elif to in FLOATS and of[0] in "us":
        _integer_to_float(w, ins, given, to, of)
    elif to[0] in "us" and of[0] in "us" and given <= {"sat"}:
        a = w.value(sources[0], of)
        has, wanted = seen_as(of), seen_as(to)
        if "sat" in given:
            a = f"sized({a}, {wanted}, True)"
        elif has != wanted:
            a = f"{a}.astype({wanted})"
        w.set(target, a, to)
    else:
        raise w.unknown()


def _source(w: Writer, ins: Instruction, given: set[str], of: str) -> str:
    """Return the source as float32 or float64."""
    operand = ins.operands[1]
    if of == "f32" and "ftz" in given:
        return w.flushed(operand)
    a = w.value(operand, of)
    return f"from_{of}({a})" if of in ("f16", "bf16") else a


def _float_to_float(w: Writer, ins: Instruction, given: set[str], to: str, of: str) -> None:
    a = _source(w, ins, given, of)
    given = given - {"ftz"} if "f32" in (to, of) else given
    if to == of:
        if to not in ("f32", "f64") or given - {"sat", *WHOLE} or len(given & set(WHOLE)) > 1:
            raise w.unknown()
        for mode in given & set(WHOLE):
            a = f"{mode}({a})"
    elif TYPE_BYTES[to] > TYPE_BYTES[of]:
        if given - {"sat"}:
            raise w.unknown()
        a = f"{a}.astype(f8)" if to == "f64" else a
    elif given - {"sat"} != {"rn"} or (of == "f64" and to == "bf16"):
        raise w.unknown()
    if to == "f32" and of == "f64":
        a = f"{a}.astype(f4)"
        a = f"flush({a})" if "ftz" in ins.opcode.split(".") else a
    if "sat" in given:
        a = f"saturate({a})"
    if to in ("f16", "bf16"):
        a = f"to_{to}({a})"
    w.set(ins.operands[0], a, to)


def _float_to_integer(w: Writer, ins: Instruction, given: set[str], to: str, of: str) -> None:
    modes = given & set(WHOLE)
    if len(modes) != 1 or given - modes - {"ftz", "sat"}:  # integers are always clamped
        raise w.unknown()
    a = _source(w, ins, given, of)
    w.set(ins.operands[0], f'to_integer({a}, "{modes.pop()}", {seen_as(to)})', to)


def _integer_to_float(w: Writer, ins: Instruction, given: set[str], to: str, of: str) -> None:
    if given != {"rn"} or (to in ("f16", "bf16") and TYPE_BYTES[of] > 4):
        raise w.unknown()
    a = w.value(ins.operands[1], of)
    if to == "f16":
        a = f"to_f16({a}.astype(f8))"
    elif to == "bf16":
        a = f"odd_to_bf16({a}.astype(f8))"
    else:
        a = f"{a}.astype({stored_as(to)})"
    w.set(ins.operands[0], a, to)


def emit_cvta(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Convert between generic addresses and those of one memory (see `memory.py`)."""
    sign = "-" if modifiers[0] == "to" else "+"
    space, type_ = modifiers[-2:]
    base = {"global": 0, "const": 0, "shared": SHARED, "local": LOCAL}.get(space)
    if base is None or type_ not in ("u64", "s64", "b64"):
        raise w.unknown()
    a = w.value(ins.operands[1], "s64")
    if base:
        a = f"{a} {sign} {w.names.constant(base << REGION_BITS, 'i8')}"
    w.set(ins.operands[0], a, "s64")


CONVERSIONS = {"mov": emit_mov, "cvt": emit_cvt, "cvta": emit_cvta}
