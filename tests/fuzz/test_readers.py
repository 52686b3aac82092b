"""No file, however it is damaged, does more than open or be refused in one line.

That is: no other error, no end of the process, no memory and time beyond a bound. What may be wrong
in a file is drawn by `mutations`; what a file that opens then holds is the concern of
tests/files and tests/test_tokenizer.py.
"""

from __future__ import annotations

import io
import json
import pickletools
import shutil
import struct
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import gguf_files
import protobuf
import pytest
from hypothesis import given, note, reject, settings
from hypothesis import strategies as st
from mutations import NUMBERS, VALUES, Tree, changed, edited
from readers import Readers

from tinymistral import DEMO

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS, RAW = FIXTURES / "models", FIXTURES / "raw"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone"),
]


def build_json(tree: Tree) -> bytes:
    return json.dumps(tree, default=repr).encode()


def parse_safetensors(content: bytes) -> Tree:
    (length,) = struct.unpack("<Q", content[:8])
    return {"header": json.loads(content[8 : 8 + length]), "data": content[8 + length :]}


def build_safetensors(tree: Tree) -> bytes:
    header = build_json(tree["header"])
    return struct.pack("<Q", len(header)) + header + tree["data"]


def parse_pth(content: bytes) -> Tree:
    """The entries' names and contents; that of data.pkl is a list of opcodes with arguments."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    tree = [[name, archive.read(name)] for name in archive.namelist()]
    for entry in tree:
        if entry[0].endswith("data.pkl"):
            places = [place for _, _, place in pickletools.genops(entry[1])] + [len(entry[1])]
            entry[1] = [entry[1][start:end] for start, end in pairwise(places)]
    return tree


def build_pth(tree: Tree) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        for entry in tree:
            name, content = entry
            archive.writestr(name, b"".join(content) if isinstance(content, list) else content)
    return file.getvalue()


def parse_tokenizer(content: bytes) -> Tree:
    """<unk>, <s> and </s>; the pieces of bytes; a few others; and the parts that are no piece."""
    message = [[n, wire, protobuf.parse(part)] for n, wire, part in protobuf.parse(content)]
    pieces = [part for part in message if part[0] == protobuf.PIECE]
    return [
        pieces[:3],
        pieces[3:259],
        pieces[259:290],
        [part for part in message if part[0] != protobuf.PIECE],
    ]


def build_tokenizer(tree: Tree) -> bytes:
    content = b""
    for part in chain(*tree):
        with suppress(TypeError, ValueError):  # left out: no such field can be written
            content += protobuf.build([part])
    return content


TOKENS = {  # the files of added tokens
    "tokenizer_config.json": {
        "added_tokens_decoder": {
            "512": {"content": "<|im_end|>", "special": True, "rstrip": True},
            "513": {"content": "<|im_start|>", "lstrip": True, "single_word": True},
        },
        "additional_special_tokens": ["<|im_end|>"],
        "eos_token": "<|im_end|>",
        "pad_token": {"content": "<pad>"},
        "legacy": False,
        "add_prefix_space": False,
        "add_eos_token": True,
        "padding_side": "right",
        "chat_template": [{"name": "default", "template": "[INST]"}],
    },
    "special_tokens_map.json": {"eos_token": "<|im_end|>", "pad_token": {"content": "<pad>"}},
    "added_tokens.json": {"<|im_end|>": 512, "<|im_start|>": 513},
}


def small_gguf() -> Tree:
    """A model of one layer, with the first pieces of the demo's vocabulary."""
    config = replace(
        gguf_files.CONFIG, vocab_size=270, hidden_size=32, intermediate_size=32, head_dim=8,
        num_hidden_layers=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        gguf_files.write(path, config, kind="Q8_0")
        tree = gguf_files.tree_of(path)
    for key, _, value in tree["metadata"]:
        if key.startswith("tokenizer.ggml.") and isinstance(value, list):
            value[1] = value[1][: config.vocab_size]
    return tree


@dataclass(frozen=True)
class Format:
    """A file of a checkpoint, the function that opens it, and its form.

    `content` is given where the folder has no such file.
    """

    read: str  # of readers.py: its argument is `path` of the copied folder
    folder: Path
    file: str
    parse: Callable[[bytes], Tree] = json.loads
    build: Callable[[Tree], bytes] = build_json
    values: st.SearchStrategy[Any] = VALUES
    path: str = ""
    content: bytes = b""


opcodes = st.binary(min_size=1, max_size=1) | st.sampled_from(
    [b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"cos\nsystem\n", b"X\0\0\0\x7f"]
)
pth = {"parse": parse_pth, "build": build_pth, "values": opcodes}
safetensors = {"parse": parse_safetensors, "build": build_safetensors}
FORMATS = {
    "safetensors": Format("open_checkpoint", MODELS / "half", "model.safetensors", **safetensors),
    "index": Format("open_checkpoint", MODELS / "sharded", "model.safetensors.index.json"),
    "config": Format("open_checkpoint", MODELS / "half", "config.json"),
    "generation config": Format("open_checkpoint", DEMO, "generation_config.json"),
    "params": Format("open_checkpoint", RAW / "tied", "params.json"),
    "raw pth": Format("open_checkpoint", RAW / "tied", "consolidated.00.pth", **pth),
    **{
        name: Format("open_pth", RAW / "files", f"{name}.pth", path=f"{name}.pth", **pth)
        for name in ("state_dict", "views", "dtypes_protocol4")
    },
    "tokenizer": Format(
        "open_tokenizer", DEMO, "tokenizer.model", parse_tokenizer, build_tokenizer,
        st.sampled_from(NUMBERS) | st.binary(max_size=4), path="tokenizer.model",
    ),
    **{
        name: Format("open_tokenizer", FIXTURES / "tokenizers", f"{name}.json", path=f"{name}.json")
        for name in ("byte_level", "prepend")
    },
    "gguf": Format(
        "open_gguf_file", DEMO, "model.gguf", lambda content: small_gguf(), gguf_files.build,
        path="model.gguf",
    ),
    **{
        name: Format("open_tokenizer", DEMO, name, content=json.dumps(fields).encode())
        for name, fields in TOKENS.items()
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def readers() -> Readers:
    return Readers()


@pytest.fixture(scope="module", params=FORMATS)
def form(request: pytest.FixtureRequest) -> Format:
    return FORMATS[request.param]


@pytest.fixture(scope="module")
def folder(form: Format, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(form.folder, tmp_path_factory.mktemp("fuzz") / "checkpoint")


@pytest.fixture(scope="module")
def tree(form: Format) -> Tree:
    path = form.folder / form.file
    return form.parse(form.content or (path.read_bytes() if path.exists() else b""))


def test_the_unchanged_tree_opens(readers: Readers, form: Format, folder: Path, tree: Tree) -> None:
    (folder / form.file).write_bytes(form.build(tree))
    assert readers.open(form.read, folder / form.path) is None


@settings(max_examples=10 * settings.default.max_examples)  # a few milliseconds each
@given(data=st.data())
def test_a_changed_file_opens_or_is_refused_in_one_line(
    readers: Readers, form: Format, folder: Path, tree: Tree, data: st.DataObject
) -> None:
    drawn = data.draw(changed(tree, form.values))
    try:
        content = form.build(drawn)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        reject()  # nothing that the format can hold, such as a text for a number
    if data.draw(st.integers(0, 3)) == 0:
        content = data.draw(edited(content))
    (folder / form.file).unlink(missing_ok=True)  # what is mapped stays as it is
    (folder / form.file).write_bytes(content)
    message = readers.open(form.read, folder / form.path)
    note(message)
    if message is not None:
        assert message.isprintable()
        assert len(message) < 4000
        assert "memory" not in message.lower()
        assert "allocate" not in message
