"""Recognizing what is not a Mistral checkpoint, so that errors name it and say what to do.

The first and the last table are used once a checkpoint could not be opened. The others list names
of tensors and fields that no checkpoint has which can be read. So what could be read is not
refused.
"""

import codecs
from collections.abc import Collection, Mapping
from contextlib import suppress
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

from tinymistral.files import CheckpointError, read_json
from tinymistral.text import listed, one_line, quoted, short

_UNQUANTIZED = "which cannot be read; take the checkpoint that they were made from"
_MERGED = "merge it into its model (peft: merge_and_unload, save_pretrained) and open the result"
_SAVED = "AutoModelForCausalLM.from_pretrained(IN).save_pretrained(OUT)"  # of transformers
_HEADLESS = f"{_SAVED} leaves the head out"

FILES = {  # in a folder without weights that can be read -> what it holds
    "adapter_config.json": f"an adapter (LoRA) of {{base}}, not a whole model; {_MERGED}",
    "lora.safetensors": "an adapter (LoRA), not a whole model; merge it into its model "
    "(mistral-finetune: utils.merge_lora) and open the result",
    "quantize_config.json": f"weights quantized by GPTQ, {_UNQUANTIZED}",
    "quant_config.json": f"weights quantized by AWQ, {_UNQUANTIZED}",
    "pytorch_model*.bin": f"weights in PyTorch's pickles, which are not read; {_SAVED} writes "
    "safetensors",
    "*.gguf": "weights in the GGUF format; to convert them: tinymistral convert {file} OUT",
    "weights*.npz": f"weights in the .npz files of MLX, {_UNQUANTIZED}",
}

TENSORS = {  # part of a tensor's name -> what the weights are
    ".qweight": f"quantized (GPTQ or AWQ), {_UNQUANTIZED}",
    ".absmax": f"quantized (bitsandbytes, 4 bits), {_UNQUANTIZED}",
    ".SCB": f"quantized (bitsandbytes, 8 bits), {_UNQUANTIZED}",
    ".scales": f"quantized (MLX), {_UNQUANTIZED}",
    ".weight_scale": f"quantized, {_UNQUANTIZED}",
    "lora_A": f"those of an adapter (LoRA); {_MERGED}",
    "v_head.": f"those of a model with a value head, as TRL trains it; {_HEADLESS}",
    "value_head.": f"those of a model with a value head; {_HEADLESS}",
    ".experts.": "those of a mixture of experts, such as Mixtral; expected a Mistral model",
}

QUANTIZED = {  # field of a config.json or params.json -> what it says
    "quantization_config": f"the weights are quantized, {_UNQUANTIZED}",
    "quantization": f"the weights are quantized, {_UNQUANTIZED}",  # by MLX
}
OTHER_PARAMS = {  # field of a params.json -> what it says
    "moe": "the model is a mixture of experts, such as Mixtral; expected a Mistral model",
    "multiple_of": "the model is a Llama; expected a Mistral model",
    "vision_encoder": "the model has vision, as Pixtral; expected a Mistral model",
}

GIT_LFS_POINTER = b"version https://git-lfs"  # in place of a large file in a git clone
BEGINNINGS = {  # of a file in the place of safetensors -> what it is
    GIT_LFS_POINTER: "a Git LFS pointer, not the weights; to get them: git lfs pull",
    b"GGUF": "a GGUF file; name it so, and to convert it: tinymistral convert model.gguf OUT",
    b"PK\x03\x04": "a zip archive, as torch.save writes, not safetensors; save it as safetensors",
    b"\x93NUMPY": "a .npy file, not safetensors; save it as safetensors",
}


def refuse_files(path: Path) -> None:
    """Raise a CheckpointError if a folder, or a file in its place, has other weights instead."""
    names = _names_in(path) if path.is_dir() else [path.name]
    if matching(names, "model*.safetensors") or matching(names, "consolidated.*"):
        return
    for pattern, what in FILES.items():
        if found := sorted(matching(names, pattern)):
            file = path / found[0] if path.is_dir() else path
            raise CheckpointError(f"{path} holds {what.format(base=_base_of(path), file=file)}")


def refuse_folder(folder: Path) -> None:
    """Raise a CheckpointError if a folder in which a file is missing is no checkpoint at all."""
    refuse_files(folder)
    if not {"config.json", "params.json"}.isdisjoint(_names_in(folder)):
        return
    places = ("*", "snapshots/*", "*/snapshots/*")  # the last two: in the hub's cache
    configs = ("config.json", "params.json", "adapter_config.json")
    parents = {file.parent for p in places for c in configs for file in folder.glob(f"{p}/{c}")}
    weights = ("*.safetensors", "consolidated.*.pth")
    inside = [str(parent) for parent in parents if any(any(parent.glob(w)) for w in weights)]
    raise CheckpointError(
        f"{folder} holds no checkpoint itself; give {listed(sorted(inside), 3)}"
        if inside
        else f"{folder} holds no checkpoint: it has no config.json and no params.json; give the "
        "folder that has one, with the weights beside it"
    )


def _names_in(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from None


def _base_of(folder: Path) -> str:
    """Return the model that an adapter belongs to."""
    with suppress(ValueError):
        if base := read_json(folder / "adapter_config.json").get("base_model_name_or_path"):
            return quoted(base)
    return "another model"


def refuse_tensors(folder: Path, names: Collection[str]) -> None:
    """Raise a CheckpointError if the names of tensors say that they are other weights."""
    for part, what in TENSORS.items():
        for name in names:
            if part in name:
                raise CheckpointError(f"{folder}: {quoted(name)}: the weights are {what}")


def refuse_fields(fields: Mapping[str, Any], table: Mapping[str, str]) -> None:
    """Raise a ValueError if a config.json or params.json has a field of the table."""
    for name, what in table.items():
        if fields.get(name):
            raise ValueError(f"{name}: {short(fields[name])}: {what}")


def beginning_of(content: bytes) -> str:
    """Return what a file is that begins so, where safetensors are expected; "" if unknown."""
    for beginning, what in BEGINNINGS.items():
        if content.startswith(beginning):
            return what
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(content)  # its end may be cut off
    except UnicodeDecodeError:
        return ""
    begins = repr(one_line(text, 40))
    return f"text, which begins {begins}, not safetensors; if it was downloaded, do it again"
