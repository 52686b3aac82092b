"""What is trained on: stories, a corpus, and the tokenizer made from them."""

import re
from itertools import islice
from pathlib import Path

import pytest

from tinymistral.tokenizer import MistralTokenizer
from tinymistral.training import documents
from tinymistral.training.documents import Corpus, Stories, cut, read_corpus, train_tokenizer
from tinymistral.training.run import Recipe, open_documents

TEXTS = [
    f"The {a} fox  saw 12 {b}s.\nIt went home." for a in ("red", "old") for b in ("bear", "hen")
]


def test_no_held_out_story_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds from 2**32 on are held out."""
    seeds: list[int] = []

    class Told:
        def __init__(self, seed: int) -> None:
            seeds.append(seed)
            self.text = f"story {seed}"

    monkeypatch.setattr(documents, "story", Told)
    stories = Stories(seed=2**32 - 1)
    assert stories.held_out == [f"story {2**32 + n}" for n in range(32)]
    graded = [told.text for told in documents.graded_stories(3)]  # held out as well, but others
    assert graded == [f"story {2**33 + n}" for n in range(3)]
    seeds.clear()
    first = documents.LISTS_FIRST
    texts = [stories[first + 3 * n] for n in (0, 1, 1, 2**32 - 1, 2**32)]
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert texts[1] == texts[2] != texts[0] == texts[4]
    assert list(islice(stories.each_once(), 0, 4, 3)) == texts[:2]


def test_runs_of_different_seeds_begin_at_different_stories() -> None:
    assert len({Stories(seed)[0] for seed in range(5)}) == 5


def test_an_epoch_has_each_document_once_in_a_new_order() -> None:
    corpus = Corpus([str(n) for n in range(40)], seed=3)
    assert corpus.held_out == ["19", "39"]
    epochs = [[corpus[n] for n in range(start, start + 38)] for start in (0, 38, 76)]
    assert all(sorted(epoch) == sorted(corpus.texts) for epoch in epochs)
    assert len(corpus.texts) == len(set(corpus.texts) - {"19", "39"}) == 38
    assert epochs[0] != epochs[1] != epochs[2]
    assert [corpus[n] for n in range(38)] == epochs[0]
    assert [Corpus([str(n) for n in range(40)], seed=4)[n] for n in range(38)] != epochs[0]


def test_few_documents_are_all_trained_on() -> None:
    assert Corpus([str(n) for n in range(19)], seed=0).held_out == []


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"one\n\nparagraph\n", ["one\n\nparagraph"]),
        (b"\xef\xbb\xbfone\r\n<|endoftext|>\r\ntwo\r\nlines\r\n", ["one", "two\nlines"]),
        (b"a\n<|endoftext|>\n\n<|endoftext|>\nb\n<|endoftext|>", ["a", "b"]),
        (b"a <|endoftext|> in a line", ["a <|endoftext|> in a line"]),
    ],
)
def test_a_corpus_is_cut_at_lines_that_say_so(tmp_path: Path, content, texts) -> None:
    (tmp_path / "corpus.txt").write_bytes(content)
    assert read_corpus(tmp_path / "corpus.txt")[0] == texts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("12345678", ["12345678"]),
        ("1234\n\n7 9\n1", ["1234", "7 9\n1"]),
        ("1\n\n4 67\n9 1", ["1\n\n4 67", "9 1"]),
        ("1\n34 67 901", ["1\n34 67", "901"]),
        ("1 34567890123456789", ["1 345678", "90123456", "789"]),
        ("12345678\n\n\n2", ["12345678", "2"]),
    ],
)
def test_a_long_document_is_cut_where_it_pauses(text: str, parts: list[str]) -> None:
    assert list(cut(text, 8)) == parts


def test_a_book_is_many_documents(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("It rained again, and nobody came.\n" * 1000, "utf-8")
    documents, _ = open_documents(Recipe(corpus=str(book), length=100))
    assert isinstance(documents, Corpus)
    assert len(documents.texts) > 100
    assert documents.held_out
    assert max(map(len, documents.texts)) <= 300


@pytest.mark.parametrize(
    ("content", "says"),
    [(b" \n<|endoftext|>\n", "is empty"), (b"a\xff", "its byte 1 is 0xff"), (None, "no such file")],
)
def test_a_corpus_that_cannot_be_read(tmp_path: Path, content, says: str) -> None:
    if content is not None:
        (tmp_path / "corpus.txt").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_corpus(tmp_path / "corpus.txt")


@pytest.fixture(scope="module")
def tokenizer() -> MistralTokenizer:
    return train_tokenizer(TEXTS, 290)


def test_the_same_texts_make_the_same_tokenizer(
    tokenizer: MistralTokenizer, tmp_path: Path
) -> None:
    contents = []
    for made in (tokenizer, train_tokenizer(TEXTS, 290)):
        made.save_pretrained(tmp_path)
        contents.append((tmp_path / "tokenizer.model").read_bytes())
    assert contents[0] == contents[1]
    assert str(tmp_path).encode() not in contents[0]


def test_its_first_ids_are_those_of_mistral(tokenizer: MistralTokenizer) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    assert tokenizer.convert_ids_to_tokens(list(range(259))) == pieces
    assert tokenizer.vocab_size == 290
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.pad_token_id is None


@pytest.mark.parametrize(
    "text",
    ["The red fox", "a  b   c", " x ", "é 日本 🙂 ﬁ ①\t\n\x00", "e\u0301", "<s></s>", "2024", ""],
)
def test_every_text_comes_back_as_it_was(tokenizer: MistralTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("letter", "\u2585 \u2581 \t \0 \ufffd <s>".split(" "))
def test_no_letter_keeps_a_line_from_the_tokenizer(letter: str) -> None:
    pieces = train_tokenizer(["The old hen", f"{letter}The red fox"], 275).processor
    assert pieces.piece_to_id("x") > 258


def test_digits_are_tokens_of_their_own_and_a_space_comes_first(
    tokenizer: MistralTokenizer,
) -> None:
    """As in Mistral's: `split_digits` and `add_dummy_prefix`."""
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("fox 12", add_special_tokens=False))
    assert pieces[0].startswith("▁")
    assert pieces[-2:] == ["1", "2"]


@pytest.mark.parametrize(
    ("size", "says"), [(2048, "expected ([0-9]+) at most"), (100, "expected (2[0-9]+) at least")]
)
def test_a_vocabulary_that_does_not_fit(size: int, says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        train_tokenizer(TEXTS, size)
    limit = int(re.search(says, str(raised.value))[1])
    assert train_tokenizer(TEXTS, limit).vocab_size == limit
