"""The page as a file: what is in it, and what is refused."""

import base64
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tinymistral import DEMO, MistralConfig, MistralForCausalLM
from tinymistral.checkpoint import load_checkpoint, write_tensors
from tinymistral.files.safetensors import read_file
from tinymistral.operations import NUMPY_DTYPES
from tinymistral.page import SCRIPTS, build_page, write_page

SOURCES = Path(__file__).parents[2] / "walkthrough" / "page"
SMALL = {
    "vocab_size": MistralConfig.from_pretrained(DEMO).vocab_size,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def data_in(page: str, name: str) -> str:
    """Return what the script element of this id contains, as a browser reads it: to </script."""
    found = re.findall(rf'<script type="text/plain" id="{name}">(.*?)</script', page, re.DOTALL)
    assert len(found) == 1
    return found[0]


def weights_in(page: str, folder: Path) -> dict[str, np.ndarray]:
    """Return the weights in a page, unpacked as the page does it."""
    planes = gzip.decompress(base64.b64decode(data_in(page, "weights")))
    stride = json.loads(data_in(page, "about-model"))["stride"]
    content = np.frombuffer(planes, dtype=np.uint8).reshape(stride, -1).T.tobytes()
    path = folder / "unpacked.safetensors"
    # The zeros at the end make a whole number of strides; the library allows nothing there.
    header = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + header])
    end = max(entry["data_offsets"][1] for n, entry in entries.items() if n != "__metadata__")
    path.write_bytes(content[: 8 + header + end])
    return read_file(path)


@pytest.fixture(scope="module")
def page() -> str:
    return build_page(DEMO, "Once upon a time")


def test_it_is_small_enough(page: str) -> None:
    assert len(page.encode("utf-8")) < 5_000_000


def test_it_asks_for_nothing_else(page: str) -> None:
    without_data = page.replace(data_in(page, "weights"), "")
    assert "default-src 'none'" in without_data
    addresses = re.findall(r"https?://[^\s\"]+", without_data)
    assert set(addresses) == {
        "http://www.w3.org/2000/svg",
        "https://github.com/google/sentencepiece,",
    }  # a name and a comment
    assert not re.search(r" (src|srcset)=|@import|url\(|<link|\bimport\b.+from", without_data)


def test_the_weights_are_those_of_the_checkpoint(page: str, tmp_path: Path) -> None:
    _, expected = load_checkpoint(DEMO)
    found = weights_in(page, tmp_path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].tobytes() == tensor.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_any_dtype_fits(dtype: str, tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path)
    _, tensors = load_checkpoint(folder)
    narrow = {name: tensor.astype(NUMPY_DTYPES[dtype]) for name, tensor in tensors.items()}
    write_tensors(folder, narrow)
    found = weights_in(build_page(folder), tmp_path)
    assert {str(tensor.dtype) for tensor in found.values()} == {dtype}
    assert all(found[name].tobytes() == tensor.tobytes() for name, tensor in narrow.items())


def small_checkpoint(folder: Path, **fields: object) -> Path:
    """Write a checkpoint with random weights and the tokenizer of the demo."""
    checkpoint = folder / "checkpoint"
    MistralForCausalLM(MistralConfig(**(SMALL | fields)), seed=0).save_pretrained(checkpoint)
    (checkpoint / "tokenizer.model").write_bytes((DEMO / "tokenizer.model").read_bytes())
    return checkpoint


@pytest.mark.parametrize(
    "text",
    [
        "</script><script>alert(1)</script>",
        "<!-- <script> /* scripts */ <!-- data --> /* page.css */ ../",
        "\\u003c \" ' & \u2028 🦊",
        "",
    ],
)
def test_a_text_stays_a_text(text: str, page: str) -> None:
    given = build_page(DEMO, text)
    assert json.loads(data_in(given, "about-model"))["text"] == text
    about = {data_in(given, "about-model"): "", data_in(page, "about-model"): ""}
    without = [re.sub("|".join(map(re.escape, about)), "", one) for one in (given, page)]
    assert without[0] == without[1]  # the rest of the page does not depend on it


def test_half_a_character_is_refused() -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        build_page(DEMO, "\ud800")


def test_a_large_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinymistral.page.LARGEST", 4_000_000)
    with pytest.raises(ValueError, match=r"its weights are \d MB, and a page holds at most 4 MB"):
        build_page(DEMO)


def test_a_wrong_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path, vocab_size=300)
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ pieces and the model .* 300"):
        build_page(folder)


def test_chapters_are_links_where_they_are() -> None:
    names = re.findall(r'href="\.\./(\w+)\.md"', (SOURCES / "page.html").read_text("utf-8"))
    assert sorted(set(names))[0] == "01_tokens"
    assert len(set(names)) == 14
    linked, unlinked = build_page(chapters="../a b&c/"), build_page()
    assert 'href="../a b&amp;c/01_tokens.md"' in linked
    assert "href=" not in unlinked.replace(data_in(unlinked, "weights"), "").split("<script")[0]
    assert "<span>Chapter 1</span>" in unlinked


def test_every_linked_chapter_exists() -> None:
    text = (SOURCES / "page.html").read_text("utf-8")
    names = re.findall(r'href="\.\./(.+?)"', text)
    assert len(names) >= 10
    for name in names:
        assert (Path(__file__).parents[2] / "walkthrough" / name).exists(), name


def test_modules_import_only_those_before_them() -> None:
    """They are joined into one script, in this order, where each name exists once."""
    for n, name in enumerate(SCRIPTS):
        text = (SOURCES / name).read_text("utf-8")
        assert set(re.findall(r'from "\./(.+?)"', text)) <= set(SCRIPTS[:n]), name
        assert "</script" not in text
    joined = "".join((SOURCES / name).read_text("utf-8") for name in SCRIPTS)
    names = re.findall(r"^(?:export )?(?:const|let|function\*?|class) (\w+)", joined, re.MULTILINE)
    assert len(names) == len(set(names))


def test_the_wheel_has_all_sources() -> None:
    project = (SOURCES.parents[1] / "pyproject.toml").read_text("utf-8")
    included = re.findall(
        r'^"walkthrough/page/(.+?)" = "tinymistral/(.+?)"$', project, re.MULTILINE
    )
    assert dict(included) == {
        name: f"walkthrough/page/{name}" for name in ("page.html", "page.css", *SCRIPTS)
    }


def test_a_page_says_which_model_it_holds(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "demo model" in json.loads(data_in(page, "about-model"))["about"]
    monkeypatch.chdir(small_checkpoint(tmp_path))
    write_page(tmp_path / "page.html", ".")
    about = json.loads(data_in((tmp_path / "page.html").read_text("utf-8"), "about-model"))
    assert about["about"] == "The model is the checkpoint named checkpoint."
