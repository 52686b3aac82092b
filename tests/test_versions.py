"""Mistral 7B v0.1, v0.2 and v0.3: what their config.json says, and a small model with each."""

import importlib.resources
from pathlib import Path

import numpy as np
import pytest

from tinymistral import MistralConfig, MistralForCausalLM, MistralTokenizer

DATA = Path(str(importlib.resources.files("mistral_common") / "data"))
V1, V3 = DATA / "tokenizer.model.v1", DATA / "mistral_instruct_tokenizer_240323.model.v3"

# As published with the models on the Hugging Face hub.
V01 = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 32000,
}
V02 = {**V01, "rope_theta": 1000000.0, "sliding_window": None}
V03 = {**V02, "vocab_size": 32768}

versions = pytest.mark.parametrize(
    ("published", "model_file", "vocab_size", "rope_theta", "sliding_window"),
    [
        pytest.param(V01, V1, 32000, 1e4, 4096, id="v0.1"),
        pytest.param(V02, V1, 32000, 1e6, None, id="v0.2"),
        pytest.param({**V02, "sliding_window": 32768}, V1, 32000, 1e6, 32768, id="v0.2, community"),
        pytest.param(V03, V3, 32768, 1e6, None, id="v0.3"),
    ],
)


@versions
def test_its_config_is_read(published, model_file, vocab_size, rope_theta, sliding_window):
    config = MistralConfig.from_dict(published)
    assert (config.vocab_size, config.rope_theta) == (vocab_size, rope_theta)
    assert config.sliding_window == sliding_window
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (4096, 14336, 128)
    assert config.num_hidden_layers == config.num_attention_heads == 32
    assert (config.num_key_value_heads, config.max_position_embeddings) == (8, 32768)
    assert (config.rms_norm_eps, config.dtype) == (1e-5, "bfloat16")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, None)


@versions
def test_a_small_one_runs_from_its_folder(
    tmp_path, published, model_file, vocab_size, rope_theta, sliding_window
):
    small = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 1.0}
    config = MistralConfig.from_dict({**published, **small})
    MistralForCausalLM(config, seed=3).save_pretrained(tmp_path)
    MistralTokenizer(model_file).save_pretrained(tmp_path)

    model = MistralForCausalLM.from_pretrained(tmp_path, dtype="float64")
    tokenizer = MistralTokenizer.from_pretrained(tmp_path)
    tokenizer.check_vocabulary(model.config.vocab_size)
    assert (model.config.rope_theta, model.config.sliding_window) == (rope_theta, sliding_window)

    ids = tokenizer.apply_chat_template([{"role": "user", "content": "a 日本語"}])
    ids += [vocab_size - 1]  # the last id there is
    sequences = model.generate([ids], max_new_tokens=5, eos_token_id=[])
    for length in range(len(ids), len(ids) + 5):  # each step is what the whole text gives at once
        logits = model(sequences[:, :length]).logits
        assert logits.shape == (1, length, vocab_size)
        assert np.argmax(logits[0, -1]) == sequences[0, length]
    text = tokenizer.decode(sequences[0])
    assert text.startswith("<s>")
    assert "日本語" in text
