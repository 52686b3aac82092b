"""The fixtures: those of the whole project, made with PyTorch, and peer.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).parent / "fixtures"
FIXTURES = Path(__file__).parents[3] / "tests" / "fixtures"
MODELS = FIXTURES / "models"
PEER = load_file(HERE / "peer.safetensors")
FACTS: dict[str, Any] = json.loads((HERE / "peer.json").read_text(encoding="utf-8"))


def exact(file: str, case: str) -> dict[str, np.ndarray]:
    """Return what transformers 5 computes in float64 in one case, by name."""
    tensors = load_file(FIXTURES / f"{file}.float64.safetensors")
    return {n.removeprefix(f"{case}."): x for n, x in tensors.items() if n.startswith(f"{case}.")}


def leaves(params: Any, path: str = "") -> dict[str, Any]:
    """Flatten nested dicts: names are joined by slashes."""
    if not isinstance(params, dict):
        return {path.removeprefix("/"): params}
    parts = (leaves(child, f"{path}/{name}") for name, child in params.items())
    return {name: array for part in parts for name, array in part.items()}
