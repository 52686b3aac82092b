"""The model against transformers, whose results are in `fixtures/`.

Tolerances: transformers in float64 and we differ by the order of sums alone. float32 differs
from the float64 truth by what transformers' own float32 differs from it, give or take; logits
have a standard deviation of 1 to 7.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys

import numpy as np
import pytest
from goldens import CASES, FIXTURES, MANIFEST, MODELS, goldens
from strategies import config, tiny_model

from tinymistral import MistralConfig, MistralForCausalLM, MistralModel, RollingCache
from tinymistral.checkpoint import CheckpointError, load_checkpoint, write_tensors
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.tap import STAGES

FLOAT64 = 1e-9
FLOAT32 = 2e-4


def open_model(name, **options):
    return MistralForCausalLM.from_pretrained(FIXTURES / "models" / name, **options)


def inputs_of(case):
    names = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")
    return {name: case[name] for name in names if name in case}


def far_positions_warn(model, case):
    far = case.get("position_ids", np.zeros(1)).max() >= model.config.max_position_embeddings
    return pytest.warns(UserWarning, match="max_position") if far else contextlib.nullcontext()


@pytest.mark.parametrize("dtype, tolerance", [("float64", FLOAT64), ("float32", FLOAT32)])
@pytest.mark.parametrize("name, case", CASES)
def test_logits_and_hidden_states_are_those_of_transformers(name, case, dtype, tolerance):
    model = open_model(name, dtype=dtype)
    golden = goldens(f"{name}.{dtype}", case)
    if not golden:
        pytest.skip("transformers' float32 angles err at far positions: compared in float64 only")
    with far_positions_warn(model, golden):
        output = model(**inputs_of(golden), output_hidden_states=True)
    real = golden["attention_mask"] == 1
    assert output.logits.dtype == dtype
    np.testing.assert_allclose(output.logits[real], golden["logits"][real], atol=tolerance, rtol=0)
    states = np.stack(output.hidden_states)
    assert states.dtype == dtype
    np.testing.assert_allclose(
        states[:, real], golden["hidden_states"][:, real], atol=tolerance, rtol=0
    )


@pytest.mark.parametrize("name", MODELS)
def test_weights_that_stay_as_stored_give_the_same(name, monkeypatch):
    golden = goldens(f"{name}.float64", "whole")
    monkeypatch.setattr("tinymistral.pretrained.WIDENED_AT_MOST", 0)
    model = open_model(name, dtype="float64")
    for tensor, array in model.tensors.items():
        if array.ndim > 1:
            placed = model.weights
            for part in tensor.split("."):
                placed = placed[int(part)] if part.isdigit() else getattr(placed, part)
            assert np.shares_memory(placed, array)
    output = model(golden["input_ids"])
    np.testing.assert_allclose(output.logits, golden["logits"], atol=FLOAT64, rtol=0)


@pytest.mark.parametrize("case", ["whole", "left"])
@pytest.mark.parametrize("name", MODELS)
def test_attentions_are_those_of_transformers_in_token_order(name, case):
    golden = goldens(f"{name}.float64", case)
    output = open_model(name, dtype="float64")(**inputs_of(golden), output_attentions=True)
    for layer, ours in enumerate(output.attentions):
        for row, mask in enumerate(golden["attention_mask"] == 1):
            theirs = golden["attentions"][layer, row][:, mask][:, :, mask]
            n = np.count_nonzero(mask)
            np.testing.assert_allclose(ours[row][:, mask, :n], theirs, atol=FLOAT64, rtol=0)
            assert not ours[row][:, :, n:].any()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sizes", [[1] * 24, [5, 1, 1, 9, 8], [23, 1]])
def test_decoding_with_a_cache_gives_the_logits_of_the_whole(name, sizes):
    golden = goldens(f"{name}.float64", "whole")
    model = open_model(name, dtype="float64")
    cache, logits, start = None, [], 0
    for size in sizes:
        output = model(golden["input_ids"][:, start : start + size], past_key_values=cache)
        cache, start = output.past_key_values, start + size
        logits.append(output.logits)
    np.testing.assert_allclose(
        np.concatenate(logits, axis=1), golden["logits"], atol=FLOAT64, rtol=0
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_pieces_of_any_size_give_the_logits_of_the_whole(name, chunk):
    golden = goldens(f"{name}.float64", "left")
    model = open_model(name, dtype="float64")
    cache = RollingCache(model.config, model.backend, rows=3, chunk=chunk)
    output = model(**inputs_of(golden), past_key_values=cache)
    real = golden["attention_mask"] == 1
    np.testing.assert_allclose(output.logits[real], golden["logits"][real], atol=FLOAT64, rtol=0)


@pytest.mark.parametrize("name", [n for n in MODELS if MANIFEST["models"][n]["half"]])
@pytest.mark.parametrize("case", ["whole", "left"])
def test_half_precision_errs_no_more_than_that_of_transformers(name, case):
    half = MANIFEST["models"][name]["half"]
    truth, theirs = goldens(f"{name}.float64", case), goldens(f"{name}.{half}", case)
    ours = open_model(name, dtype=half)(**inputs_of(truth)).logits
    assert ours.dtype == half
    real = truth["attention_mask"] == 1
    our_error = np.std(ours[real].astype(np.float64) - truth["logits"][real])
    their_error = np.std(theirs["logits"][real] - truth["logits"][real])
    # We round once an operation where transformers rounds several times, so ours should be the
    # smaller; both are random, and over so few logits their ratio may well be off by a third.
    assert 0.1 * their_error < our_error < 1.33 * their_error


@pytest.mark.parametrize("name", MODELS)
def test_the_base_model_opens_the_same_checkpoint(name):
    golden = goldens(f"{name}.float64", "whole")
    base = MistralModel.from_pretrained(FIXTURES / "models" / name, dtype="float64")
    output = base(golden["input_ids"])
    np.testing.assert_allclose(
        output.last_hidden_state, golden["hidden_states"][-1], atol=FLOAT64, rtol=0
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_is_the_same_model(name, tmp_path):
    golden = goldens(f"{name}.float64", "whole")
    model = open_model(name)
    model.save_pretrained(tmp_path, max_shard_size=20_000)
    again = MistralForCausalLM.from_pretrained(tmp_path, dtype="float64")
    assert again.config == model.config
    for tensor in model.tensors:
        assert again.tensors[tensor].dtype == model.tensors[tensor].dtype
        assert again.tensors[tensor].tobytes() == model.tensors[tensor].tobytes()
    output = again(golden["input_ids"])
    np.testing.assert_allclose(output.logits, golden["logits"], atol=FLOAT64, rtol=0)


def test_mistral_7b_has_the_published_number_of_parameters():
    shapes = MistralForCausalLM.parameter_shapes(MistralConfig())
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 7_241_732_096


def test_random_weights_are_normal_with_the_range_of_the_config_and_norms_are_one():
    config = MistralConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    model = MistralForCausalLM(config, seed=3)
    table = model.tensors["model.embed_tokens.weight"]
    assert table.dtype == np.float32
    # 6400 values: the standard error of their standard deviation is 0.5 / sqrt(2 · 6400) = 0.0044
    assert abs(table.std() - 0.5) < 5 * 0.0044
    assert (model.tensors["model.layers.1.input_layernorm.weight"] == 1).all()
    same, other = MistralForCausalLM(config, seed=3), MistralForCausalLM(config, seed=4)
    assert (same.tensors["lm_head.weight"] == model.tensors["lm_head.weight"]).all()
    assert (other.tensors["lm_head.weight"] != model.tensors["lm_head.weight"]).any()


def test_random_weights_larger_than_the_machine_are_refused_before_they_are_made():
    with pytest.raises(ValueError, match=r"would take .* GB"):
        MistralForCausalLM(MistralConfig(num_hidden_layers=10**9))


@pytest.mark.parametrize(
    ("dtype", "tied", "widened", "narrow", "nbytes"),
    [
        # 13·10 of embeddings and as many of a head, twice 930 in a layer's matrices, 50 in norms
        ("float64", False, True, True, 8 * 2170),
        ("float16", False, True, True, 2 * 2170),
        ("float16", True, True, True, 2 * 2040),
        ("float32", False, False, True, 2 * 2120 + 4 * 50),  # matrices as they are stored
        ("float32", False, False, False, 4 * 2170),
    ],
)
def test_a_backend_is_told_the_shape_and_how_many_bytes_will_come_before_any_does(
    dtype, tied, widened, narrow, nbytes, monkeypatch
):
    events = []

    class Watching(NumpyBackend):
        narrow_weights = narrow

        def prepare(self, config):
            events.append(config)

        def check_memory(self, nbytes):
            events.append(nbytes)

        def asarray(self, array, dtype=None):
            events.append("array")
            return super().asarray(array, dtype)

    if not widened:
        monkeypatch.setattr("tinymistral.pretrained.WIDENED_AT_MOST", 0)
    model = tiny_model(
        config(tie_word_embeddings=tied), weight_dtype="bfloat16", backend=Watching(dtype)
    )
    assert events == [model.config, nbytes] + ["array"] * (20 if tied else 21)
    assert sum(array.nbytes for array in arrays_of(model.weights)) == nbytes


def arrays_of(weights):
    """List the leaves of a tree of weights."""
    if isinstance(weights, np.ndarray):
        return [weights]
    children = weights if isinstance(weights, list) else vars(weights).values()
    return [array for child in children for array in arrays_of(child)]


@pytest.mark.parametrize(
    ("widths", "listed"), [((128, 64), "64, 128"), (range(2, 257, 2), "2, 4, ..., 256")]
)
def test_a_backend_that_has_no_heads_of_this_width_says_which_it_has(widths, listed):
    class Narrow(NumpyBackend):
        head_dims = widths

    with pytest.raises(ValueError, match=rf"head_dim 258 .* expected one of {listed}, or another"):
        tiny_model(config(head_dim=258), backend=Narrow())
    tiny_model(config(head_dim=64), backend=Narrow())


def test_tied_embeddings_are_one_array():
    model = open_model("tied")
    assert "lm_head.weight" not in model.tensors
    assert model.num_parameters() == sum(t.size for t in model.tensors.values())


def test_a_tied_head_that_is_stored_has_to_be_the_embedding(tmp_path):
    # transformers then does not tie them, with a warning
    model = open_model("tied")
    model.save_pretrained(tmp_path)
    embedding = model.tensors["model.embed_tokens.weight"]
    write_tensors(tmp_path, model.tensors | {"lm_head.weight": embedding})
    MistralForCausalLM.from_pretrained(tmp_path)
    other = embedding.copy()
    other[-1, -1] += 1
    for head in (other, embedding[:-1], embedding.astype(np.float32)):
        write_tensors(tmp_path, model.tensors | {"lm_head.weight": head})
        with pytest.raises(ValueError, match="set tie_word_embeddings to false"):
            MistralForCausalLM.from_pretrained(tmp_path)


def test_weights_are_views_of_the_mapped_file():
    model = open_model("gqa")
    weight = model.weights.model.layers[0].self_attn.q_proj.weight
    assert not weight.flags.owndata
    assert not weight.flags.writeable


@pytest.mark.skipif(sys.platform == "win32", reason="no mapped file can be cut there")
def test_a_file_of_weights_that_is_cut_is_an_error_before_it_is_read(tmp_path):
    shutil.copytree(FIXTURES / "models" / "sharded", tmp_path, dirs_exist_ok=True)
    model = MistralForCausalLM.from_pretrained(tmp_path)
    config, tensors = load_checkpoint(tmp_path)
    os.truncate(tmp_path / "model-00003-of-00004.safetensors", 0)
    for use in (
        lambda: model([[1]]),
        lambda: model.generate([[1]]),
        lambda: model.save_pretrained(tmp_path / "copy"),
        lambda: MistralForCausalLM(config, tensors=tensors),
    ):
        with pytest.raises(CheckpointError, match=r"model-00003.* was \d+ bytes when it"):
            use()


def test_logits_to_keep_gives_the_last_columns_or_those_named():
    golden = goldens("gqa.float64", "whole")
    model = open_model("gqa", dtype="float64")
    for keep, columns in ((1, [23]), (3, [21, 22, 23]), ([0, 7], [0, 7]), (99, range(24))):
        output = model(golden["input_ids"], logits_to_keep=keep)
        np.testing.assert_allclose(
            output.logits, golden["logits"][:, list(columns)], atol=FLOAT64, rtol=0
        )


def test_a_config_that_does_not_fit_the_weights_is_one_error(tmp_path):
    model = open_model("gqa")
    model.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text(encoding="utf-8")
    for given, wrong, message in (
        ('"num_hidden_layers": 3', '"num_hidden_layers": 1000000000', "num_hidden_layers"),
        ('"intermediate_size": 48', '"intermediate_size": 49', "wrong shape"),
        ('"tie_word_embeddings": false', '"tie_word_embeddings": 0', "tie_word_embeddings"),
        ('"vocab_size": 67', '"vocab_size": 68', "wrong shape"),
    ):
        assert given in config
        (tmp_path / "config.json").write_text(config.replace(given, wrong), encoding="utf-8")
        with pytest.raises(ValueError, match=message) as caught:
            MistralForCausalLM.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)


def test_stages_have_their_names_also_where_layers_share_weights():
    model, ids = tiny_model(config()), [[1, 2, 3]]
    model.weights.model.layers[0] = model.weights.model.layers[1]
    named = {}
    states = model(ids, tap=named.__setitem__, output_hidden_states=True).hidden_states
    stages = [name.replace("N", str(n)) for name in STAGES for n in (0, 1)]
    assert set(named) == set(stages)
    expected = [named["embedding"], named["layers.0.output"], named["norm"]]
    for state, array in zip(states, expected, strict=True):
        np.testing.assert_array_equal(state, array)


@pytest.mark.parametrize("name", ["layers.0.q", "layers.1.up"])
def test_a_projection_of_a_stage_is_the_product_of_its_norm_and_weight(name):
    model, named = tiny_model(config()), {}
    model([[1, 2, 3]], tap=named.__setitem__)
    layer, stage = name.rsplit(".", 1)
    n = int(layer[-1])
    module, norm = {
        "q": ("self_attn.q_proj", "input_layernorm"),
        "up": ("mlp.up_proj", "post_attention_layernorm"),
    }[stage]
    weight = model.tensors[f"model.layers.{n}.{module}.weight"].astype(np.float64)
    product = named[f"{layer}.{norm}"] @ weight.T
    np.testing.assert_allclose(named[name].reshape(product.shape), product, rtol=1e-12)


def test_an_unknown_argument_is_refused_with_all_that_are_known():
    with pytest.raises(TypeError) as caught:
        MistralForCausalLM.from_pretrained("nowhere", banana=1)
    known = "name_or_path, backend, dtype, revision"
    assert str(caught.value).endswith(f"unknown argument banana; known are {known}")
