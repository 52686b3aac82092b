"""Added tokens, padded vocabularies and tokenizer.json: ids and texts of transformers.

The cases and their values are in fixtures/tokenizers.json, which make_tokenizers.py makes.
"""

import importlib.resources
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import generated, good, refused
from goldens import FIXTURES

from tinymistral import MistralConfig, MistralForCausalLM
from tinymistral.streaming import StreamDecoder
from tinymistral.tokenizer import NO_PIECE, MistralTokenizer

CASES = json.loads((FIXTURES / "tokenizers.json").read_text("utf-8"))
DATA = Path(str(importlib.resources.files("mistral_common") / "data"))
IM_END, IM_START = 32000, 32001
CONTENTS = ["<|im_end|>", "<|im_start|>"]


def write_case(folder: Path, name: str, **more: Any) -> Path:
    """Write what the folder of a case holds, and JSON files beside it."""
    case = CASES[name]
    if case["model"] is not None:
        (folder / "tokenizer.model").write_bytes((DATA / case["model"]).read_bytes())
    else:
        content = (FIXTURES / "tokenizers" / f"{name}.json").read_bytes()
        (folder / "tokenizer.json").write_bytes(content)
    for file, fields in (case["files"] | more).items():
        (folder / file).write_text(json.dumps(fields), encoding="utf-8")
    return folder


def streamed(tokenizer: MistralTokenizer, ids: list[int], skip: bool) -> str:
    stream = StreamDecoder(tokenizer, skip)
    return "".join([stream.push(i) for i in ids]) + stream.flush()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["model"]])
def test_ids_and_texts_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    check_case(write_case(tmp_path, name, **{"config.json": {"vocab_size": 32064}}), CASES[name])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case["model"]])
def test_a_tokenizer_json_alone_is_read(tmp_path: Path, name: str) -> None:
    pytest.importorskip("tokenizers")
    folder = write_case(tmp_path, name, **{"config.json": {"vocab_size": 512}})
    check_case(folder, CASES[name])
    tokenizer = MistralTokenizer.from_pretrained(folder)
    assert tokenizer.encode("x") == CASES[name]["with_bos"]
    tokenizer.save_pretrained(tmp_path / "saved")
    assert MistralTokenizer.from_pretrained(tmp_path / "saved").encode("x<|im_end|>") == (
        tokenizer.encode("x<|im_end|>")
    )


def check_case(folder: Path, case: dict[str, Any]) -> None:
    tokenizer = MistralTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (case["eos"], case["pad"])
    for text, ids in case["encoded"]:
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text
    for ids, shown, skipped in case["decoded"]:
        known = [i for i in ids if i < tokenizer.model_vocab_size]
        assert tokenizer.decode(known) == streamed(tokenizer, known, False) == shown
        assert tokenizer.decode(known, True) == streamed(tokenizer, known, True) == skipped


def test_added_tokens_are_named_by_their_content(tmp_path: Path) -> None:
    tokenizer = MistralTokenizer.from_pretrained(
        write_case(tmp_path, "listed in tokenizer_config.json"), pad_token_id=IM_START
    )
    assert (tokenizer.vocab_size, len(tokenizer), tokenizer.pad_token_id) == (32000, 32002, 32001)
    assert tokenizer.convert_ids_to_tokens([1, IM_END, IM_START]) == ["<s>", *CONTENTS]
    assert tokenizer.convert_tokens_to_ids(["<s>", *CONTENTS, "<|x|>"]) == [1, IM_END, IM_START, 0]
    assert tokenizer.all_special_ids == [0, 1, 2, IM_END]
    assert tokenizer(["x<|im_end|>"]).input_ids.tolist() == [[1, 1318, IM_END]]


def test_an_added_token_is_plain_text_in_a_message(tmp_path: Path) -> None:
    tokenizer = MistralTokenizer.from_pretrained(write_case(tmp_path, "added_tokens.json alone"))
    plain = MistralTokenizer(tmp_path / "tokenizer.model")
    messages = [{"role": "user", "content": "a<|im_end|>"}]
    assert tokenizer.apply_chat_template(messages) == plain.apply_chat_template(messages)
    text = "a<|im_end|>"
    assert tokenizer.encode(text, split_special_tokens=True) == plain.encode(text)
    # [INST] is a control token only where the vocabulary itself says so.
    write_case(tmp_path, "added_tokens.json alone", **{"added_tokens.json": {"[INST]": 32000}})
    again = MistralTokenizer.from_pretrained(tmp_path)
    assert again.apply_chat_template(messages) == plain.apply_chat_template(messages)


@pytest.mark.parametrize(
    "name", ["listed in tokenizer_config.json", "added_tokens.json and special_tokens_map.json"]
)
def test_saving_keeps_added_tokens_and_the_chat_template(tmp_path: Path, name: str) -> None:
    write_case(tmp_path, name)
    (tmp_path / "chat_template.jinja").write_text("{{ a }}", encoding="utf-8")
    tokenizer = MistralTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path / "saved")
    check_case(tmp_path / "saved", CASES[name])
    assert MistralTokenizer.from_pretrained(tmp_path / "saved").chat_template == "{{ a }}"


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("added_tokens.json", {"<|x|>": "32000a"}, "an added token has the id '32000a'"),
        ("added_tokens.json", {"<|x|>": -1}, "an added token has the id -1"),
        ("added_tokens.json", {"": 32000}, "token 32000 is ''"),
        ("added_tokens.json", {"\ud800": 32000}, r"token 32000 is '\\ud800'"),
        ("added_tokens.json", {"<|x|>": 2**20}, "id 1048576 .* expected 0 to 1048575"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"32000": {}}}, "token 32000 is {}"),
        ("tokenizer_config.json", {"eos_token": ["</s>"]}, r"eos_token is \['</s>'\]"),
        ("tokenizer_config.json", {"additional_special_tokens": [2]}, "special_tokens is 2"),
        ("tokenizer_config.json", {"extra_special_tokens": 7}, "extra_special_tokens is 7"),
        ("special_tokens_map.json", [], "expected a JSON object"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, file: str, fields: Any, message: str) -> None:
    write_case(tmp_path, "added_tokens.json alone", **{file: fields})
    with pytest.raises(ValueError, match=rf"{file}: .*{message}") as error:
        MistralTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


# ---- padded vocabularies


def padded_checkpoint(folder: Path, vocab_size: int, name: str = "added_tokens.json alone") -> Path:
    """A model whose likeliest token is always the last id of its vocabulary."""
    config = MistralConfig(vocab_size, 8, 8, 1, 2, 1, eos_token_id=None)
    model = MistralForCausalLM(config, seed=0)
    head = np.zeros_like(model.tensors["lm_head.weight"])
    head[-1] = 1  # its logit is the sum of the normed state
    embedding = np.ones_like(model.tensors["model.embed_tokens.weight"])
    tensors = {"lm_head.weight": head, "model.embed_tokens.weight": embedding}
    model = MistralForCausalLM(config, tensors=model.tensors | tensors)
    model.save_pretrained(folder)
    return write_case(folder, name)


def test_a_padded_vocabulary_generates_and_scores(tmp_path: Path) -> None:
    folder = str(padded_checkpoint(tmp_path, 32064))
    fields = generated("--model", folder, "--max-new-tokens", "3", "a<|im_end|>")
    assert fields["continuation_ids"] == [32063] * 3
    assert (fields["text"], fields["continuation"]) == ("a<|im_end|>", "")
    scored = json.loads(good("score", "--model", folder, "--json", stdin=b"a<|im_end|>b"))
    assert scored["ids"] == [1, 264, IM_END, 287]
    assert NO_PIECE in good("explain", "--model", folder, "a")


def test_ids_without_a_piece(tmp_path: Path) -> None:
    tokenizer = MistralTokenizer.from_pretrained(padded_checkpoint(tmp_path, 32064))
    model = MistralForCausalLM.from_pretrained(tmp_path)
    ids = model.generate([[1, 264]], max_new_tokens=2, stop=["z"], tokenizer=tokenizer)
    assert ids.tolist() == [[1, 264, 32063, 32063]]
    assert tokenizer.batch_decode(ids, True) == ["a"]
    assert tokenizer.decode([229, 32063, 148, 163]) == "①"  # as transformers joins the bytes
    assert tokenizer.convert_ids_to_tokens([32002, 32063]) == [NO_PIECE] * 2
    for call in (tokenizer.decode, tokenizer.convert_ids_to_tokens):
        with pytest.raises(ValueError, match="token id 32064 is out of range, expected 0 to 32063"):
            call([32064])


@pytest.mark.parametrize(
    ("vocab_size", "fits"),
    [(31999, False), (32000, True), (32001, True), (32257, True), (32258, False), (32768, False)],
)
def test_how_much_a_vocabulary_may_be_padded(tmp_path: Path, vocab_size: int, fits: bool) -> None:
    config = {"config.json": {"vocab_size": vocab_size}}
    tokenizer = MistralTokenizer.from_pretrained(
        write_case(tmp_path, "added_tokens.json alone", **config)
    )
    if fits:
        tokenizer.check_vocabulary(vocab_size)
    else:
        with pytest.raises(ValueError, match=f"32000 pieces and the model .* {vocab_size}"):
            tokenizer.check_vocabulary(vocab_size)


def test_a_token_past_the_embedding_is_an_error_only_in_a_text_that_has_it(tmp_path: Path) -> None:
    folder = str(padded_checkpoint(tmp_path, 32000, "pad token after the embedding"))
    good("generate", "--model", folder, "--max-new-tokens", "1", "a")
    says = refused("generate", "--model", folder, "a<pad>")
    assert "32000 at row 0, column 2 is not in the vocabulary" in says


# ---- tokenizer.json


def test_a_tokenizer_json_says_itself_whether_there_is_bos(tmp_path: Path) -> None:
    """As in transformers 5.23, where both settings have no effect beside this file."""
    pytest.importorskip("tokenizers")
    settings = {"add_bos_token": False, "add_eos_token": True, "add_prefix_space": False}
    write_case(
        tmp_path, "byte_level", **{"tokenizer_config.json": settings | {"padding_side": "right"}}
    )
    tokenizer = MistralTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("x") == CASES["byte_level"]["with_bos"]
    assert tokenizer(["x", "xx"]).attention_mask[0].tolist() == [1, 1, 0]


@pytest.mark.parametrize("name", ["byte_level", "prepend"])
def test_what_is_typed_is_no_control_token_of_a_tokenizer_json(tmp_path: Path, name: str) -> None:
    pytest.importorskip("tokenizers")
    tokenizer = MistralTokenizer.from_pretrained(write_case(tmp_path, name))
    text = "<s>[INST] a</s><unk>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert not {0, 1, 2, 3, 4} & set(ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    plain = tokenizer.encode("<|im_end|>", False, split_special_tokens=True)
    assert len(plain) > 1
    assert tokenizer.decode(plain) == "<|im_end|>"


@pytest.mark.parametrize("unknown", ["<unk>", None])  # Mistral Nemo's model has none
def test_control_tokens_of_a_tokenizer_json_make_the_chat_format(tmp_path, unknown) -> None:
    pytest.importorskip("tokenizers")
    write_case(tmp_path, "byte_level")
    fields = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    fields["model"]["unk_token"] = unknown
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")
    tokenizer = MistralTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "Hello<|im_end|>"}]
    content = tokenizer.encode("Hello<|im_end|>", False, split_special_tokens=True)
    assert tokenizer.apply_chat_template(messages) == [1, 3, *content, 4]  # V3 of mistral-common


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
def test_a_cut_character_is_held_back(tmp_path: Path, name: str) -> None:
    pytest.importorskip("tokenizers")
    tokenizer = MistralTokenizer.from_pretrained(write_case(tmp_path, name))
    ids = tokenizer.encode("x€", False)  # which has no piece of its own
    stream = StreamDecoder(tokenizer)
    texts = [stream.push(i) for i in ids[:-1]]
    assert "".join(texts) == "x"
    assert stream.push(ids[-1]) == "€"
    assert tokenizer.decode(ids[:-1]) == "x\ufffd\ufffd"


def test_a_checkpoint_with_a_tokenizer_json_alone(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    folder = str(padded_checkpoint(tmp_path, 320, "byte_level"))
    fields = generated("--model", folder, "--max-new-tokens", "2", "Hello<|im_end|>")
    assert fields["prompt_ids"] == MistralTokenizer.from_pretrained(folder).encode(fields["prompt"])
    assert fields["continuation_ids"] == [319] * 2
    good("score", "--model", folder, stdin=b"Hello there")
    page = refused("explain", "--model", folder, "--html", str(tmp_path / "page.html"), "a")
    assert "the page reads a tokenizer.model" in page


def test_the_package_that_reads_a_tokenizer_json_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install 'tinymistral\[tokenizers\]'") as error:
        MistralTokenizer.from_pretrained(write_case(tmp_path, "plain"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "BPE", "vocab": [], "merges": []}}, "cannot be read"),
        ({"model": {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 0}}, "not of a kind"),
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "not of a kind"),
        ({"decoder": None}, "not of a kind"),
        (
            {"model": {"type": "BPE", "vocab": {"a": 2**20}, "merges": []}},
            "a piece has an id over 1048575",
        ),
        ({"added_tokens": [{"id": 9}]}, r"token 9 is .*, expected a token"),
        ({"added_tokens": 5}, "added_tokens is 5"),
        ({"post_processor": {}}, "cannot be read"),
    ],
)
def test_a_tokenizer_json_of_another_kind_is_refused(tmp_path: Path, changes, message) -> None:
    pytest.importorskip("tokenizers")
    write_case(tmp_path, "plain")
    fields = json.loads((tmp_path / "tokenizer.json").read_text("utf-8")) | changes
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match=f"tokenizer.json: .*{message}") as error:
        MistralTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_larger_vocabulary_is_not_sent_to_the_7b_s_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 131072}', encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"no tokenizer\.model and no tokenizer\.json; copy"
    ) as error:
        MistralTokenizer.from_pretrained(tmp_path)
    assert "7B" not in str(error.value)


def test_tekken_json_alone_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"tekken\.json alone.*put the model's tokenizer\.json"
    ) as error:
        MistralTokenizer.from_pretrained(tmp_path)
    assert "7B" not in str(error.value)
