"""Comparing a checkpoint's tensors with those that its configuration calls for."""

import ml_dtypes
import numpy as np
import pytest

from tinymistral import MistralConfig, MistralForCausalLM
from tinymistral.checkpoint import CheckpointError, check_tensors, layer_count

EXPECTED = {"model.norm.weight": (4,), "lm_head.weight": (8, 4)}


def found(**changes):
    tensors = {
        "model.norm.weight": np.zeros(4, np.float16),
        "lm_head.weight": np.zeros((8, 4), ml_dtypes.bfloat16),
    }
    tensors |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in tensors.items() if value is not None}


def error_of(tensors, expected=EXPECTED, ignorable=lambda name: False) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_tensors(tensors, expected, ignorable)
    assert str(caught.value).isprintable()  # one line, no control codes
    return str(caught.value)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_exactly_the_expected_tensors_pass(dtype):
    check_tensors(found(model__norm__weight=np.zeros(4, dtype)), EXPECTED)


def test_everything_that_does_not_fit_is_in_one_line():
    expected = {**EXPECTED, "embed": (8, 4), "a": (), "b": ()}
    tensors = found(
        model__norm__weight=np.zeros(4, np.int64),
        lm_head__weight=np.zeros((4, 8), np.float32),
        extra=np.zeros(1, np.float32),
        b=np.zeros(1, np.int8),
    )
    assert error_of(tensors, expected) == (
        "the checkpoint's tensors do not fit its config: "
        "missing: 'embed', 'a'; "
        "not expected: 'extra'; "
        "wrong shape: 'lm_head.weight' is (4, 8), expected (8, 4), 'b' is (1,), expected (); "
        "wrong type: 'model.norm.weight' is int64, expected float32, float16, bfloat16 or float64, "
        "'b' is int8, expected float32, float16, bfloat16 or float64"
    )


def test_ignorable_tensors_may_have_any_shape_and_type():
    tensors = found(rotary__inv_freq=np.zeros((3, 3), np.float64))
    check_tensors(tensors, EXPECTED, lambda name: name.endswith("inv_freq"))
    assert "not expected: 'rotary.inv_freq'" in error_of(tensors)


def test_an_expected_tensor_is_required_even_if_its_name_is_ignorable():
    message = error_of(found(lm_head__weight=None), ignorable=lambda name: True)
    assert message.endswith("missing: 'lm_head.weight'")
    misshapen = found(lm_head__weight=np.zeros(32, np.float32))
    assert "wrong shape: 'lm_head.weight'" in error_of(misshapen, ignorable=lambda name: True)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.bool_])
def test_a_wrong_type_is_named(dtype):
    message = error_of(found(model__norm__weight=np.zeros(4, dtype)))
    assert f"'model.norm.weight' is {np.dtype(dtype)}, expected" in message


def test_long_lists_are_cut_after_eight_names():
    expected = {f"layer{i}": (1,) for i in range(11)}
    assert error_of({}, expected).endswith("'layer6', 'layer7' and 3 more")
    assert error_of({}, dict(list(expected.items())[:8])).endswith("'layer6', 'layer7'")


def test_names_with_control_codes_stay_on_one_line():
    message = error_of(found(**{"\n\x1b[2J" + "x" * 10_000: np.zeros(1, np.float32)}))
    assert r"'\n\x1b[2Jxxx" in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ([], 0),
        (["model.embed_tokens.weight", "lm_head.weight"], 0),
        (["model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"], 1),
        (["layers.0.attention.wq.weight", "layers.1.attention.wq.weight"], 2),
        (["model.layers.0.x", "model.layers.31.x"], 2),
        (["model.layers.999999999.x"], 1),
        ([f"model.layers.{'9' * 5000}.x"], 0),
        (["model.layers.-1.x", "model.layers.01.x", "model.layers.x", "other.layers.3.x"], 0),
        (["model.layers.\u0663.x"], 0),  # a digit, but not an ASCII one
    ],
)
def test_layers_are_counted_by_their_numbers(names, count):
    assert layer_count(names) == count


def test_a_model_is_made_only_of_tensors_that_fit():
    config = MistralConfig(
        vocab_size=5,
        hidden_size=4,
        intermediate_size=3,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    tensors = MistralForCausalLM(config).tensors
    assert MistralForCausalLM(config, tensors=tensors | {"more": tensors["lm_head.weight"]})
    missing = {name: array for name, array in tensors.items() if name != "lm_head.weight"}
    misshapen = tensors | {"lm_head.weight": np.zeros((4, 5), np.float32)}
    for wrong, says in (
        ({}, "missing: 'model.embed_tokens.weight', "),
        (missing, "missing: 'lm_head.weight'"),
        (misshapen, "wrong shape: 'lm_head.weight' is (4, 5), expected (5, 4)"),
        (
            tensors | {"lm_head.weight": np.zeros((5, 4), int)},
            "wrong type: 'lm_head.weight' is int",
        ),
    ):
        with pytest.raises(ValueError, match="do not fit its config: ") as caught:
            MistralForCausalLM(config, tensors=wrong)
        assert says in str(caught.value)
        assert str(caught.value).isprintable()
