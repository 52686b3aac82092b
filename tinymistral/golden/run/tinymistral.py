"""How tinymistral itself computes a case, on any backend: a dict of arrays, named as in `expected`.

Everything that may be wrong can be replaced: the backend; the model, and with it the
configuration (`weights.open_model`), the weights and, through its `new_cache`, the cache; the
inputs; the parameters of an operation (`dataclasses.replace(case, parameters=...)`).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.backend import Backend
from tinymistral.cache import RollingCache
from tinymistral.demo import DEMO
from tinymistral.discovery import get_backend
from tinymistral.files import read_bytes
from tinymistral.golden.calls import calls_of
from tinymistral.golden.files import sha256_of
from tinymistral.golden.manifest import TEXTS
from tinymistral.golden.models import open_model
from tinymistral.golden.run import Adapter, CannotRun, Settings
from tinymistral.golden.suite import LARGEST_FILE, Case, Suite
from tinymistral.heads import MistralForCausalLM
from tinymistral.numpy_backend import NUMPY_DTYPES
from tinymistral.sampling import GenerationConfig, softmax
from tinymistral.tokenizer import MistralTokenizer

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


def run_vectors(
    suite: Suite,
    case: Case,
    tokenizer: MistralTokenizer | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Compute a case: of kind sampling its arrays, in float32; else a document like the suite's.

    A tokenizer is needed where the vocabulary is not the demo's, see `open_vocabulary`; `inputs`
    are taken in the place of the case's.
    """
    if case.kind == "sampling":
        inputs = suite.read(case).inputs if inputs is None else inputs
        assert case.parameters is not None
        return run_sampling(inputs, case.parameters)
    if case.kind not in ("tokenizer", "chat"):
        raise ValueError(f"case {case.id}: cases of kind {case.kind!r} are computed by a backend")
    tokenizer = open_vocabulary(case) if tokenizer is None else tokenizer
    run = run_tokenizer if case.kind == "tokenizer" else run_chat
    return run(suite.document(case), tokenizer)


def run_sampling(
    inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any], dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Return the probabilities (B, V) after logits (B, V); what is no parameter is switched off."""
    logits = inputs["logits"].astype(dtype)
    seen = np.zeros(logits.shape, dtype=np.bool_)
    np.put_along_axis(seen, inputs["previous_ids"], True, axis=1)
    options = {"do_sample": True, "top_k": 0} | dict(parameters)
    return {"probabilities": softmax(GenerationConfig(**options).process(logits, seen))}


def run_tokenizer(document: Mapping[str, Any], tokenizer: MistralTokenizer) -> dict[str, Any]:
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


def run_chat(document: Mapping[str, Any], tokenizer: MistralTokenizer) -> dict[str, Any]:
    """Encode the conversations of a document."""
    conversations = [
        {**entry, "ids": tokenizer.apply_chat_template(entry["messages"])}
        for entry in document["conversations"]
    ]
    return {**document, "conversations": conversations}


def open_vocabulary(case: Case, path: str | Path | None = None) -> MistralTokenizer:
    """Open the vocabulary of a case: the demo's, or the file at `path`, if it is the right one."""
    vocabulary = case.vocabulary or {}
    of_demo = DEMO / "tokenizer.model"
    found = _sha256(of_demo if path is None else Path(path))
    if found == vocabulary.get("sha256"):
        return MistralTokenizer(of_demo if path is None else path)
    if path is None:
        raise ValueError(
            f"case {case.id}: its vocabulary {vocabulary.get('name')!r:.100} does not come with "
            f"tinymistral; give the path of {vocabulary.get('where', 'that file')!s:.200}"
        )
    raise ValueError(
        f"case {case.id}: {path} is not the vocabulary {vocabulary.get('name')!r:.100}: its sha256 "
        f"is {found[:12]}..., expected {str(vocabulary.get('sha256'))[:12]}...; "
        f"take {vocabulary.get('where', 'that file')!s:.200}"
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_bytes(path, LARGEST_FILE)).hexdigest()


def open_peer(suite: Suite, settings: Settings) -> Adapter:
    """Return what computes a case on the backend that is asked for."""
    backend = get_backend(settings.backend, settings.dtype)
    known = {sha256_of(path): path for path in settings.vocabularies}

    def run(case: Case) -> Results:
        if case.kind in TEXTS:
            path = known.get((case.vocabulary or {}).get("sha256", ""))
            try:
                return run_vectors(suite, case, open_vocabulary(case, path))
            except ValueError as error:
                raise CannotRun(f"{error}: --vocabulary") from None
        if case.kind == "sampling":
            return run_vectors(suite, case)
        results = run_case(suite, case, backend)
        if case.kind == "generate":  # its log-probabilities are float64, of logits in the dtype
            results["logprobs"] = results["logprobs"].astype(NUMPY_DTYPES[backend.dtype])
        return results

    return run
