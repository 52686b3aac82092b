"""Compare the emulated kernels with the golden outputs that come with tinymistral.

Those have all stages of every layer, in float64 and each with a tolerance: windows that wrap,
padding, far positions, NaN in masked keys.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def golden(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "tinymistral", "golden", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_cases_agree(dtype, tmp_path):
    kinds = {case["id"]: case["kind"] for case in json.loads(golden("list", "--json"))["cases"]}
    cases = [name for name, kind in kinds.items() if kind in ("operation", "model", "generate")]
    assert len(cases) > 40
    chosen = [text for case in cases for text in ("--case", case)]
    computed = ("tinymistral", "--backend", "cupy-emulated", "--dtype", dtype)
    golden("run", *computed, *chosen, "-o", tmp_path)
    said = golden("check", "v1", tmp_path, "--dtype", dtype)
    assert f"{len(cases)} OK, 0 differ" in said
