"""The laws of `tinymistral.conformance`, run as a third party would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

SUITE = ("-m", "pytest", "--pyargs", "tinymistral.conformance", "-p", "no:cacheprovider")
REAL_SIZES = 7  # laws, which `--tinymistral-small` leaves out
# Each shape is compiled.
FEW = ("--tinymistral-small", "--tinymistral-examples", "2", "--tinymistral-backend", "jax")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x64", "dtypes", "chosen"),
    [
        ("0", "float32, bfloat16, float16", ()),
        ("1", "float32, bfloat16, float16, float64", ("-k", "float32 or float64")),
    ],
)
def test_all_laws_hold(x64, dtypes, chosen, tmp_path):
    """In the dtypes of users without x64 as these have them compiled, with all optimizations."""
    done = subprocess.run(
        [sys.executable, *SUITE, *FEW, *chosen],
        cwd=tmp_path,
        env=os.environ | {"JAX_ENABLE_X64": x64, "JAX_DISABLE_MOST_OPTIMIZATIONS": x64},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout
    assert f"backend jax on CPU, in {dtypes}\n" in done.stdout
    ran, of, failed = map(
        int, re.search(r"(\d+) of (\d+) laws ran, (\d+) failed", done.stdout).groups()
    )
    assert (ran, failed) == (of - REAL_SIZES, 0)
