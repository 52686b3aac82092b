"""llama.cpp, by llama-cpp-python: logits, and greedy continuations by them, in float32.

A model of the suite becomes a GGUF file of the `llama` architecture, as llama.cpp's own
convert_hf_to_gguf.py writes Mistral, all weights in F32, without a vocabulary. Keys and values are
cached in F32 too, and attention is the plain one.

That architecture has no window, whatever the file says. So past a window tokens are sent one at a
time, and before each the keys that have left the window are removed from the cache; llama.cpp by
itself differs in every call that goes past the window. It returns nothing but logits. Its angles
are float32, so positions past 2^24 are not run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.checkpoint.gguf import write_gguf
from tinymistral.config import MistralConfig
from tinymistral.golden.calls import calls_of, logprobs
from tinymistral.golden.models import read_model
from tinymistral.golden.run import (
    Adapter,
    CannotRun,
    Results,
    Settings,
    check_counted,
    not_installed,
)
from tinymistral.golden.suite import Case, Suite

Inputs = Mapping[str, np.ndarray]

F32, FLASH_ATTENTION_OFF = 0, 0  # of ggml_type, and of llama_flash_attn_type


def open_peer(suite: Suite, settings: Settings) -> Adapter:
    """Return what computes a case by llama.cpp, on the CPU."""
    try:
        import gguf  # noqa: F401
        import llama_cpp
    except ImportError as error:
        raise not_installed("llama-cpp", error, "llama-cpp") from None
    if settings.dtype != "float32":
        raise ValueError(f"llama-cpp is run in float32; leave --dtype {settings.dtype} out")
    models: dict[str, Model] = {}

    def run(case: Case) -> Results:
        if case.model is None:
            raise CannotRun("it gives nothing but the logits of whole models")
        if case.model not in models:
            models.clear()
            models[case.model] = model_of(suite, case.model, llama_cpp)
        inputs = suite.read(case).inputs
        if case.kind == "generate":
            return models[case.model].generate(
                inputs, int((case.parameters or {})["max_new_tokens"])
            )
        return models[case.model].calls(inputs)

    return run


def model_of(suite: Suite, name: str, library: Any) -> Model:
    """Return a model of the suite in llama.cpp."""
    config, tensors = read_model(suite, name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, config, tensors)
        return Model(path, config, library)


class Model:
    """A GGUF file in llama.cpp."""

    def __init__(self, path: Path, config: MistralConfig, library: Any):
        self.library, self.config = library, config
        library.llama_log_set(_quiet(library), None)
        how = library.llama_model_default_params()
        how.use_mmap = False
        self.model = library.llama_model_load_from_file(str(path).encode(), how)
        if not self.model:
            raise ValueError("llama.cpp does not load the model")

    def calls(self, inputs: Inputs) -> Results:
        """Make the calls of a case, which follow each other."""
        calls = calls_of(inputs)
        check_counted(np.concatenate([call["positions"] for call in calls], axis=1))
        rows, most = len(calls[0]["positions"]), sum(x["positions"].shape[1] for x in calls)
        context = Context(self, rows, most)
        return {
            f"calls.{n}.logits": context.logits(call["input_ids"], call["positions"])
            for n, call in enumerate(calls)
        }

    def generate(self, inputs: Inputs, new: int) -> Results:
        """Continue prompts, padded on the left, by the likeliest token each time."""
        mask, ids = inputs["attention_mask"], inputs["input_ids"]
        context = Context(self, len(mask), mask.shape[1] + new)
        positions = np.where(mask == 1, np.cumsum(mask, axis=1) - 1, -1)
        scores = [context.logits(ids, positions)[:, -1]]
        tokens = [scores[-1].argmax(axis=-1)]
        for n in range(1, new):
            at = positions[:, -1:] + n
            scores.append(context.logits(tokens[-1][:, None], at)[:, -1])
            tokens.append(scores[-1].argmax(axis=-1))
        chosen = np.stack(tokens, axis=1)
        found = logprobs(np.stack(scores, axis=1), chosen).astype(np.float32)
        return {"sequences": np.concatenate([ids, chosen], axis=1), "logprobs": found}


class Context:
    """A context of llama.cpp: rows of tokens that are continued."""

    def __init__(self, model: Model, rows: int, most: int):
        self.library, self.V = model.library, model.config.vocab_size
        self.window = model.config.sliding_window
        how = self.library.llama_context_default_params()
        how.n_ctx, how.n_batch, how.n_ubatch = rows * most, rows * most, rows * most
        how.n_seq_max, how.n_threads, how.n_threads_batch = rows, 1, 1
        how.type_k = how.type_v = F32
        how.kv_unified, how.flash_attn_type = True, FLASH_ATTENTION_OFF
        self.context = self.library.llama_init_from_model(model.model, how)
        self.batch = self.library.llama_batch_init(rows * most, 0, 1)

    def logits(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Continue with tokens (B, T) -> logits (B, T, V), 0 at padding."""
        if self.window is None or positions.max() < self.window:
            return self._logits(ids, positions)
        columns = []
        for column in range(ids.shape[1]):
            one = slice(column, column + 1)
            self._remove(positions[:, column] - self.window)
            columns.append(self._logits(ids[:, one], positions[:, one]))
        return np.concatenate(columns, axis=1)

    def _remove(self, last: np.ndarray) -> None:
        """Remove the keys of rows up to positions (B,); none where that is negative."""
        memory = self.library.llama_get_memory(self.context)
        for row in np.flatnonzero(last >= 0):
            self.library.llama_memory_seq_rm(memory, int(row), 0, int(last[row]) + 1)

    def _logits(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        out = np.zeros((*ids.shape, self.V), dtype=np.float32)
        where, batch = np.argwhere(positions >= 0), self.batch
        batch.n_tokens = len(where)
        for n, (b, t) in enumerate(where.tolist()):
            batch.token[n], batch.pos[n] = int(ids[b, t]), int(positions[b, t])
            batch.n_seq_id[n], batch.seq_id[n][0], batch.logits[n] = 1, b, True
        if code := self.library.llama_decode(self.context, batch):
            raise ValueError(f"llama_decode returned {code}")
        for n, (b, t) in enumerate(where.tolist()):
            found = self.library.llama_get_logits_ith(self.context, n)
            out[b, t] = np.ctypeslib.as_array(found, (self.V,))
        return out

    def __del__(self) -> None:
        self.library.llama_batch_free(self.batch)
        self.library.llama_free(self.context)


def _quiet(library: Any) -> Any:
    """Return a callback that drops llama.cpp's log; a global keeps it alive, as C does not."""
    global _LOG
    _LOG = library.llama_log_callback(lambda level, text, data: None)
    return _LOG


_LOG: Any = None
