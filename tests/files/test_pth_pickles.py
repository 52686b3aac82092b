"""Pickles that are not of a checkpoint: nothing in them runs, and the error names the reason."""

import os
import pickle
import pickletools

import pytest
from handmade_pth import ORDERED_DICT, call, error_of, name, pickled, pth, storage, tensor, whole


def baits(trace: str) -> dict[str, bytes]:
    """Pickles that make a file where Python's own unpickler reads them."""
    shell, code = f"echo > {trace}", f"open({trace!r}, 'w').close()"
    system, touch = name("os", "system"), (trace, "w")
    module = call(name("importlib", "import_module"), "os")
    get = name("builtins", "getattr")
    stack_global = pickled("os") + pickled("system") + b"\x93"
    dotted = pickled("tempfile") + pickled("_os.system") + b"\x93"
    return {
        "os.system": call(system, shell),
        "posix.system": call(name(os.name, "system"), shell),
        "eval": call(name("builtins", "eval"), code),
        "exec": call(name("builtins", "exec"), code),
        "a method, dotted": call(
            name("pathlib", "Path.touch"), call(name("pathlib", "Path"), trace)
        ),
        "a chain of getattr": call(call(get, module, "system"), shell),
        "STACK_GLOBAL": call(stack_global, shell),
        "STACK_GLOBAL, dotted": call(dotted, shell),
        "STACK_GLOBAL, dotted, from an allowed module": call(
            pickled("collections") + pickled("_sys.modules.__class__") + b"\x930" + system, shell
        ),
        "INST": b"(" + pickled(shell) + b"ios\nsystem\n",
        "OBJ": b"(" + system + pickled(shell) + b"o",
        "NEWOBJ": name("io", "FileIO") + pickled(touch) + b"\x810" + call(system, shell),
        "BUILD": call(name("io", "BytesIO"))
        + pickled((b"C\x00", 0, None))
        + b"b0"
        + call(system, shell),
        "functools.partial": call(call(name("functools", "partial"), system, shell)),
        "operator.methodcaller": call(
            call(name("operator", "methodcaller"), "system", shell), module
        ),
        "in an argument of a tensor": pickled((call(system, shell), tensor())),
    }


@pytest.mark.parametrize("bait", baits(""))
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, bait):
    trace = tmp_path / "trace"
    content = b"\x80\x04" + baits(str(trace))[bait] + b"."
    if bait != "in an argument of a tensor":  # for which torch would have to be there
        pickle.loads(content)
        assert trace.exists(), "the bait is not live"
        trace.unlink()
    for wrapped in (
        content,
        whole({"a": tensor(), "b": baits(str(trace))[bait]}, 4),
        whole({"a": tensor(hooks=baits(str(trace))[bait])}, 4),
        whole({"a": tensor(stored=baits(str(trace))[bait] + b"Q")}, 4),
        whole(ORDERED_DICT + baits(str(trace))[bait] + b"b", 4),
    ):
        message = error_of(tmp_path, pth(wrapped, _0=bytes(8)))
        assert "its pickle names '" in message or "its pickle has the opcode " in message
        assert not trace.exists()


HUGE = (2**64 - 1).to_bytes(8, "little")
TWO = (storage(), 0, (2,), (1,), False, ORDERED_DICT)
REBUILD, PARAMETER = (
    name("torch._utils", f"_rebuild_{what}") for what in ("tensor_v2", "parameter")
)
MEMO_BOMB = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(200))  # a tuple of 2^200
BROKEN_PICKLES = {
    "nothing": (b"", "ends too early"),
    "no end": (whole({"a": tensor()})[:-1], "ends too early"),
    "only the end": (b".", "takes what is not there"),
    "a dict without items": (whole({}), "no dict of tensors"),
    "a text": (whole("a"), "no dict of tensors"),
    "a storage for a tensor": (whole({"a": storage()}), "'a' is of type _Storage"),
    "a type for a tensor": (whole({"a": name("torch", "FloatStorage")}), "'a' is of type "),
    "a function for a tensor": (whole({"a": REBUILD}), "'a' is of type function"),
    "a key that is a number": (whole({1: tensor()}), "a key of type int"),
    "a key that is a tensor": (whole({tensor(): 1}), "a key of type ndarray"),
    "a key twice": (
        whole(pickled({"a": tensor()}) + pickled("a") + tensor() + b"s"),
        "'a' appears",
    ),
    "half an item": (whole(b"}(" + pickled("a") + b"u"), "no dict"),
    "items of a tensor": (whole(tensor() + pickled("a") + b"Ns"), "no dict"),
    "items of a tuple": (whole(b")(" + pickled("a") + b"Nu"), "no dict"),
    "items of nothing": (whole(b"(" + pickled("a") + b"Nu"), "takes what is not there"),
    "appended to a dict": (whole(b"}Na"), "no list"),
    "extended dict": (whole(b"}(Ne"), "no list"),
    "attributes of a tensor": (whole({"a": tensor() + b"}b"}), "no OrderedDict"),
    "attributes of a function": (whole({"a": REBUILD + b"}b"}), "no OrderedDict"),
    "attributes that are a tuple": (whole({"a": ORDERED_DICT + b")b"}), "no OrderedDict"),
    "a tuple without a mark": (whole(b"NNt"), "takes what is not there"),
    "items without a mark": (whole(b"}NNu"), "takes what is not there"),
    "a tuple of what lies below the mark": (whole(b"NN(\x86"), "takes what is not there"),
    "a memo that is not there": (whole(b"h\x05"), "there is no memo 5"),
    "a memo of nothing": (whole(b"q\x00"), "takes what is not there"),
    "a memo far away": (whole(b"}r\xff\xff\xff\xffj\xfe\xff\xff\xff"), "no memo 4294967294"),
    "nested": (whole(b"(" * 33), "nested more than 32 deep"),
    "a million opcodes": (whole(b"N" * 1_000_000), "over 1000000 opcodes"),
    "over 4 MB": (whole("x" * 4_000_000), "over 4000000"),
    "a bomb of memos": (
        whole(MEMO_BOMB),
        "no dict of tensors",
    ),
    "a bomb of memos for a tensor": (
        whole({"a": MEMO_BOMB}),
        "'a' is of type tuple",
    ),
    "a dict inside itself": (whole(b"}q\x00" + pickled("a") + b"h\x00s"), "'a' is of type dict"),
    "a deep tuple": (whole({"a": b")" + b"\x85" * 900_000}), "'a' is of type tuple"),
    "a text of 4 GB": (whole(b"X\xff\xff\xff\xffabc"), "ends too early"),
    "a text of 2^64 bytes": (whole(b"\x8d" + HUGE), "ends too early"),
    "a frame of 2^64 bytes": (whole(b"\x95" + HUGE), "takes what is not there"),
    "a text that is no UTF-8": (whole(b"X\x01\x00\x00\x00\xff"), "can't decode"),
    "a lone surrogate": (whole(b"X\x03\x00\x00\x00\xed\xa0\x80"), "can't decode"),
    "a name without an end": (whole(b"ctorch\nFloat")[:-1], "ends too early"),
    "a name with a line break": (
        whole(pickled("a\n\x1b[1m") + pickled("b") + b"\x93"),
        "'a\\n\\x1b",
    ),
    "a name with a space": (whole(pickled("torch FloatStorage") + pickled("") + b"\x93"), "names"),
    "a name that is a number": (whole(b"K\x01K\x01\x93"), "whose name is no text"),
    "a dotted name": (whole(pickled("torch") + pickled("_utils._rebuild_tensor_v2") + b"\x93"), ""),
    "an unknown opcode": (whole(b"\xff"), "the opcode ff"),
    **{
        f"the opcode {info.name}": (whole(b"NN" + info.code.encode("latin-1")), info.name)
        for info in pickletools.opcodes
        if info.name
        in "EXT1 EXT2 EXT4 INST OBJ NEWOBJ NEWOBJ_EX PERSID INT LONG LONG4 STRING BINSTRING "
        "SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER "
        "UNICODE FLOAT POP DUP POP_MARK GET PUT DICT LIST EMPTY_SET ADDITEMS FROZENSET".split()
    },
    "a call of a type": (
        whole(call(name("torch", "FloatStorage"), 1)),
        "calls what is no function",
    ),
    "a call of a text": (whole(call(pickled("eval"), "1")), "calls what is no function"),
    "a call of a tensor": (whole(call(tensor(), 1)), "calls what is no function"),
    "a call without a tuple": (whole(REBUILD + b"]R"), "expected a tuple"),
    "an OrderedDict of items": (whole(call(name("collections", "OrderedDict"), [])), "OrderedDict"),
    "a tensor of nothing": (whole({"a": call(REBUILD)}), "no plain one"),
    "a tensor of five": (whole({"a": call(REBUILD, *TWO[:5])}), "no plain one"),
    "a tensor with metadata": (whole({"a": call(REBUILD, *TWO, {})}), "no plain one"),
    "a tensor with hooks": (whole({"a": tensor(hooks={"h": 1})}), "no plain one"),
    "a tensor of a tensor": (whole({"a": tensor(tensor())}), "no plain one"),
    "a size that is a list": (whole({"a": tensor(size=[2])}), "no plain one"),
    "a size that is a text": (whole({"a": tensor(size=("2",))}), "negative"),
    "a size that is true": (whole({"a": tensor(size=(True,))}), "negative"),
    "a size that is a tensor": (whole({"a": tensor(size=(tensor(),))}), "negative"),
    "an offset that is none": (whole({"a": tensor(offset=None)}), "no plain one"),
    "a size below 0": (whole({"a": tensor(size=(-2,))}), "negative"),
    "sizes below 0": (whole({"a": tensor(size=(-1, -2), stride=(1, 1))}), "negative"),
    "a stride below 0": (whole({"a": tensor(offset=1, stride=(-1,))}), "negative"),
    "an offset below 0": (whole({"a": tensor(offset=-1)}), "negative"),
    "a size past the storage": (whole({"a": tensor(size=(3,))}), "a storage of 2 elements"),
    "a size past all memory": (whole({"a": tensor(size=(2**2000,))}), "a storage of 2 elements"),
    "sizes past all memory": (
        whole({"a": tensor(size=(2**40, 2**40), stride=(2**40, 1))}),
        "a storage of 2 elements",
    ),
    "a stride past the storage": (whole({"a": tensor(stride=(2,))}), "a storage of 2 elements"),
    "an offset past the storage": (whole({"a": tensor(offset=1)}), "from 1 on in a storage of 2"),
    "an offset past all memory": (whole({"a": tensor(offset=2**64)}), "a storage of 2 elements"),
    "a stride of 0": (whole({"a": tensor(stride=(0,))}), "overlap"),
    "strides of 1 and 1": (whole({"a": tensor(size=(2, 1, 2), stride=(1, 9, 1))}), "overlap"),
    "windows": (whole({"a": tensor(size=(3, 2), stride=(1, 2))}), "overlap"),
    "more sizes than strides": (whole({"a": tensor(size=(2, 1))}), "2 dimensions with 1 strides"),
    "no strides": (whole({"a": tensor(stride=())}), "1 dimensions with 0 strides"),
    "33 dimensions": (whole({"a": tensor(size=(1,) * 33, stride=(1,) * 33)}), "32 at most"),
    "empty, and of a size past all memory": (
        whole({"a": tensor(size=(0, 2**62, 2**62), stride=(1, 1, 1))}),
        "",
    ),
    "empty, and of a size of no machine": (
        whole({"a": tensor(size=(2**99, 0), stride=(1, 1))}),
        "",
    ),
    "a parameter of nothing": (whole({"a": call(PARAMETER)}), "no plain one"),
    "a parameter of a text": (whole({"a": call(PARAMETER, "x", True, {})}), "no plain one"),
    "a storage of fewer bytes": (whole({"a": tensor(storage(count=3))}), "has 8 bytes, expected 3"),
    "a storage of more bytes": (whole({"a": tensor(storage(count=1))}), "has 8 bytes, expected 1"),
    "a storage of half the width": (whole({"a": tensor(storage(kind="HalfStorage"))}), "8 bytes"),
    "a storage of -2 elements": (whole({"a": tensor(storage(count=-2))}), "expected -2"),
    "a storage of 2^64 elements": (whole({"a": tensor(storage(count=2**64))}), "8 bytes"),
    "a storage of a text of elements": (whole({"a": tensor(storage(count="2"))}), "no storage"),
    "a storage that is not there": (whole({"a": tensor(storage("1"))}), "'1' is not there"),
    "a storage outside": (whole({"a": tensor(storage("../data.pkl"))}), "is not there"),
    "a storage whose key is a number": (whole({"a": tensor(storage(0))}), "no storage"),
    "a storage that is the pickle": (whole({"a": tensor(storage("/../../data.pkl"))}), "not there"),
    "a storage nowhere": (whole({"a": tensor(storage(location=None))}), "no storage"),
    "a storage with a view": (
        whole(("storage", name("torch", "FloatStorage"), "0", "cpu", 2, None))[:-1] + b"Q.",
        "no storage",
    ),
    "a storage of no type": (whole({"a": tensor(storage(kind="Size"))}), "names 'torch.Size'"),
    "a persistent id that is a text": (whole(pickled("storage") + b"Q"), "expected a tuple"),
    "a module for a storage": (
        whole(("module", name("torch", "FloatStorage"), "0", "cpu", 2))[:-1] + b"Q.",
        "no storage",
    ),
}


@pytest.mark.parametrize("case", BROKEN_PICKLES)
def test_a_pickle_that_is_not_of_a_checkpoint_is_refused(tmp_path, case):
    content, says = BROKEN_PICKLES[case]
    assert says in error_of(tmp_path, pth(content, _0=bytes(8)))
