"""Another program with the same weights: transformers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.bench import Program
from tinymistral.golden.run import not_installed
from tinymistral.heads import MistralForCausalLM


class Stamps:
    """What transformers hands each new token to."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""


def transformers(folder: Path, model: MistralForCausalLM, threads: int) -> Program:
    """Return greedy generation by transformers, in the precision that our weights have in memory.

    On a GPU if there is one and we use it.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise not_installed("transformers", error, "transformers") from None
    torch.set_num_threads(threads)
    dtype = str(model.weights.model.layers[0].mlp.up_proj.weight.dtype)
    on_processor = type(model.backend).device() == "CPU"
    device = "cuda" if torch.cuda.is_available() and not on_processor else "cpu"
    peer: Any = transformers.MistralForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), sliding_window=model.config.sliding_window
    ).to(device)
    peer.generation_config = transformers.GenerationConfig()

    def generate(ids: np.ndarray, new: int) -> list[float]:
        prompt, stamps = torch.tensor(ids, device=device), Stamps()
        peer.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, streamer=stamps
        )
        return stamps.times[1:]  # it is handed the prompt first

    return generate
