"""Raw checkpoints, compared with the same ones in Hugging Face's format; published params.json."""

import dataclasses
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from goldens import DEMO, FIXTURES, goldens
from handmade_pth import pth, storage, tensor, whole

from tinymistral import MistralConfig, MistralForCausalLM, MistralModel, MistralTokenizer
from tinymistral.checkpoint import find_checkpoint, is_raw, load_checkpoint, read_tensors
from tinymistral.checkpoint.tensors import rotate_halves
from tinymistral.config import PARAMS_NAMES
from tinymistral.files.consolidated import read_consolidated
from tinymistral.files.pth import read_pth
from tinymistral.files.safetensors import write_file

MODELS, RAW = FIXTURES / "models", FIXTURES / "raw"
TWINS = ["half", "no_window", "tied"]

# params.json of Mistral-7B-v0.1 as published, but for its sliding_window.
V01 = {
    "dim": 4096,
    "n_layers": 32,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "norm_eps": 1e-05,
    "vocab_size": 32000,
}


def params_without(*names, **changes):
    return {name: value for name, value in (V01 | changes).items() if name not in names}


@pytest.fixture
def twin(tmp_path):
    """A copy of the tied twin, to be changed."""
    return shutil.copytree(RAW / "tied", tmp_path / "twin")


def change_params(folder, *without, **changes):
    params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
    params = {name: value for name, value in (params | changes).items() if name not in without}
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")


def error_of(folder) -> str:
    with pytest.raises(ValueError) as caught:
        MistralForCausalLM.from_pretrained(folder)
    assert str(caught.value).isprintable()  # one line, no control codes
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", TWINS)
def test_a_raw_checkpoint_gives_the_logits_of_its_twin_and_of_transformers(name):
    golden = goldens(f"{name}.float64", "whole")
    raw, twin = (
        MistralForCausalLM.from_pretrained(folder / name, dtype="float64")(golden["input_ids"])
        for folder in (RAW, MODELS)
    )
    np.testing.assert_array_equal(raw.logits, twin.logits)
    np.testing.assert_allclose(raw.logits, golden["logits"], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", TWINS)
def test_tensors_and_configuration_are_those_of_the_twin(name):
    config, tensors = load_checkpoint(RAW / name)
    expected = read_tensors(MODELS / name)
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        assert tensors[key].dtype == value.dtype
        assert tensors[key].tobytes() == value.tobytes()
    fields = MistralConfig.from_pretrained(MODELS / name).to_dict()
    assert config.to_dict() == fields | {"max_position_embeddings": 32768}
    assert MistralConfig.from_pretrained(RAW / name) == config


def test_a_base_model_opens_a_raw_checkpoint():
    golden = goldens("no_window.float64", "whole")
    model = MistralModel.from_pretrained(RAW / "no_window", dtype="float64")
    np.testing.assert_allclose(
        model(golden["input_ids"]).last_hidden_state,
        golden["hidden_states"][-1],
        atol=1e-9,
        rtol=0,
    )


def test_all_but_queries_and_keys_are_mapped():
    for name, array in load_checkpoint(RAW / "tied")[1].items():
        copied = "q_proj" in name or "k_proj" in name
        assert array.flags.writeable == copied, name  # what is mapped cannot be written to


def test_rows_that_rope_pairs_are_moved_half_a_head_apart():
    # Two heads of four rows: 0 and 1 are a pair, 2 and 3.
    weight = np.array([[0], [1], [2], [3], [10], [11], [12], [13]], dtype=ml_dtypes.bfloat16)
    halves = rotate_halves(weight, head_dim=4)
    assert halves.dtype == ml_dtypes.bfloat16
    assert halves.ravel().astype(int).tolist() == [0, 2, 1, 3, 10, 12, 11, 13]


def test_the_published_story_of_stories260k_to_the_letter(test_models):
    # llama2.c publishes this text for the model, greedy from <s> alone.
    folder = test_models / "stories260k" / "raw"
    model = MistralForCausalLM.from_pretrained(folder)
    ids = model.generate([[1]], max_new_tokens=200)[0]
    story = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball. She wanted to play with it, but it was too high."
        "\nLily's mom said, "
    )
    text = MistralTokenizer.from_pretrained(folder).decode(ids, skip_special_tokens=True)
    assert text.startswith(story)


# Absent fields as in mistral-inference's args.py; values from Mistral's config.json on the hub.
@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (V01 | {"sliding_window": 4096}, MistralConfig()),
        (V01 | {"sliding_window": "4096"}, MistralConfig()),
        (V01 | {"sliding_window": 4096, "rope_theta": 1e6}, MistralConfig(rope_theta=1e6)),
        (V01, MistralConfig(sliding_window=None, rope_theta=1e6)),
        (V01 | {"sliding_window": None}, MistralConfig(sliding_window=None, rope_theta=1e6)),
        (V01 | {"rope_theta": None}, MistralConfig(sliding_window=None, rope_theta=1e6)),
        (V01 | {"rope_theta": 10000}, MistralConfig(sliding_window=None, rope_theta=1e4)),
        (
            V01 | {"vocab_size": 32768, "rope_theta": 1000000.0},  # v0.3
            MistralConfig(vocab_size=32768, sliding_window=None, rope_theta=1e6),
        ),
        (params_without("head_dim", sliding_window=4096), MistralConfig()),
        (
            params_without("n_kv_heads", sliding_window=4096),
            MistralConfig(num_key_value_heads=32),
        ),
        (
            V01 | {"sliding_window": 4096, "max_batch_size": 0, "model_type": "transformer"},
            MistralConfig(),
        ),
        (V01 | {"sliding_window": 4096, "moe": None, "use_biases": False}, MistralConfig()),
        (V01 | {"sliding_window": 4096, "model_parallel": 1}, MistralConfig()),
        *(
            (V01 | {"sliding_window": 4096, "lora": {"enable": on, "rank": 16}}, MistralConfig())
            for on in (True, False)
        ),
    ],
)
def test_params_as_published_are_read(params, expected):
    assert MistralConfig.from_params(params) == expected


@pytest.mark.parametrize(
    ("params", "says"),
    [
        (V01 | {"yarn": {}, "llama_4_scaling": {"beta": 0.1}}, "'yarn', 'llama_4_scaling' is not"),
        (V01 | {"_sliding_window": [None, 4096]}, "'_sliding_window' is not supported"),
        (V01 | {"model_type": "mamba"}, "model_type: 'mamba' is not supported"),
        (V01 | {"sliding_window": [4096, None]}, "sliding_window: a list"),
        (V01 | {"sliding_window": "all"}, "sliding_window: expected an integer"),
        (V01 | {"sliding_window": "9" * 5000}, "sliding_window: expected an integer"),
        (V01 | {"sliding_window": 0}, "sliding_window: expected an integer"),
        (V01 | {"rope_theta": "1e6"}, "rope_theta: expected a number"),
        (V01 | {"dim": "4096"}, "dim: expected an integer"),
        (V01 | {"n_layers": 10**30}, "n_layers: expected an integer"),
        (V01 | {"n_kv_heads": 7}, "n_kv_heads: 7 does not divide n_heads, 32"),
        (V01 | {"head_dim": 127}, "head_dim: 127 is odd"),
        (V01 | {"norm_eps": -1}, "norm_eps: expected a number"),
        *(
            (params_without(n), f"'{n}' is missing")
            for n in V01
            if n not in ("head_dim", "n_kv_heads")
        ),
        ({}, "'dim', 'n_layers', 'hidden_dim', 'n_heads', 'norm_eps', 'vocab_size' is missing"),
    ],
)
def test_params_that_are_wrong_or_change_the_computation_are_refused(params, says):
    with pytest.raises(ValueError) as caught:
        MistralConfig.from_params(params)
    assert says in str(caught.value)
    assert not any(
        name in str(caught.value) for name in set(PARAMS_NAMES.values()) - {*V01, *PARAMS_NAMES}
    )


def test_a_folder_is_raw_if_it_has_params_json_and_no_config_json(twin):
    assert is_raw(twin)
    assert not is_raw(MODELS / "tied")
    assert not is_raw(twin.parent)
    shutil.copy(MODELS / "gqa" / "config.json", twin)
    assert not is_raw(twin)
    shutil.copy(MODELS / "gqa" / "model.safetensors", twin)
    assert MistralForCausalLM.from_pretrained(twin).config.num_hidden_layers == 3  # gqa's


def test_a_raw_snapshot_is_found_in_the_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(RAW / "tied", snapshot)
    assert find_checkpoint("org/name") == snapshot
    assert MistralForCausalLM.from_pretrained("org/name").config.vocab_size == 61
    (snapshot / "params.json").unlink()
    with pytest.raises(ValueError, match=r"is incomplete: no config\.json"):
        find_checkpoint("org/name")


@pytest.mark.parametrize("file", ["tokenizer.model", "tokenizer.model.v1", "tokenizer.model.v3"])
def test_the_tokenizer_of_a_raw_checkpoint_is_found(twin, file):
    shutil.copy(DEMO / "tokenizer.model", twin / file)
    assert MistralTokenizer.from_pretrained(twin).vocab_size == 2048


def test_safetensors_are_preferred_to_the_pth(twin):
    (twin / "consolidated.00.pth").replace(twin / "elsewhere")
    assert "no consolidated.00.pth and no consolidated.safetensors" in error_of(twin)
    (twin / "consolidated.00.pth").write_bytes(b"broken")
    assert "consolidated.00.pth: it is no zip archive" in error_of(twin)
    shutil.copy(RAW / "half" / "consolidated.safetensors", twin)
    shutil.copy(RAW / "half" / "params.json", twin)
    assert MistralForCausalLM.from_pretrained(twin).config.hidden_size == 33


def test_the_weights_are_opened_once(twin, monkeypatch):
    opened = []

    def read(path):
        opened.append(path)
        return read_pth(path)

    monkeypatch.setattr("tinymistral.files.pth.read_pth", read)
    load_checkpoint(twin)
    assert opened == [twin / "consolidated.00.pth"]


def test_weights_in_several_parts_are_refused(twin):
    (twin / "consolidated.01.pth").write_bytes(b"")
    assert "is only a part" in error_of(twin)


@pytest.mark.parametrize(
    ("without", "changes", "says"),
    [
        ([], {"n_layers": 3}, "n_layers is 3, the checkpoint has 2 layers"),
        ([], {"n_layers": 2**31 - 1}, "n_layers is 2147483647, the checkpoint has 2 layers"),
        ([], {"vocab_size": 60}, "'tok_embeddings.weight' is (61, 32), expected (60, 32)"),
        ([], {"head_dim": 4}, "wrong shape: 'layers.0.attention.wq.weight' is (32, 32), expected"),
        (["n_kv_heads"], {}, "'layers.0.attention.wk.weight' is (16, 32), expected (32, 32)"),
        (["hidden_dim"], {}, "params.json: 'hidden_dim' is missing"),
        (
            [],
            {"hidden_dim": 47},
            "'layers.1.feed_forward.w2.weight' is (32, 48), expected (32, 47)",
        ),
        ([], {"moe": {"num_experts": 8}}, "params.json: moe: {'num_experts': 8}: the model is"),
        ([], {"\n\x1b[31m": 1}, "params.json: '\\n\\x1b[31m' is not supported"),
    ],
)
def test_params_that_do_not_fit_the_tensors_are_refused(twin, without, changes, says):
    change_params(twin, *without, **changes)
    assert says in error_of(twin)


def test_params_that_are_not_json_are_refused(twin):
    (twin / "params.json").write_text("{", encoding="utf-8")
    assert "params.json: not valid JSON" in error_of(twin)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (
            {"layers.0.attention.wq.weight": tensor()},
            "missing: 'tok_embeddings.weight', 'layers.0.",
        ),
        ({"layers.0.attention.wq.weight": tensor()}, "wrong shape: 'layers.0.attention.wq.weight'"),
        ({"layers.0.x": tensor()}, "not expected: 'layers.0.x'"),
        (
            {"layers.0.attention.wq.lora_A.weight": tensor()},
            "'layers.0.attention.wq.lora_A.weight': the weights are those of an adapter (LoRA)",
        ),
        # Hugging Face's names, in a folder that says it is raw
        (
            {"model.layers.0.self_attn.q_proj.weight": tensor()},
            "not expected: 'model.layers.0.self",
        ),
    ],
)
def test_tensors_missing_extra_or_misshapen_are_one_error_in_raw_names(twin, tensors, says):
    change_params(twin, n_layers=1)
    (twin / "consolidated.00.pth").write_bytes(pth(whole(tensors), _0=bytes(8)))
    assert says in error_of(twin)


def test_llama_s_rotary_frequencies_are_no_weights(twin):
    tensors = {name: np.array(tensor) for name, tensor in read_consolidated(twin).items()}
    write_file(twin / "consolidated.safetensors", tensors | {"rope.freqs": np.ones(2, np.float32)})
    config, found = load_checkpoint(twin)
    expected_config, expected = load_checkpoint(RAW / "tied")
    assert config == dataclasses.replace(expected_config, dtype=config.dtype)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_tensors_may_be_strided_views_of_one_storage(twin):
    # A model of one layer all of whose tensors are in one storage, the matrices transposed there.
    sizes = {"dim": 4, "n_heads": 2, "n_kv_heads": 1, "head_dim": 2, "hidden_dim": 3}
    change_params(twin, n_layers=1, vocab_size=5, **sizes)
    shapes = {
        "tok_embeddings.weight": (5, 4),
        "norm.weight": (4,),
        "layers.0.attention_norm.weight": (4,),
        "layers.0.ffn_norm.weight": (4,),
        "layers.0.attention.wq.weight": (4, 4),
        "layers.0.attention.wk.weight": (2, 4),
        "layers.0.attention.wv.weight": (2, 4),
        "layers.0.attention.wo.weight": (4, 4),
        "layers.0.feed_forward.w1.weight": (3, 4),
        "layers.0.feed_forward.w2.weight": (4, 3),
        "layers.0.feed_forward.w3.weight": (3, 4),
    }
    values = np.sin(np.arange(200, dtype=np.float32))
    strided, plain, offset = {}, {}, 0
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        stored = values[offset : offset + count]
        plain[name] = stored.reshape(shape[::-1]).T
        steps = tuple(step // 4 for step in plain[name].strides)
        strided[name] = tensor(storage(count=200), offset, shape, steps)
        offset += count
    (twin / "consolidated.00.pth").write_bytes(pth(whole(strided), _0=values.tobytes()))
    model = MistralForCausalLM.from_pretrained(twin, dtype="float64")
    contiguous = MistralForCausalLM(
        model.config,
        dtype="float64",
        tensors={name: np.ascontiguousarray(array) for name, array in model.tensors.items()},
    )
    np.testing.assert_array_equal(
        model.tensors["model.layers.0.mlp.gate_proj.weight"],
        plain["layers.0.feed_forward.w1.weight"],
    )
    ids = [[1, 2, 3, 4]]
    np.testing.assert_allclose(model(ids).logits, contiguous(ids).logits, rtol=1e-12)
