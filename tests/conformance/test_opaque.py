"""The model on a backend whose arrays can do no more than they have to; and that they cannot."""

from __future__ import annotations

import copy
import dataclasses
import operator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from goldens import DEMO, FIXTURES, goldens, read_json
from opaque import OpaqueBackend
from strategies import config, tiny_model

import tinymistral
from tinymistral import MistralForCausalLM, MistralTokenizer
from tinymistral.backend import DTYPES
from tinymistral.scoring import score

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
HEADS = read_json("heads.json")
PROMPTS = ["Once upon a time", "The fox said to the hare that", "A king"]


def same(results: dict[str, Any], expected: dict[str, Any]) -> None:
    """Check that arrays, or tuples of them, are equal to the last bit; caches are passed over."""
    assert results.keys() == expected.keys()
    for name in results.keys() - {"past_key_values"}:
        np.testing.assert_array_equal(results[name], expected[name], err_msg=name)


# The model


@pytest.mark.slow
@every_dtype
def test_the_demo_tells_the_same_story(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a window of 32; a left-padded batch; weights left as they are stored, a chunk of 7."""
    tokenizer = MistralTokenizer.from_pretrained(DEMO)
    options = {"max_new_tokens": 60, "do_sample": False, "eos_token_id": []}
    told = []
    for backend in ("numpy", OpaqueBackend(dtype)):
        model = MistralForCausalLM.from_pretrained(DEMO, backend=backend, dtype=dtype)
        with monkeypatch.context() as patch:
            patch.setattr("tinymistral.pretrained.WIDENED_AT_MOST", 0)
            stored = MistralForCausalLM.from_pretrained(DEMO, backend=backend, dtype=dtype)
        model.config = dataclasses.replace(model.config, sliding_window=32)
        stored.config = model.config
        outputs = []
        for teller, prompts, chunk in ((model, PROMPTS[:1], 512), (stored, PROMPTS, 7)):
            teller.backend.chunk = chunk
            given = tokenizer(prompts) | options
            outputs.append(vars(teller.generate(**given, return_dict_in_generate=True)))
            assert outputs[-1]["logprobs"].shape == (len(prompts), 60)
        told.append(outputs)
    for expected, got in zip(*told, strict=True):
        same(got, expected)


@pytest.mark.slow
@every_dtype
@pytest.mark.parametrize("case", HEADS)
def test_all_heads_and_their_outputs(case: str, dtype: str) -> None:
    """Logits, losses, hidden states, attentions, and every stage that `tap` is shown."""
    inputs = ("input_ids", "inputs_embeds", "attention_mask", "labels")
    inputs = (*inputs, "start_positions", "end_positions")
    given = {n: x for n, x in goldens("heads.float64", case).items() if n in inputs}
    kind = getattr(tinymistral, HEADS[case]["class"])
    results = []
    for backend in ("numpy", OpaqueBackend(dtype)):
        model = kind.from_pretrained(
            FIXTURES / HEADS[case]["checkpoint"], backend=backend, dtype=dtype
        )
        model.config = dataclasses.replace(model.config, **HEADS[case]["config"])
        stages: dict[str, np.ndarray] = {}
        shown = model(
            **given, output_hidden_states=True, output_attentions=True, tap=stages.setdefault
        )
        model.backend.chunk = 2
        results.append((vars(shown), stages, vars(model(**given, output_hidden_states=True))))
    for expected, got in zip(*results, strict=True):
        same(got, expected)


@every_dtype
def test_a_cache_goes_on_and_is_copied_and_left_alone(dtype: str) -> None:
    """Past its ring and with growth, back by a draft, as a copy beside the original, and score."""
    results = []
    for backend in (tinymistral.get_backend("numpy", dtype), OpaqueBackend(dtype)):
        model = tiny_model(config(), backend=backend)
        ids = np.random.default_rng(0).integers(0, 13, (2, 24))
        cache, logits = model.new_cache(2, chunk=4), {}
        for start, stop in ((0, 1), (1, 4), (4, 11), (11, 12)):
            logits[f"{stop}"] = model(ids[:, start:stop], past_key_values=cache).logits
        branch = cache.copy()
        draft = {"position_ids": [[9, 10, 11, 12]], "past_key_values": branch}
        logits["draft"] = model(ids[:, :4], **draft).logits
        logits["rest"] = model(ids[:, 12:], past_key_values=cache, logits_to_keep=[0, 5]).logits
        logits["score"] = score(model, ids[:1]).logprobs
        results.append(logits)
    same(*results)
    assert not any(np.isnan(array).any() for array in results[0].values())


def test_a_piece_that_is_interrupted_between_layers_can_be_sent_again() -> None:
    model = tiny_model(config(), backend=OpaqueBackend())
    ids = np.arange(1, 10, dtype=np.int64)[None]
    cache, other = model.new_cache(1, chunk=3), model.new_cache(1, chunk=3)
    model(ids[:, :6], past_key_values=other)
    expected = model(ids[:, 6:], past_key_values=other).logits

    def interrupt(name: str, _: np.ndarray) -> None:
        if name == "layers.1.q":
            raise KeyboardInterrupt

    model(ids[:, :6], past_key_values=cache)
    with pytest.raises(KeyboardInterrupt):
        model(ids[:, 6:], past_key_values=cache, tap=interrupt)
    logits = model(ids[:, 6:], past_key_values=cache).logits
    np.testing.assert_array_equal(logits, expected)


# What the arrays and the backend refuse

MISUSES = {
    "np.asarray": np.asarray,
    "a ufunc": np.exp,
    "a function of NumPy's": np.sum,
    "numpy + opaque": lambda a: np.ones((2, 3), dtype=np.float32) + a,
    "opaque + numpy": lambda a: a + np.ones((2, 3), dtype=np.float32),
    "opaque + number": lambda a: a + 1,
    "number + opaque": lambda a: 0 + a,
    "another shape": lambda a: a + a[:1],
    "another dtype": lambda a: a + OpaqueBackend("float64").zeros((2, 3), "float64"),
    "+=": lambda a: operator.iadd(a, 1),
    "-": lambda a: a - a,
    "*": lambda a: a * a,
    "@": lambda a: a @ a,
    "negative": operator.neg,
    "==": lambda a: a == a,
    "!=": lambda a: a != a,
    "<": lambda a: a < a,
    "bool": bool,
    "float": lambda a: float(a[0, 0]),
    "index": lambda a: operator.index(a[0, 0]),
    "len": len,
    "iter": iter,
    "in": lambda a: 1 in a,
    "hash": hash,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "write": lambda a: operator.setitem(a, 0, 1),
    "an attribute": lambda a: setattr(a, "shape", (3, 2)),
    "a list": lambda a: a[[0, 1]],
    "a mask": lambda a: a[np.array([True, False])],
    "an array": lambda a: a[np.array([0])],
    "a NumPy integer": lambda a: a[np.int64(0)],
    "a step": lambda a: a[::2],
    "a new axis": lambda a: a[None],
    "an ellipsis": lambda a: a[..., 0],
    "a size left open": lambda a: a.reshape(-1),
    "a shape of one tuple": lambda a: a.reshape((3, 2)),
}


@pytest.mark.parametrize("name", MISUSES)
def test_an_array_can_do_nothing_else(name: str) -> None:
    array = OpaqueBackend().zeros((2, 3), "float32")
    with pytest.raises((TypeError, AttributeError)):
        MISUSES[name](array)


def test_an_array_can_do_what_the_interface_says() -> None:
    backend = OpaqueBackend()
    array = backend.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert [name for name in dir(array) if not name.startswith("_")] == [
        "dtype",
        "reshape",
        "shape",
    ]
    assert array.dtype is backend.zeros((1,), "float32").dtype
    assert not isinstance(array.dtype, np.dtype)
    assert array.dtype != "float32"
    for result, expected in (
        (array + array, [[0, 2, 4], [6, 8, 10]]),
        (array + array[1], [[3, 5, 7], [6, 8, 10]]),
        (array.reshape(3, 2), [[0, 1], [2, 3], [4, 5]]),
        (array[:, -1:], [[2], [5]]),
        (array[1, 2], 5),
    ):
        assert result.shape == np.shape(expected)
        np.testing.assert_array_equal(backend.to_numpy(result), expected)
    with pytest.raises(ValueError, match="read-only"):
        backend.to_numpy(array)[0] = 1


ONE = OpaqueBackend("float32").zeros((1, 1, 2, 2), "float32")
WIDE = OpaqueBackend("float64").zeros((1, 1, 2, 2), "float64")
AT = np.zeros((1, 1), dtype=np.int64)
HOST = np.zeros((1, 1, 2, 2), dtype=np.float32)


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("asarray", (ONE,)),
        ("asarray", ([1.0],)),
        ("asarray", (AT,)),
        ("to_numpy", (HOST,)),
        ("take", (HOST, AT[0], 0)),
        ("take", (ONE, [0], 0)),
        ("take", (ONE, AT[0].astype(np.int32), 0)),
        ("embedding", (HOST[0, 0], AT)),
        ("embedding", (ONE[0, 0], ONE[0, 0])),
        ("linear", (HOST, ONE[0, 0])),
        ("linear", (ONE, HOST[0, 0])),
        ("linear", (ONE, WIDE[0, 0])),
        ("linear", (WIDE, ONE[0, 0])),
        ("rms_norm", (ONE, WIDE[0, 0, 0], 1e-5)),
        ("rope_table", (AT.astype(np.float64), 1e4, 2)),
        ("rope_table", (ONE[0, 0], 1e4, 2)),
        ("rope", (ONE, (HOST, HOST))),
        ("attention", (ONE, ONE, WIDE, AT, AT, None)),
        ("attention", (ONE, ONE, HOST, AT, AT, None)),
        ("attention", (ONE, ONE, ONE, AT, AT[0], None)),
        ("attention", (ONE, ONE, ONE, AT.astype(np.int32), AT, None)),
        ("attention", (ONE, ONE, ONE, AT, AT, 3.0)),
        ("attention_weights", (ONE, WIDE, AT, AT, None)),
        ("silu_mul", (ONE, ONE[0])),
        ("silu_mul", (ONE, WIDE)),
        ("scatter", (ONE, AT, WIDE)),
        ("scatter", (ONE, ONE[0, 0], ONE)),
        ("scatter", (HOST, AT, ONE)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_backend_refuses_what_is_not_its_own(
    operation: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises((TypeError, AttributeError)):
        getattr(OpaqueBackend("float32"), operation)(*arguments)


def test_what_scatter_was_given_is_spoiled_and_so_are_its_slices() -> None:
    backend = OpaqueBackend("bfloat16")
    old = backend.zeros((1, 2, 1, 1), "bfloat16")
    part = old[:, 1:]
    one = backend.asarray(np.ones((1, 1, 1, 1), dtype=ml_dtypes.bfloat16))
    new = backend.scatter(old, AT, one)
    np.testing.assert_array_equal(backend.to_numpy(new).ravel(), [1, 0])
    for spoiled in (old, part):
        assert np.isnan(backend.to_numpy(spoiled)).all()
    for slots in ([[0, 0]], [[0, 2]], [[0, -2]]):
        two = backend.zeros((1, 2, 1, 1), "bfloat16")
        with pytest.raises(ValueError, match="slots"):
            backend.scatter(new, np.array(slots, dtype=np.int64), two)
