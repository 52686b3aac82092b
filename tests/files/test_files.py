"""Reading files that are too large or not regular; writing whole files; sizes as text."""

import json
import os
import stat
import sys
import threading
from pathlib import Path

import pytest
from goldens import DEMO
from strategies import config, tiny_model

from tinymistral import MistralConfig, MistralTokenizer, files
from tinymistral.added_tokens import AddedTokens
from tinymistral.sampling import read_generation_config

posix = pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders there")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")  # has no end


def link_to_nothing(path: Path) -> None:
    path.symlink_to("gone")  # as a download that was cut short leaves


def make_large(path: Path) -> None:
    path.touch()
    os.truncate(path, 100_000_001)  # all zeros, which take no room on the disk


NO_PLAIN_FILES = [
    (make_pipe, "no regular file"),
    (make_folder, "no regular file"),
    (link_to_zeros, "no regular file"),
    (link_to_nothing, "a symbolic link to a file that is not there"),
    (make_large, "100000001 bytes, expected 10"),
]
READERS = {
    "config.json": MistralConfig.from_pretrained,
    "generation_config.json": read_generation_config,
    "tokenizer.model": MistralTokenizer.from_pretrained,
    "tokenizer.model.v1": MistralTokenizer.from_pretrained,
    "tokenizer_config.json": AddedTokens.read,
    "chat_template.jinja": AddedTokens.read,
    "params.json": lambda folder: files.read_json(folder / "params.json"),
}


def error_of(function, *arguments) -> str:
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def error_soon(function, *arguments) -> str:
    """As `error_of`; a read that blocks fails the test, instead of stopping all of them."""
    messages: list[str] = []
    thread = threading.Thread(
        target=lambda: messages.append(error_of(function, *arguments)), daemon=True
    )
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    return messages[0]


@posix
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(("make", "says"), NO_PLAIN_FILES)
def test_anything_but_a_regular_file_is_refused_without_reading_it(tmp_path, make, says, name):
    make(tmp_path / name)
    message = error_soon(READERS[name], tmp_path)
    assert message.startswith(f"{tmp_path / name}: cannot be read: ")
    assert says in message


def test_a_file_may_be_as_large_as_the_limit(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert files.read_bytes(tmp_path / "x", 5) == b"12345"
    assert "it is 5 bytes, expected 4 at most" in error_of(files.read_bytes, tmp_path / "x", 4)
    assert error_of(files.read_bytes, tmp_path / "y", 5).endswith("there is no such file")
    assert "cannot be read" in error_of(files.read_bytes, tmp_path / "a\0b", 5)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "params.json"])
@pytest.mark.parametrize(
    ("content", "twice"),
    [
        ('{"top_k": 1, "top_k": 1}', "'top_k'"),
        ('{"a": [{"b\\n": 1, "b\\u000a": 2}]}', r"'b\n'"),
        (f'{{"{"x" * 9999}": 1, "{"x" * 9999}": 2}}', "'xxx"),
    ],
)
def test_a_name_that_appears_twice_is_refused(tmp_path, name, content, twice):
    (tmp_path / name).write_text(content, encoding="utf-8")
    message = error_of(READERS[name], tmp_path)
    assert message.startswith(f"{tmp_path / name}: not valid JSON: the name {twice}")
    assert message.endswith("appears twice")
    assert len(message) < 400


# Writing


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path, monkeypatch):
    umask = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            # The mask belongs to the process: setting it sets it for other threads too.
            patch.setattr(os, "umask", lambda mask: pytest.fail("sets the umask"))
            files.write_json(tmp_path / "a.json", {})
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


def test_json_has_few_levels(tmp_path):
    path = tmp_path / "a.json"

    def read(levels):
        path.write_text('{"a": ' + "[" * (levels - 1) + "1" + "]" * (levels - 1) + "}", "utf-8")
        return files.read_json(path)

    assert read(100)
    for levels in (101, 900, 100_000):
        with pytest.raises(ValueError, match=r"a\.json: not valid JSON: expected 100 levels"):
            read(levels)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"b": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"b": float("nan")})
    with pytest.raises(KeyboardInterrupt), files.whole_file(path) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.parent == tmp_path  # a rename from elsewhere would be a copy
        raise KeyboardInterrupt
    assert json.loads(path.read_text("utf-8")) == {"b": 1}
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    make_pipe(path)
    end = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        with pytest.raises(ValueError, match="JSON"):
            files.write_json(path, {"b": float("nan")})
        files.write_json(path, {"b": 1})
        assert json.loads(os.read(end, 100)) == {"b": 1}
    finally:
        os.close(end)
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


def test_saving_to_a_folder_that_is_a_file_is_an_error_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    for thing in (MistralConfig(), MistralTokenizer.from_pretrained(DEMO), tiny_model(config())):
        message = error_of(thing.save_pretrained, tmp_path / "file")
        assert message == f"{tmp_path / 'file'} is a file, expected a folder to write to"
        assert "cannot be made" in error_of(thing.save_pretrained, tmp_path / "file" / "below")


# Sizes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # huggingface_hub's parse_size_to_int for the decimal ones, powers of 1024 for the others
        ("5GB", 5_000_000_000),
        ("5gb", 5_000_000_000),
        (" 1.5 MB ", 1_500_000),
        ("4.35GB", 4_350_000_000),
        ("1TB", 10**12),
        ("300KB", 300_000),
        ("1KiB", 1024),
        ("2MiB", 2_097_152),
        ("0.5GiB", 536_870_912),
        ("1TiB", 1_099_511_627_776),
        ("123", 123),
        (1, 1),
        (5_000_000_000, 5_000_000_000),
    ],
)
def test_a_size_is_bytes_or_a_text(size, expected):
    assert files.parse_size(size) == expected


@pytest.mark.parametrize(
    "size",
    [
        *("", "GB", "5 apples", "-5GB", "0GB", "1e9", "5G", "5GBB", "٥GB", "9" * 999, "5\nGB x"),
        *(0, -1, True, None, 5e9, [5], b"5GB"),
    ],
)
def test_a_wrong_size_is_refused(size):
    message = error_of(files.parse_size, size)
    assert message.startswith("a size is ")
    assert "'5GB'" in message
    assert len(message) < 200


def test_shards_are_as_large_as_the_text_says(tmp_path):
    model = tiny_model(config())
    whole = sum(array.nbytes for array in model.tensors.values())
    assert 8192 < whole <= 9000  # so 8 KiB are too little, and 9 KB enough
    model.save_pretrained(tmp_path / "one", max_shard_size="9KB")
    model.save_pretrained(tmp_path / "several", max_shard_size="8KiB")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) == 1
    assert len(list((tmp_path / "several").glob("*.safetensors"))) == 2
    assert "'5GB'" in error_of(
        lambda: model.save_pretrained(tmp_path / "no", max_shard_size="5 GB x")
    )
    assert not (tmp_path / "no").exists()


def test_whether_a_file_can_be_written_is_found_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    files.check_can_be_written(path)
    path.write_text("before", "utf-8")
    files.check_can_be_written(path)
    assert (list(tmp_path.iterdir()), path.read_text("utf-8")) == ([path], "before")
    files.check_can_be_written(Path(os.devnull))
    for wrong, says in ((tmp_path, "is a folder"), (path / "x", "cannot be written: Not a dir")):
        with pytest.raises(ValueError, match=says):
            files.check_can_be_written(wrong)
