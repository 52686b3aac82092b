"""The tokenizer, compared with published ids of v0.1 and with SentencePiece."""

import hashlib
import importlib.resources
import json
import os
import pickle
import time
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import protobuf
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from tinymistral.streaming import StreamDecoder
from tinymistral.tokenizer import BatchEncoding, MistralTokenizer

DATA = Path(str(importlib.resources.files("mistral_common") / "data"))
V1 = DATA / "tokenizer.model.v1"
V2 = DATA / "mistral_instruct_tokenizer_240216.model.v2"
V3 = DATA / "mistral_instruct_tokenizer_240323.model.v3"  # of Mistral 7B v0.3
DEMO = Path(str(importlib.resources.files("tinymistral") / "demo" / "tokenizer.model"))
TEST_MODELS = os.environ.get("TINYMISTRAL_TEST_MODELS")
# Unlike the others, this one removes extra spaces: when decoding, all those at the start.
STORIES = Path(TEST_MODELS or "") / "stories260k" / "tokenizer.model"

MODELS = [
    pytest.param(V1, id="v1"),
    pytest.param(V2, id="v2"),
    pytest.param(V3, id="v3"),
    pytest.param(DEMO, id="demo"),
    pytest.param(
        STORIES,
        id="stories260k",
        marks=pytest.mark.skipif(not TEST_MODELS, reason="TINYMISTRAL_TEST_MODELS is not set"),
    ),
]
every_model = pytest.mark.parametrize("model", MODELS)
models_that_keep_spaces = pytest.mark.parametrize("model", MODELS[:4])

# Spaces, letters of 1 to 4 bytes, combining ones, the space's own letter, what is special elsewhere
nasty_text = st.text() | st.lists(
    st.sampled_from(
        [
            *" \n\t\0aé日🙂①ﬁ\u0301\u200d\u2581\ufeff\u3000\ufffd7",
            *["<s>", "<0x0A>", "▁▁", "[INST]", "[/INST]", "[control_8]"],
        ]
    )
).map("".join)


@cache
def tokenizer_of(model: Path) -> MistralTokenizer:
    return MistralTokenizer(model)


@cache
def judge_of(model: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


@cache
def token_ids(model: Path, special: bool):
    """Sequences with many hard cases: bytes (cut characters too), spaces, special tokens."""
    judge = judge_of(model)
    everything = range(len(judge))
    unspecial = [i for i in everything if not (judge.is_control(i) or judge.is_unknown(i))]
    bytes_of = [judge.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    kinds = [
        st.sampled_from(unspecial).map(lambda i: [i]),
        st.sampled_from([i for i in unspecial if judge.id_to_piece(i).startswith("▁")]).map(
            lambda i: [i]
        ),
        st.just([judge.piece_to_id("▁")]),
        st.sampled_from(bytes_of).map(lambda i: [i]),
        st.tuples(st.characters(exclude_categories=["Cs"]), st.integers(1, 4)).map(
            lambda cut: [bytes_of[byte] for byte in cut[0].encode()[: cut[1]]]
        ),
    ]
    if special:
        specials = [i for i in everything if judge.is_control(i) or judge.is_unknown(i)]
        kinds.append(st.sampled_from(specials).map(lambda i: [i]))
    return st.lists(st.one_of(kinds), max_size=12).map(lambda parts: [*chain(*parts)])


def is_special(model: Path, token_id: int) -> bool:
    return judge_of(model).is_control(token_id) or judge_of(model).is_unknown(token_id)


def text_by_the_judge(model: Path, ids: list[int], skip_special_tokens: bool) -> str:
    """SentencePiece's own text of each stretch between special tokens.

    A stretch after one that is shown is decoded behind the letter a, so that it keeps its space.
    """
    judge = judge_of(model)
    if skip_special_tokens:
        return judge.decode([i for i in ids if not is_special(model, i)])
    text, stretch, anchor = "", [], []
    for i in [*ids, None]:
        if i is not None and not is_special(model, i):
            stretch.append(i)
            continue
        text += judge.decode(anchor + stretch)[len(anchor) :]
        stretch, anchor = [], [judge.piece_to_id("a")]
        text += "" if i is None else judge.id_to_piece(i)
    return text


# ---- the real vocabulary: ids that SentencePiece 0.2 gives for Mistral-7B-v0.1's model


def test_the_model_of_mistral_common_is_that_of_v01() -> None:
    digest = hashlib.sha256(V1.read_bytes()).hexdigest()
    assert digest == "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055"
    tokenizer = tokenizer_of(V1)
    assert (len(tokenizer), tokenizer.vocab_size) == (32000, 32000)
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.pad_token_id is None
    assert tokenizer.all_special_ids == [0, 1, 2]


@pytest.mark.parametrize(("model", "controls"), [(V2, 770), (V3, 750)])
def test_the_vocabulary_of_v2_and_v3_has_more_control_tokens(model: Path, controls: int) -> None:
    tokenizer = tokenizer_of(model)
    assert (len(tokenizer), tokenizer.vocab_size) == (32768, 32768)
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.pad_token_id is None
    assert tokenizer.convert_ids_to_tokens([3, 4, 5]) == ["[INST]", "[/INST]", "[TOOL_CALLS]"]
    assert len(tokenizer.all_special_ids) == controls + 1  # and <unk>
    # in a text they are plain text: SentencePiece 0.2 gives these ids, not 3 and 2 and 4
    ids = [1501, 17057, 29561, 2635, 29481, 29535, 1501, 29516, 17057, 29561]
    assert tokenizer.encode("[INST] </s> [/INST]") == [1, *ids]
    assert tokenizer.decode([1, 3, 1032, 4, 2]) == "<s>[INST] a[/INST]</s>"
    assert tokenizer.decode([1, 3, 1032, 4, 2], skip_special_tokens=True) == "a"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        (" ", [259]),
        ("  ", [2287]),
        ("\n", [28705, 13]),
        ("\t", [28705, 12]),
        ("a", [264]),
        (" a", [28705, 264]),
        ("  a", [259, 264]),
        ("a ", [264, 28705]),
        ("a  b", [264, 28705, 287]),
        ("My favourite condiment is", [1984, 16020, 2076, 2487, 349]),
        ("This is a test", [851, 349, 264, 1369]),
        ("I believe the meaning of life is", [315, 3091, 272, 5746, 302, 1411, 349]),
        ("<s>", [523, 28713, 28767]),  # typed by a user: text, never id 1
        ("</s>", [1867, 28713, 28767]),
        ("<0x0A>", [523, 28734, 28744, 28734, 28741, 28767]),
        ("🙂", [28705, 29340]),
        ("①", [28705, 229, 148, 163]),
        ("ﬁ", [28705, 30160]),
        ("e\u0301", [317, 28949]),
        ("\u00e9", [1233]),
        ("\u200b", [15758]),
        ("\ufeff", [28705, 31759]),
        ("\u3000", [28705, 29351]),
        ("日本語", [28705, 29142, 29119, 30321]),
        ("\0", [28705, 3]),
    ],
)
def test_known_ids(text: str, ids: list[int]) -> None:
    tokenizer = tokenizer_of(V1)
    assert tokenizer.encode(text) == [1, *ids]
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("spaces", "ids"),
    [
        *[(1, [28705]), (2, [259]), (3, [2287]), (4, [260]), (5, [355]), (6, [428]), (7, [5390])],
        *[(8, [273]), (9, [2600]), (10, [756]), (11, [17422]), (12, [558]), (13, [569])],
        *[(14, [1417]), (15, [1417, 28705]), (16, [359]), (17, [359, 28705])],
        *[(31, [359, 1417, 28705]), (32, [359, 359])],
    ],
)
def test_known_ids_of_spaces_before_x(spaces: int, ids: list[int]) -> None:
    assert tokenizer_of(V1).encode(" " * spaces + "x", False) == [*ids, 1318]


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([264], "a"),
        ([28705, 264], " a"),
        ([13, 264], "\n a"),
        ([229], "\ufffd"),
        ([229, 264], "\ufffd a"),
    ],
)
def test_one_leading_space_is_dropped_at_the_start_only(ids: list[int], text: str) -> None:
    assert tokenizer_of(V1).decode(ids) == text


@pytest.mark.parametrize(
    ("ids", "shown", "skipped"),  # as transformers 5.23's LlamaTokenizer prints them
    [
        ([1, 264], "<s> a", "a"),
        ([1, 1, 264], "<s><s> a", "a"),
        ([1, 28705, 264], "<s>  a", " a"),
        ([264, 2, 264], "a</s> a", "a a"),
        ([0, 264], "<unk> a", "a"),
        ([229, 1, 264], "\ufffd<s> a", "\ufffd a"),
    ],
)
def test_special_tokens_are_shown_or_skipped(ids: list[int], shown: str, skipped: str) -> None:
    tokenizer = tokenizer_of(V1)
    assert tokenizer.decode(ids) == shown
    assert tokenizer.decode(ids, skip_special_tokens=True) == skipped
    assert tokenizer.batch_decode([ids, np.array(ids)], True) == [skipped] * 2


# ---- laws


@every_model
@given(data=st.data())
def test_encoding_is_that_of_sentencepiece_after_bos(model: Path, data) -> None:
    text = data.draw(nasty_text)
    assert tokenizer_of(model).encode(text) == [1, *judge_of(model).encode(text)]


@models_that_keep_spaces
@given(data=st.data())
def test_decoding_gives_the_text_back(model: Path, data) -> None:
    text = data.draw(nasty_text)
    ids = tokenizer_of(model).encode(text)
    # U+2581 is how a piece writes a space: the one letter that cannot come back
    assert tokenizer_of(model).decode(ids, True) == text.replace("\u2581", " ")


@every_model
@given(data=st.data())
def test_decoding_is_that_of_sentencepiece(model: Path, data) -> None:
    ids = data.draw(token_ids(model, special=False))
    assert tokenizer_of(model).decode(ids) == judge_of(model).decode(ids)


@every_model
@given(data=st.data(), skip=st.booleans())
def test_special_tokens_change_nothing_but_the_space_after_them(model: Path, data, skip) -> None:
    ids = data.draw(token_ids(model, special=True))
    assert tokenizer_of(model).decode(ids, skip) == text_by_the_judge(model, ids, skip)


@every_model
@given(data=st.data(), skip=st.booleans())
def test_streamed_text_is_the_decoded_text(model: Path, data, skip) -> None:
    ids = data.draw(token_ids(model, special=True))
    stream = StreamDecoder(tokenizer_of(model), skip)
    streamed = ""
    for n, token_id in enumerate(ids, start=1):
        streamed += stream.push(token_id)
        # never more held back than the beginning of one character, at most three bytes of it
        held = text_by_the_judge(model, ids[:n], skip).removeprefix(streamed)
        assert held == "\ufffd" * len(held)
        assert len(held) <= 3
    streamed += stream.flush()
    assert streamed == text_by_the_judge(model, ids, skip)


@pytest.fixture(scope="module")
def stripping(tmp_path_factory) -> Path:
    """A model that removes extra spaces: SentencePiece then drops all those at the start."""
    path = tmp_path_factory.mktemp("stripping") / "tokenizer.model"
    part, number = protobuf.NORMALIZER, protobuf.REMOVE_EXTRA_WHITESPACES
    path.write_bytes(protobuf.with_field(DEMO.read_bytes(), part, number, 1))
    return path


@given(data=st.data())
def test_spaces_at_the_start_are_dropped_as_sentencepiece_drops_them(stripping, data) -> None:
    spaces = st.just(judge_of(stripping).piece_to_id("▁"))
    ids = data.draw(st.lists(spaces, max_size=4)) + data.draw(token_ids(stripping, special=False))
    assert tokenizer_of(stripping).decode(ids) == judge_of(stripping).decode(ids)


def test_decoding_takes_time_in_proportion_to_the_length(stripping) -> None:
    tokenizer = tokenizer_of(stripping)

    def seconds(ids: list[int]) -> float:
        started = time.process_time()
        tokenizer.decode(ids)
        return time.process_time() - started

    space, letter = (judge_of(stripping).piece_to_id(piece) for piece in ("▁", "a"))
    n = 16_000
    # A space at the start costs more than a letter after it, but not in proportion to those before.
    assert seconds([space] * n) < 20 * seconds([letter] * n)


def test_a_character_is_streamed_whole() -> None:
    stream = StreamDecoder(tokenizer_of(V1))
    ids = [1, 28705, 229, 148, 163, 229, 148, 264, 229]  # ① in bytes, then most of it, then a
    pieces = [stream.push(i) for i in ids]
    assert pieces == ["", "", "", "", "①", "", "", "\ufffd\ufffd a", ""]
    assert stream.flush() == "\ufffd"


# ---- batches


def test_padding_is_on_the_left() -> None:
    inputs = tokenizer_of(V1)(["a", "This is a test"])
    np.testing.assert_array_equal(
        inputs["input_ids"], [[2, 2, 2, 1, 264], [1, 851, 349, 264, 1369]]
    )
    np.testing.assert_array_equal(inputs.attention_mask, [[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    assert inputs.input_ids.dtype == inputs.attention_mask.dtype == np.int64
    assert {**inputs}.keys() == {"input_ids", "attention_mask"}


def test_padding_on_the_right_with_a_pad_token() -> None:
    tokenizer = MistralTokenizer(V1, pad_token_id=0)
    inputs = tokenizer(["a", "a a"], padding_side="right", add_special_tokens=False)
    assert tokenizer.pad_token_id == 0
    np.testing.assert_array_equal(inputs.input_ids, [[264, 0], [264, 264]])
    np.testing.assert_array_equal(inputs.attention_mask, [[1, 0], [1, 1]])


def test_a_single_text_is_a_batch_of_one() -> None:
    np.testing.assert_array_equal(tokenizer_of(V1)("a", return_tensors="np").input_ids, [[1, 264]])
    assert tokenizer_of(V1)("", add_special_tokens=False).input_ids.shape == (1, 0)


def test_without_padding_unequal_rows_are_lists() -> None:
    inputs = tokenizer_of(V1)(("a", "a a"), padding=False)
    assert inputs == {"input_ids": [[1, 264], [1, 264, 264]], "attention_mask": [[1] * 2, [1] * 3]}
    assert tokenizer_of(V1)(["a", "a"], padding=False).input_ids.shape == (2, 2)


def test_a_missing_entry_is_not_an_attribute() -> None:
    inputs = BatchEncoding(input_ids=[])
    assert not hasattr(inputs, "labels")


# ---- settings of a checkpoint, and of the user: pieces are SentencePiece's, control tokens stand
# where transformers 5.23 puts them

SETTINGS = [
    (
        {"add_eos_token": True, "pad_token": "</s>"},
        [1, 303, 1012, 305, 2],
        [[2, 1, 261, 2], [1, 303, 1012, 2]],
    ),
    (
        {"padding_side": "right", "pad_token": "<unk>"},
        [1, 303, 1012, 305],
        [[1, 261, 0], [1, 303, 1012]],
    ),
    (
        {"add_bos_token": False, "add_eos_token": True, "pad_token": "</s>"},
        [303, 1012, 305, 2],
        [[2, 261, 2], [303, 1012, 2]],
    ),
]


def with_settings(folder: Path, settings: dict[str, object]) -> MistralTokenizer:
    (folder / "tokenizer.model").write_bytes(DEMO.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return MistralTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("assigned", [False, True])
@pytest.mark.parametrize(("settings", "ids", "padded"), SETTINGS)
def test_settings_count_in_the_file_and_as_attributes(
    tmp_path: Path, settings: dict[str, object], ids: list[int], padded: object, assigned: bool
) -> None:
    tokenizer = with_settings(tmp_path, {} if assigned else settings)
    for name, value in settings.items() if assigned else ():
        setattr(tokenizer, name, value)
    assert tokenizer.encode("The fox said") == ids
    assert tokenizer(["a", "The fox"]).input_ids.tolist() == padded


def test_a_text_without_the_space_before_it(tmp_path: Path) -> None:
    tokenizer = with_settings(tmp_path, {"add_prefix_space": False})
    assert tokenizer.encode("The fox said") == [1, 612, 1012, 305]
    assert tokenizer.encode(" The fox") == [1, 303, 1012]
    assert tokenizer.decode([303]) == " The"


def test_special_tokens_have_names() -> None:
    tokenizer = tokenizer_of(DEMO)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<s>",
        "</s>",
        "<unk>",
    )
    assert tokenizer.pad_token is None
    tokenizer = MistralTokenizer(DEMO)
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == 2
    with pytest.raises(ValueError, match=r"pad_token: '\[PAD\]' .* is not in the vocabulary"):
        tokenizer.pad_token = "[PAD]"
    tokenizer.pad_token_id = 2048
    with pytest.raises(ValueError, match="pad_token_id: token id 2048 is out of range"):
        tokenizer(["a", "a b"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"padding_side": "top"}, "padding_side is 'top'"),
        ({"add_eos_token": "yes"}, "add_eos_token is 'yes'"),
        ({"split_special_tokens": True}, "split_special_tokens: True is not supported"),
    ],
)
def test_a_wrong_setting_is_named(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=f"tokenizer_config.json: {message}"):
        with_settings(tmp_path, settings)


# ---- pieces


def test_ids_and_pieces() -> None:
    tokenizer = tokenizer_of(V1)
    pieces = ["<s>", "▁a", "<0x0A>", "▁"]
    assert tokenizer.convert_ids_to_tokens([1, 264, 13, 28705]) == pieces
    assert tokenizer.convert_tokens_to_ids(pieces) == [1, 264, 13, 28705]
    assert tokenizer.convert_ids_to_tokens(np.int32(264)) == "▁a"
    assert tokenizer.convert_tokens_to_ids("▁a") == 264
    assert tokenizer.convert_tokens_to_ids("no such piece") == 0


# ---- files


def test_another_process_can_be_given_a_tokenizer() -> None:
    tokenizer = pickle.loads(pickle.dumps(tokenizer_of(DEMO)))
    assert tokenizer.encode("Once upon a time") == tokenizer_of(DEMO).encode("Once upon a time")


def test_saved_and_read_again_it_is_the_same_file(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    tokenizer_of(DEMO).save_pretrained(folder)
    tokenizer_of(DEMO).save_pretrained(folder)  # over the old one
    assert [path.name for path in folder.iterdir()] == ["tokenizer.model"]
    assert (folder / "tokenizer.model").read_bytes() == DEMO.read_bytes()


def test_from_pretrained_opens_a_folder() -> None:
    tokenizer = MistralTokenizer.from_pretrained(DEMO.parent, pad_token_id=0)
    assert len(tokenizer) == 2048
    assert tokenizer.pad_token_id == 0


@pytest.mark.parametrize(
    ("names", "opened"),
    [
        (["tokenizer.model.v1"], 32000),
        (["tokenizer.model.v1", "tokenizer.model.v3"], 32768),
        (["tokenizer.model", "tokenizer.model.v3"], 2048),
    ],
)
def test_a_version_in_the_name_of_the_model(tmp_path: Path, names: list[str], opened: int) -> None:
    files = {"tokenizer.model": DEMO, "tokenizer.model.v1": V1, "tokenizer.model.v3": V3}
    for name in names:
        (tmp_path / name).write_bytes(files[name].read_bytes())
    assert len(MistralTokenizer.from_pretrained(tmp_path)) == opened


def test_a_folder_without_a_tokenizer_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has no tokenizer\.model.*hf download") as error:
        MistralTokenizer.from_pretrained(tmp_path)
    assert "pip install -U huggingface_hub, then: hf download mistralai/Mistral-7B-v0.1" in str(
        error.value
    )
    assert "mistralai/Mistral-7B-v0.3" in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\0" * 99]
)
def test_a_file_that_is_not_a_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=rf"\({len(content)} bytes\) is not a SentencePiece model"):
        MistralTokenizer(tmp_path / "tokenizer.model")


def test_a_model_whose_pieces_are_not_utf_8(tmp_path: Path) -> None:
    content = DEMO.read_bytes().replace("▁upon".encode(), b"\xff\x96\x81upon", 1)
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match="is not a SentencePiece model in UTF-8"):
        MistralTokenizer(tmp_path / "tokenizer.model")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        MistralTokenizer(tmp_path / "tokenizer.model")
    with pytest.raises(ValueError, match="cannot be read"):
        MistralTokenizer(tmp_path)


# ---- errors


def test_vocabularies_must_match() -> None:
    tokenizer_of(V1).check_vocabulary(32000)
    for vocab_size in (31999, 32002):
        with pytest.raises(ValueError, match=f"32000 pieces .* {vocab_size}, expected the same"):
            tokenizer_of(V1).check_vocabulary(vocab_size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t(None), "text is None"),
        (lambda t: t(b"a"), "text is b'a'"),
        (lambda t: t([]), r"text is \[\]"),
        (lambda t: t(["a", 7]), "a text is 7"),
        (lambda t: t([["a"]]), r"a text is \['a'\]"),
        (lambda t: t("a\ud800"), r"letter 1 of a text is the lone surrogate '\\ud800'"),
        (lambda t: t("a", padding="max_length"), "padding is 'max_length'"),
        (lambda t: t("a", padding_side="top"), "padding_side is 'top'"),
        (lambda t: t("a", return_tensors="pt"), "return_tensors is 'pt', but NumPy"),
        (lambda t: t.encode(3), "a text is 3"),
        (lambda t: t.decode([-1]), "token id -1 is out of range, expected 0 to 2047"),
        (lambda t: t.decode(np.array([2048])), "token id 2048 is out of range"),
        (lambda t: t.decode([1.0]), r"a token id is 1.0 \(float\)"),
        (lambda t: t.decode([True]), r"a token id is True \(bool\)"),
        (lambda t: t.decode([[1], [1]]), r"a token id is \[1\] \(list\)"),
        (lambda t: t.decode("a"), r"ids is 'a' \(str\)"),
        (lambda t: t.decode(7), r"ids is 7 \(int\)"),
        (lambda t: t.decode(np.ones(2)), r"ids is array.*batch_decode takes several"),
        (lambda t: t.decode(np.ones((99, 9), int)), r"ids is array.*\.\.\. \(ndarray\)"),
        (lambda t: t.convert_ids_to_tokens(2048), "token id 2048 is out of range"),
        (lambda t: t.convert_tokens_to_ids(7), "tokens is 7"),
        (lambda t: t.convert_tokens_to_ids([7]), "a text is 7"),
        (lambda t: StreamDecoder(t).push(2048), "token id 2048 is out of range"),
        (lambda t: MistralTokenizer(DEMO, pad_token_id=2048), "token id 2048 is out of range"),
    ],
)
def test_an_error_is_one_line(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call(tokenizer_of(DEMO))
    assert "\n" not in str(error.value)
