"""How tinymistral itself computes a case, on any backend: a dict of arrays, named as in `expected`.

Everything that may be wrong can be replaced: the backend; the model, and with it the
configuration (`weights.open_model`), the weights and, through its `new_cache`, the cache; the
inputs; the parameters of an operation (`dataclasses.replace(case, parameters=...)`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from tinymistral.backend import Backend
from tinymistral.cache import RollingCache
from tinymistral.golden.suite import Case, Suite
from tinymistral.golden.weights import open_model
from tinymistral.heads import MistralForCausalLM

Inputs = Mapping[str, np.ndarray]
Results = dict[str, np.ndarray]

PIECE = 4  # tokens that `generate` takes at once: few, so that a ring of any size turns


def run_case(
    suite: Suite,
    case: Case,
    backend: Backend,
    model: MistralForCausalLM | None = None,
    inputs: Inputs | None = None,
) -> Results:
    """Compute a case of kind model, operation or generate on a backend.

    `model`, which has a backend of its own, in the place of the suite's; `inputs` in the place of
    the case's, of any number of calls. What is computed in 16 bits is returned so.
    """
    inputs = suite.read(case).inputs if inputs is None else inputs
    if case.kind == "operation":
        assert case.operation is not None and case.parameters is not None
        return run_operation(case.operation, backend, inputs, case.parameters)
    if case.model is None:
        raise ValueError(f"case {case.id}: no backend computes cases of kind {case.kind!r}")
    model = open_model(suite, case.model, backend) if model is None else model
    if case.kind == "generate":
        assert case.parameters is not None
        return run_generate(model, inputs, case.parameters)
    return run_calls(model, inputs)


def run_calls(model: MistralForCausalLM, inputs: Inputs) -> Results:
    """Make the calls of a case of kind model, which follow each other with one cache."""
    calls = calls_of(inputs)
    chunk = max(call["input_ids"].shape[1] for call in calls)
    cache = model.new_cache(len(calls[0]["input_ids"]), chunk)
    results: Results = {}
    for n, call in enumerate(calls):
        stages = run_call(model, call, cache)
        results |= {f"calls.{n}.{name}": array for name, array in stages.items()}
    return results


def run_call(model: MistralForCausalLM, call: Inputs, cache: RollingCache) -> Results:
    """Make one call with a cache; return all stages, and what the cache then holds."""
    stages: Results = {}
    model(
        call["input_ids"],
        position_ids=call["positions"],
        past_key_values=cache,
        tap=lambda name, array: stages.update({name: array.copy()}),
    )
    return stages | held(cache, call["cache_positions"])


def calls_of(inputs: Inputs) -> list[Results]:
    """Return the inputs of each call of a case of kind model."""
    calls: list[Results] = []
    while f"calls.{len(calls)}.input_ids" in inputs:
        name = f"calls.{len(calls)}."
        calls.append({n.removeprefix(name): x for n, x in inputs.items() if n.startswith(name)})
    return calls


def held(cache: RollingCache, positions: np.ndarray) -> Results:
    """Return what a cache holds of each layer at positions (B, P), -1 for nothing: (B, P, K, d).

    Where there should be something and is not, NaN.
    """
    results: Results = {}
    there = cache.key_positions
    for layer in range(len(cache.k) if positions.size else 0):
        for name, array in zip("kv", cache.read(layer), strict=True):
            stored = cache.backend.to_numpy(array)
            out = np.full((*positions.shape, *stored.shape[2:]), np.nan, dtype=stored.dtype)
            out[positions < 0] = 0
            for b, p in np.argwhere(positions >= 0):
                for slot in np.flatnonzero(there[b] == positions[b, p]):
                    out[b, p] = stored[b, slot]
            results[f"cache.layers.{layer}.{name}"] = out
    return results


def run_generate(
    model: MistralForCausalLM, inputs: Inputs, parameters: Mapping[str, Any]
) -> Results:
    """Continue the prompts of a case greedily; no token ends a row."""
    short = copy.copy(model)
    vars(short)["new_cache"] = partial(model.new_cache, chunk=PIECE)
    output = short.generate(
        inputs["input_ids"],
        inputs["attention_mask"],
        max_new_tokens=parameters["max_new_tokens"],
        do_sample=False,
        eos_token_id=[],
        return_dict_in_generate=True,
    )
    return {"sequences": output.sequences, "logprobs": output.logprobs}


def run_operation(
    name: str, backend: Backend, inputs: Inputs, parameters: Mapping[str, Any]
) -> Results:
    """Call a method of a backend; numbers are brought to it in its dtype."""
    arrays = {
        n: backend.asarray(x, backend.dtype) if x.dtype.kind == "f" else x
        for n, x in inputs.items()
    }
    if name == "rope":
        table = backend.rope_table(arrays["positions"], parameters["theta"], inputs["x"].shape[-1])
        results = {"out": backend.rope(arrays["x"], table)}
    elif name == "attention":
        results = {"out": backend.attention(**arrays, window=parameters["window"])}
        if backend.has_attention_weights:
            scored = {n: x for n, x in arrays.items() if n != "v"}
            weights = backend.attention_weights(**scored, window=parameters["window"])
            results["weights"] = weights
    else:
        results = {"out": getattr(backend, name)(**arrays, **parameters)}
    return {n: np.array(backend.to_numpy(x)) for n, x in results.items()}
