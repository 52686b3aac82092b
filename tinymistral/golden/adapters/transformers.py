"""transformers, by its own modules with eager attention: all stages, caches, generation, sampling.

Where it differs from the suite, and why (transformers 5.24):

* Its windows, and its caches for them, count columns, padding too; the suite counts positions.
  That is the same unless padding stands between a row's tokens (`ragged-chunks`, which is not
  run), and but for a cache after padding on the right, which has lost tokens and is left out.
* A cache for a window of W keeps W - 1 columns, but all where W is 1: `window-1` is not run.
* A query that sees nothing reads all keys alike, where it should read none: padding of a text,
  which nobody looks at, and `attention-nothing-visible`, which is not run.
* Hidden values are multiplied by 0, and 0 times NaN is NaN: what holds NaN is not run. Nor are
  positions past 2^24, for its angles are float32, but in attention alone, which makes none.
* In 16 bits it rounds on the way what the suite's tolerances leave room for: cosines, softmax. In
  float64 its norms, softmax and angles are float32 all the same, and padding is not run: masked
  scores, the lowest number of float64, are -inf to that softmax, and a row of them is NaN.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from tinymistral.golden.adapters import Adapter, CannotRun, Results, Settings, missing
from tinymistral.golden.adapters.counting import check_counted
from tinymistral.golden.adapters.torch_arrays import to_numpy, to_torch
from tinymistral.golden.adapters.transformers_operations import run_operation, run_sampling
from tinymistral.golden.adapters.transformers_stages import watch, watched_attention
from tinymistral.golden.running import calls_of
from tinymistral.golden.suite import Case, Suite
from tinymistral.golden.weights import read_model

Inputs = Mapping[str, np.ndarray]


def open_peer(suite: Suite, settings: Settings) -> Adapter:
    """Return what computes a case by transformers, on the CPU."""
    try:
        import torch
        from transformers.models.mistral import modeling_mistral
    except ImportError as error:
        raise missing("transformers", error, "transformers") from None
    dtype = getattr(torch, settings.dtype)
    torch.set_grad_enabled(False)
    models: dict[str, Model] = {}

    def run(case: Case) -> Results:
        if case.kind in ("tokenizer", "chat"):
            raise CannotRun(
                "its tokenizers read other files; tokenizer.model alone is no checkpoint"
            )
        inputs = suite.read(case).inputs
        if case.kind == "sampling":
            return run_sampling(inputs, case.parameters or {}, dtype)
        if case.kind == "operation":
            return run_operation(str(case.operation), inputs, case.parameters or {}, dtype)
        name = str(case.model)
        if name not in models:
            models.clear()
            models[name] = Model(suite, name, dtype, modeling_mistral)
        if case.kind == "generate":
            return models[name].generate(inputs, int((case.parameters or {})["max_new_tokens"]))
        return models[name].calls(inputs)

    return run


class Model:
    """A model of a suite in transformers, and what is seen of its calls."""

    def __init__(self, suite: Suite, name: str, dtype: Any, modeling: Any):
        import torch
        import transformers

        transformers.logging.disable_progress_bar()
        config, tensors = read_model(suite, name)
        self.model = modeling.MistralForCausalLM.from_pretrained(
            None,
            config=transformers.MistralConfig(**config.to_dict()),
            state_dict={n: to_torch(x).to(dtype) for n, x in tensors.items()},
            dtype=dtype,
            attn_implementation=watched_attention(modeling.eager_attention_forward),
        ).eval()
        self.window, self.dtype = config.sliding_window, torch.zeros((), dtype=dtype).dtype
        self._seen = watch(self.model, config.head_dim)
        takes = inspect.signature(self.model.forward).parameters
        self._cache = "cache" if "cache" in takes else "past_key_values"  # renamed in 5.24

    def calls(self, inputs: Inputs) -> Results:
        """Make the calls of a case, which follow each other with one cache."""
        import torch
        from transformers import DynamicCache

        calls = calls_of(inputs)
        everything = np.concatenate([call["positions"] for call in calls], axis=1)
        check_counted(everything)
        check_padding(everything, self.window, len(calls), self.dtype == torch.float64)
        cache, columns = DynamicCache(config=self.model.config), 0
        results: Results = {}
        for n, call in enumerate(calls):
            columns += call["positions"].shape[1]
            positions = everything[:, :columns]
            self._seen.clear()
            self.model(
                torch.tensor(call["input_ids"]),
                attention_mask=torch.tensor(positions >= 0).long(),
                position_ids=torch.tensor(call["positions"]).clamp(min=0),
                use_cache=True,
                **{self._cache: cache},
            )
            found = {name: to_numpy(tensor) for name, tensor in self._seen.items()}
            for name in [name for name in found if name.endswith("attention_weights")]:
                by_column = found[name].transpose(0, 3, 1, 2)  # (B, S, H, T)
                by_token = at_positions(by_column, positions, call["key_positions"], lost=0)
                found[name] = by_token.transpose(0, 2, 3, 1)
            for layer, held in enumerate(cache.layers if call["cache_positions"].size else ()):
                for name, tensor in (("k", held.keys), ("v", held.values)):
                    array = to_numpy(tensor.transpose(1, 2))  # (B, S, K, d)
                    array = at_positions(array, positions, call["cache_positions"], lost=np.nan)
                    if not np.isnan(array).any():
                        found[f"cache.layers.{layer}.{name}"] = array
            results |= {f"calls.{n}.{name}": array for name, array in found.items()}
        return results

    def generate(self, inputs: Inputs, new: int) -> Results:
        """Continue prompts by the likeliest token each time."""
        import torch

        real = np.where(inputs["attention_mask"] == 1, 0, -1)
        check_padding(real, self.window, 1, self.dtype == torch.float64)
        found = self.model.generate(
            torch.tensor(inputs["input_ids"]),
            attention_mask=torch.tensor(inputs["attention_mask"]),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=self.model.config.vocab_size,  # it wants one, and none is so large
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        logprobs = torch.stack(found.logits, dim=1).double().log_softmax(-1)  # (B, new, V)
        chosen = logprobs.gather(-1, found.sequences[:, -new:, None])[..., 0]
        return {
            "sequences": found.sequences.numpy(),
            "logprobs": to_numpy(chosen.to(self.dtype)),
        }


def check_padding(positions: np.ndarray, window: int | None, calls: int, float64: bool) -> None:
    """Raise CannotRun where columns of padding would count as tokens, or give NaN."""
    if float64 and (positions < 0).any():
        raise CannotRun("in float64 what sees nothing is NaN, and from padding it spreads")
    if window is None:
        return
    if window == 1 and calls > 1:
        raise CannotRun("its cache for a window of 1 keeps every key, and shows them all")
    for row in positions:
        real = np.flatnonzero(row >= 0)
        if len(real) and not (row[real[0] : real[-1] + 1] >= 0).all():
            raise CannotRun(
                "its windows count columns, and here a row has padding between its tokens"
            )


def at_positions(
    array: np.ndarray, columns: np.ndarray, positions: np.ndarray, lost: float
) -> np.ndarray:
    """Pick from (B, S, ...), of the last S columns, what is at positions (B, n), or `lost`.

    0 where the position is -1.
    """
    columns = columns[:, columns.shape[1] - array.shape[1] :]
    out = np.full((*positions.shape, *array.shape[2:]), lost, dtype=array.dtype)
    out[positions < 0] = 0
    for b, n in np.argwhere(positions >= 0):
        for column in np.flatnonzero(columns[b] == positions[b, n]):
            out[b, n] = array[b, column]
    return out
