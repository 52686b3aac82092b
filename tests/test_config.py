"""MistralConfig against what transformers reads from the same config.json."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from goldens import FIXTURES, MODELS, read_json

from tinymistral import MistralConfig

CONFIGS = {entry["name"]: entry for entry in read_json("configs.json")}
PLAIN = sorted(name for name, entry in CONFIGS.items() if entry["kind"] == "plain")
COMPARED = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim hidden_act max_position_embeddings initializer_range "
    "rms_norm_eps use_cache pad_token_id bos_token_id eos_token_id tie_word_embeddings "
    "rope_theta rope_parameters sliding_window attention_dropout dtype label2id problem_type"
).split()


@pytest.mark.filterwarnings("ignore:config.json. 'my_note' is not known", "ignore:rope_theta")
@pytest.mark.parametrize("name", PLAIN)
def test_every_field_is_read_as_transformers_reads_it(name):
    config = MistralConfig.from_dict(CONFIGS[name]["config"])
    theirs = CONFIGS[name]["reads"]
    ours = {field: getattr(config, field) for field in COMPARED}
    assert ours == {field: theirs[field] for field in COMPARED}
    assert config.id2label == {int(i): name for i, name in theirs["id2label"].items()}
    assert config.num_labels == len(theirs["id2label"])


@pytest.mark.filterwarnings("ignore:config.json. 'my_note' is not known", "ignore:rope_theta")
@pytest.mark.parametrize("name", PLAIN + [f"model:{name}" for name in MODELS])
def test_a_written_config_reads_back_the_same(name, tmp_path):
    if name.startswith("model:"):
        config = MistralConfig.from_pretrained(FIXTURES / "models" / name[6:])
    else:
        config = MistralConfig.from_dict(CONFIGS[name]["config"])
    config.save_pretrained(tmp_path)
    assert MistralConfig.from_pretrained(tmp_path) == config


def test_the_default_is_mistral_7b_v0_1_as_published():
    # config.json of mistralai/Mistral-7B-v0.1
    config = MistralConfig()
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (32000, 4096, 14336)
    assert (config.num_hidden_layers, config.num_attention_heads) == (32, 32)
    assert (config.num_key_value_heads, config.head_dim) == (8, 128)
    assert (config.max_position_embeddings, config.rms_norm_eps) == (32768, 1e-5)
    assert (config.rope_theta, config.sliding_window) == (10000.0, 4096)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, None)
    assert not config.tie_word_embeddings


@pytest.mark.parametrize(
    "field, value",
    [
        ("vocab_size", 0),
        ("vocab_size", True),
        ("hidden_size", 4096.0),
        ("intermediate_size", "14336"),
        ("num_hidden_layers", -1),
        ("num_attention_heads", None),
        ("num_key_value_heads", 5),
        ("num_key_value_heads", False),
        ("head_dim", 127),
        ("head_dim", 0),
        ("hidden_act", "gelu"),
        ("hidden_act", "gelu" * 1000),
        ("use_cache", [0] * 1000),
        ("eos_token_id", "2" * 1000),
        ("max_position_embeddings", 0),
        ("rms_norm_eps", -1e-5),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", True),
        ("initializer_range", float("inf")),
        ("attention_dropout", 1.5),
        ("use_cache", 1),
        ("tie_word_embeddings", "false"),
        ("rope_theta", 0),
        ("rope_theta", "10000"),
        ("rms_norm_eps", 10**400),
        ("sliding_window", 10**400),
        ("rope_parameters", True),
        ("rope_parameters", [1]),
        ("rope_parameters", {"rope_type": "yarn", "factor": 4.0}),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("sliding_window", 0),
        ("sliding_window", [4096, None]),
        ("sliding_window", 4096.0),
        ("bos_token_id", 32000),
        ("eos_token_id", [2, -1]),
        ("eos_token_id", [None]),
        ("eos_token_id", [[2]]),
        ("pad_token_id", -2),
        ("pad_token_id", "0"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("is_causal", False),
        ("partial_rotary_factor", 0.5),
        ("layer_types", ["sliding_attention"]),
        ("quantization_config", {"quant_method": "gptq"}),
        ("model_type", "llama"),
        ("dtype", "float8"),
        ("num_labels", 0),
        ("num_labels", True),
        ("num_labels", "3"),
        ("num_labels", 2**16 + 1),
        ("id2label", ["a", "b"]),
        ("id2label", {}),
        ("id2label", {"a": "b"}),
        ("id2label", {"0": "a", "2": "b"}),
        ("id2label", {"0": 1}),
        ("label2id", ["a"]),
        ("label2id", {"a": 0}),
        ("label2id", {"LABEL_0": "0"}),
        ("problem_type", "classification"),
        ("problem_type", ["regression"]),
    ],
)
def test_a_wrong_field_is_named_in_one_line(field, value):
    with pytest.raises(ValueError, match=field) as caught:
        MistralConfig.from_dict({field: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["rope linear beside", "rope yarn beside"])
def test_scaling_beside_plain_rope_parameters_is_not_overlooked(name):
    # transformers scales: "reads" has the type
    config = CONFIGS[name]["config"]
    assert config["rope_parameters"]["rope_type"] == "default"
    rope_type = CONFIGS[name]["reads"]["rope_parameters"]["rope_type"]
    with pytest.raises(ValueError, match=f"rope_scaling: rope_type '{rope_type}' is not"):
        MistralConfig.from_dict(config)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"vocab_size": 1e999}', b"[" * 100_000, b"9" * 9999],
)
def test_a_broken_config_json_is_one_line_that_names_the_file(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        MistralConfig.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "field, fields",
    [
        ("num_labels", {"num_labels": 3, "id2label": {"0": "a", "1": "b"}}),
        ("label2id", {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 0}}),
        ("problem_type", {"num_labels": 1, "problem_type": "single_label_classification"}),
    ],
)
def test_labels_that_contradict_each_other_are_named_in_one_line(field, fields):
    with pytest.raises(ValueError, match=f"^{field}: ") as caught:
        MistralConfig.from_dict(fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fields", [[1], "{}", None, 1, [["vocab_size", 5]]])
def test_anything_but_an_object_is_refused_in_one_line(fields):
    with pytest.raises(ValueError, match=r"^expected the fields of a config\.json, got") as caught:
        MistralConfig.from_dict(fields)
    assert "\n" not in str(caught.value)


def test_a_pad_token_of_minus_one_means_none():
    # As in the first conversions of Llama; transformers 5.23 generates the same with and without.
    assert MistralConfig.from_dict({"pad_token_id": -1}).pad_token_id is None
    with pytest.raises(ValueError, match="pad_token_id"):
        MistralConfig(pad_token_id=-1)


@pytest.mark.parametrize("ids", [(2, 5), np.array([2, 5]), np.array([2, 5], dtype=np.uint8)])
def test_ids_that_end_a_text_may_be_a_tuple_or_an_array(ids):
    config = MistralConfig(eos_token_id=ids)
    assert config == MistralConfig(eos_token_id=[2, 5])
    assert json.dumps(config.to_dict()["eos_token_id"]) == "[2, 5]"


def test_a_configuration_says_how_to_change_it():
    config = MistralConfig()
    with pytest.raises(AttributeError, match=r"replace\(model.config, pad_token_id=2\)"):
        config.pad_token_id = 2
    assert config == MistralConfig()


def test_a_copy_may_have_another_theta():
    for config in (MistralConfig(), MistralConfig.from_dict({"rope_theta": 1e5})):
        changed = dataclasses.replace(config, rope_theta=1e6)
        assert changed == MistralConfig(**(vars(config) | {"rope_theta": 1e6}))
        assert changed.rope_theta == 1e6
        assert changed.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
        assert changed.to_dict()["rope_parameters"]["rope_theta"] == 1e6
        assert dataclasses.replace(changed, vocab_size=5).rope_theta == 1e6
    # If both are given, they must agree; neither is ignored.
    with pytest.raises(ValueError, match=r"rope_theta: 1.*, but rope_parameters says 1"):
        dataclasses.replace(MistralConfig(), rope_parameters={"rope_theta": 1e6})
    # In a file, rope_parameters are preferred, as in transformers.
    both = {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    for fields in (both, MistralConfig().to_dict() | {"rope_theta": 1e6}):
        with pytest.warns(UserWarning, match="rope_theta: 1000000.0 has no effect.* says 10000"):
            assert MistralConfig.from_dict(fields).rope_theta == 1e4


def test_labels_without_names_follow_their_number():
    three = MistralConfig(num_labels=3)
    assert three.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert MistralConfig() == MistralConfig(num_labels=2)
    assert dataclasses.replace(three, num_labels=1).label2id == {"LABEL_0": 0}
    named = dataclasses.replace(three, id2label={0: "a", 1: "b", 2: "c"})
    assert named.label2id == {"a": 0, "b": 1, "c": 2}


def test_labels_are_written_as_transformers_5_writes_them(tmp_path):
    # config.json of transformers 5.23's MistralForSequenceClassification, num_labels=1 and 2
    config = MistralConfig(num_labels=1, problem_type="regression")
    config.save_pretrained(tmp_path, "MistralForSequenceClassification")
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert written["architectures"] == ["MistralForSequenceClassification"]
    assert written["id2label"] == {"0": "LABEL_0"}
    assert written["label2id"] == {"LABEL_0": 0}
    assert written["problem_type"] == "regression"
    assert "num_labels" not in written
    assert not {"id2label", "label2id", "problem_type"} & MistralConfig().to_dict().keys()


def test_the_file_written_is_what_transformers_reads(tmp_path):
    MistralConfig(rope_theta=1e6, sliding_window=None, dtype="bfloat16").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert written["architectures"] == ["MistralForCausalLM"]
    assert written["model_type"] == "mistral"
    assert written["rope_parameters"] == {"rope_theta": 1e6, "rope_type": "default"}
    assert written["sliding_window"] is None
    assert written["dtype"] == "bfloat16"
    assert written["rope_theta"] == 1e6  # where transformers 4 reads it
