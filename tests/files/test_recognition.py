"""Folders and files that are no Mistral checkpoint: the error says what they are, and what to do.

The names of files, fields and tensors are those that peft, AutoGPTQ, AutoAWQ, bitsandbytes, mlx-lm,
trl and mistral-finetune write. Where users of other tools met these without being told the cause:

an adapter                      huggingface/autotrain-advanced#303, huggingface/peft#523
GPTQ, AWQ                       vllm-project/vllm#1463, ml-explore/mlx-lm#727
bitsandbytes                    vllm-project/vllm#11725, unslothai/unsloth#482
GGUF                            EricLBuehler/mistral.rs#1431
a text in place of weights      huggingface/transformers#27923, turboderp/exllama#242
no command to download with     etched-ai/open-oasis#43 (tested in test_hub.py)
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tinymistral import MistralConfig, MistralForCausalLM, MistralTokenizer
from tinymistral.checkpoint import CheckpointError, find_checkpoint, read_tensors

MODEL = Path(__file__).parents[1] / "fixtures" / "models" / "gqa"
RAW = Path(__file__).parents[1] / "fixtures" / "raw" / "half"


def error_of(folder: Path, opens=MistralForCausalLM) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        opens.from_pretrained(folder)
    assert str(caught.value).isprintable()  # one line, no control codes
    return str(caught.value)


def adapter(folder: Path, base: object = "mistralai/Mistral-7B-v0.1") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(fields), "utf-8")
    save_file({"lora_A": np.zeros(1, np.float32)}, folder / "adapter_model.safetensors")
    return folder


# Folders


@pytest.mark.parametrize("opens", [MistralForCausalLM, MistralConfig, MistralTokenizer])
def test_an_adapter_is_named_with_its_model(tmp_path, opens):
    message = error_of(adapter(tmp_path), opens)
    assert "an adapter (LoRA) of 'mistralai/Mistral-7B-v0.1', not a whole model; merge" in message
    assert "merge_and_unload" in message


@pytest.mark.parametrize("base", [None, "", ["a\nb"]])
def test_an_adapter_of_who_knows_what(tmp_path, base):
    assert "an adapter (LoRA) of " in error_of(adapter(tmp_path, base))


def test_an_adapter_beside_a_config_is_no_checkpoint_either(tmp_path):
    shutil.copy(MODEL / "config.json", tmp_path)
    assert "an adapter (LoRA) of" in error_of(adapter(tmp_path))


def test_an_adapter_of_mistral_finetune(tmp_path):
    shutil.copy(RAW / "params.json", tmp_path)
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "lora.safetensors")
    assert "utils.merge_lora" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("weights.00.npz", "MLX"),
        ("quantize_config.json", "GPTQ"),
        ("quant_config.json", "AWQ"),
    ],
)
@pytest.mark.parametrize("with_config", [True, False])
def test_weights_in_another_format_are_named(tmp_path, name, says, with_config):
    if with_config:
        shutil.copy(MODEL / "config.json", tmp_path)
    (tmp_path / name).write_bytes(b"")
    message = error_of(tmp_path)
    assert says in message
    assert "take the checkpoint that they were made from" in message


def test_weights_in_pickles_come_with_what_turns_them_into_safetensors(tmp_path):
    shutil.copy(MODEL / "config.json", tmp_path)
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    message = error_of(tmp_path)
    assert "save_pretrained(OUT) writes safetensors" in message


def test_other_files_beside_good_weights_change_nothing(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    adapter(tmp_path / "model")
    for name in ("x.gguf", "weights.npz", "quantize_config.json"):
        (tmp_path / "model" / name).write_bytes(b"")
    assert MistralForCausalLM.from_pretrained(tmp_path / "model")
    assert "has no tokenizer.model" in error_of(tmp_path / "model", MistralTokenizer)


def test_a_file_in_another_format_is_named(tmp_path):
    file = tmp_path / "mistral.gguf"
    file.write_bytes(b"GGUF")
    for given in (file, tmp_path):  # the folder too
        assert f"in the GGUF format; to convert them: tinymistral convert {file} OUT" in error_of(
            given
        )


@pytest.mark.parametrize("opens", [MistralForCausalLM, MistralConfig, MistralTokenizer])
def test_a_folder_without_a_checkpoint_is_said_to_be_that(tmp_path, opens):
    (tmp_path / "hostname").write_text("x", "utf-8")  # as in /etc
    message = error_of(tmp_path, opens)
    assert f"{tmp_path} holds no checkpoint: it has no config.json and no params.json" in message
    assert "tokenizer" not in message


@pytest.mark.parametrize(
    ("given", "inside"),
    [
        ("models--org--name", "models--org--name/snapshots/0123abc"),
        ("models--org--name/snapshots", "models--org--name/snapshots/0123abc"),
        (".", "models--org--name/snapshots/0123abc"),  # the cache itself
        ("run", "run/checkpoint-500"),  # of a trainer
    ],
)
def test_a_folder_above_a_checkpoint_points_to_it(tmp_path, given, inside):
    shutil.copytree(MODEL, tmp_path / inside)
    (tmp_path / "models--org--name" / "blobs").mkdir(parents=True, exist_ok=True)
    message = error_of(tmp_path / given)
    assert message.endswith(f"holds no checkpoint itself; give {tmp_path / inside}")
    assert MistralForCausalLM.from_pretrained(message.rpartition("give ")[2])


def test_an_adapter_in_the_hubs_cache_is_no_incomplete_download(tmp_path, monkeypatch):
    commit = "0123456789" * 4
    repository = tmp_path / "models--org--lora"
    adapter(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit, "utf-8")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="an adapter"):
        find_checkpoint("org/lora")


# Fields


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4, "group_size": 128}),
        ("quantization_config", {"quant_method": "awq", "bits": 4}),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("quantization", {"group_size": 64, "bits": 4}),  # of mlx-lm
    ],
)
def test_quantized_weights_are_named_and_never_to_be_removed_from_the_config(field, value):
    with pytest.raises(ValueError, match=f"{field}: .*: the weights are quantized") as caught:
        MistralConfig.from_dict({"model_type": "mistral", field: value})
    assert "remove" not in str(caught.value)
    assert "take the checkpoint that they were made from" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"moe": {"num_experts_per_tok": 2, "num_experts": 8}}, "Mixtral"),
        ({"multiple_of": 256}, "Llama"),
        ({"vision_encoder": {"hidden_size": 1024}}, "Pixtral"),
        ({"quantization": {"qformat_weight": "fp8_e4m3"}}, "quantized"),
    ],
)
def test_raw_checkpoints_of_other_models_are_named(fields, says):
    params = json.loads((RAW / "params.json").read_text("utf-8"))
    with pytest.raises(ValueError, match=says):
        MistralConfig.from_params(params | fields)


# Tensors, where the configuration says nothing of it

Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([f"{Q}.qweight", f"{Q}.qzeros", f"{Q}.scales", f"{Q}.g_idx"], "GPTQ or AWQ"),
        ([f"{Q}.weight", f"{Q}.weight.absmax", f"{Q}.weight.quant_map"], "bitsandbytes, 4 bits"),
        ([f"{Q}.weight", f"{Q}.SCB", f"{Q}.weight_format"], "bitsandbytes, 8 bits"),
        ([f"{Q}.weight", f"{Q}.scales", f"{Q}.biases"], "MLX"),
        ([f"{Q}.weight_packed", f"{Q}.weight_scale", f"{Q}.weight_shape"], "quantized"),
        ([f"base_model.model.{Q}.lora_A.weight"], "adapter"),
        (["v_head.summary.weight", "v_head.summary.bias"], "value head"),
        (["value_head.weight"], "value head"),
        (["model.layers.0.block_sparse_moe.experts.0.w1.weight"], "mixture of experts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("alone", [False, True])
def test_weights_of_another_kind_are_named_by_a_tensor(tmp_path, names, says, alone):
    shutil.copy(MODEL / "config.json", tmp_path)
    tensors = {} if alone else load_file(MODEL / "model.safetensors")
    tensors |= {name: np.zeros((2, 2), np.int32) for name in names}
    save_file(tensors, tmp_path / "model.safetensors")
    message = error_of(tmp_path)
    assert says in message
    assert any(f"'{name}': the weights are " in message for name in names)
    assert len(message) < 400


def test_a_raw_adapter_is_named_by_a_tensor(tmp_path):
    shutil.copytree(RAW, tmp_path / "raw")
    path = tmp_path / "raw" / "consolidated.safetensors"
    lora = {"layers.0.attention.wq.lora_A.weight": np.zeros((2, 2), np.float32)}
    save_file(load_file(path) | lora, path)
    assert "adapter" in error_of(tmp_path / "raw")


# Files


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html>\n<html>", "text, which begins '<!DOCTYPE html> <html>'"),
        (b"Entry not found", "text, which begins 'Entry not found'"),
        (b'{"error": "gated"}', 'text, which begins \'{"error": "gated"}\''),
        ("ééééé".encode() * 20, "text, which begins 'ééé"),
        (b"GGUF\x03\x00\x00\x00\x23\x01\x00\x00", "a GGUF file"),
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00", "a zip archive, as torch.save writes"),
        (b"\x93NUMPY\x01\x00v\x00", "a .npy file"),
    ],
)
def test_a_file_that_is_no_safetensors_is_named(tmp_path, content, says):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_tensors(tmp_path)
    assert f"model.safetensors: it is {says}" in str(caught.value)
    assert "header" not in str(caught.value)
