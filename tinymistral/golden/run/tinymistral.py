"""tinymistral itself, on any of its backends.

Everything can be replaced, to see what a mistake in it leads to: the backend; the model, and with
it the configuration (`models.open_model`), the weights and, through its `new_cache`, the cache; the
inputs; the parameters of an operation (`dataclasses.replace(case, parameters=...)`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.backend import Backend
from tinymistral.cache import RollingCache
from tinymistral.demo import DEMO
from tinymistral.discovery import get_backend
from tinymistral.golden.calls import at_positions, calls_of
from tinymistral.golden.files import Arrays, sha256_of
from tinymistral.golden.manifest import TEXT_KINDS
from tinymistral.golden.models import open_model
from tinymistral.golden.run import Adapter, CannotRun, Results, Settings
from tinymistral.golden.suite import Case, Suite
from tinymistral.heads import MistralForCausalLM
from tinymistral.operations import NUMPY_DTYPES
from tinymistral.sampling import GenerationConfig, softmax
from tinymistral.tokenizer import MistralTokenizer

Inputs = Mapping[str, np.ndarray]

CHUNK = 4  # tokens that `generate` takes at once: few, so that a ring of any size wraps


def open_peer(suite: Suite, settings: Settings) -> Adapter:
    """Return what computes a case on the chosen backend."""
    backend = get_backend(settings.backend, settings.dtype)
    known = {sha256_of(path): path for path in settings.vocabularies}

    def run(case: Case) -> Results:
        if case.kind in TEXT_KINDS:
            path = known.get((case.vocabulary or {}).get("sha256", ""))
            try:
                return run_vectors(suite, case, open_vocabulary(case, path))
            except ValueError as error:
                raise CannotRun(f"{error}: --vocabulary") from None
        if case.kind == "sampling":
            return run_vectors(suite, case)
        results = run_case(suite, case, backend)
        if case.kind == "generate":  # log-probabilities are float64, of logits in the dtype
            results["logprobs"] = results["logprobs"].astype(NUMPY_DTYPES[backend.dtype])
        return results

    return run


# Cases that a backend computes: of kind model, operation and generate


def run_case(
    suite: Suite,
    case: Case,
    backend: Backend,
    model: MistralForCausalLM | None = None,
    inputs: Inputs | None = None,
) -> Arrays:
    """Compute a case of kind model, operation or generate on a backend.

    `model`, which has a backend of its own, replaces the suite's; `inputs`, of any number of calls,
    replace the case's. 16-bit results are returned in 16 bits.
    """
    inputs = suite.read(case).inputs if inputs is None else inputs
    if case.kind == "operation":
        return run_operation(str(case.operation), backend, inputs, case.parameters or {})
    if case.model is None:
        raise ValueError(f"case {case.id}: no backend computes cases of kind {case.kind!r}")
    model = open_model(suite, case.model, backend) if model is None else model
    if case.kind == "generate":
        return run_generate(model, inputs, case.parameters or {})
    return run_calls(model, inputs)


def run_operation(
    name: str, backend: Backend, inputs: Inputs, parameters: Mapping[str, Any]
) -> Arrays:
    """Call a method of a backend, with floating-point inputs in its dtype."""
    arrays = {
        n: backend.asarray(x, backend.dtype) if x.dtype.kind == "f" else x
        for n, x in inputs.items()
    }
    if name == "rope":
        table = backend.rope_table(arrays["positions"], parameters["theta"], inputs["x"].shape[-1])
        results = {"out": backend.rope(arrays["x"], table)}
    else:
        results = {"out": getattr(backend, name)(**arrays, **parameters)}
    if name == "attention" and backend.has_attention_weights:
        del arrays["v"]
        weights = backend.attention_weights(**arrays, window=parameters["window"])
        results["weights"] = weights
    return {n: np.array(backend.to_numpy(x)) for n, x in results.items()}


def run_calls(model: MistralForCausalLM, inputs: Inputs) -> Arrays:
    """Make the calls of a case of kind model, which follow each other with one cache."""
    calls = calls_of(inputs)
    chunk = max(call["input_ids"].shape[1] for call in calls)
    cache = model.new_cache(len(calls[0]["input_ids"]), chunk)
    results: Arrays = {}
    for n, call in enumerate(calls):
        stages = run_call(model, call, cache)
        results |= {f"calls.{n}.{name}": array for name, array in stages.items()}
    return results


def run_call(model: MistralForCausalLM, call: Inputs, cache: RollingCache) -> Arrays:
    """Make one call with a cache; return all stages, and what the cache then holds."""
    stages: Arrays = {}
    model(
        call["input_ids"],
        position_ids=call["positions"],
        past_key_values=cache,
        tap=lambda name, array: stages.update({name: array.copy()}),
    )
    return stages | cached(cache, call["cache_positions"])


def cached(cache: RollingCache, positions: np.ndarray) -> Arrays:
    """Return each layer's cached keys and values (B, P, K, d) at positions (B, P).

    0 where the position is -1, NaN where the cache does not have it.
    """
    results: Arrays = {}
    in_slots = cache.key_positions
    for layer in range(len(cache.k) if positions.size else 0):
        for name, array in zip("kv", cache.read(layer), strict=True):
            stored = cache.backend.to_numpy(array)
            found = at_positions(stored, in_slots, positions, missing=np.nan)
            results[f"cache.layers.{layer}.{name}"] = found
    return results


def run_generate(
    model: MistralForCausalLM, inputs: Inputs, parameters: Mapping[str, Any]
) -> Arrays:
    """Continue the prompts of a case greedily; no token ends a row."""
    small_chunks = copy.copy(model)
    vars(small_chunks)["new_cache"] = partial(model.new_cache, chunk=CHUNK)
    output = small_chunks.generate(
        inputs["input_ids"],
        inputs["attention_mask"],
        max_new_tokens=parameters["max_new_tokens"],
        do_sample=False,
        eos_token_id=[],
        return_dict_in_generate=True,
    )
    return {"sequences": output.sequences, "logprobs": output.logprobs}


# Cases of kind sampling, tokenizer and chat


def run_vectors(
    suite: Suite,
    case: Case,
    tokenizer: MistralTokenizer | None = None,
    inputs: Inputs | None = None,
) -> Results:
    """Compute a case: of kind sampling its arrays, in float32; else a document like the suite's.

    A tokenizer is needed where the vocabulary is not the demo's, see `open_vocabulary`; `inputs`
    replace the case's.
    """
    if case.kind == "sampling":
        inputs = suite.read(case).inputs if inputs is None else inputs
        return run_sampling(inputs, case.parameters or {})
    if case.kind not in TEXT_KINDS:
        raise ValueError(f"case {case.id}: cases of kind {case.kind!r} are computed by a backend")
    tokenizer = open_vocabulary(case) if tokenizer is None else tokenizer
    run = run_tokenizer if case.kind == "tokenizer" else run_chat
    return run(suite.document(case), tokenizer)


def run_sampling(inputs: Inputs, parameters: Mapping[str, Any], dtype: str = "float32") -> Arrays:
    """Return the probabilities (B, V) after logits (B, V); what is no parameter is switched off."""
    logits = inputs["logits"].astype(dtype)
    options = {"do_sample": True, "top_k": 0} | dict(parameters)
    scores = GenerationConfig(**options).process(logits, inputs["previous_ids"].tolist())
    return {"probabilities": softmax(scores)}


def run_tokenizer(document: Mapping[str, Any], tokenizer: MistralTokenizer) -> Results:
    """Encode the texts of a document, and decode its ids."""
    strings = []
    for entry in document["strings"]:
        ids = tokenizer.encode(entry["text"], add_special_tokens=False)
        strings.append({**entry, "ids": ids, "decoded": tokenizer.decode(ids)})
    decodings = [
        {"ids": entry["ids"], "decoded": tokenizer.decode(entry["ids"])}
        for entry in document.get("decodings", [])
    ]
    return {**document, "strings": strings, "decodings": decodings}


def run_chat(document: Mapping[str, Any], tokenizer: MistralTokenizer) -> Results:
    """Encode the conversations of a document."""
    conversations = [
        {**entry, "ids": tokenizer.apply_chat_template(entry["messages"])}
        for entry in document["conversations"]
    ]
    return {**document, "conversations": conversations}


def open_vocabulary(case: Case, path: str | Path | None = None) -> MistralTokenizer:
    """Open the vocabulary of a case: the demo's, or the file at `path`; ValueError if wrong."""
    vocabulary = case.vocabulary or {}
    file = DEMO / "tokenizer.model" if path is None else path
    found, wanted = sha256_of(Path(file)), vocabulary.get("sha256")
    if found == wanted:
        return MistralTokenizer(file)
    name, where = (
        f"{vocabulary.get('name')!r:.100}",
        f"{vocabulary.get('where', 'that file')!s:.200}",
    )
    if path is None:
        raise ValueError(
            f"case {case.id}: its vocabulary {name} does not come with tinymistral; give the path "
            f"of {where}"
        )
    raise ValueError(
        f"case {case.id}: {path} is not the vocabulary {name}: its sha256 is {found[:12]}..., "
        f"expected {str(wanted)[:12]}...; take {where}"
    )
