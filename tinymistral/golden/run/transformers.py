"""transformers, by its own modules with eager attention: all stages, caches, generation, sampling.

Where it differs from the suite, and why (transformers 5.24):

* Its windows, and its caches for them, count columns, padding included; the suite counts positions.
  Both are the same unless padding stands between a row's tokens (`ragged-chunks`, which is not
  run), except for a cache after padding on the right, which has lost tokens and is left out.
* A cache for a window of W keeps W - 1 columns, but all of them where W is 1: `window-1` is not
  run.
* A query to which no key is visible attends to all keys alike instead of none. That concerns
  padding, which is not compared, and `attention-nothing-visible`, which is not run.
* Masked values are multiplied by 0, and 0 times NaN is NaN: cases with NaN are not run. Nor are
  positions past 2^24, since its angles are float32; attention alone makes no angles.
* In 16 bits it rounds cosines and softmax too; the suite's tolerances allow for that. In float64
  its norms, softmax and angles are float32 all the same, and padding is not run: masked scores,
  the lowest number of float64, are -inf to that softmax, and a row of them is NaN.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from tinymistral.golden.calls import at_positions, calls_of
from tinymistral.golden.files import Arrays
from tinymistral.golden.manifest import TEXT_KINDS
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
Stages = dict[str, Any]  # tensors of the latest call, by name


def open_peer(suite: Suite, settings: Settings) -> Adapter:
    """Return what computes a case by transformers, on the CPU."""
    try:
        import torch
        from transformers.models.mistral import modeling_mistral
    except ImportError as error:
        raise not_installed("transformers", error, "transformers") from None
    dtype = getattr(torch, settings.dtype)
    torch.set_grad_enabled(False)
    models: dict[str, Model] = {}

    def run(case: Case) -> Results:
        if case.kind in TEXT_KINDS:
            raise CannotRun(
                "its tokenizers read other files; tokenizer.model alone is no checkpoint"
            )
        inputs = suite.read(case).inputs
        if case.kind == "sampling":
            return run_sampling(inputs, case.parameters or {}, dtype)
        if case.kind == "operation":
            return run_operation(str(case.operation), inputs, case.parameters or {}, dtype)
        name = str(case.model)
        if name not in models:  # one at a time is in memory
            models.clear()
            models[name] = Model(suite, name, dtype, modeling_mistral)
        if case.kind == "generate":
            return models[name].generate(inputs, int((case.parameters or {})["max_new_tokens"]))
        return models[name].calls(inputs)

    return run


class Model:
    """A model of a suite in transformers, and the stages of its latest call."""

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
            attn_implementation=recorded_attention(modeling.eager_attention_forward),
        ).eval()
        self.window, self.dtype = config.sliding_window, torch.zeros((), dtype=dtype).dtype
        self._stages = record_stages(self.model, config.head_dim)
        accepted = inspect.signature(self.model.forward).parameters
        self._cache = "cache" if "cache" in accepted else "past_key_values"  # renamed in 5.24

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
            self._stages.clear()
            self.model(
                torch.tensor(call["input_ids"]),
                attention_mask=torch.tensor(positions >= 0).long(),
                position_ids=torch.tensor(call["positions"]).clamp(min=0),
                use_cache=True,
                **{self._cache: cache},
            )
            found = {name: to_numpy(tensor) for name, tensor in self._stages.items()}
            for name in [name for name in found if name.endswith("attention_weights")]:
                by_column = found[name].transpose(0, 3, 1, 2)  # (B, S, H, T)
                by_token = at_positions(by_column, positions, call["key_positions"], missing=0)
                found[name] = by_token.transpose(0, 2, 3, 1)
            for layer, held in enumerate(cache.layers if call["cache_positions"].size else ()):
                for name, tensor in (("k", held.keys), ("v", held.values)):
                    array = to_numpy(tensor.transpose(1, 2))  # (B, S, K, d)
                    array = at_positions(array, positions, call["cache_positions"], missing=np.nan)
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
    """Raise CannotRun where columns of padding would count as tokens, or lead to NaN."""
    if float64 and (positions < 0).any():
        raise CannotRun(
            "in float64 a query with no visible key is NaN, and from padding it spreads"
        )
    if window is None:
        return
    if window == 1 and calls > 1:
        raise CannotRun("its cache for a window of 1 keeps every key, and all are visible")
    for row in positions:
        real = np.flatnonzero(row >= 0)
        if len(real) and not (row[real[0] : real[-1] + 1] >= 0).all():
            raise CannotRun(
                "its windows count columns, and here a row has padding between its tokens"
            )


# Operations and sampling


def run_operation(
    name: str, inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any], dtype: Any
) -> Arrays:
    """Compute an operation with the code of transformers' modules."""
    import torch
    from transformers.activations import ACT2FN
    from transformers.models.mistral import modeling_mistral as mistral

    if name == "attention":
        check_visible(inputs, parameters["window"])
        check_finite(inputs)
    if name == "rope":
        check_counted(inputs["positions"])
    x = {
        n: torch.tensor(a).to(dtype) if a.dtype.kind == "f" else torch.tensor(a)
        for n, a in inputs.items()
    }
    if name == "embedding":
        found = {"out": torch.nn.functional.embedding(x["ids"], x["table"])}
    elif name == "linear":
        found = {"out": torch.nn.functional.linear(x["x"], x["weight"])}
    elif name == "rms_norm":
        norm = mistral.MistralRMSNorm(x["x"].shape[-1], parameters["eps"]).to(dtype)
        norm.weight.copy_(x["weight"])
        found = {"out": norm(x["x"])}
    elif name == "rope":
        found = {"out": _rope(mistral, x["x"], x["positions"], parameters["theta"])}
    elif name == "silu_mul":
        found = {"out": ACT2FN["silu"](x["gate"]) * x["up"]}
    else:
        found = _attention(mistral, x, parameters["window"])
    return {n: to_numpy(tensor) for n, tensor in found.items()}


def check_visible(inputs: Mapping[str, np.ndarray], window: int | None) -> None:
    """Raise CannotRun where no key is visible to a query that is not padding."""
    nothing = ~visible_keys(inputs["q_positions"], inputs["k_positions"], window).any(axis=-1)
    if (nothing & (inputs["q_positions"] >= 0)).any():
        raise CannotRun(
            "a query with no visible key gets the mean of all values there, and zeros in the suite"
        )


def check_finite(inputs: Mapping[str, np.ndarray]) -> None:
    """Raise CannotRun where a key or value is NaN or infinite: it may be masked for some query."""
    if not all(np.isfinite(inputs[name]).all() for name in "kv"):
        raise CannotRun("NaN in masked keys and values reaches its sums: 0 times NaN")


def visible_keys(q_positions: Any, k_positions: Any, window: int | None) -> Any:
    """Return which keys are visible to each query (B, T, S); positions are (B, T) and (B, S)."""
    distance = q_positions[:, :, None] - k_positions[:, None, :]
    visible = (k_positions >= 0)[:, None, :] & (distance >= 0)
    return visible if window is None else visible & (distance < window)


def _rope(mistral: Any, x: Any, positions: Any, theta: float) -> Any:
    from transformers import MistralConfig

    config = MistralConfig(
        head_dim=x.shape[-1], rope_parameters={"rope_type": "default", "rope_theta": theta}
    )
    cos, sin = mistral.MistralRotaryEmbedding(config)(x, positions.clamp(min=0))
    rotated, _ = mistral.apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cos, sin)
    return rotated.transpose(1, 2)


def _attention(mistral: Any, x: Mapping[str, Any], window: int | None) -> dict[str, Any]:
    """Attend with a mask by positions; transformers itself makes masks by columns."""
    import torch

    visible = visible_keys(x["q_positions"], x["k_positions"], window)[:, None]
    q, k, v = (x[name].transpose(1, 2) for name in "qkv")
    mask = torch.zeros(visible.shape, dtype=q.dtype).masked_fill(~visible, torch.finfo(q.dtype).min)
    module = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], training=False)
    mix, weights = mistral.eager_attention_forward(module, q, k, v, mask, q.shape[-1] ** -0.5)
    return {"out": mix, "weights": weights}


def run_sampling(
    inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any], dtype: Any
) -> Arrays:
    """Process logits as `_get_logits_processor` of transformers' generation/utils.py does."""
    import torch
    from transformers.generation import logits_process as process

    made = {
        "repetition_penalty": process.RepetitionPenaltyLogitsProcessor,
        "temperature": process.TemperatureLogitsWarper,
        "top_k": process.TopKLogitsWarper,
        "top_p": process.TopPLogitsWarper,
        "min_p": process.MinPLogitsWarper,
    }
    scores = torch.tensor(inputs["logits"]).to(torch.float32)  # whatever the model computes in
    for name, processor in made.items():
        if name in parameters and not (name == "top_p" and parameters[name] >= 1):
            scores = processor(parameters[name])(torch.tensor(inputs["previous_ids"]), scores)
    return {"probabilities": to_numpy(torch.softmax(scores, dim=-1).to(dtype))}


def record_stages(model: Any, head_dim: int) -> Stages:
    """Hook the modules of a MistralForCausalLM; return the dict that each call fills."""
    stages: Stages = {}
    _out(model.model.embed_tokens, "embedding", stages)
    for n, layer in enumerate(model.model.layers):
        at, attention, mlp = f"layers.{n}.", layer.self_attn, layer.mlp
        attention.golden_stages = stages  # for `recorded_attention`
        _out(layer.input_layernorm, f"{at}input_layernorm", stages)
        for name in "qkv":
            _out(getattr(attention, f"{name}_proj"), at + name, stages, (-1, head_dim))
        _out(attention.o_proj, f"{at}attention_output", stages)
        _into(layer.post_attention_layernorm, f"{at}attention_residual", stages)
        _out(layer.post_attention_layernorm, f"{at}post_attention_layernorm", stages)
        _out(mlp.gate_proj, f"{at}gate", stages)
        _out(mlp.up_proj, f"{at}up", stages)
        _into(mlp.down_proj, f"{at}silu_mul", stages)
        _out(mlp, f"{at}mlp_output", stages)
        _out(layer, f"{at}output", stages)
    _out(model.model.norm, "norm", stages)
    _out(model.lm_head, "logits", stages)
    return stages


def recorded_attention(eager: Callable[..., Any]) -> str:
    """Register transformers' eager attention with its stages recorded; return its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    def attend(module: Any, q: Any, k: Any, v: Any, mask: Any, **how: Any) -> Any:
        """Take q (B, H, T, d), k and v (B, K, S, d)."""
        mix, weights = eager(module, q, k, v, mask, scaling=how["scaling"], dropout=0.0)
        at, stages = f"layers.{module.layer_idx}.", module.golden_stages
        stages[f"{at}q_rotated"] = q.transpose(1, 2)
        stages[f"{at}k_rotated"] = k[:, :, -q.shape[2] :].transpose(1, 2)
        stages[f"{at}attention_weights"] = weights
        stages[f"{at}attention_mix"] = mix
        return mix, weights

    AttentionInterface.register("golden", attend)
    AttentionMaskInterface.register("golden", eager_mask)
    return "golden"


def _out(module: Any, name: str, stages: Stages, heads: tuple[int, ...] = ()) -> None:
    def hook(module: Any, given: Any, result: Any) -> None:
        stages[name] = result.reshape(*result.shape[:2], *heads) if heads else result

    module.register_forward_hook(hook)


def _into(module: Any, name: str, stages: Stages) -> None:
    module.register_forward_pre_hook(lambda module, given: stages.update({name: given[0]}))


def to_torch(array: np.ndarray) -> Any:
    """Bring an array of a checkpoint to torch."""
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def to_numpy(tensor: Any) -> np.ndarray:
    """Bring a tensor to NumPy in its dtype, bfloat16 as `ml_dtypes.bfloat16`."""
    import torch

    if tensor.dtype == torch.bfloat16:
        bits: np.ndarray = tensor.contiguous().view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16).copy()
    return np.array(tensor.numpy())
