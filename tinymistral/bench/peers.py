"""Other programs with the same weights: transformers, and llama.cpp by llama-cpp-python."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.bench import Program
from tinymistral.golden.run import not_installed
from tinymistral.heads import MistralForCausalLM

PEERS = ("transformers", "llama-cpp")


def open_peer(name: str, folder: Path, model: MistralForCausalLM, threads: int) -> Program:
    """Return a peer with a model's weights, in the precision that they have in memory here."""
    matrix = model.weights.model.layers[0].mlp.up_proj.weight
    open_it = {"transformers": transformers, "llama-cpp": llama_cpp}[name]
    return open_it(folder, model, threads, str(matrix.dtype))


class Stamps:
    """What transformers hands each new token to."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""


def transformers(folder: Path, model: MistralForCausalLM, threads: int, dtype: str) -> Program:
    """Return greedy generation by transformers, on a GPU if there is one and we use it."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise not_installed("transformers", error, "transformers") from None
    torch.set_num_threads(threads)
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


def llama_cpp(folder: Path, model: MistralForCausalLM, threads: int, dtype: str) -> Program:
    """Return greedy generation by llama.cpp, in float32 and without a window, which it ignores."""
    try:
        import gguf  # noqa: F401
        import llama_cpp as library
    except ImportError as error:
        raise not_installed("llama-cpp", error, "llama-cpp") from None
    from tinymistral.golden.run.llama_cpp import write_gguf

    path = folder / "float32.gguf"
    if not path.exists():
        write_gguf(path, model.config, model.tensors)
    peer = library.llama_model_load_from_file(
        str(path).encode(), library.llama_model_default_params()
    )

    def generate(ids: np.ndarray, new: int) -> list[float]:
        if len(ids) > 1:
            raise ValueError("llama-cpp is measured with one row; leave --batch out")
        how = library.llama_context_default_params()
        how.n_ctx = how.n_batch = ids.shape[1] + new
        how.n_threads = how.n_threads_batch = threads
        context = library.llama_init_from_model(peer, how)
        tokens: list[int] = ids[0].tolist()
        times: list[float] = []
        while len(times) < new:
            piece = (library.llama_token * len(tokens))(*tokens)
            library.llama_decode(context, library.llama_batch_get_one(piece, len(tokens)))
            logits = library.llama_get_logits_ith(context, -1)
            logits = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
            tokens = [int(np.ctypeslib.as_array(logits, (model.config.vocab_size,)).argmax())]
            times.append(time.perf_counter())
        library.llama_free(context)
        return times

    return generate
