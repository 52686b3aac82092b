"""The page's JavaScript under Node.js: the golden suite, and one line of it made wrong."""

import re
import shutil
from pathlib import Path

import cli_runner
import numpy as np
import pytest
from cli_runner import run

from tinymistral import DEMO
from tinymistral.files.safetensors import read_file
from tinymistral.golden.suite import V1, Suite, read_suite

SOURCES = Path(__file__).parents[2] / "walkthrough" / "page"
RIGHT = "const kvHead = Math.floor(h / (H / K));\n"
WRONG = "const kvHead = h % K;\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js"),
]


def dump(out: Path, *cases: str, sources: Path = SOURCES) -> Path:
    """Compute cases of v1, or all of them, into a folder."""
    command = f"node {sources}/golden.mjs {{case}} {{out}} {DEMO}/tokenizer.model {cli_runner.V1}"
    chosen = [word for case in cases for word in ("--case", case)]
    code, text, _ = run("golden", "run", "--command", command, *chosen, "-o", str(out))
    assert (code, "failed: " in text) == (0, False), text
    return out


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dump(tmp_path_factory.mktemp("dump"))


@pytest.fixture(scope="module")
def suite() -> Suite:
    return read_suite(V1)


def test_it_agrees_with_the_golden_suite(right: Path, suite: Suite) -> None:
    code, out, err = run("golden", "check", "v1", str(right))
    assert (code, err) == (0, ""), out
    kinds = {"model", "generate", "sampling", "tokenizer"}
    done = [case for case in suite.manifest.cases.values() if case.kind in kinds]
    raw = {name for name, model in suite.manifest.models.items() if model.layout == "raw"}
    assert f"{sum(case.model not in raw for case in done)} OK, 0 differ" in out


def test_it_computes_in_float64(right: Path, suite: Suite) -> None:
    """The check knows no tolerance as small as float64 deserves."""
    largest = 0.0
    for case in suite.manifest.cases.values():
        path = right / f"{case.id}.safetensors"
        if case.kind == "generate" and path.exists():
            given, expected = read_file(path), suite.read(case).expected
            np.testing.assert_array_equal(given["sequences"], expected["sequences"])
            largest = max(largest, np.abs(given["logprobs"] - expected["logprobs"]).max())
    assert 0 < largest < 1e-12


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    shutil.copytree(SOURCES, tmp_path / "wrong")
    core = tmp_path / "wrong" / "core.js"
    text = core.read_text("utf-8")
    assert text.count(RIGHT) == 1
    core.write_text(text.replace(RIGHT, WRONG), "utf-8")
    given = str(dump(tmp_path / "out", "plain", "one-to-one", sources=tmp_path / "wrong"))
    code, out, _ = run("golden", "check", "v1", given)
    assert code == 1
    assert "DIFFERS at calls.0.layers.0.attention_weights" in out
    assert re.search("one-to-one +OK", out)  # one query head for each key/value head
    code, out, _ = run("golden", "diagnose", "v1", given)
    assert code == 1
    assert "\n  1. tiled-heads, in attention_weights, attention_mix: " in out
    assert "\n  2. " not in out
