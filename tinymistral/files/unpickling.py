"""Unpickle what torch.save writes: an interpreter of the few opcodes that this needs.

Python's own unpickler imports and calls whatever a file names. This one imports nothing: a global
is looked up in a table of what a checkpoint of tensors needs, and any other opcode, global or
argument is refused by name. Time and memory are bounded by the pickle's length, whatever it
contains: no value is copied, compared or traversed.
Opcodes: the standard library's pickletools
"""

import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any

from tinymistral.files import CheckpointError
from tinymistral.text import quoted

_MAX_MARKS = 32  # open at once; torch.save has three
_MAX_OPCODES = 1_000_000  # a tensor takes about 40
_NAMES = {info.code: info.name for info in pickletools.opcodes}

Function = Callable[[tuple[Any, ...]], Any]  # of the tuple of its arguments


def unpickle(
    content: bytes,
    functions: Mapping[str, Function],
    constants: Mapping[str, Any],
    persistent_load: Function,
) -> Any:
    """Return the object of a pickle of protocol 2 to 5, built of dicts, lists, tuples and scalars.

    Keys of dicts are strings. A global `module.name` is looked up as `"module name"`, first in
    `functions`, which may be called, then in `constants`. `persistent_load` gets the persistent
    ids, which must be tuples. The attributes of an OrderedDict are ignored. Raises
    CheckpointError, and what the functions raise.
    """
    return _Machine(content, functions, constants, persistent_load).run()


class _Machine:
    """The pickle machine: a stack, marks on it, and a memo of values that are used again."""

    def __init__(
        self,
        content: bytes,
        functions: Mapping[str, Function],
        constants: Mapping[str, Any],
        persistent_load: Function,
    ):
        self.content = content
        self.position = 0
        self.functions = functions
        self.constants = constants
        self.persistent_load = persistent_load
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_MAX_OPCODES):
            opcode = self.take(1)
            if opcode == pickle.STOP:
                return self.pop()
            self.step(opcode)
        raise CheckpointError(f"its pickle has over {_MAX_OPCODES} opcodes")

    def step(self, opcode: bytes) -> None:
        push = self.stack.append
        match opcode:
            case pickle.PROTO:
                self.unsigned(1)
            case pickle.FRAME:
                self.unsigned(8)
            case pickle.NONE:
                push(None)
            case pickle.NEWTRUE:
                push(True)
            case pickle.NEWFALSE:
                push(False)
            case pickle.BININT1:
                push(self.unsigned(1))
            case pickle.BININT2:
                push(self.unsigned(2))
            case pickle.BININT:
                push(int.from_bytes(self.take(4), "little", signed=True))
            case pickle.LONG1:
                push(int.from_bytes(self.take(self.unsigned(1)), "little", signed=True))
            case pickle.BINFLOAT:
                push(struct.unpack(">d", self.take(8))[0])
            case pickle.SHORT_BINUNICODE:
                push(self.text(self.unsigned(1)))
            case pickle.BINUNICODE:
                push(self.text(self.unsigned(4)))
            case pickle.BINUNICODE8:
                push(self.text(self.unsigned(8)))
            case pickle.BINPUT:
                self.memo[self.unsigned(1)] = self.top()
            case pickle.LONG_BINPUT:
                self.memo[self.unsigned(4)] = self.top()
            case pickle.MEMOIZE:
                self.memo[len(self.memo)] = self.top()
            case pickle.BINGET:
                push(self.recall(self.unsigned(1)))
            case pickle.LONG_BINGET:
                push(self.recall(self.unsigned(4)))
            case pickle.MARK:
                if len(self.marks) == _MAX_MARKS:
                    raise CheckpointError(f"its pickle is nested more than {_MAX_MARKS} deep")
                self.marks.append(len(self.stack))
            case pickle.EMPTY_TUPLE:
                push(())
            case pickle.TUPLE1:
                push((self.pop(),))
            case pickle.TUPLE2:
                push((self.pop(), self.pop())[::-1])
            case pickle.TUPLE3:
                push((self.pop(), self.pop(), self.pop())[::-1])
            case pickle.TUPLE:
                push(tuple(self.pop_to_mark()))
            case pickle.EMPTY_LIST:
                push([])
            case pickle.APPEND:
                self.extend([self.pop()])
            case pickle.APPENDS:
                self.extend(self.pop_to_mark())
            case pickle.EMPTY_DICT:
                push({})
            case pickle.SETITEM:
                self.update([self.pop(), self.pop()][::-1])
            case pickle.SETITEMS:
                self.update(self.pop_to_mark())
            case pickle.GLOBAL:
                push(self.look_up(f"{self.line()} {self.line()}"))
            case pickle.STACK_GLOBAL:
                name, module = self.pop(), self.pop()
                if not isinstance(name, str) or not isinstance(module, str):
                    raise CheckpointError("its pickle has a global whose name is no text")
                push(self.look_up(f"{module} {name}"))
            case pickle.BINPERSID:
                push(self.persistent_load(self.pop_tuple()))
            case pickle.REDUCE:
                arguments, function = self.pop_tuple(), self.pop()
                if not any(function is allowed for allowed in self.functions.values()):
                    raise CheckpointError("its pickle calls what is no function")
                push(function(arguments))
            case pickle.BUILD:  # of an OrderedDict: a module's state_dict has `_metadata`
                if not isinstance(self.pop(), dict) or not isinstance(self.top(), dict):
                    raise CheckpointError("its pickle sets attributes of what is no OrderedDict")
            case _:
                name = _NAMES.get(opcode.decode("latin-1"), opcode.hex())
                raise CheckpointError(
                    f"its pickle has the opcode {name}, which a checkpoint of tensors does not "
                    "need; nothing was run"
                )

    def take(self, count: int) -> bytes:
        taken = self.content[self.position : self.position + count]
        if len(taken) < count:
            raise CheckpointError("its pickle ends too early")
        self.position += count
        return taken

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self, size: int) -> str:
        return self.take(size).decode("utf-8")

    def line(self) -> str:
        end = self.content.find(b"\n", self.position)
        if end < 0:
            raise CheckpointError("its pickle ends too early")
        return self.take(end + 1 - self.position)[:-1].decode("utf-8")

    def top(self) -> Any:
        if len(self.stack) == (self.marks[-1] if self.marks else 0):
            raise CheckpointError("its pickle is damaged: it takes what is not there")
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def pop_tuple(self) -> tuple[Any, ...]:
        value = self.pop()
        if not isinstance(value, tuple):
            raise CheckpointError(
                f"its pickle calls with a value of type {type(value).__name__}, expected a tuple"
            )
        return value

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise CheckpointError("its pickle is damaged: it takes what is not there")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def recall(self, index: int) -> Any:
        if index not in self.memo:
            raise CheckpointError(f"its pickle is damaged: there is no memo {index}")
        return self.memo[index]

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise CheckpointError("its pickle appends to what is no list")
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            raise CheckpointError("its pickle sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise CheckpointError(
                    f"its pickle has a dict with a key of type {type(key).__name__}"
                )
            if key in target:
                raise CheckpointError(f"the name {quoted(key)} appears twice")
            target[key] = value

    def look_up(self, name: str) -> Any:
        for table in (self.functions, self.constants):
            if name in table:
                return table[name]
        raise CheckpointError(
            f"its pickle names {quoted(name.replace(' ', '.', 1))}, "
            "which a checkpoint of tensors does not need; nothing was run"
        )
