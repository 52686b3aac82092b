"""Control characters on a terminal: shown, not obeyed. Into a pipe they go as they are."""

import json
import shutil
import unicodedata
from contextlib import redirect_stderr
from io import BytesIO, TextIOWrapper

import pytest
from cli_runner import DEMO, Terminal, generated, run

from tinymistral.commands.console import Progress, visible

SHOWN = str.maketrans(
    {"\x1b": "␛", "\r": "␍", "\x07": "␇", "\x7f": "\\u007f", "\x9b": "\\u009b", "\u202e": "\\u202e"}
)
LINE = "\x1b]52;c;eA==\x07 \x7f \u202e"
STORY = ("Once upon a time", "--greedy", "--max-new-tokens", "20")


def test_what_a_terminal_obeys_is_shown_and_nothing_else() -> None:
    stream = Terminal(BytesIO())
    for character in map(chr, range(0x3000)):
        turns = unicodedata.bidirectional(character) in (
            *("LRE", "RLE", "LRO", "RLO", "PDF"),
            *("LRI", "RLI", "FSI", "PDI"),
        )
        obeyed = turns or (unicodedata.category(character) == "Cc" and character not in "\t\n")
        shown = visible(character, stream)
        assert (shown != character) == obeyed
        assert shown.isprintable() or not obeyed
    others = "".join(map(chr, range(0x3000, 0x110000)))
    assert visible(others, stream) == others


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo model, with controls instead of letters in a piece of its story."""
    folder = tmp_path_factory.mktemp("hostile") / "model"
    shutil.copytree(DEMO, folder, copy_function=shutil.copyfile)
    ids = generated(*STORY)["continuation_ids"]
    pieces = json.loads(run("tokenize", "--json", "--decode", *map(str, ids)).out)["pieces"]
    new = "▁\x1b\r\x9b".encode()
    old = next(piece.encode() for piece in pieces if len(piece.encode()) == len(new))
    content = (DEMO / "tokenizer.model").read_bytes()
    old, new = (b"\n%c%s\x15" % (len(x), x) for x in (old, new))  # between its length and score
    assert content.count(old) == 1
    (folder / "tokenizer.model").write_bytes(content.replace(old, new))
    return str(folder)


COMMANDS = {
    "generate": ("generate", *STORY),
    "the prompt": ("generate", LINE, "--max-new-tokens", "0"),
    "tokenize --json": ("tokenize", f"{LINE}\x9b", "--json"),
    "tokenize --decode": ("tokenize", "--decode", "30"),  # the byte 0x1B
    "chat": ("chat", "--max-new-tokens", "1"),
    "score --json": ("score", "--json"),
    "an error": ("score", LINE),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_controls_are_shown_on_a_terminal(command: tuple[str, ...], model: str) -> None:
    stdin = f"/save no/{LINE}\n".encode()  # a command of `chat`, and the text for `score`
    piped, shown = (
        run(*command, "--model", model, stdin=stdin, kind=kind)
        for kind in (TextIOWrapper, Terminal)
    )
    assert piped.code == shown.code
    before = piped.out + piped.err
    assert before != before.translate(SHOWN)
    assert shown[1:] == (piped.out.translate(SHOWN), piped.err.translate(SHOWN))
    if "--json" in command:
        assert json.loads(shown.out) == json.loads(piped.out)


def test_controls_in_a_line_of_progress_are_not_obeyed() -> None:
    stream = Terminal(BytesIO(), "utf-8")
    with redirect_stderr(stream):
        Progress("{} of 9")("a\x1b[2J\nb\x9b")
    assert stream.buffer.getvalue().decode() == "\ra [2J b of 9"
