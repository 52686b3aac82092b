"""Arithmetic, comparisons and logic of PTX as Python expressions (see `writer.py`).

Each function takes the writer, the instruction and its modifiers, the opcode's parts after the
first. A modifier that is not named here makes the instruction unknown.
"""

from __future__ import annotations

from collections.abc import Callable

from cuda_emulator.ptx import TYPE_BYTES, Instruction, Operand
from cuda_emulator.translation.writer import Writer, seen_as

Emitter = Callable[[Writer, Instruction, list[str]], None]

HALVES = ("f16", "bf16", "f16x2", "bf16x2")
DIRECTED = ("rm", "rp", "rz")


def _split(w: Writer, modifiers: list[str], allowed: str) -> tuple[set[str], str]:
    """Return the modifiers before the type, and the type; all must be allowed."""
    *rest, type_ = modifiers or [""]
    if not set(rest) <= set(allowed.split()) or type_ not in TYPE_BYTES | {"pred": 1}:
        raise w.unknown()
    return set(rest), type_


def _float(w: Writer, ins: Instruction, modifiers: set[str], result: str) -> None:
    """Assign a float32 result, flushed and clamped as the modifiers say."""
    if "ftz" in modifiers:
        result = f"flush({result})"
    if "sat" in modifiers:
        result = f"saturate({result})"
    w.set(ins.operands[0], result, "f32")


def _floats(w: Writer, ins: Instruction, modifiers: set[str]) -> list[str]:
    read = w.flushed if "ftz" in modifiers else lambda operand: w.value(operand, "f32")
    return [read(operand) for operand in ins.operands[1:]]


def _half(w: Writer, ins: Instruction, modifiers: set[str], name: str, type_: str) -> None:
    if modifiers - {"rn", "NaN"}:
        raise w.unknown()
    if "NaN" in modifiers:
        name += ".NaN"
    operands = ", ".join(w.value(operand, type_) for operand in ins.operands[1:])
    w.set(ins.operands[0], f'half("{name}", "{type_}", {operands})', type_)


def _sum(sign: str, name: str) -> Emitter:
    def emit(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
        given, type_ = _split(w, modifiers, "rn rm rp rz ftz sat")
        if type_ in HALVES:
            _half(w, ins, given, name, type_)
        elif type_ == "f32":
            a, b = _floats(w, ins, given)
            mode = next(iter(given & set(DIRECTED)), None)
            if mode:
                one = w.names.constant(1, "f4")
                minus = "-" if sign == "-" else ""
                _float(w, ins, given, f'fma_directed({a}, {one}, {minus}{b}, "{mode}")')
            else:
                _float(w, ins, given, f"{a} {sign} {b}")
        else:
            allowed = {"rn"} if type_ == "f64" else set()
            if given - allowed:
                raise w.unknown()
            signed = type_ if type_ == "f64" else f"s{8 * TYPE_BYTES[type_]}"
            a, b = (w.value(operand, signed) for operand in ins.operands[1:])
            w.set(ins.operands[0], f"{a} {sign} {b}", signed)

    return emit


def _product(w: Writer, ins: Instruction, given: set[str], type_: str) -> tuple[str, str]:
    """Return the product of the first two sources, as an expression and its type."""
    bits = 8 * TYPE_BYTES[type_]
    if "wide" in given:
        if bits > 32:
            raise w.unknown()
        wide = f"{type_[0]}{2 * bits}"
        a, b = (f"{w.value(o, type_)}.astype({seen_as(wide)})" for o in ins.operands[1:3])
        return f"{a} * {b}", wide
    if "hi" in given:
        a, b = (w.value(operand, type_) for operand in ins.operands[1:3])
        return f"high_product({a}, {b})", type_
    if "lo" in given:
        a, b = (w.value(operand, f"s{bits}") for operand in ins.operands[1:3])
        return f"{a} * {b}", f"s{bits}"
    raise w.unknown()


def emit_mul(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Multiply: the whole product, or its upper or lower half."""
    given, type_ = _split(w, modifiers, "rn rm rp rz ftz sat lo hi wide")
    if type_ in HALVES:
        _half(w, ins, given, "mul", type_)
    elif type_ == "f32":
        a, b = _floats(w, ins, given)
        mode = next(iter(given & set(DIRECTED)), None)
        if mode:
            _float(w, ins, given, f'product_directed({a}, {b}, "{mode}")')
        else:
            _float(w, ins, given, f"{a} * {b}")
    elif type_ == "f64":
        if given - {"rn"}:
            raise w.unknown()
        a, b = (w.value(operand, type_) for operand in ins.operands[1:])
        w.set(ins.operands[0], f"{a} * {b}", type_)
    elif len(given) == 1:
        w.set(ins.operands[0], *_product(w, ins, given, type_))
    else:
        raise w.unknown()


def emit_mad(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Multiply and add integers; `mad` of floats is `fma`."""
    given, type_ = _split(w, modifiers, "lo hi wide rn ftz sat rm rp rz")
    if type_ in ("f32", "f64"):
        emit_fma(w, ins, modifiers)
        return
    if len(given) != 1:
        raise w.unknown()
    product, wide = _product(w, ins, given, type_)
    w.set(ins.operands[0], f"{product} + {w.value(ins.operands[3], wide)}", wide)


def emit_fma(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Fused multiply-add."""
    given, type_ = _split(w, modifiers, "rn rm rp rz ftz sat")
    if type_ in HALVES:
        _half(w, ins, given, "fma", type_)
    elif type_ == "f64":
        if given - {"rn"}:
            raise w.unknown()
        operands = ", ".join(w.value(operand, type_) for operand in ins.operands[1:])
        w.set(ins.operands[0], f"fma_f64({operands})", type_)
    elif type_ == "f32":
        operands = ", ".join(_floats(w, ins, given))
        mode = next(iter(given & set(DIRECTED)), None)
        if mode:
            _float(w, ins, given, f'fma_directed({operands}, "{mode}")')
        else:
            _float(w, ins, given, f"{'fma' if 'ftz' in given else 'fma_subnormal'}({operands})")
    else:
        raise w.unknown()


def _quotient(name: str) -> Emitter:
    def emit(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
        given, type_ = _split(w, modifiers, "rn approx full ftz")
        if type_ == "f32" and name == "divide":
            a, b = _floats(w, ins, given)
            approximate = "approx" in given
            _float(w, ins, given, f"divide_approx({a}, {b})" if approximate else f"{a} / {b}")
        elif type_ == "f64" and name == "divide" and given == {"rn"}:
            a, b = (w.value(operand, type_) for operand in ins.operands[1:])
            w.set(ins.operands[0], f"{a} / {b}", type_)
        elif type_[0] in "us" and not given:
            a, b = (w.value(operand, type_) for operand in ins.operands[1:])
            w.set(ins.operands[0], f"{name}({a}, {b})", type_)
        else:
            raise w.unknown()

    return emit


def _function(template: str, allowed: str = "approx ftz", f64: str = "") -> Emitter:
    """Return the emitter of a function of one float, which is {a} in `template`."""

    def emit(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
        given, type_ = _split(w, modifiers, allowed)
        root = ins.opcode.split(".", 1)[0]
        if type_ in HALVES and root in ("ex2", "tanh"):
            _half(w, ins, given - {"approx"}, root, type_)
        elif type_ == "f32":
            _float(w, ins, given, template.format(a=_floats(w, ins, given)[0]))
        elif type_ == "f64" and f64 and not given - {"rn"}:
            w.set(ins.operands[0], f64.format(a=w.value(ins.operands[1], type_)), type_)
        else:
            raise w.unknown()

    return emit


def _sign(name: str, template: str) -> Emitter:
    """Return the emitter of abs or neg."""

    def emit(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
        given, type_ = _split(w, modifiers, "ftz")
        if type_ in HALVES:
            _half(w, ins, given, name, type_)
            return
        if type_ == "f32":
            operand = _floats(w, ins, given)[0]
        elif given:
            raise w.unknown()
        else:
            operand = w.value(ins.operands[1], type_)
        w.set(ins.operands[0], template.format(a=operand), type_)

    return emit


def _extreme(name: str) -> Emitter:
    def emit(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
        given, type_ = _split(w, modifiers, "ftz NaN")
        if type_ in HALVES:
            _half(w, ins, given, name[:3], type_)
        elif type_ == "f32":
            a, b, *more = _floats(w, ins, given)
            function = f"np_{name}" if "NaN" in given else name
            result = f"{function}({a}, {b})"
            for c in more:
                result = f"{function}({result}, {c})"
            w.set(ins.operands[0], result, type_)
        elif given:
            raise w.unknown()
        else:
            function = name if type_ == "f64" else f"np_{name}"
            a, b = (w.value(operand, type_) for operand in ins.operands[1:])
            w.set(ins.operands[0], f"{function}({a}, {b})", type_)

    return emit


ORDERED = {"eq": "==", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
OPPOSITE = {"neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}


def comparison(w: Writer, how: str, a: str, b: str, floating: bool) -> str:
    """Return an expression for a comparison; a `floating` one is ordered unless it ends in u."""
    if how in ORDERED:
        return f"({a} {ORDERED[how]} {b})"
    if not floating:
        if how == "ne":
            return f"({a} != {b})"
        if how in UNSIGNED:
            return f"({a} {ORDERED[UNSIGNED[how]]} {b})"
    elif how == "ne":
        return f"(({a} < {b}) | ({a} > {b}))"
    elif how == "equ":
        return f"(~(({a} < {b}) | ({a} > {b})))"
    elif how in OPPOSITE:
        return f"(~({a} {ORDERED[OPPOSITE[how]]} {b}))"
    elif how == "num":
        return f"(({a} == {a}) & ({b} == {b}))"
    elif how == "nan":
        return f"(({a} != {a}) | ({b} != {b}))"
    raise w.unknown()


BOOLEAN = {"and": "&", "or": "|", "xor": "^"}


def emit_setp(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Compare to a predicate p, or to p|q with q its negation."""
    how, *rest, type_ = modifiers
    boolean = next((m for m in rest if m in BOOLEAN), None)
    given = set(rest) - {boolean}
    if given - ({"ftz"} if type_ == "f32" else set()) or type_ not in TYPE_BYTES:
        raise w.unknown()
    if how in UNSIGNED:
        type_ = "u" + type_[1:]
    if type_ in ("f16", "bf16"):
        a, b = (f"from_{type_}({w.value(o, type_)})" for o in ins.operands[1:3])
    elif type_ in HALVES:
        raise w.unknown()
    elif "ftz" in given:
        a, b = (w.flushed(o) for o in ins.operands[1:3])
    else:
        a, b = (w.value(o, type_) for o in ins.operands[1:3])
    result = comparison(w, how, a, b, "f" in type_)
    target = ins.operands[0]
    parts = target.parts if target.kind == "pair" else (target,)
    results = [result, f"(~{result})"][: len(parts)]
    if boolean:
        if len(ins.operands) != 4:
            raise w.unknown()
        c = w.predicate(ins.operands[3])
        results = [f"({r} {BOOLEAN[boolean]} {c})" for r in results]
    if len(parts) == 2:
        results = [w.temporary(r) for r in results]
    for part, expression in zip(parts, results, strict=True):
        w.set(part, expression, "pred")


def emit_selp(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Select one of two sources by a predicate."""
    _, type_ = _split(w, modifiers, "")
    a, b = (w.value(operand, type_) for operand in ins.operands[1:3])
    w.set(ins.operands[0], f"where({w.predicate(ins.operands[3])}, {a}, {b})", type_)


def emit_slct(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Select one of two sources by the sign of a third."""
    *rest, type_, by = modifiers
    if set(rest) - {"ftz"} or by not in ("s32", "f32") or type_ not in TYPE_BYTES:
        raise w.unknown()
    a, b = (w.value(operand, type_) for operand in ins.operands[1:3])
    c = w.flushed(ins.operands[3]) if "ftz" in rest else w.value(ins.operands[3], by)
    w.set(ins.operands[0], f"where({c} >= {w.names.constant(0, seen_as(by))}, {a}, {b})", type_)


def _logic(sign: str) -> Emitter:
    def emit(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
        _, type_ = _split(w, modifiers, "")
        a, b = (w.value(operand, type_) for operand in ins.operands[1:])
        w.set(ins.operands[0], f"{a} {sign} {b}", type_)

    return emit


def emit_not(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Negate all bits, or a predicate."""
    _, type_ = _split(w, modifiers, "")
    w.set(ins.operands[0], f"~{w.value(ins.operands[1], type_)}", type_)


def emit_shl(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Shift left; by a constant below the width it is an operator."""
    _, type_ = _split(w, modifiers, "")
    bits = 8 * TYPE_BYTES[type_]
    a, by = w.value(ins.operands[1], f"s{bits}"), _constant(w, ins.operands[2])
    if by is not None and 0 <= by < bits:
        result = f"{a} << {w.names.constant(by, f'i{bits // 8}')}"
    else:
        result = f"shift_left({a}, {w.value(ins.operands[2], 'u32')})"
    w.set(ins.operands[0], result, f"s{bits}")


def emit_shr(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Shift right, with the sign where the type is signed."""
    _, type_ = _split(w, modifiers, "")
    bits = 8 * TYPE_BYTES[type_]
    type_ = type_ if type_[0] == "s" else f"u{bits}"
    a, by = w.value(ins.operands[1], type_), _constant(w, ins.operands[2])
    if by is not None and 0 <= by < bits:
        result = f"{a} >> {w.names.constant(by, seen_as(type_))}"
    else:
        result = f"shift_right({a}, {w.value(ins.operands[2], 'u32')})"
    w.set(ins.operands[0], result, type_)


def _constant(w: Writer, operand: Operand) -> int | None:
    operand = w.kernel.known.get(operand.name, operand)
    return operand.value if operand.kind == "integer" else None


def _call(function: str, types: str, result: str = "", allowed: str = "") -> Emitter:
    """Return the emitter of a function call; `types`: one for each source, T the instruction's."""

    def emit(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
        _, type_ = _split(w, modifiers, allowed)
        wanted = [type_ if t == "T" else t for t in types.split()]
        operands = zip(ins.operands[1:], wanted, strict=True)
        arguments = ", ".join(w.value(operand, t) for operand, t in operands)
        w.set(ins.operands[0], f"{function}({arguments})", result or type_)

    return emit


def emit_shf(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Shift two registers as one of 64 bits."""
    direction, how, type_ = modifiers
    if type_ != "b32" or direction not in "lr" or how not in ("wrap", "clamp"):
        raise w.unknown()
    arguments = ", ".join(w.value(operand, "b32") for operand in ins.operands[1:])
    result = f"funnel({arguments}, {direction == 'l'}, {how == 'wrap'})"
    w.set(ins.operands[0], result, "b32")


def emit_lop3(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Apply any bitwise function of three sources."""
    if modifiers != ["b32"] or ins.operands[4].kind != "integer":
        raise w.unknown()
    arguments = ", ".join(w.value(operand, "b32") for operand in ins.operands[1:4])
    w.set(ins.operands[0], f"lookup({arguments}, {ins.operands[4].value})", "b32")


def emit_copysign(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Give the second source the sign of the first."""
    if modifiers not in (["f32"], ["f64"]):
        raise w.unknown()
    sign, magnitude = (w.value(operand, modifiers[0]) for operand in ins.operands[1:])
    w.set(ins.operands[0], f"copysign({magnitude}, {sign})", modifiers[0])


def emit_testp(w: Writer, ins: Instruction, modifiers: list[str]) -> None:
    """Classify a float."""
    how, type_ = modifiers
    a = w.value(ins.operands[1], type_)
    tests = {
        "finite": "isfinite({a})",
        "infinite": "isinf({a})",
        "number": "({a} == {a})",
        "notanumber": "({a} != {a})",
    }
    if how not in tests or type_ not in ("f32", "f64"):
        raise w.unknown()
    w.set(ins.operands[0], tests[how].format(a=a), "pred")


ARITHMETIC = {
    "add": _sum("+", "add"),
    "sub": _sum("-", "sub"),
    "mul": emit_mul,
    "mad": emit_mad,
    "fma": emit_fma,
    "div": _quotient("divide"),
    "rem": _quotient("remainder"),
    "rcp": _function("f32_one / {a}", "approx ftz rn", "f64_one / {a}"),
    "sqrt": _function("sqrt({a})", "approx ftz rn", "sqrt({a})"),
    "rsqrt": _function("rsqrt({a})"),
    "ex2": _function("exp2({a})"),
    "lg2": _function("log2({a})"),
    "sin": _function("sine({a})"),
    "cos": _function("cosine({a})"),
    "tanh": _function("tanh({a})"),
    "abs": _sign("abs", "abs({a})"),
    "neg": _sign("neg", "-{a}"),
    "min": _extreme("minimum"),
    "max": _extreme("maximum"),
    "setp": emit_setp,
    "selp": emit_selp,
    "slct": emit_slct,
    "and": _logic("&"),
    "or": _logic("|"),
    "xor": _logic("^"),
    "not": emit_not,
    "shl": emit_shl,
    "shr": emit_shr,
    "shf": emit_shf,
    "lop3": emit_lop3,
    "bfe": _call("extract", "T s32 s32"),
    "bfi": _call("insert", "T T s32 s32"),
    "brev": _call("reverse", "T"),
    "popc": _call("population", "T", "s32"),
    "clz": _call("leading_zeros", "T", "s32"),
    "bfind": _call("find_highest", "T", "s32"),
    "prmt": _call("permute", "T T T"),
    "copysign": emit_copysign,
    "testp": emit_testp,
}
