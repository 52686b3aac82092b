"""`bench`, with tiny models: what it measures is not expected, but that it fits together."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest
from cli_runner import DEMO, good, refused

from tinymistral import MistralConfig, MistralForCausalLM, bench
from tinymistral.bench import peers, presets
from tinymistral.commands import bench as command
from tinymistral.files.safetensors import read_file

FAST = ("--new-tokens", "2", "--rounds", "1")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make the shape of a preset small, and its cache folder a temporary one."""
    config = MistralConfig(
        vocab_size=30,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=5,
    )
    monkeypatch.setitem(presets.PRESETS, "125m", config)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_it_prints_a_row_for_each_length_and_program() -> None:
    lines = good("bench", "--lengths", "3,9", "--window", "4", *FAST).splitlines()
    assert "window 4" in lines[1]
    assert [line.split()[:2] for line in lines[-2:]] == [["tinymistral", "3"], ["tinymistral", "9"]]


def test_the_json_has_the_seconds_of_all_rounds() -> None:
    options = ("--lengths", "3,9", "--new-tokens", "3", "--rounds", "2", "--batch", "2", "--json")
    found = json.loads(good("bench", *options))
    assert found["model"]["folder"] == str(DEMO)
    assert found["model"]["batch"] == 2
    for part, names in (("speeds", ("first", "each")), ("limits", ("products", "reading"))):
        assert [row["length"] for row in found[part]] == [3, 9]
        assert all(len(row[n]) == 2 and min(row[n]) > 0 for row in found[part] for n in names)


def test_a_preset_is_written_once_as_a_checkpoint(tmp_path: Path) -> None:
    out = good("bench", "--preset", "125m", "--layers", "2", "--lengths", "3", *FAST)
    (folder,) = (tmp_path / "tinymistral").iterdir()
    assert str(folder) in out
    tensors = read_file(folder / "model.safetensors")
    config = MistralConfig.from_pretrained(folder)
    shapes = MistralForCausalLM.parameter_shapes(config)
    assert {name: array.shape for name, array in tensors.items()} == shapes
    assert {str(array.dtype) for array in tensors.values()} == {"bfloat16"}
    assert (config.num_hidden_layers, config.sliding_window) == (2, 5)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    good("bench", "--preset", "125m", "--layers", "2", "--lengths", "3", *FAST)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    (folder / "model.safetensors").unlink()  # as where the program that wrote it was killed
    good("bench", "--preset", "125m", "--layers", "2", "--lengths", "3", *FAST)
    assert (folder / "model.safetensors").exists()
    good("bench", "--preset", "125m", "--weights", "float32", "--lengths", "3", *FAST)
    assert len(list((tmp_path / "tinymistral").iterdir())) == 2


def test_the_presets_have_the_published_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    # 7,241,732,096 and 134,515,008: the sums of the sizes in the checkpoints on the hub.
    monkeypatch.undo()
    counts = {
        name: sum(int(np.prod(shape)) for shape in shapes.values())
        for name, shapes in (
            (name, MistralForCausalLM.parameter_shapes(config))
            for name, config in presets.PRESETS.items()
        )
    }
    assert counts["mistral-7b-v0.1"] == 7_241_732_096
    assert counts["smollm2-135m"] == 134_515_008
    assert round(counts["125m"] / 1e6) == 125
    assert tuple(presets.PRESETS) == command.PRESETS


def test_without_room_on_the_disk_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(presets.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    error = refused("bench", "--preset", "125m", *FAST)
    assert "0.0 GB free, 125m with 3 layers needs" in error
    assert not list((tmp_path / "tinymistral").iterdir())


def test_a_program_that_is_not_there_is_missed_before_weights_are_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    error = refused("bench", "--preset", "125m", "--against", "llama-cpp", *FAST)
    assert "No module named 'gguf'); install it: pip install 'tinymistral[llama-cpp]'" in error
    assert not (tmp_path / "tinymistral").exists()


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_the_picture_has_a_line_for_the_window_and_one_without(tmp_path: Path) -> None:
    picture = tmp_path / "speed.svg"
    out = good("bench", "--preset", "125m", "--lengths", "3,9", "--plot", str(picture), *FAST)
    for text in ("tinymistral, no window", "tokens of the prompt"):
        assert f">{text}<" in picture.read_text("utf-8")
    assert out.count("tinymistral, no window") == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--preset", "125b"), "argument --preset: unknown '125b'; did you mean 125m?"),
        (("--layers", "2"), "--layers is of random weights; give --preset too"),
        (("--preset", "125m", "--layers", "0"), "--layers: expected 1 to 10000, got 0"),
        (("--lengths", "3,x"), "argument --lengths: expected such as 64,1024, got '3,x'"),
        (("--lengths", "0"), "--lengths: expected 1 to"),
        (("--new-tokens", "1"), "--new-tokens: expected 2 to"),
        (("--against", "transformers,llama.cpp"), "unknown 'llama.cpp'; did you mean llama-cpp?"),
        (("--against", "llama-cpp", "--batch", "2"), "llama-cpp: expected --batch 1, got 2"),
        (("--plot", "a.txt"), "expected a name that ends with .svg or .png"),
    ],
)
def test_a_wrong_option_is_one_line(options: tuple[str, ...], says: str) -> None:
    assert says in refused("bench", *options)


def test_programs_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[tuple[str, tuple[int, ...], int]] = []
    clock = SimpleNamespace(now=0)
    clock.perf_counter = lambda: clock.now

    def program(name: str, first: int, each: int):
        def generate(ids: np.ndarray, new: int) -> list[float]:
            calls.append((name, ids.shape, new))
            start = clock.now
            clock.now += first + each * (new - 1)
            return [start + first + each * n for n in range(new)]

        return generate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "time", clock)
        speeds, limits = bench.measure(
            {"a": program("a", 10, 2), "b": program("b", 30, 1)},
            lambda length: (length, 2 * length),
            MistralConfig(),
            lengths=[7],
            batch=2,
            new=5,
            rounds=2,
        )
    assert calls == [(name, (2, 7), 5) for name in "ababab"]
    assert [(x.program, x.first, x.each) for x in speeds] == [
        ("a", [10, 10], [2, 2]),
        ("b", [30, 30], [1, 1]),
    ]
    assert bench.ratio(speeds[0].first, speeds[1].first) == 3
    assert (limits[0].products, limits[0].reading) == ([7, 7], [14, 14])


def test_the_ratio_is_the_median_of_those_of_the_rounds() -> None:
    assert bench.ratio([1, 2, 100], [2, 2, 50]) == median([2, 1, 0.5])


def test_the_limits_count_what_a_token_needs() -> None:
    sizes: list[int] = []
    model = MistralForCausalLM.from_pretrained(DEMO)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            bench, "seconds_of_reading", lambda xs, n: sizes.append(sum(x.nbytes for x in xs)) or 1
        )
        patch.setattr(bench, "seconds_of_products", lambda shapes, rows: len(shapes) * rows)
        limits = bench.limits_of(model, 2)
        assert limits is not None
        long = limits(2 * model.backend.chunk)
    config = model.config
    # Every matrix once: seven a layer, and the output layer, which is the embedding here.
    D, F, d = config.hidden_size, config.intermediate_size, config.head_dim
    H, K = config.num_attention_heads, config.num_key_value_heads
    layer = D * (2 * H * d + 2 * K * d + 3 * F)
    assert config.tie_word_embeddings
    assert sizes == [4 * (config.num_hidden_layers * layer + config.vocab_size * D)]
    # Two pieces of two rows: layers · 7 matrices · rows
    assert long[0] == config.num_hidden_layers * 7 * 4 * model.backend.chunk
