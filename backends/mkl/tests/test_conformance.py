"""The laws of `tinymistral.conformance`, run as a third party would run them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

SUITE = ("-m", "pytest", "--pyargs", "tinymistral.conformance", "-p", "no:cacheprovider")
# All but one of the operations are NumPy's, and tested there.
FEW = ("--tinymistral-examples", "4", "--tinymistral-backend", "mkl")


@pytest.mark.slow
def test_all_laws_hold(tmp_path):
    done = subprocess.run(
        [sys.executable, *SUITE, *FEW], cwd=tmp_path, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stdout
    assert "backend mkl on CPU, in float32, float64, float16, bfloat16\n" in done.stdout
    ran, of, failed = re.search(r"(\d+) of (\d+) laws ran, (\d+) failed", done.stdout).groups()
    assert (ran, failed) == (of, "0")
