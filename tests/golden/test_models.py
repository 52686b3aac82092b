"""Weights that are no part of a suite: they are known again, and others are refused."""

import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from cli_runner import good, refused
from goldens import FIXTURES

from tinymistral.checkpoint import load_checkpoint, write_tensors
from tinymistral.golden.models import describe, files_of, fingerprint, read_model
from tinymistral.golden.run.template import write_model
from tinymistral.golden.suite import read_suite

GQA = FIXTURES / "models" / "gqa"


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_checkpoint(folder)[1]


def copy(folder: Path, changed: dict[str, np.ndarray], shard: int = 10**9) -> Path:
    """Write gqa again with some of its tensors changed."""
    folder.mkdir()
    (folder / "config.json").write_bytes((GQA / "config.json").read_bytes())
    write_tensors(folder, tensors(GQA) | changed, max_shard_size=shard)
    return folder


def test_a_fingerprint_is_the_same_in_shards_and_in_any_order(tmp_path: Path) -> None:
    right = fingerprint(tensors(GQA))
    sharded = copy(tmp_path / "sharded", {}, shard=20_000)
    assert len(files_of(sharded)) > 3
    assert fingerprint(tensors(sharded)) == right
    assert fingerprint(dict(reversed(tensors(GQA).items()))) == right


def test_a_raw_checkpoint_has_the_fingerprint_of_its_twin(tmp_path: Path) -> None:
    for name in ("raw", "window"):
        write_model(read_suite(), name, tmp_path / name)
    assert fingerprint(tensors(tmp_path / "raw")) == fingerprint(tensors(tmp_path / "window"))
    assert files_of(tmp_path / "raw")[0] == "params.json"


@pytest.mark.parametrize("at", [0, -1])
def test_other_weights_have_another_fingerprint(at: int) -> None:
    found = tensors(GQA)
    for name in found:
        other = found[name].copy()
        other.reshape(-1)[at] += 1
        assert fingerprint(found | {name: other}) != fingerprint(found), name


def test_dtypes_names_and_shapes_are_part_of_the_fingerprint() -> None:
    x = np.arange(8, dtype=np.float32)
    prints = {
        fingerprint(tensors)
        for tensors in (
            {"a": x},
            {"b": x},
            {"a": x.reshape(2, 4)},
            {"a": x.astype(ml_dtypes.bfloat16)},
            {"a": x[:4], "b": x[4:]},
            {"a": x.astype(np.float16)},
            {"a": x.astype(ml_dtypes.bfloat16).view(np.float16)},
        )
    }
    assert len(prints) == 7


def test_weights_are_described_by_their_files() -> None:
    found = describe(GQA, tensors(GQA))
    assert found["parameters"] == sum(x.size for x in tensors(GQA).values())
    assert {e["name"]: e["size"] for e in found["files"]} == {
        name: (GQA / name).stat().st_size for name in ("config.json", "model.safetensors")
    }


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    command = ["golden", "record", "--model", str(GQA), "--ids", "1", "2", "--ways", "1"]
    good(*command, "--stages", "logits", "-o", str(tmp_path / "suite"))
    return tmp_path / "suite"


def test_a_suite_opens_the_checkpoint_that_it_is_given(recorded: Path, tmp_path: Path) -> None:
    sharded = copy(tmp_path / "sharded", {}, shard=20_000)
    suite = dataclasses.replace(read_suite(recorded), checkpoint=sharded)
    config, found = read_model(suite, "gqa")
    assert config.sliding_window == 5
    assert fingerprint(found) == fingerprint(tensors(GQA))


def test_another_checkpoint_is_refused(recorded: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    other = copy(tmp_path / "other", {name: tensors(GQA)[name] + np.float32(1)})
    run = ["golden", "run", "tinymistral", "--suite", str(recorded), "-o", str(tmp_path / "dump")]
    error = refused(*run, "--model", str(other))
    assert "not the checkpoint that model 'gqa'" in error
    assert "--model" in refused(*run)
    command = ["golden", "record", "--model", str(other.rename(tmp_path / "gqa")), "--ids", "3"]
    command += ["--ways", "1", "--case", "other", "-o", str(recorded)]
    assert "was recorded from another checkpoint" in refused(*command)


def test_of_two_checkpoints_in_a_suite_the_cases_of_one_are_run(
    recorded: Path, tmp_path: Path
) -> None:
    other = copy(tmp_path / "other", {"model.norm.weight": tensors(GQA)["model.norm.weight"] * 2})
    command = ["golden", "record", "--ids", "3", "--ways", "1", "--stages", "logits"]
    good(*command, "--model", str(other), "--case", "second", "-o", str(recorded))
    out = tmp_path / "dump"
    command = ["golden", "run", "tinymistral", "--suite", str(recorded), "-o", str(out)]
    for model, written, left in ((GQA, "prompt", "second"), (other, "second", "prompt")):
        text = good(*command, "--model", str(model))
        assert text.startswith(f"not run: {left}\n    {model}: not the checkpoint that model ")
        assert text.endswith(f"1 of 2 cases written to {out}\n")
        assert (out / f"{written}.safetensors").exists()
    # Where none would be run it is an error, and one line.
    error = refused(*command, "--model", str(other), "--case", "prompt")
    assert "not the checkpoint that model 'gqa'" in error
