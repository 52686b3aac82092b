"""A save that is killed anywhere, and two at once: what is there is the old or the new."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from goldens import DEMO, FIXTURES
from kills import kills
from strategies import config, tiny_model

from tinymistral import MistralForCausalLM, MistralTokenizer, files
from tinymistral.checkpoint import load_checkpoint
from tinymistral.checkpoint.conversion import convert
from tinymistral.files import saving
from tinymistral.sampling import read_generation_config

posix = pytest.mark.skipif(os.name != "posix", reason="locks and signals as on POSIX")
LOSES = pytest.mark.filterwarnings("ignore:params.json has no place for")
SHARDS = "2KB"  # five files of the model below


def model(seed: int, **fields: object) -> MistralForCausalLM:
    """A model of one shape: its tensors fit any of these configurations."""
    made = tiny_model(config(**fields), seed)
    made.generation_config = {"top_k": fields["rope_theta"]} if fields else {}
    return made


OLD = model(1)
NEW = model(2)  # other weights alone
OTHER = model(3, rope_theta=777.0)  # another configuration too, which its tensors do not show


def opened(folder: Path) -> object:
    """What opens in a folder, all of it; None if it is refused."""
    try:
        read, tensors = load_checkpoint(folder)
        generation = read_generation_config(folder)
    except ValueError:
        return None
    return read.to_dict(), generation, {n: t.tobytes() for n, t in tensors.items()}


def content_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def put(content: dict[str, bytes], folder: Path) -> None:
    """Make a folder hold these files and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in content.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(data)


def leftover_names(folder: Path, *known: dict[str, bytes]) -> set[str]:
    """Names in a folder that are in none of these contents."""
    names = {name.partition("/")[0] for content in known for name in content}
    return {path.name for path in folder.iterdir()} - names


def check_names(names: set[str]) -> None:
    assert all(files.UNFINISHED_NAME.fullmatch(name) for name in names), names


def save_raw(folder: Path) -> None:
    convert(DEMO, folder, to="raw")


def one(saved: MistralForCausalLM, folder: Path) -> None:
    saved.save_pretrained(folder)


def shards(saved: MistralForCausalLM, folder: Path) -> None:
    saved.save_pretrained(folder, max_shard_size=SHARDS)


@pytest.mark.parametrize("new", [NEW, OTHER], ids=["same config", "other config"])
@pytest.mark.parametrize("save", [one, shards])
@pytest.mark.parametrize("before", [one, shards, "raw"])
def test_a_killed_save_is_the_old_the_new_or_refused(tmp_path, before, save, new):
    folder = tmp_path / "model"
    if before == "raw":
        shutil.copytree(FIXTURES / "raw" / "no_window", folder)
    else:
        before(OLD, folder)
    (folder / "notes.txt").write_text("mine", "utf-8")
    old_content, old = content_of(folder), opened(folder)
    save(new, folder)
    new_content, after = content_of(folder), opened(folder)
    assert old is not None and after is not None and old != after
    found = []
    for _ in kills(folder, lambda: put(old_content, folder), lambda: save(new, folder)):
        found.append(opened(folder))
        assert found[-1] in (None, old, after)
        check_names(leftover_names(folder, old_content, new_content))
        save(new, folder)
        assert content_of(folder) == new_content
    assert found[0] == old
    if new is NEW and not (before is save is shards) and before != "raw":
        assert None not in found  # a single rename makes it the new one


@pytest.mark.parametrize("before", [one, shards])
@pytest.mark.parametrize("save", [one, shards])
def test_a_save_interrupted_by_ctrl_c_is_the_old_or_the_new(tmp_path, before, save):
    folder = tmp_path / "model"
    before(OLD, folder)
    old_content, old = content_of(folder), opened(folder)
    save(OTHER, folder)
    after = opened(folder)
    for _ in kills(
        folder,
        lambda: put(old_content, folder),
        lambda: save(OTHER, folder),
        KeyboardInterrupt,
    ):
        assert opened(folder) in (old, after)


@LOSES
@pytest.mark.parametrize("to", ["hf", "raw"])
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("in_one_step", [True, False] if sys.platform == "linux" else [False])
def test_a_killed_conversion_is_the_old_or_the_new(tmp_path, monkeypatch, to, force, in_one_step):
    source, out = tmp_path / "source", tmp_path / "all" / "out"
    (tmp_path / "all").mkdir()
    OTHER.save_pretrained(source)
    shutil.copyfile(DEMO / "tokenizer.model", source / "tokenizer.model")
    if to == "hf":
        convert(source, tmp_path / "raw", to="raw")
        source = tmp_path / "raw"
    convert(source, out, to=to, max_shard_size=SHARDS)
    new_content, after = content_of(tmp_path / "all"), opened(out)
    old_content, old = {}, None
    if force:
        shutil.rmtree(out)
        OLD.save_pretrained(out)
        old_content, old = content_of(tmp_path / "all"), opened(out)
    if not in_one_step:
        monkeypatch.setattr(saving.ctypes, "CDLL", lambda *arguments, **options: None)
    found = []

    def write() -> None:
        convert(source, out, to=to, max_shard_size=SHARDS, force=force)

    for _ in kills(tmp_path / "all", lambda: put(old_content, tmp_path / "all"), write):
        found.append(opened(out))
        others = leftover_names(tmp_path / "all", {"out": b""})
        check_names(others)
        if force and not in_one_step and not out.exists():
            assert old in [opened(tmp_path / "all" / name) for name in others]
        else:
            assert found[-1] in (old, after)
        convert(source, out, to=to, max_shard_size=SHARDS, force=True)
        assert content_of(tmp_path / "all") == new_content
    assert found[0] == old
    assert (after in found) == force  # then the old files are still to be removed


WRITERS = {
    "a.json": lambda path, n: files.write_json(path, {"n": n}),
    "config.json": lambda path, n: config(rope_theta=n + 1.0).save_pretrained(path.parent),
    "tokenizer.model": lambda path, n: TOKENIZERS[n].save_pretrained(path.parent),
}
TOKENIZERS = [MistralTokenizer.from_pretrained(DEMO) for _ in range(2)]
TOKENIZERS[1].processor.content += b"\x00"


@pytest.mark.parametrize("name", WRITERS)
def test_a_killed_write_leaves_the_old_file_or_the_new(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    WRITERS[name](folder / name, 0)
    old = content_of(folder)
    WRITERS[name](folder / name, 1)
    new = content_of(folder)
    for _ in kills(tmp_path, lambda: put(old, folder), lambda: WRITERS[name](folder / name, 1)):
        assert content_of(folder).items() >= old.items()
        check_names(leftover_names(folder, old))
        WRITERS[name](folder / name, 1)
        assert content_of(folder) == new


def test_what_is_renamed_is_on_the_disk_before(tmp_path, monkeypatch):
    """All files, and the folder of several; the library's inodes stand for both."""
    synced: set[int] = set()
    renamed = []

    def rename(old: Path, new: Path) -> Path:
        assert old.stat().st_ino in synced
        if old.is_dir():
            assert {path.stat().st_ino for path in old.iterdir()} <= synced
        renamed.append(new.name)
        old.rename(new)
        return new

    monkeypatch.setattr(os, "fsync", lambda handle: synced.add(os.fstat(handle).st_ino))
    monkeypatch.setattr(Path, "replace", rename)
    OLD.save_pretrained(tmp_path / "model", max_shard_size=SHARDS)
    assert renamed[-1] == "model.safetensors.index.json"
    assert {"config.json", "generation_config.json", "model-00001-of-00005.safetensors"} < set(
        renamed
    )
    shutil.copyfile(DEMO / "tokenizer.model", tmp_path / "model" / "tokenizer.model")
    with pytest.warns(UserWarning, match="no place for"):
        convert(tmp_path / "model", tmp_path / "raw", to="raw")
    assert renamed[-1] == "raw"


# Two at once


@posix
def test_of_two_saves_into_one_folder_the_second_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "leftovers", lambda path: [])  # as if both began at once

    def save_again(new: Path) -> None:
        with pytest.raises(ValueError, match="another process is writing to it"):
            NEW.save_pretrained(tmp_path)
        OLD.config.save_pretrained(new)

    saving.write_tensors(tmp_path, OLD.tensors, beside=save_again)
    assert load_checkpoint(tmp_path)[1]["model.norm.weight"].tolist() == (
        OLD.tensors["model.norm.weight"].tolist()
    )


@posix
def test_a_process_that_is_killed_holds_no_lock(tmp_path):
    code = f"""
import time
from pathlib import Path
from tinymistral.files import only_writer, whole_file
with only_writer(Path({str(tmp_path)!r})), whole_file(Path({str(tmp_path / "x")!r})):
    print("locked", flush=True)
    time.sleep(100)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"locked\n"
    with pytest.raises(ValueError, match="another process is writing to it"):
        files.only_writer(tmp_path).__enter__()
    files.write_json(tmp_path / "x", {"n": 1})  # leaves the other's temporary file alone
    assert len(list(tmp_path.iterdir())) == 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with files.only_writer(tmp_path):
        files.write_json(tmp_path / "x", {"n": 2})
    assert content_of(tmp_path).keys() == {"x"}


def test_without_locks_all_is_written_as_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)  # as on Windows
    OLD.save_pretrained(tmp_path)
    NEW.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["vocab_size"] == 13
    assert np.array_equal(
        load_checkpoint(tmp_path)[1]["model.norm.weight"], NEW.tensors["model.norm.weight"]
    )
