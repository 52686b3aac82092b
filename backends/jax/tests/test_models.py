"""The Flax classes beside transformers: its own Flax classes where those are right, else PyTorch.

float32 is compared with an absolute tolerance of 1e-4 for logits of up to 20: sums of some 100
products in three layers, each with an error of 2^-24 of its size.
"""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixture_files import FACTS, FIXTURES, MODELS, PEER, exact, leaves
from safetensors.numpy import load_file

from tinymistral import DEMO, MistralConfig, MistralForCausalLM
from tinymistral.losses import IGNORED
from tinymistral.training.gradients import loss_and_gradients
from tinymistral_jax import (
    FlaxMistralForCausalLM,
    FlaxMistralForSequenceClassification,
    FlaxMistralModel,
)
from tinymistral_jax.params import to_tensors

CLOSE = 1e-4


@pytest.fixture(scope="module")
def gqa():
    return FlaxMistralForCausalLM.from_pretrained(MODELS / "gqa")


def close(array, expected, atol=CLOSE):
    np.testing.assert_allclose(np.asarray(array, np.float64), expected, rtol=0, atol=atol)


# Beside transformers' Flax classes, where these are right


@pytest.mark.parametrize("case", ["whole", "left"])
def test_all_outputs_are_those_of_the_peer(gqa, case):
    given = exact("gqa", case)
    ids, mask = given["input_ids"], given["attention_mask"]
    out = gqa(ids, mask, output_attentions=True, output_hidden_states=True)
    real = mask.astype(bool)
    peer = {name: PEER[f"agrees.{case}.{name}"] for name in ("logits", "hidden_states")}
    close(out.logits[real], peer["logits"][real])
    close(np.stack(out.hidden_states)[:, real], peer["hidden_states"][:, real])
    weights = np.stack(out.attentions).swapaxes(2, 3)[:, real]
    close(weights, PEER[f"agrees.{case}.attentions"].swapaxes(2, 3)[:, real], 1e-5)
    assert out.past_key_values is None


def test_parameters_have_the_names_and_shapes_of_the_peer(gqa):
    shapes = {name: list(array.shape) for name, array in leaves(gqa.params).items()}
    assert shapes == FACTS["shapes of gqa"]


def test_gradients_are_those_of_the_peer(gqa):
    ids = exact("gqa", "whole")["input_ids"]
    loss = jax.jit(jax.grad(lambda params: (gqa(ids, params=params).logits ** 2).mean()))
    for name, slope in leaves(loss(gqa.params)).items():
        expected = PEER[f"grad.{name}"]
        # 1e-5 of the largest, for sums over 48 tokens and three layers
        close(slope, expected, 1e-5 * max(1, abs(expected).max()))


def check_gradients(model, ids, targets, mask, expected_loss, expected):
    """Compare the summed loss and its gradients, in float32; they are named as in a checkpoint."""

    @jax.jit
    @jax.value_and_grad
    def loss_and_slope(params):
        scores = jax.nn.log_softmax(model(ids, mask, params=params).logits)
        chosen = jnp.take_along_axis(scores, np.maximum(targets, 0)[..., None], axis=-1)
        return -jnp.where(targets != IGNORED, chosen[..., 0], 0).sum()

    loss, slope = loss_and_slope(jax.tree.map(lambda x: x.astype(jnp.float32), model.params))
    assert float(loss) == pytest.approx(expected_loss, rel=1e-5)
    tensors = to_tensors(slope)
    assert set(tensors) == set(expected)
    for name, array in tensors.items():
        close(array, expected[name], 1e-4 * abs(expected[name]).max())


@pytest.mark.parametrize("name", ["gqa", "tied"])
def test_gradients_are_those_of_pytorch(name):
    """Of texts of 17, 1 and 22 tokens, padded on the right; the embedding that is tied has both."""
    given = load_file(FIXTURES / "gradients.safetensors")
    lengths = given[f"{name}.lengths"]
    ids, targets = np.zeros((2, 3, 22), np.int64)
    mask = np.arange(22) < lengths[:, None]
    ids[mask], targets[mask] = given[f"{name}.ids"], given[f"{name}.targets"]
    targets = np.where(mask, targets, IGNORED)
    model = FlaxMistralForCausalLM.from_pretrained(MODELS / name)
    prefix = f"{name}.gradients."
    expected = {n.removeprefix(prefix): x for n, x in given.items() if n.startswith(prefix)}
    check_gradients(model, ids, targets, mask, given[f"{name}.loss"], expected)


def test_gradients_of_the_demo_are_those_written_by_hand():
    """Past its window of 256 tokens; those by hand are computed in float64."""
    model = FlaxMistralForCausalLM.from_pretrained(DEMO)
    ids = np.random.default_rng(0).integers(3, 2048, 280)
    targets = np.append(ids[1:], IGNORED)
    weights = {n: np.asarray(x, np.float64) for n, x in to_tensors(model.params).items()}
    loss, _, expected = loss_and_gradients(weights, ids, targets, np.arange(280), model.config)
    check_gradients(model, ids[None], targets[None], None, loss, expected)


def test_a_gradient_is_the_slope_in_its_direction():
    """By central differences in float32: their error is about 2^-24 of the loss / 0.01."""
    model = FlaxMistralForCausalLM(MistralConfig(**TINY), seed=1)
    ids = np.arange(12).reshape(2, 6)

    @jax.jit
    def loss(params):
        return (model(ids, [[1] * 6, [0, 0, 1, 1, 1, 1]], params=params).logits[:, 2:] ** 2).mean()

    slope = jax.grad(loss)(model.params)
    size = sum(float((x**2).sum()) for x in jax.tree.leaves(slope)) ** 0.5
    ahead, behind = (
        loss(jax.tree.map(lambda p, s: p + step / size * s, model.params, slope))  # noqa: B023
        for step in (0.01, -0.01)
    )
    assert float((ahead - behind) / 0.02) == pytest.approx(size, rel=2e-3)


TINY = {
    "vocab_size": 29,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "sliding_window": 3,
    "initializer_range": 0.3,
}


# The six mistakes of the peer. The right values are those of PyTorch; far: by more than rounding.


@pytest.mark.parametrize(
    ("mistake", "name"),
    [
        ("window", "gqa"),  # W + 1 keys
        ("no_window", "no_window"),  # None: each token saw only itself
        ("theta", "no_window"),  # 10,000 in any case
        ("tied", "tied"),  # a head drawn at random
    ],
)
def test_what_the_peer_gets_wrong_is_right(mistake, name):
    given = exact(name, "whole")
    out = FlaxMistralForCausalLM.from_pretrained(MODELS / name)(given["input_ids"])
    close(out.logits, given["logits"])
    assert abs(PEER[mistake] - given["logits"]).max() > 1000 * CLOSE


def test_heads_need_not_have_the_width_that_divides_the_models():
    given = exact("mqa", "whole")
    model = FlaxMistralForCausalLM.from_pretrained(MODELS / "mqa")
    close(model(given["input_ids"]).logits, given["logits"])
    kernel = model.params["model"]["layers"]["0"]["self_attn"]["q_proj"]["kernel"]
    assert kernel.shape == (40, 24)  # 4 heads of 6; the peer expected heads of 40 / 4
    assert FACTS["q_proj of mqa, whose head_dim is 6"] == [40, 40]


def test_no_memory_is_taken_for_positions_that_do_not_occur():
    config = MistralConfig(**TINY, max_position_embeddings=131072)
    model = FlaxMistralForCausalLM(config)
    ids = np.zeros((1, 4), np.int32)
    used = jax.jit(model.run).lower(model.params, ids).compile().memory_analysis()
    assert used.temp_size_in_bytes < 100_000
    assert FACTS["bytes of a layer's mask, max_position_embeddings 4096"] == 4096**2


# Other heads, dtypes and checkpoints


def test_a_base_model_gives_hidden_states(gqa):
    given = exact("gqa", "whole")
    model = FlaxMistralModel.from_pretrained(MODELS / "gqa")
    assert set(model.params) == {"embed_tokens", "layers", "norm"}
    close(model(given["input_ids"]).last_hidden_state, given["hidden_states"][-1])


@pytest.mark.parametrize("case", ["left", "right"])
def test_a_text_is_classified_by_its_last_token(case):
    given = exact("heads", f"sequence.{case}")
    model = FlaxMistralForSequenceClassification.from_pretrained(FIXTURES / "heads" / "sequence")
    assert model.params["score"]["kernel"].shape == (20, 3)
    close(model(given["input_ids"], given["attention_mask"]).logits, given["logits"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_operations_that_are_compiled_together_round_in_between(dtype):
    """As one by one, but where the order of a sum decides; else 1 logit in 6 would be the same.

    A cosine that was off by 2^-22 would make an eighth of the float16 logits differ.
    """
    ids = exact("gqa", "whole")["input_ids"]
    model = FlaxMistralForCausalLM.from_pretrained(MODELS / "gqa", dtype=jnp.dtype(dtype))
    together = model(ids).logits
    assert together.dtype == model.dtype == jnp.dtype(dtype)
    one_by_one = MistralForCausalLM.from_pretrained(MODELS / "gqa", dtype=dtype, backend="jax")
    assert (np.asarray(together) == one_by_one(ids).logits).mean() > 0.99


def test_a_checkpoint_is_written_that_tinymistral_opens(gqa, tmp_path):
    params = jax.tree.map(lambda array: array * 2, gqa.params)
    gqa.save_pretrained(tmp_path / "twice", params)
    config = json.loads((tmp_path / "twice" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["MistralForCausalLM"]
    again = FlaxMistralForCausalLM.from_pretrained(tmp_path / "twice")
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    tensors = MistralForCausalLM.from_pretrained(tmp_path / "twice").tensors
    name = "model.layers.1.mlp.up_proj"
    kernel = params["model"]["layers"]["1"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_array_equal(tensors[f"{name}.weight"], kernel.T)


def test_parameters_in_a_call_replace_those_of_the_model(gqa):
    ids, zero = np.array([[5, 6]]), jax.tree.map(jnp.zeros_like, gqa.params)
    assert not np.asarray(gqa(ids, params=zero).logits).any()


# The cache


def test_pieces_with_a_cache_equal_the_whole_also_where_the_ring_wraps(gqa):
    """Window 5, chunk 4: 8 slots for 24 tokens. By pieces of 4, 3 and 1, and by a longer call."""
    model = FlaxMistralForCausalLM(gqa.config, params=gqa.params)
    model.backend.chunk = 4
    given = exact("gqa", "whole")
    cache = model.init_cache(2, 24)
    assert cache["k"][0].shape == (2, 8, 2, 8)
    start, parts = 0, []
    for width in (4, 3, 1, 1, 7, 8):
        out = model(given["input_ids"][:, start : start + width], past_key_values=cache)
        cache, start = out.past_key_values, start + width
        parts.append(out.logits)
    close(np.concatenate(parts, axis=1), given["logits"])


@pytest.mark.parametrize("wide", [False, True])
def test_left_padding_is_not_in_the_cache(gqa, wide):
    """The mask is of the new tokens, or, as the peer has it, of all tokens that are to come."""
    given = exact("gqa", "left")
    ids, mask = given["input_ids"], given["attention_mask"]
    whole = np.pad(mask, ((0, 0), (0, 5)), constant_values=1)
    cache, parts = gqa.init_cache(3, 16), []
    for part in (slice(0, 6), slice(6, 11)):
        out = gqa(ids[:, part], whole if wide else mask[:, part], past_key_values=cache)
        cache = out.past_key_values
        parts.append(out.logits)
    real = mask.astype(bool)
    close(np.concatenate(parts, axis=1)[real], given["logits"][real])
    assert sorted(np.asarray(cache["positions"][0])[:11]) == sorted(
        [*range(mask[0].sum()), *[-1] * (11 - mask[0].sum())]
    )


def test_a_row_may_go_back(gqa):
    given = exact("gqa", "whole")
    ids = given["input_ids"]
    wrong = gqa((ids[:, :12] + 1) % 60, past_key_values=gqa.init_cache(2, 24)).past_key_values
    positions = np.tile(np.arange(24), (2, 1))
    out = gqa(ids, position_ids=positions, past_key_values=wrong)
    close(out.logits, given["logits"])


# Transformations


def test_vmap_goes_through_a_call(gqa):
    given = exact("gqa", "whole")
    rows = jax.vmap(lambda ids: gqa(ids[None]).logits[0])(
        jnp.asarray(given["input_ids"], jnp.int32)
    )
    close(rows, given["logits"])


def test_a_compiled_call_takes_positions_that_are_traced(gqa):
    given = exact("gqa", "positions")
    call = jax.jit(lambda *x: gqa(x[0], x[1], x[2]).logits)
    names = ("input_ids", "attention_mask", "position_ids")
    logits = call(*(jnp.asarray(given[name], jnp.int32) for name in names))
    real = given["attention_mask"].astype(bool)
    close(logits[real], given["logits"][real])


# Errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([[5, 67]],), "67 at row 0, column 1 is not in the vocabulary"),
        (([[5, 6]], [[1]]), r"attention_mask: expected 0 and 1 in shape \(1, 2\)"),
        (([[5, 6]], [[1, 2]]), "attention_mask: expected 0 and 1"),
    ],
)
def test_wrong_inputs_are_refused(gqa, arguments, said):
    with pytest.raises(ValueError, match=said):
        gqa(*arguments)


def test_more_tokens_than_the_cache_has_room_for_are_refused(gqa):
    with pytest.raises(ValueError, match="has room for 4 tokens, and 5 come"):
        gqa([[1, 2, 3, 4, 5]], past_key_values=gqa.init_cache(1, 4))


def test_dropout_is_refused():
    config = dataclasses.replace(MistralConfig(**TINY), attention_dropout=0.1)
    model = FlaxMistralForCausalLM(config)
    with pytest.raises(ValueError, match="dropout is not implemented"):
        model([[1, 2]], train=True)


def test_without_a_padding_id_one_text_is_classified_at_a_time():
    model = FlaxMistralForSequenceClassification(MistralConfig(**TINY))
    with pytest.raises(ValueError, match="batch sizes > 1 if no padding token"):
        model([[1, 2], [3, 4]])


def test_return_dict_false_gives_a_tuple():
    model = FlaxMistralForCausalLM(MistralConfig(**TINY))
    (logits,) = model([[1, 2]], return_dict=False)
    assert logits.shape == (1, 2, 29)


def test_the_demo_opens_and_is_tied():
    model = FlaxMistralForCausalLM.from_pretrained(DEMO)
    assert set(model.params) == {"model"}
    assert model.params["model"]["norm"]["weight"].dtype == jnp.bfloat16
