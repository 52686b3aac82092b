"""The golden vectors of tokenizer and chat: tinymistral passes them, and known ids are among them.

Their ids come from sentencepiece and mistral-common (fixtures/make_golden_vectors.py); some, which
are known from elsewhere, are written out here by hand.
"""

from __future__ import annotations

import importlib.resources
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from golden_maker.suite_files import DOCUMENTS
from goldens import DEMO

from tinymistral.golden.files import document_text
from tinymistral.golden.run.tinymistral import open_vocabulary, run_vectors
from tinymistral.golden.suite import Case, read_suite

COMMON = Path(str(importlib.resources.files("mistral_common") / "data"))
SUITE = read_suite()
TOKENIZERS = ["tokenizer-v1", "tokenizer-demo"]
CHATS = ["chat-v1", "chat-v2", "chat-v3", "chat-demo"]

every_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)
every_document = pytest.mark.parametrize("name", DOCUMENTS)


@cache
def document(name: str) -> dict[str, Any]:
    return SUITE.document(SUITE.case(name))


def model_file(case: Case) -> Path:
    assert case.vocabulary is not None
    name = Path(case.vocabulary["name"]).name
    return DEMO / name if case.id.endswith("-demo") else COMMON / name


# ---- texts: tinymistral passes


@every_document
def test_tinymistral_passes(name: str) -> None:
    case = SUITE.case(name)
    tokenizer = open_vocabulary(case, model_file(case))
    assert run_vectors(SUITE, case, tokenizer) == document(name)


def test_the_demo_needs_no_path() -> None:
    case = SUITE.case("tokenizer-demo")
    assert run_vectors(SUITE, case) == document("tokenizer-demo")


# ---- texts: what stands in the documents

KNOWN: list[tuple[str, list[int]]] = [
    *[("", []), (" ", [259]), ("  ", [2287]), ("\n", [28705, 13]), ("\t", [28705, 12])],
    *[("a", [264]), (" a", [28705, 264]), ("  a", [259, 264]), ("a ", [264, 28705])],
    *[("a  b", [264, 28705, 287]), ("This is a test", [851, 349, 264, 1369])],
    ("My favourite condiment is", [1984, 16020, 2076, 2487, 349]),
    ("My favourite condiment is ", [1984, 16020, 2076, 2487, 349, 28705]),
    ("I believe the meaning of life is", [315, 3091, 272, 5746, 302, 1411, 349]),
    *[("<s>", [523, 28713, 28767]), ("</s>", [1867, 28713, 28767])],
    *[("<0x0A>", [523, 28734, 28744, 28734, 28741, 28767]), ("🙂", [28705, 29340])],
    *[("①", [28705, 229, 148, 163]), ("ﬁ", [28705, 30160]), ("e\u0301", [317, 28949])],
    *[("\u00e9", [1233]), ("\u200b", [15758]), ("\ufeff", [28705, 31759])],
    *[("\u3000", [28705, 29351]), ("日本語", [28705, 29142, 29119, 30321]), ("\0", [28705, 3])],
]
SPACES = [  # before x, which is 1318
    *[(1, [28705]), (2, [259]), (3, [2287]), (4, [260]), (5, [355]), (6, [428]), (7, [5390])],
    *[(8, [273]), (9, [2600]), (10, [756]), (11, [17422]), (12, [558]), (13, [569])],
    *[(14, [1417]), (15, [1417, 28705]), (16, [359]), (17, [359, 28705])],
    *[(31, [359, 1417, 28705]), (32, [359, 359])],
]
DECODED = {
    (264,): "a",
    (28705, 264): " a",
    (13, 264): "\n a",
    (229,): "\ufffd",
    (229, 264): "\ufffd a",
}


def test_known_ids_of_v01_are_among_the_vectors() -> None:
    ids = {entry["text"]: entry["ids"] for entry in document("tokenizer-v1")["strings"]}
    for text, known in KNOWN:
        assert ids[text] == known, repr(text)
    for n, known in SPACES:
        assert ids[" " * n + "x"] == [*known, 1318], n


def test_known_texts_of_v01_are_among_the_vectors() -> None:
    v1 = document("tokenizer-v1")
    texts = {tuple(entry["ids"]): entry["decoded"] for entry in v1["strings"] + v1["decodings"]}
    assert {ids: texts[ids] for ids in DECODED} == DECODED


def test_known_conversations_are_among_the_vectors() -> None:
    v1 = {
        tuple(message["content"] for message in entry["messages"]): entry["ids"]
        for entry in document("chat-v1")["conversations"]
    }
    of_a = [1, 733, 16289, 28793, 264, 733, 28748, 16289, 28793, 287, 2]
    of_c = [733, 16289, 28793, 277, 733, 28748, 16289, 28793, 281, 2]
    assert v1["a", "b", "c", "d"] == of_a + of_c
    with_system = [1, 733, 16289, 28793, 17121, 22526, 13, 13, 28708, 733, 28748, 16289, 28793]
    assert v1["SYSTEM", "a"] == with_system


@every_tokenizer
def test_ids_are_those_of_the_text_alone(name: str) -> None:
    for entry in document(name)["strings"]:
        assert not {0, 1, 2}.intersection(entry["ids"]), entry  # <unk>, <s>, </s>
        assert entry["decoded"] == entry["text"].replace("\u2581", " ")


@pytest.mark.parametrize("name", CHATS)
def test_conversations_begin_with_one_bos_and_answers_end(name: str) -> None:
    conversations = document(name)["conversations"]
    assert len(conversations) >= 45
    for entry in conversations:
        roles = [message["role"] for message in entry["messages"]]
        assert entry["ids"][0] == 1
        assert entry["ids"].count(1) == 1
        assert entry["ids"].count(2) == roles.count("assistant")
    with_system = [e for e in conversations if e["messages"][0]["role"] == "system"]
    assert len(with_system) >= 12


@every_document
def test_a_document_is_ascii_and_is_written_as_it_is_read(name: str) -> None:
    content = SUITE.path(SUITE.case(name)).read_bytes()
    assert content.isascii()
    assert document_text(json.loads(content)).encode() == content
    json.dumps(json.loads(content), ensure_ascii=False).encode()  # no lone surrogates


@every_document
def test_the_manifest_says_what_the_document_says(name: str) -> None:
    case = SUITE.case(name)
    assert (case.kind, case.says) == (name.partition("-")[0], document(name)["says"])
    assert case.vocabulary == document(name)["vocabulary"]


# ---- the vocabulary


def test_the_real_vocabulary_is_requested() -> None:
    case = SUITE.case("tokenizer-v1")
    with pytest.raises(ValueError, match=r"'tokenizer\.model\.v1' .*mistral-common") as error:
        run_vectors(SUITE, case)
    assert "\n" not in str(error.value)


def test_another_vocabulary_is_refused() -> None:
    case = SUITE.case("tokenizer-v1")
    with pytest.raises(ValueError, match=r"sha256 .*, expected dadfd56d7667\.\.\.; take") as error:
        open_vocabulary(case, DEMO / "tokenizer.model")
    assert "\n" not in str(error.value)


def test_cases_of_a_backend_are_refused() -> None:
    case = next(case for case in SUITE.manifest.cases.values() if case.kind == "operation")
    with pytest.raises(ValueError, match="computed by a backend"):
        run_vectors(SUITE, case)
