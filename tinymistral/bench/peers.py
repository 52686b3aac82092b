"""Other programs with the same weights: transformers, and llama.cpp by llama-cpp-python."""

from __future__ import annotations

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.bench import Program
from tinymistral.checkpoint.gguf import write_gguf
from tinymistral.golden.run import not_installed
from tinymistral.golden.run.llama_cpp import F32, Model
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
    import torch
    import transformers

    torch.set_num_threads(threads)
    dtype = dtype_in_memory(model)
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


def llama_cpp(folder: Path, model: MistralForCausalLM, threads: int) -> Program:
    """Return greedy generation by llama.cpp on the processor, one row, in our weights' precision.

    It reads a GGUF file of these weights, for which it has no window. Keys and values are float32.
    """
    import llama_cpp as library

    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(dtype_in_memory(model))
    if kind is None:
        raise ValueError(f"--against llama-cpp: it does not compute in {model.backend.dtype}")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.gguf"
        write_gguf(path, model.config, model.tensors, kind)
        peer = Model(path, model.config, library)

    def generate(ids: np.ndarray, new: int) -> list[float]:
        length = ids.shape[1]
        how = library.llama_context_default_params()
        how.n_ctx = how.n_batch = length + new
        how.n_threads = how.n_threads_batch = threads
        how.type_k = how.type_v = F32
        context = library.llama_init_from_model(peer.model, how)
        tokens, times = ids[0].tolist(), []
        for _ in range(new):
            array = (library.llama_token * len(tokens))(*tokens)
            batch = library.llama_batch_get_one(array, len(array))  # at the next positions
            if code := library.llama_decode(context, batch):
                raise ValueError(f"llama_decode returned {code}")
            logits = library.llama_get_logits_ith(context, -1)
            tokens = [int(np.ctypeslib.as_array(logits, (model.config.vocab_size,)).argmax())]
            times.append(time.perf_counter())
        library.llama_free(context)
        return times

    return generate


def dtype_in_memory(model: MistralForCausalLM) -> str:
    """Return the dtype of the matrices that a model multiplies with."""
    return str(model.weights.model.layers[0].mlp.up_proj.weight.dtype)


PEERS = {"transformers": transformers, "llama-cpp": llama_cpp}
MODULES = {"transformers": ("torch", "transformers"), "llama-cpp": ("gguf", "llama_cpp")}


def check_installed(name: str) -> None:
    """Raise a ValueError if a program's packages are not there; they are not imported."""
    for module in MODULES[name]:
        if find_spec(module) is None:
            raise not_installed(name, ImportError(f"No module named {module!r}"), name)
