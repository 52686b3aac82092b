"""Names of transformers that differ here: what errors about them say to write instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_DEVICE = 'leave it out: from_pretrained(..., backend="cupy") computes on a GPU'
_DTYPE = 'write dtype="float16" in from_pretrained'
_LOCAL = "leave it out: nothing is downloaded"
_LOOP = "leave the loop over model.generate_stream(...) when it is enough"
_HEAD = "a checkpoint's config.json says it; for a new head, make the model of a MistralConfig"
_QUANTIZED = "quantized weights are not supported; take the checkpoint in 16 bits"
_WEIGHTS = "the weights are model.tensors, by name"

HOW = {
    # arguments of from_pretrained
    "torch_dtype": 'write dtype="float16"',
    "device_map": _DEVICE,
    "device": _DEVICE,
    "attn_implementation": "leave it out: each backend has one attention",
    "low_cpu_mem_usage": "leave it out: weights are mapped, not copied",
    "use_safetensors": "leave it out: the files decide",
    "trust_remote_code": "leave it out: no code of a checkpoint is run",
    "quantization_config": _QUANTIZED,
    "load_in_8bit": _QUANTIZED,
    "load_in_4bit": _QUANTIZED,
    "num_labels": _HEAD,
    "id2label": _HEAD,
    "label2id": _HEAD,
    "token": _LOCAL,
    "cache_dir": _LOCAL,
    "force_download": _LOCAL,
    "local_files_only": _LOCAL,
    "use_fast": "leave it out: there is one tokenizer",
    # arguments of generate and of a call
    "streamer": "write for step in model.generate_stream(...)",
    "stopping_criteria": _LOOP,
    "logits_processor": "choose tokens yourself: model(ids, past_key_values=...) gives the logits",
    "stop_strings": "write stop=[...], tokenizer=tokenizer",
    "generation_config": "give its fields as arguments, or set the dict model.generation_config",
    "min_length": "write min_new_tokens",
    "use_cache": "leave it out: generate always uses a cache",
    "output_scores": "return_dict_in_generate=True gives logprobs",
    "output_logits": "return_dict_in_generate=True gives logprobs",
    "use_model_defaults": "leave it out",
    "cache_position": "write position_ids",
    "token_type_ids": "leave it out: Mistral has none",
    "return_dict": "leave it out: results have names",
    # arguments of a tokenizer
    "truncation": "cut the ids: ids[:, -n:] of inputs padded on the left",
    "max_length": "cut the ids: ids[:, -n:] of inputs padded on the left",
    "return_tensors": "leave it out: apply_chat_template returns a list, model.generate([ids])",
    "text_pair": "join the two texts",
    # attributes
    "to": _DEVICE,
    "cuda": _DEVICE,
    "cpu": "leave it out: arrays are NumPy's",
    "numpy": "leave it out: arrays are NumPy's",
    "half": _DTYPE,
    "float": _DTYPE,
    "bfloat16": _DTYPE,
    "eval": "leave it out: nothing here depends on a mode",
    "train": "tinymistral train trains a model",
    "parameters": _WEIGHTS,
    "named_parameters": _WEIGHTS,
    "state_dict": _WEIGHTS,
    "lm_head": _WEIGHTS,
    "dtype": "write model.backend.dtype",
    "tokenize": "write encode, then convert_ids_to_tokens",
    # names of the package
    "AutoConfig": "write MistralConfig",
    "AutoModel": "write MistralModel",
    "AutoModelForSequenceClassification": "write MistralForSequenceClassification",
    "AutoModelForTokenClassification": "write MistralForTokenClassification",
    "AutoModelForQuestionAnswering": "write MistralForQuestionAnswering",
    "LlamaTokenizer": "write MistralTokenizer",
    "DynamicCache": "leave it out: a call returns past_key_values; RollingCache is its class",
    "GenerationConfig": "give its fields to generate as arguments",
    "TextStreamer": "write for step in model.generate_stream(...), and StreamDecoder(tokenizer)",
    "pipeline": "open the model and the tokenizer, then model.generate(**tokenizer(text))",
    "set_seed": "write generate(..., seed=1)",
}


def how(name: str) -> str:
    """Return how to write a name of transformers here, after a semicolon; else nothing."""
    return f"; {HOW[name]}" if name in HOW else ""


def refuse_unknown(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise a TypeError for arguments that are not known; it lists the known."""
    if unknown := sorted(set(given) - set(known)):
        says = ", ".join(unknown) + "".join(how(name) for name in unknown)
        raise TypeError(f"{where}: unknown argument {says}; known are {', '.join(known)}")


class Declared:
    """What has no attribute but those that its class declares; another would have no effect."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a declared attribute; AttributeError for another."""
        kind = type(self)
        names = {n for base in kind.__mro__ for n in getattr(base, "__annotations__", {})}
        if name not in names and not name.startswith("_") and not hasattr(kind, name):
            raise AttributeError(
                f"{kind.__name__}.{name} = ... has no effect{how(name)}; "
                f"attributes are {', '.join(sorted(names))}"
            )
        super().__setattr__(name, value)
