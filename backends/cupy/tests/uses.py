"""Find the names of cupy that a source uses, and the arguments of its calls.

A few rules infer what an expression is: `cp` is the module, `cp.cuda.Device()` a Device, a
parameter annotated `Array` an ndarray; so is a slice of one. Other uses are missed, so a test
should check that known ones are found.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Instance:
    """An object of a class."""

    kind: Any


@dataclass
class Uses:
    """The names found, those that do not exist in cupy, and calls."""

    found: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    calls: list[tuple[str, Any, bool, int, tuple[str, ...]]] = field(default_factory=list)


def uses_of_cupy(path: Path, cupy: Any) -> Uses:
    """Read a source; `calls` are (text, what is called, is it a method, positional, keywords)."""
    reader = _Reader(cupy)
    tree = ast.parse(path.read_text("utf-8"))
    reader.visit(tree)  # a first pass to learn what names are assigned
    reader.uses = Uses()
    reader.visit(tree)
    return reader.uses


class _Reader(ast.NodeVisitor):
    def __init__(self, cupy: Any):
        array = Instance(cupy.ndarray)
        self.array = array
        self.known: dict[str, Any] = {
            **dict.fromkeys(("cp", "cupy", "self._cp"), cupy),
            "runtime": cupy.cuda.runtime,
            "array": array,  # what a loop over arrays calls one
        }
        makers = "asarray zeros empty take matmul ascontiguousarray".split()
        self.returns = {getattr(cupy, name): array for name in makers}
        self.returns |= {
            cupy.get_default_memory_pool: Instance(cupy.cuda.MemoryPool),
            cupy.RawModule.get_function: Instance(cupy.RawKernel),
            cupy.ndarray.reshape: array,
        }
        self.properties = {
            cupy.ndarray.T: array,
            cupy.ndarray.data: Instance(cupy.cuda.MemoryPointer),
        }
        self.uses = Uses()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = dict(self.known)
        for argument in filter(None, [node.args.vararg, node.args.kwarg]):
            self.known.pop(argument.arg, None)
        for argument in node.args.args:
            kind = argument.annotation
            if isinstance(kind, ast.Name) and kind.id == "Array":
                self.known[argument.arg] = self.array
            elif argument.arg not in ("cp", "runtime"):
                self.known.pop(argument.arg, None)
        self.generic_visit(node)
        # Attributes of `self` are known in all methods, local names only in their function.
        attributes = {name: what for name, what in self.known.items() if "." in name}
        self.known = outer | attributes

    def visit_Assign(self, node: ast.Assign) -> None:
        what = self.infer(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name | ast.Attribute) and what is not None:
                self.known[ast.unparse(target)] = what
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.infer(node, note=True)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = self.infer(node.func)
        if called is not None and not isinstance(called, Instance):
            method = isinstance(node.func, ast.Attribute) and isinstance(
                self.infer(node.func.value), Instance
            )
            self.note_call(node, called, method)
        elif isinstance(called, Instance):
            self.note_call(node, called.kind.__call__, True)
        self.generic_visit(node)

    def note_call(self, node: ast.Call, called: Any, method: bool) -> None:
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            return
        keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg)
        self.uses.calls.append((ast.unparse(node), called, method, len(node.args), keywords))

    def infer(self, node: ast.AST, note: bool = False) -> Any:
        """Return the module, class or function that an expression is, an Instance, or None."""
        if (text := ast.unparse(node)) in self.known:
            return self.known[text]
        if isinstance(node, ast.Attribute):
            base = self.infer(node.value)
            if base is None:
                return None
            holder = base.kind if isinstance(base, Instance) else base
            if note:
                self.uses.found.add(f"{getattr(holder, '__name__', holder)}.{node.attr}")
            if not hasattr(holder, node.attr):
                if note:
                    self.uses.missing.append(f"line {node.lineno}: {text}")
                return None
            what = getattr(holder, node.attr)
            return self.property(what) if isinstance(base, Instance) else what
        if isinstance(node, ast.Call):
            called = self.infer(node.func)
            if isinstance(called, type):
                return Instance(called)
            return self.returns.get(called) if callable(called) else None
        if isinstance(node, ast.Subscript) and self.infer(node.value) == self.array:
            return self.array
        return None

    def property(self, what: Any) -> Any:
        """Return what a property of an instance is; a method is returned as it is."""
        if callable(what):
            return what
        return self.properties.get(what)
