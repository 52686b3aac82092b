"""Reading the fixtures that `fixtures/make_fixtures.py` makes with transformers."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tinymistral import DEMO

__all__ = ["CASES", "DEMO", "FIXTURES", "MANIFEST", "MODELS", "goldens", "read_json"]

FIXTURES = Path(__file__).parent / "fixtures"
MANIFEST: dict[str, Any] = json.loads((FIXTURES / "manifest.json").read_text(encoding="utf-8"))
MODELS = sorted(MANIFEST["models"])
CASES = [(name, case) for name in MODELS for case in MANIFEST["models"][name]["cases"]]


@functools.cache
def _tensors(file: str) -> dict[str, np.ndarray]:
    return load_file(FIXTURES / f"{file}.safetensors")


def goldens(file: str, case: str) -> dict[str, np.ndarray]:
    """Return the tensors of one case in `file`.safetensors, by their names without the case."""
    prefix = f"{case}."
    return {n.removeprefix(prefix): t for n, t in _tensors(file).items() if n.startswith(prefix)}


def read_json(file: str) -> Any:
    """Return what stands in a JSON fixture."""
    return json.loads((FIXTURES / file).read_text(encoding="utf-8"))
