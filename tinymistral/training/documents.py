"""What a model is trained on: documents as texts, and a tokenizer trained on them.

A source, `Stories` or `Corpus`, numbers its documents 0, 1, 2, ... without end, so that where a run
has got to is one number. Some documents are held out: the model never learns from them.
"""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import sentencepiece

from tinymistral.files import read_bytes
from tinymistral.text import decode_file
from tinymistral.tokenizer import FILE_NAME, MistralTokenizer
from tinymistral.training.stories import Story, growing_list, rounds, story

HELD_OUT = 32  # documents at most
LISTS_FIRST = 12_000  # documents: an even number
# From this document on all rounds ask for the kinds of facts that a model learns last; for one that
# stands here three times, three times a round.
LAST_FROM = 60_000
LEARNED_LAST = ("number", "food", "fruit", "fruit", "fruit", "friend", "day")
HELD_OUT_SEEDS = 2**32  # those of held-out stories begin here; training uses the seeds below
GRADED_SEEDS = 2**33  # those of the stories by which a finished model is graded
LARGEST_CORPUS = 2_000_000_000  # bytes; all of it is in memory
SEPARATOR = re.compile(r"^<\|endoftext\|>$", re.MULTILINE)  # as in the files of TinyStories
CHARACTERS_PER_TOKEN = 3  # few, so that most parts of a long document fit into a row
TOKENIZER_CHARACTERS = 2_000_000  # of text that the tokenizer is trained on


class Stories:
    """First lists alone; then stories and rounds in turn.

    A model that reads lists alone learns within a million tokens to look for what it has read. In
    the runs that were tried with stories from the start it had not after five million. Runs of
    different seeds begin elsewhere.
    """

    def __init__(self, seed: int) -> None:
        # 2654435761 is odd, so that seeds below 2**32 all begin elsewhere (Knuth, TAOCP 3, 6.4).
        self.start = seed * 2654435761
        self.held_out = [told.text for told in held_out_stories(HELD_OUT)]

    def __getitem__(self, n: int) -> str:
        seed = (self.start + n) % HELD_OUT_SEEDS
        if n < LISTS_FIRST:
            return growing_list(seed)
        if n % 2 == 0:
            return story(seed).text
        return rounds(seed, always=LEARNED_LAST if n >= LAST_FROM else ())

    def each_once(self) -> Iterator[str]:
        """Return stories and rounds in turn, for the tokenizer; they never end."""
        return map(self.__getitem__, count(LISTS_FIRST))


def held_out_stories(count: int) -> list[Story]:
    """Return the first of the stories that no model is trained on."""
    return [story(HELD_OUT_SEEDS + n) for n in range(count)]


def graded_stories(count: int) -> list[Story]:
    """Return the first of the stories that a finished model is graded on.

    No model is trained on them either, and no setting is chosen by them.
    """
    return [story(GRADED_SEEDS + n) for n in range(count)]


class Corpus:
    """The documents of one's own text, which are repeated in a new order each time.

    Of 20 or more documents, every 20th is held out.
    """

    def __init__(self, texts: list[str], seed: int) -> None:
        self.texts = [text for n, text in enumerate(texts) if n % 20 != 19]
        self.held_out = texts[19::20][:HELD_OUT]
        self.seed = seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, n: int) -> str:
        epoch, place = divmod(n, len(self.texts))
        if epoch != self._epoch:
            random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            self._epoch, self._order = epoch, random.permutation(len(self.texts))
        return self.texts[self._order[place]]

    def each_once(self) -> list[str]:
        """Return the documents in their order in the file."""
        return self.texts


Documents = Stories | Corpus


def read_corpus(path: Path) -> tuple[list[str], str]:
    """Read a file of documents in UTF-8 -> the documents, and the SHA-256 of the file.

    A line `<|endoftext|>` ends a document. Raises ValueError.
    """
    content = read_bytes(path, LARGEST_CORPUS)
    parts = SEPARATOR.split(decode_file(content, str(path)))
    texts = [part.strip("\n") for part in parts if part.strip()]
    if not texts:
        raise ValueError(f"{path} is empty; expected text to train on")
    return texts, hashlib.sha256(content).hexdigest()


def cut(text: str, length: int) -> Iterator[str]:
    """Yield a text in parts of at most so many characters, each a document of its own.

    A step takes whole documents, so a book must not be one. The cut is in the second half of a
    part: between paragraphs, or else lines, or else words.
    """
    start = 0
    while len(text) - start > length:
        middle, end = start + length // 2, start + length
        places = (text.rfind(mark, middle, end) for mark in ("\n\n", "\n", " "))
        stop = next((place for place in places if place > start), end)
        yield text[start:stop].strip("\n")
        start = stop + (stop < end)  # without the mark
    yield text[start:].strip("\n")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> MistralTokenizer:
    """Train a SentencePiece tokenizer with the settings of Mistral's; same texts, same bytes.

    Byte-pair encoding with a piece for each byte, so that every text can be encoded; every digit a
    token; no normalization. Settings: `trainer_spec` and `normalizer_spec` in the tokenizer.model
    of Mistral-7B-v0.1. Raises ValueError if the texts do not have enough different pieces.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=0.9998,  # what is rarer is learned as bytes
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            max_sentence_length=2**30,  # bytes; a longer line would be left out
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,  # errors alone, which are raised too
        )
    except RuntimeError as error:
        most = re.search(r"too high .* <= (\d+)", str(error))
        least = re.search(r"smaller than required_chars. \d+ vs (\d+)", str(error))
        if most:
            expected = f"{most[1]} at most, or give more text"
        elif least:
            expected = f"{least[1]} at least: bytes, and the characters of the text"
        else:
            raise ValueError(f"no tokenizer can be trained on this text: {error}") from None
        raise ValueError(
            f"a vocabulary of {vocab_size} does not fit this text; expected {expected}"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, FILE_NAME)
        path.write_bytes(model.getvalue())
        return MistralTokenizer(path)


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Return the lines that a tokenizer is trained on: newlines are always byte pieces."""
    left = TOKENIZER_CHARACTERS
    for text in texts:
        # SentencePiece would leave out a line with U+2585, which marks the unknown for it.
        for line in filter(None, re.split("[\n\u2585]", text)):
            yield line[:left]
            left -= len(line)
            if left <= 0:
                return
