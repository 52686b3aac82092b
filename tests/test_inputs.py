"""What a model can be called with, and the error for anything else: one line, by name."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import config, tiny_model

from tinymistral.cache import RollingCache

MODEL = tiny_model(config(max_position_embeddings=2**31 - 1))  # 13 ids, width 10, window 3
IDS = [[1, 2, 3], [4, 5, 6]]


class Tensor:
    """Looks like torch's, whose arrays are not NumPy's."""

    __module__ = "torch"

    def __init__(self, array):
        self.array = np.asarray(array)
        self.shape = self.array.shape

    def __array__(self, dtype=None, copy=None):
        return self.array

    def __len__(self):
        return len(self.array)

    def __getitem__(self, index):
        return self.array[index]

    def numpy(self):
        return self.array


def embeds(*shape, dtype=np.float32):
    return np.zeros(shape, dtype=dtype)


def error_of(function, *args, **kwargs):
    """The error of a call: one line that fits a terminal or two."""
    with pytest.raises(ValueError) as error:
        function(*args, **kwargs)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 250
    return text


# What is accepted

SAME_IDS = {
    "lists": IDS,
    "tuples": ((1, 2, 3), (4, 5, 6)),
    "rows as arrays": [np.array([1, 2, 3]), np.array([4, 5, 6], dtype=np.uint8)],
    "NumPy numbers": [[np.int64(1), np.uint8(2), 3], [4, 5, np.int16(6)]],
    "a transposed array": np.array([[1, 4], [2, 5], [3, 6]]).T,
    "a read-only array": np.broadcast_to(np.array(IDS), (2, 3)),
    "big-endian": np.array(IDS, dtype=">i4"),
} | {
    name: np.array(IDS, dtype=name)
    for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
}


@pytest.mark.parametrize("ids", SAME_IDS.values(), ids=SAME_IDS)
def test_ids_may_be_lists_or_integer_arrays(ids):
    expected = MODEL(IDS).logits
    np.testing.assert_array_equal(MODEL(ids).logits, expected)
    np.testing.assert_array_equal(MODEL(input_ids=ids).logits, expected)


@pytest.mark.parametrize("kind", [bool, np.bool_, int, np.uint8, np.int32, list])
def test_masks_may_be_lists_booleans_or_integers(kind):
    mask = [[1, 1, 1], [0, 1, 1]]
    given = mask if kind is list else np.array(mask, dtype=kind)
    expected = MODEL(IDS, position_ids=[[0, 1, 2], [-1, 0, 1]]).logits
    np.testing.assert_array_equal(MODEL(IDS, given).logits, expected)
    if kind is bool:
        np.testing.assert_array_equal(MODEL(IDS, given.tolist()).logits, expected)


def test_positions_may_be_given_once_for_all_rows_and_have_gaps():
    once = MODEL(IDS, position_ids=[[0, 5, 9]]).logits
    np.testing.assert_array_equal(MODEL(IDS, position_ids=[[0, 5, 9]] * 2).logits, once)
    # The window is 3 positions wide, however many tokens: each sees only itself.
    by_itself = [MODEL([[row[n]]]).logits[0, 0] for row in IDS for n in range(3)]
    np.testing.assert_allclose(once.reshape(6, -1), by_itself, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_embeddings_may_be_of_any_float(dtype):
    given = np.random.default_rng(0).standard_normal((2, 3, 10)).astype(dtype)
    expected = MODEL(inputs_embeds=given.astype(np.float64)).logits
    np.testing.assert_array_equal(MODEL(inputs_embeds=given).logits, expected)


def test_what_was_given_is_not_written_to():
    ids, mask, positions = np.array(IDS), np.array([[0, 1, 1]] * 2), np.array([[7, 8, 9]] * 2)
    embeds = np.ones((2, 3, 10))
    MODEL(ids, mask, positions)
    MODEL(inputs_embeds=embeds)
    assert ids.tolist() == IDS
    assert mask.tolist() == [[0, 1, 1]] * 2
    assert positions.tolist() == [[7, 8, 9]] * 2
    assert (embeds == 1).all()


# What is not

NOT_INTEGERS = {  # for any argument that takes rows of integers
    "a tensor": (Tensor(IDS), "got torch.Tensor; pass tensor.numpy()"),
    "text": ("a text", "got builtins.str"),
    "a number": (7, "got builtins.int"),
    "a set": ({1, 2}, "got builtins.set"),
    "an iterator": (iter(IDS), "got builtins.list_iterator"),
    "one row": ([1, 2, 3], "got shape (3,)"),
    "one row, array": (np.array([1, 2, 3]), "got shape (3,)"),
    "a scalar array": (np.array(1), "got a scalar"),
    "three axes": ([IDS], "got shape (1, 2, 3)"),
    "nothing": ([], "got shape (0,)"),
    "no tokens": ([[], []], "at least one token, got shape (2, 0)"),
    "no rows": (np.empty((0, 3), dtype=np.int64), "at least one token, got shape (0, 3)"),
    "ragged": ([[1, 2, 3], [4, 5]], "rows differ in length"),
    "ragged arrays": ([np.array([1, 2, 3]), np.array([4, 5])], "rows differ in length"),
    "floats": ([[1.0, 2.0, 3.0]] * 2, "expected integers, got float64"),
    "a float among them": ([[1, 2, 3], [4, 5.0, 6]], "expected integers, got float64"),
    "NaN": (np.full((2, 3), np.nan, dtype=np.float32), "expected integers, got float32"),
    "None among them": ([[1, 2, None]] * 2, "expected integers, got object"),
    "texts": ([["1", "2", "3"]] * 2, "expected integers, got <U1"),
    "complex": (np.zeros((2, 3), dtype=complex), "expected integers, got complex128"),
    "dates": (np.zeros((2, 3), dtype="datetime64[s]"), "expected integers, got datetime64[s]"),
    "a record": (np.zeros((2, 3), dtype=[("a", "i4")]), "expected integers, got [("),
    "2**63": ([[2**63] * 3] * 2, "expected integers below 2**63, got 9223372036854775808"),
    "2**63 among them": ([[2**63, 1, 1]] * 2, "expected integers"),
    "over 2**64": ([[2**70, 1, 1]] * 2, "expected integers, got object"),
}


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "position_ids"])
@pytest.mark.parametrize(("value", "problem"), NOT_INTEGERS.values(), ids=NOT_INTEGERS)
def test_what_is_not_rows_of_integers_is_named(name, value, problem):
    text = error_of(MODEL, **({"input_ids": IDS} | {name: value}))
    assert text.startswith(f"{name}: ")
    assert problem in text


@pytest.mark.parametrize("name", ["input_ids", "position_ids"])
def test_booleans_are_no_numbers(name):
    text = error_of(MODEL, **({"input_ids": IDS} | {name: np.ones((2, 3), dtype=bool)}))
    assert text == f"{name}: expected integers, got bool"


WRONG = {  # arguments, how the message begins, what else it says
    "nothing at all": ({}, "expected either input_ids or inputs_embeds, got", "none"),
    "ids and embeddings": (
        {"input_ids": IDS, "inputs_embeds": embeds(2, 3, 10)},
        "expected either input_ids or inputs_embeds, got",
        "both",
    ),
    "an id too high": (
        {"input_ids": [[1, 2], [3, 13]]},
        "input_ids: 13 at row 1, column 1",
        "0 to 12",
    ),
    "a negative id": ({"input_ids": [[-1, 2]]}, "input_ids: -1 at row 0, column 0", "0 to 12"),
    "a narrow mask": (
        {"input_ids": IDS, "attention_mask": [[1, 1]] * 2},
        "attention_mask: expected shape (2, 3)",
        "got (2, 2)",
    ),
    "a wide mask": (
        {"input_ids": IDS, "attention_mask": [[1] * 4] * 2},
        "attention_mask: expected shape (2, 3)",
        "got (2, 4)",
    ),
    "a mask for one row": (
        {"input_ids": IDS, "attention_mask": [[1] * 3]},
        "attention_mask: expected shape (2, 3)",
        "got (1, 3)",
    ),
    "a mask of twos": (
        {"input_ids": IDS, "attention_mask": [[1, 2, 1]] * 2},
        "attention_mask: expected 1 for a token and 0 for padding",
        "",
    ),
    "a negative mask": (
        {"input_ids": IDS, "attention_mask": [[1, -1, 1]] * 2},
        "attention_mask: expected 1 for a token and 0 for padding",
        "",
    ),
    "few positions": (
        {"input_ids": IDS, "position_ids": [[0, 1]] * 2},
        "position_ids: expected shape (2, 3)",
        "got (2, 2)",
    ),
    "positions for other rows": (
        {"input_ids": IDS, "position_ids": [[0, 1, 2]] * 3},
        "position_ids: expected shape (2, 3)",
        "got (3, 3)",
    ),
    "a position of -2": (
        {"input_ids": IDS, "position_ids": [[-2, 0, 1]]},
        "position_ids: expected -1 (nothing here) to 2**31 - 1",
        "got -2",
    ),
    "a position of 2**31": (
        {"input_ids": IDS, "position_ids": [[0, 1, 2**31]]},
        "position 2147483648 is past the last one, 2**31 - 1",
        "give lower position_ids",
    ),
    "falling positions": (
        {"input_ids": IDS, "position_ids": [[0, 1, 2], [1, 2, 0]]},
        "position_ids: expected to rise along a row",
        "got [1, 2, 0]",
    ),
    "repeated positions": (
        {"input_ids": IDS, "position_ids": [[0, 1, 1]]},
        "position_ids: expected to rise along a row",
        "got [0, 1, 1]",
    ),
    "falling past a -1": (
        {"input_ids": IDS, "position_ids": [[5, -1, 4]]},
        "position_ids: expected to rise along a row",
        "got [ 5, -1,  4]",
    ),
    "falling past the padding": (
        {"input_ids": IDS, "position_ids": [[5, 7, 4]], "attention_mask": [[1, 0, 1]] * 2},
        "position_ids: expected to rise along a row",
        "got [ 5, -1,  4]",
    ),
    "many large positions": (
        {"input_ids": [[1] * 8], "position_ids": [[2**31 - 1] * 8]},
        "position_ids: expected to rise along a row",
        "2147483647",
    ),
    "embeddings in lists": ({"inputs_embeds": [[[0.0] * 10]]}, "inputs_embeds: ", "got list"),
    "embeddings in a tensor": (
        {"inputs_embeds": Tensor(embeds(1, 1, 10))},
        "inputs_embeds: ",
        "got Tensor",
    ),
    "narrow embeddings": (
        {"inputs_embeds": embeds(2, 3, 9)},
        "inputs_embeds: expected shape (batch, tokens, 10)",
        "got (2, 3, 9)",
    ),
    "flat embeddings": (
        {"inputs_embeds": embeds(3, 10)},
        "inputs_embeds: expected shape (batch, tokens, 10)",
        "got (3, 10)",
    ),
    "empty embeddings": (
        {"inputs_embeds": embeds(2, 0, 10)},
        "inputs_embeds: expected shape (batch, tokens, 10)",
        "got (2, 0, 10)",
    ),
    "integer embeddings": (
        {"inputs_embeds": embeds(1, 1, 10, dtype=int)},
        "inputs_embeds: expected floating point",
        "got int64",
    ),
    "boolean embeddings": (
        {"inputs_embeds": embeds(1, 1, 10, dtype=bool)},
        "inputs_embeds: expected floating point",
        "got bool",
    ),
    "complex embeddings": (
        {"inputs_embeds": embeds(1, 1, 10, dtype=complex)},
        "inputs_embeds: expected floating point",
        "got complex128",
    ),
    "embeddings of texts": (
        {"inputs_embeds": embeds(1, 1, 10, dtype="U3")},
        "inputs_embeds: expected floating point",
        "got <U3",
    ),
    "a tuple for a cache": (
        {"input_ids": IDS, "past_key_values": ()},
        "past_key_values: expected what an earlier call",
        "got tuple",
    ),
    "-1 logits": (
        {"input_ids": IDS, "logits_to_keep": -1},
        "logits_to_keep: expected 0 (all) or more",
        "got -1",
    ),
    "logits of a column too far": (
        {"input_ids": IDS, "logits_to_keep": [0, 3]},
        "logits_to_keep: expected rising columns of 0 to 2",
        "got",
    ),
    "logits of a column before": (
        {"input_ids": IDS, "logits_to_keep": [-4]},
        "logits_to_keep: expected rising columns of 0 to 2",
        "got",
    ),
    "logits of falling columns": (
        {"input_ids": IDS, "logits_to_keep": [1, 0]},
        "logits_to_keep: expected rising columns",
        "got",
    ),
    "logits of a column twice": (
        {"input_ids": IDS, "logits_to_keep": [1, -2]},
        "logits_to_keep: expected rising columns",
        "got",
    ),
    "logits of many columns": (
        {"input_ids": IDS, "logits_to_keep": np.arange(100, 0, -1)},
        "logits_to_keep: expected rising columns of 0 to 2",
        "got",
    ),
    "logits of no column": ({"input_ids": IDS, "logits_to_keep": []}, "logits_to_keep: ", ""),
    "half the logits": ({"input_ids": IDS, "logits_to_keep": 0.5}, "logits_to_keep: ", ""),
    "logits: yes": ({"input_ids": IDS, "logits_to_keep": True}, "logits_to_keep: ", "got bool"),
    "-1 logits of NumPy": (
        {"input_ids": IDS, "logits_to_keep": np.int64(-1)},
        "logits_to_keep: expected 0 (all) or more",
        "got -1",
    ),
}


@pytest.mark.parametrize(("arguments", "begins", "says"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(arguments, begins, says):
    text = error_of(MODEL, **arguments)
    assert text.startswith(begins)
    assert says in text


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.uint64])
def test_logits_to_keep_may_be_a_number_of_numpy(kind):
    all_logits = MODEL(IDS).logits
    np.testing.assert_allclose(
        MODEL(IDS, logits_to_keep=kind(1)).logits, all_logits[:, -1:], atol=1e-12
    )
    assert MODEL(IDS, logits_to_keep=kind(0)).logits.shape == all_logits.shape


def test_a_warning_of_far_positions_points_at_the_callers_line():
    model = tiny_model(config(max_position_embeddings=4))
    for call in (model, model.generate, lambda ids: list(model.generate_stream(ids))):
        model._warned_of_far_positions = False
        with pytest.warns(UserWarning, match="past max_position_embeddings") as caught:
            call([[1] * 5])
        assert [warning.filename for warning in caught] == [__file__]


def test_generate_warns_of_far_positions_before_it_computes():
    model = tiny_model(config(max_position_embeddings=6))
    prompts = {"input_ids": [[1, 1, 1], [0, 1, 1]], "attention_mask": [[1, 1, 1], [0, 1, 1]]}
    model.generate_stream(**prompts, max_new_tokens=4)  # positions 0 to 5; a warning is an error
    with pytest.warns(UserWarning, match="position 6 is past max_position_embeddings, 6"):
        model.generate_stream(**prompts, max_new_tokens=5)


# Caches, and masks of the tokens in them


def test_a_cache_has_to_fit_the_model_and_the_batch():
    other = tiny_model(config(sliding_window=4))([[1]]).past_key_values
    text = error_of(MODEL, [[1]], past_key_values=other)
    assert text.startswith("past_key_values: ")
    assert "same configuration" in text
    other = tiny_model(MODEL.config, dtype="float32")([[1]]).past_key_values
    text = error_of(MODEL, [[1]], past_key_values=other)
    assert text.startswith("past_key_values: made by backend numpy in float32, the model computes")
    same = tiny_model(MODEL.config)([[1]]).past_key_values  # of another backend object, its equal
    assert MODEL([[1]], past_key_values=same).logits.shape == (1, 1, 13)
    text = error_of(MODEL, IDS, past_key_values=MODEL([[1]]).past_key_values)
    assert text == "past_key_values: holds 1 rows, the input has 2"


@pytest.mark.parametrize("why", [{"tap": print}, {"output_attentions": True}])
def test_one_piece_has_to_fit_the_ring(why):
    cache = RollingCache(MODEL.config, MODEL.backend, 1, 2)
    text = error_of(MODEL, [[1, 2, 3]], past_key_values=cache, **why)
    assert "pieces of at most 2 tokens, got 3" in text
    with pytest.raises(ValueError, match="chunk: expected 1 to 2147483647 tokens, got 0"):
        RollingCache(MODEL.config, MODEL.backend, 1, 0)


SO_FAR = np.array([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1]])  # the second piece has 2 columns


@pytest.fixture
def cache():
    """The cache of three calls with the mask `SO_FAR`."""
    cache = None
    for ids, part in (
        (IDS, np.s_[:, :3]),
        ([[7, 8], [9, 10]], np.s_[:, 3:5]),
        ([[11], [12]], None),
    ):
        mask = None if part is None else SO_FAR[part]
        cache = MODEL(ids, mask, past_key_values=cache).past_key_values
    return cache


def test_a_mask_of_all_tokens_equals_one_of_the_new_tokens(cache):
    mask = np.hstack([SO_FAR, [[1], [0]]])
    expected = MODEL([[1], [1]], [[1], [0]], past_key_values=cache.copy()).logits
    np.testing.assert_array_equal(MODEL([[1], [1]], mask, past_key_values=cache).logits, expected)
    # and again, now that there is one more
    mask = np.hstack([mask, [[0], [1]]])
    logits = MODEL([[1], [2]], mask, past_key_values=cache).logits[1, 0]
    np.testing.assert_allclose(logits, MODEL([[4, 5, 6, 9, 12, 2]]).logits[0, -1], atol=1e-11)


@pytest.mark.parametrize(("row", "column"), list(np.ndindex(SO_FAR.shape)))
def test_a_mask_that_contradicts_an_earlier_one_is_refused(cache, row, column):
    mask = np.hstack([SO_FAR, [[1], [1]]])
    mask[row, column] ^= 1
    text = error_of(MODEL, [[1], [1]], mask, past_key_values=cache)
    assert text.startswith("attention_mask: for earlier tokens it differs from that of earlier")


@pytest.mark.parametrize("width", [2, 5, 6, 8])
def test_a_mask_of_another_width_is_refused(cache, width):
    text = error_of(MODEL, [[1], [1]], np.ones((2, width), dtype=int), past_key_values=cache)
    assert text.startswith("attention_mask: expected shape (2, 1), for the new tokens or (2, 7)")
    assert text.endswith(f"got (2, {width})")


@pytest.mark.filterwarnings("ignore:position 2147483647 is past max_position_embeddings")
def test_a_counted_position_has_the_limit_of_a_given_one():
    cache = MODEL([[1, 2]], position_ids=[[0, 2**31 - 2]]).past_key_values
    MODEL([[3]], past_key_values=cache)  # at 2**31 - 1
    says = "position 2147483648 is past the last one, 2**31 - 1"
    assert error_of(MODEL, [[4]], past_key_values=cache).startswith(says)
    assert error_of(MODEL.generate, [[1, 2, 3, 4]], past_key_values=cache).startswith(says)
    assert cache.count == 3


def test_after_an_error_the_cache_is_as_it_was(cache):
    before = cache.copy()
    for arguments, _, _ in WRONG.values():
        error_of(MODEL, **({"past_key_values": cache} | arguments))
    assert cache.columns == before.columns
    for name in ("positions", "count", "mask"):
        np.testing.assert_array_equal(getattr(cache, name), getattr(before, name))
    for ours, theirs in zip([*cache.k, *cache.v], [*before.k, *before.v], strict=True):
        np.testing.assert_array_equal(ours, theirs)


# generate


@pytest.mark.parametrize("function", [MODEL.generate, MODEL.generate_stream])
def test_generate_refuses_the_same_at_once(function):
    # At the call, not at the first step of the stream.
    for value, problem in NOT_INTEGERS.values():
        for name, arguments in (
            ("input_ids", {"input_ids": value}),
            ("attention_mask", {"input_ids": IDS, "attention_mask": value}),
        ):
            text = error_of(function, **arguments)
            assert text.startswith(f"{name}: ")
            assert problem in text or "in shape (2, 3), as input_ids" in text
    assert error_of(function, [[13]]).startswith("input_ids: 13 at row 0, column 0")
    for mask in ([[1, 1]] * 2, [[1] * 4] * 2, [[1] * 3], [[1, 2, 1]] * 2):
        assert error_of(function, IDS, mask).startswith("attention_mask: expected 0 and 1 in shape")
    text = error_of(function, IDS, [[1, 1, 1], [0, 0, 0]])
    assert text == "attention_mask: row 1 is all padding; begin it with <s>"


# Whatever it is

numbers = st.one_of(
    st.integers(-2, 14),
    st.booleans(),
    st.floats(),
    st.integers(),
    st.none(),
    st.sampled_from(["", "7", "x"]),
)
rows = st.lists(numbers, max_size=3)
nested = st.one_of(numbers, rows, st.lists(rows, max_size=3), st.lists(st.lists(rows)))
kinds = st.sampled_from(["?", "i1", "u1", "i8", "u8", "f2", "f4", "f8", "c16", "U2", "O", "M8[s]"])
arrays = st.builds(
    lambda shape, kind, fill: np.full(shape, fill).astype(kind),
    st.lists(st.integers(0, 3), max_size=4).map(tuple),
    kinds,
    st.integers(0, 3),
)
anything = st.one_of(nested, arrays, st.builds(Tensor, arrays), st.just(MODEL), st.binary())
arguments = st.sampled_from(
    ["input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds"]
)


@given(arguments, anything)
def test_anything_else_is_an_error_of_one_line_or_right(name, value):
    given = ({} if name == "inputs_embeds" else {"input_ids": IDS}) | {name: value}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            logits = MODEL(**given).logits
        except ValueError as error:
            assert "\n" not in str(error)
            assert str(error).startswith((f"{name}: ", "expected either input_ids"))
        else:
            assert logits.ndim == 3


@given(nested)
def test_any_logits_to_keep_are_an_error_of_one_line_or_right(value):
    try:
        logits = MODEL(IDS, logits_to_keep=value).logits
    except ValueError as error:
        assert "\n" not in str(error)
        assert str(error).startswith("logits_to_keep: ")
    else:
        assert logits.shape[::2] == (2, 13)
