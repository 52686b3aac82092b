"""The conformance tests on the emulated kernels, run as a third party would run them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

SUITE = ("-m", "pytest", "--pyargs", "tinymistral.conformance", "-p", "no:cacheprovider")
FEW = ("--tinymistral-small", "--tinymistral-examples", "3")


@pytest.mark.slow
def test_all_laws_hold(tmp_path):
    """All pass but two on attention weights, which it does not give, and those at real sizes."""
    command = [sys.executable, *SUITE, *FEW, "--tinymistral-backend", "cupy-emulated"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout
    said = "backend cupy-emulated on CPU, emulating sm_90, in float32, float16, bfloat16\n"
    ran, of, failed = map(
        int, re.search(rf"{said}(\d+) of (\d+) laws ran, (\d+) failed", done.stdout).groups()
    )
    left_out = done.stdout.count(": --tinymistral-small leaves out real sizes\n")
    assert (ran, failed) == (of - 2 - left_out, 0)
    assert left_out == 7
    assert done.stdout.count("has_attention_weights is False") == 2
