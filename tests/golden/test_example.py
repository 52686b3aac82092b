"""The example in JavaScript: another language, no Python, one thing wrong on purpose."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cli_runner import run

from tinymistral.golden.suite import V1, read_suite

EXAMPLE = Path(__file__).parents[2] / "walkthrough" / "golden-example" / "mistral.mjs"
WRONG = "const kvHead = h % K; // wrong on purpose; right is Math.floor(h / (H / K))\n"
RIGHT = "const kvHead = Math.floor(h / (H / K));\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js"),
]


def dump(program: Path, out: Path) -> str:
    """Run a program on the suite, and return the folder that it wrote."""
    subprocess.run(["node", program, V1, out], check=True, stdout=subprocess.PIPE)
    return str(out)


def test_the_mistakes_of_the_example_are_named(tmp_path):
    given = dump(EXAMPLE, tmp_path / "out")
    code, out, _ = run("golden", "check", "v1", given)
    assert code == 1
    assert "DIFFERS at calls.0.layers.0.attention_mix" in out
    assert re.search("one-to-one +OK", out)  # one query head for each key/value head
    code, out, _ = run("golden", "diagnose", "v1", given)
    assert code == 1
    assert "\n  Your output is what you get with\n  1. tiled-heads: " in out
    assert "\n  2. " not in out


def test_a_missing_suite_is_reported_in_one_line(tmp_path):
    (tmp_path / "manifest.json").write_text("no JSON", "utf-8")
    for folder in (tmp_path / "nowhere", tmp_path):
        command = ["node", EXAMPLE, folder, tmp_path / "out"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"mistral\.mjs: .+ is not the manifest of a suite: .+\n", done.stderr)


def test_corrected_it_agrees(tmp_path):
    text = EXAMPLE.read_text("utf-8")
    assert text.count(WRONG) == 1
    program = tmp_path / "mistral.mjs"
    program.write_text(text.replace(WRONG, RIGHT), "utf-8")
    given = dump(program, tmp_path / "out")
    code, out, err = run("golden", "check", "v1", given)
    assert (code, err) == (0, "")
    manifest = read_suite(V1).manifest
    models = [manifest.models[c.model] for c in manifest.cases.values() if c.kind == "model"]
    done = sum(model.layout == "hf" and model.dtype != "float16" for model in models)
    assert f"{done} OK, 0 differ" in out
