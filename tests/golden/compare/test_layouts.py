"""What is right in another order: queries and keys of raw weights, columns of attention weights.

What is expected comes from the files of v1; the orders are made here number by number.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_runner import good, run
from safetensors.numpy import load_file, save_file

from tinymistral.golden.suite import V1

CASES = {
    case["id"]: case for case in json.loads((V1 / "manifest.json").read_text("utf-8"))["cases"]
}
Arrays = dict[str, np.ndarray]
QUERIES_AND_KEYS = ("q", "k", "q_rotated", "k_rotated")


def part_of(case: str, part: str) -> Arrays:
    arrays = load_file(V1 / CASES[case]["file"])
    return {
        name.removeprefix(f"{part}."): x.astype(np.float32) if x.dtype == np.float64 else x
        for name, x in arrays.items()
        if name.startswith(f"{part}.")
    }


def is_query_or_key(name: str) -> bool:
    *_, layer, stage = name.split(".")
    return stage in QUERIES_AND_KEYS and ("cache" not in name or stage == "k") and layer.isdigit()


def in_raw_order(x: np.ndarray) -> np.ndarray:
    """Move i of a head to 2i, and i + d/2 to 2i + 1."""
    out = np.empty_like(x)
    half = x.shape[-1] // 2
    for i in range(half):
        out[..., 2 * i], out[..., 2 * i + 1] = x[..., i], x[..., i + half]
    return out


def as_raw_program(arrays: Arrays) -> Arrays:
    return {name: in_raw_order(x) if is_query_or_key(name) else x for name, x in arrays.items()}


def with_rotated(arrays: Arrays, turn: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    """Replace rotated queries and keys by those of another rotation."""
    arrays = dict(arrays)
    for name in [name for name in arrays if name.endswith("_rotated")]:
        arrays[name] = turn(arrays[name.removesuffix("_rotated")])
    return arrays


def neighbours(x: np.ndarray, theta: float = 100.0) -> np.ndarray:
    """Rotate 2i and 2i + 1 of (B, T, heads, d), at positions 0 to T - 1."""
    d = x.shape[-1]
    angles = np.arange(x.shape[1])[:, None, None] * theta ** (-np.arange(0, d, 2) / d)
    rotated = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    return np.stack([rotated.real, rotated.imag], axis=-1).reshape(x.shape).astype(np.float32)


def opposites(x: np.ndarray) -> np.ndarray:
    """Rotate i and i + d/2."""
    rotated = neighbours(in_raw_order(x), 1e4)
    return np.concatenate([rotated[..., ::2], rotated[..., 1::2]], axis=-1)


def told(folder: Path, *options: str) -> tuple[int, dict]:
    code, out, _ = run("golden", "check", "v1", str(folder), "--json", *options)
    result = json.loads(out)
    (case,) = (case for case in result["cases"] if case["verdict"] != "absent")
    return code, case


def write(folder: Path, case: str, arrays: Arrays) -> Path:
    save_file(
        {n: np.ascontiguousarray(x) for n, x in arrays.items()}, folder / f"{case}.safetensors"
    )
    return folder


# Queries and keys


def test_a_raw_model_may_have_either_order(tmp_path: Path) -> None:
    right = part_of("raw-layout", "expected")
    assert sum(map(is_query_or_key, right)) == 10  # of two layers: q, k, both rotated, cached k
    table = good("golden", "check", "v1", str(write(tmp_path, "raw-layout", right)))
    assert "raw-layout  OK  39 of 39" in table
    table = good("golden", "check", "v1", str(write(tmp_path, "raw-layout", as_raw_program(right))))
    assert "raw-layout  OK, in layout raw  39 of 39" in table
    assert "queries and keys are taken in the order of a raw checkpoint\n" in table
    code, case = told(tmp_path)
    assert (code, case["layout"], len(case["notes"])) == (0, "raw", 1)


def test_any_of_the_tensors_is_enough_to_recognize_the_order(tmp_path: Path) -> None:
    raw = as_raw_program(part_of("raw-layout", "expected"))
    for name in filter(is_query_or_key, raw):
        assert told(write(tmp_path, "raw-layout", {name: raw[name]}))[0] == 0, name


def test_one_order_is_chosen_for_the_whole_case(tmp_path: Path) -> None:
    arrays = part_of("raw-layout", "expected")
    name = "calls.0.layers.1.k"
    arrays[name] = in_raw_order(arrays[name])
    code, case = told(write(tmp_path, "raw-layout", arrays))
    assert (code, case["layout"], case["first"]) == (1, "hf", name)
    part = next(part for part in case["parts"] if part["name"] == name)
    assert part["says"] == "it agrees in the order of --layout raw"
    raw = as_raw_program(arrays)
    raw[name] = part_of("raw-layout", "expected")[name]
    code, case = told(write(tmp_path, "raw-layout", raw))
    assert (code, case["layout"], case["first"]) == (1, "raw", name)
    part = next(part for part in case["parts"] if part["name"] == name)
    assert part["says"] == "it agrees in the order of --layout hf"


def test_a_requested_order_is_kept(tmp_path: Path) -> None:
    right = part_of("raw-layout", "expected")
    write(tmp_path, "raw-layout", as_raw_program(right))
    assert told(tmp_path, "--layout", "raw")[0] == 0
    code, case = told(tmp_path, "--layout", "hf")
    assert (code, case["first"]) == (1, "calls.0.layers.0.q")
    assert "diagnose v1" in run("golden", "check", "v1", str(tmp_path), "--layout", "hf").out
    assert told(write(tmp_path, "raw-layout", right), "--layout", "raw")[0] == 1


def test_other_models_have_the_order_of_their_weights(tmp_path: Path) -> None:
    write(tmp_path, "raw-twin", as_raw_program(part_of("raw-twin", "expected")))
    code, case = told(tmp_path)
    assert (code, case["layout"], case["first"]) == (1, "hf", "calls.0.layers.0.q")


def test_a_mistake_does_not_hide_the_order(tmp_path: Path) -> None:
    """Another theta, after which nothing but the queries and keys of the first layer is right."""
    raw = with_rotated(as_raw_program(part_of("raw-layout", "expected")), neighbours)
    code, case = told(write(tmp_path, "raw-layout", raw))
    assert (code, case["layout"], case["first"]) == (1, "raw", "calls.0.layers.0.q_rotated")


def test_raw_weights_rotated_by_halves_are_a_mistake(tmp_path: Path) -> None:
    """Queries and keys are those of a raw program then, but the program is none."""
    wrong = with_rotated(as_raw_program(part_of("raw-layout", "expected")), opposites)
    code, case = told(write(tmp_path, "raw-layout", wrong))
    assert (code, case["layout"], case["first"]) == (1, "hf", "calls.0.layers.0.q")


# Columns of attention weights


def by_column(case: str) -> Arrays:
    """A column of the weights for each token of the input so far; 7 in those of padding."""
    arrays, inputs = part_of(case, "expected"), part_of(case, "inputs")
    for name in [name for name in arrays if name.endswith("attention_weights")]:
        call = int(name.split(".")[1])
        keys = inputs[f"calls.{call}.key_positions"]
        columns = np.concatenate([inputs[f"calls.{n}.positions"] for n in range(call + 1)], axis=1)
        out = np.full((*arrays[name].shape[:3], columns.shape[1]), 7, dtype=np.float32)
        for b, c in np.argwhere(columns >= 0):
            (key,) = np.flatnonzero(keys[b] == columns[b, c])
            out[b, :, :, c] = arrays[name][b, :, :, key]
        arrays[name] = out
    return arrays


@pytest.mark.parametrize("case", ["left-padding", "right-padding", "ragged-chunks"])
def test_a_column_for_each_token_is_accepted(tmp_path: Path, case: str) -> None:
    arrays = by_column(case)
    changed = [n for n, x in part_of(case, "expected").items() if x.shape != arrays[n].shape]
    assert bool(changed) == (case == "ragged-chunks")
    table = good("golden", "check", "v1", str(write(tmp_path, case, arrays)))
    assert ("a column for each token of the input" in table) == (case != "right-padding")
    (tmp_path / f"{case}.safetensors").unlink()
    (tmp_path / case).mkdir()
    for name, x in arrays.items():
        np.save(tmp_path / case / f"{name}.npy", x)
    assert told(tmp_path)[0] == 0


def test_a_wrong_weight_is_reported_with_the_meaning_of_its_columns(tmp_path: Path) -> None:
    for arrays in (by_column("left-padding"), part_of("left-padding", "expected")):
        name = "calls.0.layers.1.attention_weights"
        arrays[name] = arrays[name].copy()
        arrays[name][1, 2, 3, 1] += 1
        code, case = told(write(tmp_path, "left-padding", arrays))
        assert (code, case["first"]) == (1, name)
        part = next(part for part in case["parts"] if part["name"] == name)
        assert (part["wrong"], part["index"]) == (1, [1, 2, 3, 1])
        assert part["says"] == "its columns are inputs.calls.N.key_positions"


def test_another_number_of_columns_is_reported_with_their_meaning(tmp_path: Path) -> None:
    name = "calls.2.layers.0.attention_weights"  # (2, 4, 4, 10), and 13 tokens so far
    wrong = {name: np.zeros((2, 4, 4, 12), np.float32)}
    code, case = told(write(tmp_path, "ragged-chunks", wrong))
    assert code == 2
    assert case["parts"][0]["says"] == (
        "its shape is (2, 4, 4, 12), expected (2, 4, 4, 10), which is B H T S "
        "(S being those of inputs.calls.2.key_positions)"
    )
