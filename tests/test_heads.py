"""The heads and the losses against transformers, whose results are in `fixtures/heads*`."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from goldens import FIXTURES, goldens, read_json
from strategies import config as tiny_config
from strategies import tiny_model

import tinymistral
from tinymistral import (
    MistralConfig,
    MistralForCausalLM,
    MistralForQuestionAnswering,
    MistralForSequenceClassification,
    MistralForTokenClassification,
    MistralModel,
)

CASES = read_json("heads.json")
FLOAT64 = 1e-9
FLOAT32 = 2e-4
LOGITS = ("logits", "start_logits", "end_logits")
LABELS = ("labels", "start_positions", "end_positions")
INPUTS = ("input_ids", "inputs_embeds", "attention_mask", *LABELS)
HEADED = [
    MistralForCausalLM,
    MistralForSequenceClassification,
    MistralForTokenClassification,
    MistralForQuestionAnswering,
]
A_CASE = {
    "sequence": "sequence.right",
    "number": "number.left",
    "token": "token.left",
    "answer": "answer.whole",
}


def open_case(case, dtype="float64"):
    kind = getattr(tinymistral, CASES[case]["class"])
    model = kind.from_pretrained(FIXTURES / CASES[case]["checkpoint"], dtype=dtype)
    model.config = dataclasses.replace(model.config, **CASES[case]["config"])
    return model


def given(golden, **changes):
    return {name: golden[name] for name in INPUTS if name in golden} | changes


def results(output):
    return {name: getattr(output, name) for name in LOGITS if hasattr(output, name)}


@pytest.mark.parametrize("dtype, tolerance", [("float64", FLOAT64), ("float32", FLOAT32)])
@pytest.mark.parametrize("case", CASES)
def test_logits_and_losses_are_those_of_transformers(case, dtype, tolerance):
    golden = goldens(f"heads.{dtype}", case)
    output = open_case(case, dtype)(**given(golden))
    for name, logits in results(output).items():
        assert logits.dtype == dtype
        real = ~np.isnan(golden[name])
        assert logits.shape == real.shape
        np.testing.assert_allclose(logits[real], golden[name][real], atol=tolerance, rtol=0)
    assert output.loss.dtype == dtype
    np.testing.assert_allclose(output.loss, golden["loss"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_pieces_and_all_at_once_give_the_same(case):
    golden = goldens("heads.float64", case)
    model = open_case(case)
    model.backend.chunk = 2
    output = model(**given(golden))
    for name, logits in results(output).items():
        real = ~np.isnan(golden[name])
        np.testing.assert_allclose(logits[real], golden[name][real], atol=FLOAT64, rtol=0)


@pytest.mark.parametrize("case", ["causal.left", "causal.right", "token.left", "token.right"])
def test_labels_of_padding_do_not_count(case):
    golden = goldens("heads.float64", case)
    labels = golden["labels"].copy()
    padding = golden["attention_mask"] == 0
    assert (labels[padding] == -100).all()
    labels[padding] = 3
    first = np.argmax(~padding, axis=1)
    if case == "causal.left":  # padding predicts the first token
        labels[np.arange(3), first] = 3
    output = open_case(case)(**given(golden, labels=labels))
    assert output.loss == pytest.approx(float(golden["loss"]), abs=FLOAT64)


@pytest.mark.parametrize("case", A_CASE.values())
def test_without_labels_there_is_no_loss(case):
    golden = {n: t for n, t in goldens("heads.float64", case).items() if n not in LABELS}
    output = open_case(case)(**given(golden))
    assert output.loss is None
    assert open_case("causal.whole")([[1, 2]]).loss is None


@pytest.mark.parametrize("name", A_CASE)
def test_the_shared_arguments_do_what_they_do_in_the_base_model(name):
    ids = goldens("heads.float64", "answer.whole")["input_ids"]
    model, stages = open_case(A_CASE[name]), {}
    options = {"output_hidden_states": True, "output_attentions": True}
    base = MistralModel.from_pretrained(FIXTURES / "heads" / name, dtype="float64")(ids, **options)
    output = model(ids, **options, tap=stages.setdefault)
    np.testing.assert_array_equal(output.hidden_states, base.hidden_states)
    np.testing.assert_array_equal(output.attentions, base.attentions)
    assert stages["logits"].shape == (2, 9, model.config.num_labels)
    assert output.past_key_values.columns == 9
    assert model(ids, use_cache=False).past_key_values is None


@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.parametrize("name", A_CASE)
def test_a_cache_spares_a_head_the_tokens_that_it_holds(name, at):
    ids = goldens("heads.float64", "answer.whole")["input_ids"]
    model = open_case(A_CASE[name])
    cache = model(ids[:, :at]).past_key_values
    rest = results(model(ids[:, at:], past_key_values=cache))
    for key, logits in results(model(ids)).items():
        of_tokens = name in ("token", "answer")
        expected = logits[:, at:] if of_tokens else logits
        np.testing.assert_allclose(rest[key], expected, atol=FLOAT64, rtol=0)


def test_id2label_names_the_best_label():
    golden = goldens("heads.float64", "sequence.right")
    model = open_case("sequence.right")
    logits = model(**given(golden)).logits
    names = [model.config.id2label[i] for i in logits.argmax(-1)]
    order = ("negative", "neutral", "positive")  # as fixtures/making/heads.py names them
    assert names == [order[i] for i in golden["logits"].argmax(-1)]
    assert model.config.label2id["positive"] == 2


# Which token is pooled


def test_a_batch_without_a_padding_token_is_refused():
    model = open_case("sequence.alone")
    for inputs in ({"input_ids": [[3, 4], [5, 6]]}, {"inputs_embeds": np.ones((2, 3, 20))}):
        with pytest.raises(
            ValueError,
            match=r"^Cannot handle batch sizes > 1 if no padding token is defined\..*pad_token_id",
        ):
            model(**inputs)


def test_the_pooled_token_is_the_rightmost_that_does_not_pad():
    model = open_case("sequence.whole")
    text, pad = [7, 8, 0, 9, 5], model.config.pad_token_id
    alone = model([text]).logits
    for ids in ([*text, pad, pad], [*text, pad]):
        np.testing.assert_allclose(model([ids]).logits, alone, atol=FLOAT64, rtol=0)
    np.testing.assert_allclose(
        model([[pad, *text]], [[0, 1, 1, 1, 1, 1]]).logits, alone, atol=FLOAT64, rtol=0
    )
    nothing_but_padding = model([[pad, pad, pad]]).logits  # transformers takes the first
    np.testing.assert_allclose(nothing_but_padding, model([[pad]]).logits, atol=FLOAT64, rtol=0)


@pytest.mark.parametrize(
    "inputs, pad",
    [
        ({"input_ids": [[5, 6, 7], [5, 6, 9]], "attention_mask": [[1, 1, 1], [1, 1, 0]]}, 0),
        ({"input_ids": [[5, 6, 9]], "attention_mask": [[1, 1, 0]]}, None),
        ({"inputs_embeds": np.ones((1, 3, 20)), "attention_mask": [[1, 1, 0]]}, 0),
    ],
)
def test_pooling_padding_is_refused_in_one_line(inputs, pad):
    model = open_case("sequence.whole")
    model.config = dataclasses.replace(model.config, pad_token_id=pad)
    row = len(inputs["attention_mask"]) - 1
    with pytest.raises(ValueError, match=f"column 2 of row {row} is padding") as caught:
        model(**inputs)
    assert "\n" not in str(caught.value)


# Labels that do not fit

IDS = [[5, 6, 7, 8], [5, 6, 7, 8]]
SINGLE, MULTI = "single_label_classification", "multi_label_classification"


@pytest.mark.parametrize(
    "case, config, labels, message",
    [
        ("sequence.whole", {}, [0, 3], "labels: 3 at row 1 is no class; expected 0 to 2"),
        ("sequence.whole", {}, [-1, 0], "labels: -1 at row 0 is no class"),
        ("sequence.whole", {}, [0], r"expected shape \(2,\).* got \(1,\)"),
        ("sequence.whole", {}, [[0, 1, 1], [1, 0, 0]], r"shape \(2,\).* floats"),
        ("sequence.whole", {}, [0.0, 1.0], r"expected shape \(2, 3\) for multi_label"),
        ("sequence.whole", {}, [[0.5, 1.0, 1.5], [0.0, 0.0, 0.0]], "expected 0.0 to 1.0"),
        ("sequence.whole", {}, [[np.nan] * 3] * 2, "expected 0.0 to 1.0"),
        ("sequence.whole", {"problem_type": SINGLE}, [0.0, 1.0], "expected integers"),
        ("sequence.whole", {"problem_type": MULTI}, [[0, 1, 1]] * 2, "expected floating point"),
        ("sequence.whole", {"problem_type": "regression"}, [0.0, 1.0], r"expected shape \(2, 3\)"),
        ("sequence.whole", {}, ["yes", "no"], "labels: expected numbers"),
        ("sequence.whole", {}, 1, "labels: expected lists or a NumPy array"),
        ("sequence.whole", {}, [[0], [1, 2]], "labels: rows differ in length"),
        ("number.left", {}, [0.0, np.inf], "labels: expected finite"),
        ("number.left", {}, [0.0], r"expected shape \(2,\) for regression"),
        ("number.left", {}, [[0.0, 1.0, 2.0, 3.0]] * 2, r"expected shape \(2,\) for regression"),
        ("token.whole", {}, [[0, 1, 2, 5]] * 2, "labels: 5 at row 0, column 3 is no class"),
        ("token.whole", {}, [[0, 1, 2, -2]] * 2, "labels: -2 at row 0, column 3"),
        ("token.whole", {}, [[0, 1, 2]] * 2, r"expected shape \(2, 4\).* got \(2, 3\)"),
        ("token.whole", {}, [0, 1], "labels: expected rows"),
        ("token.whole", {}, [[0.0] * 4] * 2, "labels: expected integers"),
        ("causal.whole", {}, [[0, 1, 2, 67]] * 2, "labels: 67 at row 0, column 3 is no class"),
        ("causal.whole", {}, [[0, 1, 2]] * 2, r"expected shape \(2, 4\)"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(case, config, labels, message):
    model = open_case(case)
    model.config = dataclasses.replace(model.config, **config)
    with pytest.raises(ValueError, match=message) as caught:
        model(IDS, labels=labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "positions, message",
    [
        ({"start_positions": [0, 1]}, "expected both or none"),
        ({"end_positions": [0, 1]}, "expected both or none"),
        ({"start_positions": [0], "end_positions": [1, 1]}, r"start_positions: .* \(2,\)"),
        ({"start_positions": [0, 1], "end_positions": [[1, 1]]}, r"end_positions: .* \(2,\)"),
        ({"start_positions": [0, 1], "end_positions": [1.0, 1.0]}, "end_positions: .* integers"),
        (
            {"start_positions": [0, 0], "end_positions": [1, 1]},
            "start_positions: 0 of row 1 is pad",
        ),
        ({"start_positions": [0, 1], "end_positions": [1, -5]}, "end_positions: -5 of row 1 is"),
    ],
)
def test_positions_that_do_not_fit_are_one_line(positions, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_case("answer.whole")(IDS, [[1, 1, 1, 1], [0, 1, 1, 1]], **positions)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_labels_leaves_the_cache_as_it_was():
    model = open_case("causal.whole")
    cache = model([[5, 6]]).past_key_values
    with pytest.raises(ValueError, match="labels"):
        model([[7, 8]], past_key_values=cache, labels=[[7, 99]])
    np.testing.assert_array_equal(cache.count, [2])


def test_a_loss_over_some_columns_only_is_refused():
    golden = goldens("heads.float64", "causal.whole")
    model = open_case("causal.whole")
    for keep in (1, [0, 3]):
        with pytest.raises(ValueError, match="logits_to_keep"):
            model(**given(golden, logits_to_keep=keep))
    output = model(**given(golden, logits_to_keep=99))  # all
    assert output.loss == pytest.approx(float(golden["loss"]), abs=FLOAT64)


def test_unknown_arguments_are_refused_with_those_that_are_known():
    for kind in HEADED[1:]:
        known = "start_positions, end_positions" if "Question" in kind.__name__ else "labels"
        with pytest.raises(TypeError, match=f"{kind.__name__}: .*banana.*use_cache.*, {known}$"):
            tiny_model(tiny_config(), kind=kind)([[1]], banana=1)


# Weights and checkpoints


@pytest.mark.parametrize("kind", HEADED[1:])
def test_random_weights_have_a_head_with_a_bias_of_zero(kind):
    config = tiny_config(num_labels=300, hidden_size=50, pad_token_id=0)
    model = kind(config, seed=1)
    head = {n: t for n, t in model.tensors.items() if not n.startswith("model.")}
    for name, tensor in head.items():
        assert tensor.dtype == np.float32
        # of n values the deviation's standard error is 0.02 / sqrt(2n); here n is 100 or 15000
        error = 0.02 / (2 * tensor.size) ** 0.5
        assert abs(tensor.std() - 0.02) < 5 * error if name.endswith("weight") else not tensor.any()
    base = MistralModel(config, seed=1)
    for name, tensor in base.tensors.items():
        np.testing.assert_array_equal(model.tensors[f"model.{name}"], tensor)
    assert model.num_parameters() == sum(t.size for t in model.tensors.values())


@pytest.mark.parametrize("name", A_CASE)
def test_a_saved_head_is_the_same_head(name, tmp_path):
    golden = goldens("heads.float64", A_CASE[name])
    model = open_case(A_CASE[name])
    model.save_pretrained(tmp_path)
    theirs = FIXTURES / CASES[A_CASE[name]]["checkpoint"]
    written, expected = (
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for folder in (tmp_path, theirs)
    )
    for field in ("architectures", "id2label", "label2id", "problem_type"):
        assert written.get(field) == expected.get(field)
    again = type(model).from_pretrained(tmp_path, dtype="float64")
    assert again.config == model.config
    for key, logits in results(again(**given(golden))).items():
        np.testing.assert_array_equal(logits, results(model(**given(golden)))[key])


@pytest.mark.parametrize("name", A_CASE)
def test_the_base_model_opens_the_checkpoint_of_a_head_and_is_saved_without_prefix(name, tmp_path):
    headed = open_case(A_CASE[name])
    base = MistralModel.from_pretrained(FIXTURES / CASES[A_CASE[name]]["checkpoint"])
    ids = goldens("heads.float64", A_CASE[name])["input_ids"]
    states = headed(ids, output_hidden_states=True).hidden_states
    base.save_pretrained(tmp_path)
    again = MistralModel.from_pretrained(tmp_path, dtype="float64")
    np.testing.assert_array_equal(again(ids).last_hidden_state, states[-1])
    assert all(n.startswith(("embed_tokens.", "layers.", "norm.")) for n in again.tensors)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["MistralModel"]
    with pytest.raises(ValueError, match=f"head of {type(headed).__name__} is missing"):
        type(headed).from_pretrained(tmp_path)


def test_a_language_model_says_which_other_head_a_checkpoint_has():
    says = r"is missing \(lm_head\.weight\).* it has score\.weight: open the checkpoint with"
    with pytest.raises(ValueError, match=says):
        MistralForCausalLM.from_pretrained(FIXTURES / "heads" / "sequence")


@pytest.mark.parametrize("kind", HEADED[1:])
def test_a_head_is_not_made_up_for_a_language_model(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__} is missing .*open .*class") as caught:
        kind.from_pretrained(FIXTURES / "models/gqa")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, kind, message",
    [
        ("sequence", MistralForTokenClassification, r"is missing \(score.bias\)"),
        ("token", MistralForSequenceClassification, "not expected: 'score.bias'"),
        ("answer", MistralForSequenceClassification, r"is missing \(score.weight\)"),
        ("sequence", MistralForQuestionAnswering, r"is missing \(qa_outputs.weight, qa_outputs"),
        ("answer", MistralForCausalLM, r"is missing \(lm_head.weight\)"),
    ],
)
def test_a_head_of_another_class_is_refused(name, kind, message):
    with pytest.raises(ValueError, match=message) as caught:
        kind.from_pretrained(FIXTURES / "heads" / name)
    assert "\n" not in str(caught.value)


def test_a_number_of_labels_that_the_head_has_not_is_refused(tmp_path):
    model = open_case("token.whole")
    model.save_pretrained(tmp_path)
    config = dataclasses.replace(model.config, num_labels=4)
    config.save_pretrained(tmp_path, "MistralForTokenClassification")
    with pytest.raises(ValueError, match=r"'score.weight' is \(5, 20\), expected \(4, 20\)"):
        MistralForTokenClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", ["sequence.left", "token.right", "answer.whole"])
def test_heads_run_in_16_bits(case, dtype):
    golden = goldens("heads.float64", case)
    output = open_case(case, dtype)(**given(golden))
    for name, logits in results(output).items():
        assert logits.dtype == dtype
        real = ~np.isnan(golden[name])
        error = logits.astype(np.float64)[real] - golden[name][real]
        # a bfloat16 has 8 bits; some 20 operations in a row add up to a few of the last ones
        assert 0 < np.abs(error).max() < (0.3 if dtype == "bfloat16" else 0.04)
    assert output.loss.dtype == np.float32
    assert abs(output.loss - golden["loss"]) < 0.15


def test_a_default_config_has_two_labels():
    assert MistralForSequenceClassification.parameter_shapes(MistralConfig())["score.weight"] == (
        2,
        4096,
    )
