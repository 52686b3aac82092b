"""The page of the walkthrough: one HTML file in which a model runs, without a network.

Its sources are in `walkthrough/page`; here they are put together, with a model inside.
"""

from __future__ import annotations

import base64
import html
import json
import re
import tempfile
import zlib
from pathlib import Path

import numpy as np

import tinymistral.demo
from tinymistral.checkpoint import find_checkpoint, load_checkpoint
from tinymistral.demo import DEMO
from tinymistral.files import whole_file
from tinymistral.files.safetensors import write_file
from tinymistral.sampling import read_generation_config
from tinymistral.text import check_text
from tinymistral.tokenizer import MistralTokenizer
from tinymistral.tokenizer_model import SentencePieceVocabulary

LARGEST = 50_000_000  # bytes of weights
# In the order in which they are joined: each imports only those before it.
SCRIPTS = tuple(
    f"{name}.js"
    for name in "safetensors tokenizer core sampling session dom views ring page".split()
)
CHAPTERS = "../"  # where the links in page.html lead

_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_LINK = re.compile(r'<a href="\.\./[^"]*">(.*?)</a>')


def walkthrough_folder() -> Path:
    """Return the folder of the walkthrough: in the installed package, or in the repository."""
    package = Path(__file__).parent
    installed = package / "walkthrough"
    return installed if installed.is_dir() else package.parent / "walkthrough"


def build_page(name_or_path: str | Path = DEMO, text: str = "", chapters: str | None = None) -> str:
    """Return the HTML of the page, with the model of a checkpoint and a text to begin with.

    `chapters` is the relative or absolute URL, with a slash at its end, of the folder that the
    links to chapters lead to; without it chapters are named and not linked. Raises ValueError for
    a checkpoint that cannot be opened, or that is too large for a page.
    """
    check_text(text)
    folder = find_checkpoint(name_or_path)
    config, tensors = load_checkpoint(folder)
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > LARGEST:
        raise ValueError(
            f"{folder}: its weights are {size / 1e6:,.0f} MB, and a page holds at most "
            f"{LARGEST / 1e6:.0f} MB; choose a smaller model"
        )
    # The page reads numbers of at most 32 bits.
    narrow = {n: t.astype(np.float32) for n, t in tensors.items() if t.dtype == np.float64}
    tensors |= narrow
    tokenizer = MistralTokenizer.from_pretrained(folder)
    tokenizer.check_vocabulary(config.vocab_size)
    is_whole = tokenizer.vocab_size == len(tokenizer) == config.vocab_size
    if not is_whole or not isinstance(tokenizer.processor, SentencePieceVocabulary):
        raise ValueError(
            f"{folder}: the page reads a tokenizer.model that has all of the model's "
            f"{config.vocab_size} tokens, and nothing else; choose another model"
        )
    stride = max(tensor.itemsize for tensor in tensors.values())
    about = {
        "about": describe(folder),
        "config": config.to_dict(),
        "generation": read_generation_config(folder),
        "text": text,
        "stride": stride,
    }
    data = {
        "about-model": json.dumps(about).replace("<", "\\u003c"),  # no end of the script element
        "tokenizer-model": in_base64(tokenizer.processor.serialized_model_proto()),
        "weights": in_base64(zipped_planes(safetensors_bytes(tensors), stride)),
    }
    sources = walkthrough_folder() / "page"
    page, style, *scripts = (
        (sources / name).read_text("utf-8") for name in ("page.html", "page.css", *SCRIPTS)
    )
    if chapters is None:
        page = _LINK.sub(r"<span>\1</span>", page)
    else:
        page = page.replace(CHAPTERS, html.escape(chapters))
    parts = {
        "/* page.css */": style,
        "<!-- data -->": "\n".join(
            f'<script type="text/plain" id="{name}">{content}</script>'
            for name, content in data.items()
        ),
        "/* scripts */": "".join(map(without_modules, scripts)),
    }
    marks = "|".join(map(re.escape, parts))
    return re.sub(marks, lambda mark: parts[mark[0]], page)  # what is put in is not searched


def write_page(path: str | Path, name_or_path: str | Path = DEMO, text: str = "") -> None:
    """Write the page to a file, with links to the chapters where they are on this machine."""
    path, folder = Path(path), walkthrough_folder()
    chapters = None
    if (folder / "README.md").exists():
        beside = path.resolve().parent == (folder / "page").resolve()
        chapters = CHAPTERS if beside else f"{folder.resolve().as_uri()}/"
    page = build_page(name_or_path, text, chapters)
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def describe(folder: Path) -> str:
    """Return a sentence on a model: of the demo what it is, of another its folder."""
    if folder.resolve() == DEMO.resolve():
        return (tinymistral.demo.__doc__ or "").strip().splitlines()[0]
    return f"The model is the checkpoint named {folder.resolve().name}."


def safetensors_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    """Return the safetensors file of these tensors."""
    with tempfile.TemporaryDirectory() as folder:
        write_file(Path(folder, "model.safetensors"), tensors)
        return Path(folder, "model.safetensors").read_bytes()


def zipped_planes(content: bytes, stride: int) -> bytes:
    """Gzip every stride-th byte after the other, filled with zeros to a whole number of strides.

    The high bytes of floating-point numbers resemble each other, and so compress better alone.
    Hardly any sequence of bytes comes twice, so nothing is searched for: only the frequent bytes
    become short, which is smaller here and much faster than the usual strategy.
    """
    padded = content + bytes(-len(content) % stride)
    planes = np.frombuffer(padded, dtype=np.uint8).reshape(-1, stride).T
    gzip = zlib.compressobj(wbits=31, strategy=zlib.Z_HUFFMAN_ONLY)  # 31: with gzip's header
    return gzip.compress(planes.tobytes()) + gzip.flush()


def in_base64(content: bytes) -> str:
    """Return bytes as ASCII text."""
    return base64.b64encode(content).decode("ascii")


def without_modules(script: str) -> str:
    """Return a module as a part of one script: without imports, and nothing exported."""
    return re.sub(r"^export ", "", _IMPORT.sub("", script), flags=re.MULTILINE)
