"""Checkpoints that differ from transformers' own files in what affects nothing: values from it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from goldens import FIXTURES, goldens

from tinymistral import MistralForCausalLM, MistralModel, pretrained
from tinymistral.checkpoint import CheckpointError, read_tensors
from tinymistral.files.safetensors import INDEX_FILE, read_file, write_file

FLOAT64, FLOAT32 = 1e-9, 2e-4  # as in test_model.py, for the same models


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of one of the models, to be changed."""
    return shutil.copytree(FIXTURES / "models" / request.param, tmp_path / "model")


def change_tensors(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in read_file(file).items()}
    write_file(file, change(tensors))


def check_logits(folder: Path, name: str, dtype: str, tolerance: float) -> MistralForCausalLM:
    model = MistralForCausalLM.from_pretrained(folder, dtype=dtype)
    golden = goldens(f"{name}.{dtype}", "whole")
    logits = model(golden["input_ids"]).logits
    np.testing.assert_allclose(logits, golden["logits"], atol=tolerance, rtol=0)
    return model


@pytest.mark.parametrize("folder", ["gqa"], indirect=True)
@pytest.mark.parametrize("ending", ["norm.weight", ".weight"])
@pytest.mark.parametrize("widened_at_most", [0, pretrained.WIDENED_AT_MOST])
def test_weights_may_be_stored_in_float64(folder, ending, widened_at_most, monkeypatch):
    monkeypatch.setattr(pretrained, "WIDENED_AT_MOST", widened_at_most)
    wide = {n: t.dtype for n, t in read_tensors(folder).items() if n.endswith(ending)}
    change_tensors(folder, lambda tensors: tensors | {n: tensors[n].astype("f8") for n in wide})
    check_logits(folder, "gqa", "float64", FLOAT64)
    model = check_logits(folder, "gqa", "float32", FLOAT32)
    assert {array.dtype for array in pretrained.flat(model.weights).values()} == {np.dtype("f4")}
    model.save_pretrained(folder / "again")
    again = read_tensors(folder / "again")
    assert all(again[name].dtype == np.float64 for name in wide)


@pytest.mark.parametrize("folder", ["tied"], indirect=True)
def test_of_two_tied_tensors_either_may_be_stored(folder):
    names = {"model.embed_tokens.weight": "lm_head.weight"}
    change_tensors(folder, lambda tensors: {names.get(n, n): t for n, t in tensors.items()})
    model = check_logits(folder, "tied", "float64", FLOAT64)
    assert "lm_head.weight" not in model.tensors
    base, ids = MistralModel.from_pretrained(folder, dtype="float64"), [[1, 2, 3]]
    states = model(ids, output_hidden_states=True).hidden_states[-1]
    np.testing.assert_array_equal(base(ids).last_hidden_state, states)


UNUSED = "model.layers.0.self_attn.rotary_emb.inv_freq"
FIRST, LAST = (f"model-0000{n}-of-00004.safetensors" for n in (1, 4))


@pytest.mark.parametrize("folder", ["sharded"], indirect=True)
@pytest.mark.parametrize("stored_in", [None, FIRST])
@pytest.mark.parametrize("listed_in", [None, FIRST, LAST, "model-00005-of-00004.safetensors"])
def test_index_and_shards_need_not_agree_about_what_no_model_has(folder, stored_in, listed_in):
    change_index(folder, {UNUSED: listed_in})
    if stored_in:
        tensors = {name: np.array(tensor) for name, tensor in read_file(folder / stored_in).items()}
        write_file(folder / stored_in, tensors | {UNUSED: np.ones(2, np.float32)})
    check_logits(folder, "sharded", "float64", FLOAT64)


@pytest.mark.parametrize("folder", ["sharded"], indirect=True)
@pytest.mark.parametrize("listed_in", [None, FIRST, "model-00005-of-00004.safetensors"])
def test_index_and_shards_agree_about_the_tensors_of_the_model(folder, listed_in):
    weight = "model.norm.weight"
    index = json.loads((folder / INDEX_FILE).read_text("utf-8"))["weight_map"]
    assert index[weight] != FIRST
    change_index(folder, {weight: listed_in})
    with pytest.raises(CheckpointError, match=r"not fit its shards|no such file"):
        MistralForCausalLM.from_pretrained(folder)


def change_index(folder: Path, changes: dict[str, str | None]) -> None:
    path = folder / INDEX_FILE
    index = json.loads(path.read_text("utf-8"))
    weight_map = index["weight_map"] | changes
    index["weight_map"] = {name: shard for name, shard in weight_map.items() if shard}
    path.write_text(json.dumps(index), encoding="utf-8")
