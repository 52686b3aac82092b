"""Raw checkpoints, as Mistral publishes them: params.json beside consolidated.00.pth.

    params.json                 sizes and constants, under other names than config.json's
    consolidated.00.pth         the tensors, under other names, queries and keys in another order
    consolidated.safetensors    the same in the other format; where both are, this is read
    tokenizer.model             or tokenizer.model.v1, .v2 or .v3

Source: https://github.com/mistralai/mistral-inference, src/mistral_inference/args.py
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.checkpoint.checking import check_tensors, layer_count
from tinymistral.checkpoint.errors import CheckpointError, listed, quoted
from tinymistral.checkpoint.pth import read_pth
from tinymistral.checkpoint.reading import read_file
from tinymistral.config import MistralConfig
from tinymistral.files import read_json

PARAMS_FILE = "params.json"
SAFETENSORS_FILE = "consolidated.safetensors"
PTH_FILE = "consolidated.00.pth"

CONFIG_NAMES = {  # field of params.json -> field of config.json
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "sliding_window": "sliding_window",
}
OPTIONAL = ("head_dim", "n_kv_heads", "rope_theta", "sliding_window")
# What bears on memory alone.
_IGNORED = ("max_batch_size", "max_seq_len")

TENSOR_NAMES = {  # in a raw checkpoint -> in Hugging Face's; those of a layer after "layers.N."
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
}
_RAW_NAMES = {hugging_face: raw for raw, hugging_face in TENSOR_NAMES.items()}


def is_raw(folder: Path) -> bool:
    """Tell whether a folder holds a raw checkpoint; where config.json is there too, it does not."""
    return not (folder / "config.json").exists() and (folder / PARAMS_FILE).is_file()


def read_raw(folder: Path) -> tuple[MistralConfig, dict[str, np.ndarray]]:
    """Read a raw checkpoint: its configuration, and its tensors under Hugging Face's names.

    The tensors are mapped as `read_tensors` and `read_pth` map them, except for wq and wk, which
    are copied into the order that `rotate_halves` gives. Raises ValueError, and CheckpointError
    where the tensors are not those that params.json calls for.
    """
    config, tensors = read_raw_unpermuted(folder)
    for name in tensors:
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensors[name] = rotate_halves(tensors[name], config.head_dim)
    return config, tensors


def read_raw_unpermuted(folder: Path) -> tuple[MistralConfig, dict[str, np.ndarray]]:
    """Read a raw checkpoint as `read_raw` does, but with wq and wk as they are stored."""
    from tinymistral.heads import MistralForCausalLM

    config, tensors = _read(folder)
    shapes = MistralForCausalLM.parameter_shapes(config)
    names = {raw_name(name): name for name in shapes}  # raw name -> Hugging Face's
    try:
        check_tensors(tensors, {raw: shapes[name] for raw, name in names.items()})
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return config, {name: tensors[raw] for raw, name in names.items()}


def read_raw_config(folder: Path) -> MistralConfig:
    """Read what params.json and the tensors say, `tie_word_embeddings` and `dtype` among it."""
    return _read(folder)[0]


def raw_name(name: str) -> str:
    """Return the raw name of a tensor of a language model in Hugging Face's format."""
    if name in _RAW_NAMES:
        return _RAW_NAMES[name]
    _, layers, number, rest = name.split(".", 3)
    return f"{layers}.{number}.{_RAW_NAMES[rest]}"


def rotate_halves(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Copy wq or wk (heads·d, D) with the rows of each head in another order: 0, 2, ..., 1, 3, ...

    Rotary embeddings turn rows 2i and 2i+1 together in a raw checkpoint, i and i + d/2 here.
    """
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def pair_rows(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Undo `rotate_halves`: copy a weight (heads·d, D) into the order of a raw checkpoint."""
    halves = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def config_from_params(params: Mapping[str, Any]) -> MistralConfig:
    """Read the fields of a params.json; a ValueError names one that is wrong or not supported.

    Absent, head_dim is dim // n_heads, n_kv_heads is n_heads, and rope_theta is 10000 with a
    sliding_window (v0.1, whose params.json has none) and 1000000 without (v0.2 on). There is no
    max_position_embeddings: it is 32768, as in all published configs.
    """
    if params.get("model_type", "transformer") != "transformer":
        raise ValueError(
            f"model_type: {quoted(params['model_type'])} is not supported; expected 'transformer'"
        )
    known = (*CONFIG_NAMES, *_IGNORED, "model_type")
    unknown = [n for n, value in params.items() if n not in known and value not in (None, False)]
    if unknown:
        raise ValueError(
            f"{listed(map(quoted, unknown))} is not supported, since it may change what is "
            f"computed; expected only {', '.join(CONFIG_NAMES)}"
        )
    values = {name: params[name] for name in CONFIG_NAMES if params.get(name) is not None}
    missing = [name for name in CONFIG_NAMES if name not in values and name not in OPTIONAL]
    if missing:
        raise ValueError(f"{listed(map(quoted, missing))} is missing; download it again")
    window = values.setdefault("sliding_window", None)
    if isinstance(window, str) and window.isdecimal() and len(window) < 20:
        values["sliding_window"] = int(window)
    values.setdefault("rope_theta", 1e6 if window is None else 1e4)
    values.setdefault("n_kv_heads", None)
    try:
        return MistralConfig(**{CONFIG_NAMES[name]: value for name, value in values.items()})
    except ValueError as error:
        message = str(error)
        for name, config_name in CONFIG_NAMES.items():
            message = message.replace(config_name, name)
        raise ValueError(message) from None


def _read(folder: Path) -> tuple[MistralConfig, dict[str, np.ndarray]]:
    """Read the configuration, and the tensors as they are stored."""
    path = folder / PARAMS_FILE
    params = read_json(path)
    try:
        config = config_from_params(params)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    tensors = _read_consolidated(folder)
    # Before the expected names are listed: a configuration may claim any number of layers.
    layers = layer_count(tensors)
    if layers != config.num_hidden_layers:
        raise CheckpointError(
            f"{folder}: {PARAMS_FILE} says n_layers is {config.num_hidden_layers}, the checkpoint "
            f"has {layers} layers; the two do not belong together"
        )
    dtypes = {str(array.dtype) for array in tensors.values()}
    return dataclasses.replace(
        config,
        tie_word_embeddings="output.weight" not in tensors,
        dtype=dtypes.pop() if len(dtypes) == 1 else None,
    ), tensors


def _read_consolidated(folder: Path) -> dict[str, np.ndarray]:
    if (folder / SAFETENSORS_FILE).exists():
        return read_file(folder / SAFETENSORS_FILE)
    if not (folder / PTH_FILE).exists():
        raise CheckpointError(
            f"{folder} has {PARAMS_FILE}, but no {PTH_FILE} and no {SAFETENSORS_FILE}; "
            "download the weights too"
        )
    if (folder / "consolidated.01.pth").exists():
        raise CheckpointError(f"{folder / PTH_FILE} is only a part; expected the weights in one")
    return read_pth(folder / PTH_FILE)
