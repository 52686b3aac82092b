"""The golden outputs that come with tinymistral: all stages through the backend, and logits.

They are in float64 and each has a tolerance: windows that wrap, padding, far positions, NaN in
masked keys.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tinymistral.golden.models import read_model
from tinymistral.golden.suite import V1, read_suite
from tinymistral_jax import FlaxMistralForCausalLM
from tinymistral_jax.params import to_params

MANIFEST = json.loads((V1 / "manifest.json").read_text(encoding="utf-8"))


def golden(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "tinymistral", "golden", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_stages_agree_through_the_backend(dtype, tmp_path):
    kinds = ("operation", "model", "generate")
    cases = [case["id"] for case in MANIFEST["cases"] if case["kind"] in kinds]
    assert len(cases) > 40
    chosen = [text for case in cases for text in ("--case", case)]
    golden("run", "tinymistral", "--backend", "jax", "--dtype", dtype, *chosen, "-o", tmp_path)
    assert f"{len(cases)} OK, 0 differ" in golden("check", "v1", tmp_path, "--dtype", dtype)


SUITE = read_suite()
CASES = [case for case in MANIFEST["cases"] if case["kind"] == "model"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_logits_agree_through_the_flax_classes(case):
    """In float32, by calls with one cache, each with positions of its own."""
    config, tensors = read_model(SUITE, case["model"])
    model = FlaxMistralForCausalLM(config, params=to_params(tensors))
    arrays = load_file(V1 / case["file"])
    cache = model.init_cache(len(arrays["inputs.calls.0.input_ids"]), 64)
    for n in range(case["calls"]):
        positions = arrays[f"inputs.calls.{n}.positions"]
        ids, name = arrays[f"inputs.calls.{n}.input_ids"], f"calls.{n}.logits"
        out = model(ids, positions >= 0, positions, past_key_values=cache)
        cache, real = out.past_key_values, positions >= 0
        np.testing.assert_allclose(
            np.asarray(out.logits)[real],
            arrays[f"expected.{name}"][real],
            rtol=0,
            atol=case["expected"][name]["tolerance"]["float32"],
        )
