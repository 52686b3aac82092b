"""tinymistral computes its own suite, in every dtype; and what is replaced is what counts."""

import dataclasses

import numpy as np
import pytest

from tinymistral.cache import RollingCache
from tinymistral.golden.compare.tensors import counted
from tinymistral.golden.models import open_model, read_model
from tinymistral.golden.run.tinymistral import run_calls, run_case
from tinymistral.golden.suite import read_suite
from tinymistral.numpy_backend import NumpyBackend

SUITE = read_suite()
COMPUTED = [
    pytest.param(case, id=case.id, marks=[pytest.mark.slow] if case.model == "demo" else [])
    for case in SUITE.manifest.cases.values()
    if case.kind in ("model", "operation", "generate")
]


def distances(case, results):
    """How far results are from what is expected, by name; NaN is infinitely far."""
    arrays = SUITE.read(case)
    assert set(results) == set(arrays.expected)
    found = {}
    for name, exact in arrays.expected.items():
        assert results[name].shape == exact.shape, name
        where = counted(case, arrays.inputs, name, exact.shape)
        error = np.abs(results[name].astype(np.float64) - exact)
        error[np.isnan(results[name]) & np.isnan(exact)] = 0
        found[name] = np.nan_to_num(error[where].max(initial=0), nan=np.inf)
    return found


@pytest.mark.parametrize("case", COMPUTED)
def test_numpy_in_float64_is_the_oracle(case):
    worst = max(distances(case, run_case(SUITE, case, NumpyBackend("float64"))).values())
    assert worst < 1e-11


def test_no_backend_computes_cases_of_other_kinds():
    case = dataclasses.replace(SUITE.case("rms-norm"), kind="sampling")
    with pytest.raises(ValueError, match="no backend computes cases of kind 'sampling'"):
        run_case(SUITE, case, NumpyBackend("float32"), inputs={})


# What can be replaced


def logits(results):
    return results["calls.0.logits"]


def test_another_backend():
    class Doubling(NumpyBackend):
        def rms_norm(self, x, weight, eps):
            return 2 * super().rms_norm(x, weight, eps)

    case = SUITE.case("rms-norm")
    twice = run_case(SUITE, case, Doubling("float64"))["out"]
    np.testing.assert_array_equal(twice, 2 * run_case(SUITE, case, NumpyBackend("float64"))["out"])


def test_other_weights_and_another_configuration():
    case, backend = SUITE.case("plain"), NumpyBackend("float64")
    config, tensors = read_model(SUITE, "plain")
    silent = {n: 0 * x if n == "lm_head.weight" else x for n, x in tensors.items()}
    model = open_model(SUITE, "plain", backend, tensors=silent)
    assert not logits(run_case(SUITE, case, backend, model=model)).any()

    narrow = dataclasses.replace(config, sliding_window=1)
    model = open_model(SUITE, "plain", backend, config=narrow)
    weights = run_case(SUITE, case, backend, model=model)["calls.0.layers.0.attention_weights"]
    np.testing.assert_array_equal(weights, np.broadcast_to(np.eye(7), weights.shape))


def test_other_inputs():
    case, backend = SUITE.case("plain"), NumpyBackend("float64")
    inputs = SUITE.read(case).inputs
    same = logits(run_case(SUITE, case, backend))
    ids = inputs["calls.0.input_ids"][:, ::-1]
    assert (
        np.abs(
            logits(run_case(SUITE, case, backend, inputs={**inputs, "calls.0.input_ids": ids}))
            - same
        ).max()
        > 1
    )
    # A text moved by 5 positions has the same logits, and other keys.
    moved = {name: x + 5 if "positions" in name else x for name, x in inputs.items()}
    results = run_case(SUITE, case, backend, inputs=moved)
    np.testing.assert_allclose(logits(results), same, atol=1e-12)
    assert max(distances(case, results).values()) > 1


def test_another_parameter():
    case = SUITE.case("rope")
    ignored = dataclasses.replace(case, parameters={"theta": 1.0})
    assert max(distances(case, run_case(SUITE, ignored, NumpyBackend("float64"))).values()) > 0.1


def test_another_cache_that_has_lost_a_position():
    class Short(RollingCache):
        capacity = 4

    case, backend = SUITE.case("window-wrap-by-chunks"), NumpyBackend("float64")
    model = open_model(SUITE, "window", backend)
    vars(model)["new_cache"] = lambda rows, chunk: Short(model.config, backend, rows, chunk)
    found = distances(case, run_case(SUITE, case, backend, model=model))
    # Four of the four keys that the next token sees are there after the first call, ...
    assert found["calls.0.cache.layers.0.k"] < 1e-11
    # ... and after the second, though what came of it is wrong.
    assert found["calls.1.cache.layers.0.k"] < 1e-11
    assert found["calls.1.layers.0.attention_mix"] > 0.01

    class Shorter(RollingCache):
        @property
        def key_positions(self):
            return np.where(super().key_positions == 2, -1, super().key_positions)

    vars(model)["new_cache"] = lambda rows, chunk: Shorter(model.config, backend, rows, chunk)
    results = run_case(SUITE, case, backend, model=model)
    assert np.isnan(results["calls.0.cache.layers.0.k"][:, 2]).all()
    assert np.isfinite(results["calls.0.cache.layers.0.k"][:, :2]).all()


def test_the_ring_wraps_while_text_is_generated():
    slots = []

    class Watched(RollingCache):
        def admit(self, positions):
            super().admit(positions)
            slots.append((self.slots.max(), self.count.max()))

    case, backend = SUITE.case("greedy-past-the-window"), NumpyBackend("float32")
    model = open_model(SUITE, "window", backend)
    vars(model)["new_cache"] = lambda rows, chunk: Watched(model.config, backend, rows, chunk)
    run_case(SUITE, case, backend, model=model)
    assert max(slot for slot, _ in slots) == 7  # a window of 5 and pieces of 4: 8 slots
    assert max(count for _, count in slots) == 7 + 47


# Two layouts


def test_a_raw_checkpoint_agrees_with_its_twin():
    raw, twin = (SUITE.read(SUITE.case(name)).expected for name in ("raw-layout", "raw-twin"))
    assert raw.keys() == twin.keys()
    for name in raw:
        np.testing.assert_array_equal(raw[name], twin[name])


def test_a_raw_checkpoint_has_other_names_and_its_pairs_next_to_each_other():
    raw = SUITE.tensors(SUITE.manifest.models["raw"])
    hf = SUITE.tensors(SUITE.manifest.models["window"])
    np.testing.assert_array_equal(raw["output.weight"], hf["lm_head.weight"])
    np.testing.assert_array_equal(
        raw["layers.1.feed_forward.w2.weight"], hf["model.layers.1.mlp.down_proj.weight"]
    )
    wq = raw["layers.0.attention.wq.weight"].reshape(4, 6, 14)
    q_proj = hf["model.layers.0.self_attn.q_proj.weight"].reshape(4, 6, 14)
    # https://github.com/huggingface/transformers, convert_mistral_weights_to_hf.py
    np.testing.assert_array_equal(wq[:, [0, 2, 4, 1, 3, 5]], q_proj)
    assert not np.array_equal(wq, q_proj)


# Where numbers count


def test_a_window_of_1_caches_nothing():
    expected = SUITE.read(SUITE.case("window-1")).expected
    assert not [name for name in expected if "cache" in name]


def test_calls_need_only_ids_and_positions():
    case = SUITE.case("plain")
    model = open_model(SUITE, "plain", NumpyBackend("float64"))
    inputs = SUITE.read(case).inputs
    few = {n: x for n, x in inputs.items() if "key_positions" not in n}
    results = run_calls(model, few)
    assert max(distances(case, results).values()) < 1e-11
