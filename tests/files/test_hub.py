"""Finding a checkpoint by folder or hub name, in the local cache only.

The cache's layout is that of https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

import os
import sys
from pathlib import Path

import pytest

from tinymistral.checkpoint import CheckpointError, find_checkpoint

COMMIT = "7231864981174d9bee8c7687c24c8344414eae6b"
OTHER = "0" * 39 + "1"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def download(cache: Path, name: str, revision: str = "main", commit: str = COMMIT) -> Path:
    """Make what a download makes: a blob, a link to it, a reference."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    (repository / "blobs" / "5d6f").write_text("{}", encoding="utf-8")
    try:
        (snapshot / "config.json").symlink_to(Path("..", "..", "blobs", "5d6f"))
    except OSError:  # on Windows the hub copies where it may not link
        (snapshot / "config.json").write_text("{}", encoding="utf-8")
    reference = repository / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit, encoding="utf-8")
    return snapshot


def error_of(name, revision="main") -> str:
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(name, revision)
    assert str(caught.value).isprintable()  # one line, no control codes
    return str(caught.value)


def test_an_existing_folder_is_returned(cache, tmp_path):
    (tmp_path / "model").mkdir()
    assert find_checkpoint(tmp_path / "model") == tmp_path / "model"
    assert find_checkpoint("model") == Path("model")
    assert find_checkpoint(".") == Path()


def test_a_folder_comes_before_a_hub_name(cache, tmp_path):
    download(cache, "org/name")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert find_checkpoint("org/name") == Path("org/name")


@pytest.mark.parametrize(
    "name", ["mistralai/Mistral-7B-v0.1", "gpt2", "a/b", "o_1/x.y-z", "a" * 96]
)
def test_a_hub_name_gives_its_snapshot(cache, name):
    snapshot = download(cache, name)
    assert find_checkpoint(name) == snapshot
    assert (find_checkpoint(name) / "config.json").read_text("utf-8") == "{}"


@pytest.mark.parametrize("revision", ["v0.1", "refs/pr/1", "feature/x+y", "abc1234"])
def test_a_revision_is_looked_up_in_refs(cache, revision):
    download(cache, "org/name")
    snapshot = download(cache, "org/name", revision, OTHER)
    assert find_checkpoint("org/name", revision) == snapshot
    assert find_checkpoint("org/name") == snapshot.with_name(COMMIT)


def test_a_commit_is_a_revision(cache):
    snapshot = download(cache, "org/name", commit=OTHER)
    assert find_checkpoint("org/name", OTHER) == snapshot
    assert "is not in the local Hugging Face cache" in error_of("org/name", COMMIT)


def test_a_reference_may_end_in_a_line_break(cache):
    snapshot = download(cache, "org/name")
    (cache / "models--org--name" / "refs" / "main").write_bytes(COMMIT.encode() + b"\r\n")
    assert find_checkpoint("org/name") == snapshot


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "{}/a", "HF_HOME": "{}/b", "XDG_CACHE_HOME": "{}/c"}, "a"),
        ({"HF_HUB_CACHE": "{}/a", "HUGGINGFACE_HUB_CACHE": "{}/b"}, "a"),
        ({"HUGGINGFACE_HUB_CACHE": "{}/b", "HF_HOME": "{}/c"}, "b"),
        ({"HUGGINGFACE_HUB_CACHE": "", "HF_HOME": "{}/b", "XDG_CACHE_HOME": "{}/c"}, "b/hub"),
        ({"HF_HOME": "{}/b", "XDG_CACHE_HOME": "{}/c"}, "b/hub"),
        ({"XDG_CACHE_HOME": "{}/c"}, "c/huggingface/hub"),
        ({}, "home/.cache/huggingface/hub"),
        ({"HF_HUB_CACHE": "", "HF_HOME": "", "XDG_CACHE_HOME": ""}, "home/.cache/huggingface/hub"),
        ({"HF_HOME": "~/d"}, "home/d/hub"),
        ({"HF_HUB_CACHE": "$HOME/e"}, "home/e"),
        ({"HUGGINGFACE_HUB_CACHE": "~/f"}, "home/f"),
    ],
)
def test_the_cache_is_where_huggingface_hub_has_it(monkeypatch, tmp_path, variables, folder):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    snapshot = download(tmp_path / folder, "org/name")
    assert find_checkpoint("org/name") == snapshot


def test_the_error_for_a_missing_download_has_the_command_for_it(cache):
    assert error_of("org/name") == (
        "'org/name' is no folder, and its revision 'main' is not in the local Hugging Face cache "
        f"{cache}; to download it, run: hf download org/name"
    )
    download(cache, "org/name")
    assert error_of("org/name", "v2").endswith("run: hf download org/name --revision v2")


def test_where_there_is_no_hf_the_error_has_the_command_that_installs_it(cache, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    says = "run: pip install -U huggingface_hub, then: hf download org/name"
    assert error_of("org/name").endswith(says)
    (download(cache, "org/name") / "config.json").unlink()
    assert error_of("org/name").endswith(says)


def test_a_reference_without_its_snapshot_counts_as_missing(cache):
    (download(cache, "org/name") / "config.json").unlink()
    (cache / "models--org--name" / "snapshots" / COMMIT).rmdir()
    assert error_of("org/name").endswith("run: hf download org/name")


def test_an_incomplete_download_is_reported_as_such(cache):
    snapshot = download(cache, "org/name")
    (cache / "models--org--name" / "blobs" / "5d6f").unlink()
    (snapshot / "config.json").unlink()
    assert error_of("org/name") == (
        f"the download of 'org/name' is incomplete: no config.json in {snapshot}; "
        "to complete it, run: hf download org/name"
    )
    if sys.platform != "win32":
        (snapshot / "config.json").symlink_to(Path("..", "..", "blobs", "5d6f"))
        assert "is incomplete: no config.json" in error_of("org/name")


def test_a_file_is_not_a_checkpoint(cache, tmp_path):
    (tmp_path / "model.safetensors").touch()
    says = "model.safetensors is a file; give the folder that holds the checkpoint"
    assert error_of("model.safetensors") == says


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "..org/name",
        "org/..",
        "org/name/",
        "org//name",
        "/org/name",
        "a/b/c",
        "org/na--me",
        "org/na..me",
        "models--org--name",
        "org\\name",
        "C:\\model",
        "C:name",
        "-org/name",
        "org/-name",
        "org/name\n",
        "org/name\0",
        "\0",
        "org/n\u00e4me",
        "org/name;x",
        "\ud800",
        "a" * 97,
        "a" * 100_000,
        "./nowhere",
        "../../nowhere",
        "~/nowhere",
    ],
)
def test_a_wrong_hub_name_is_refused(cache, name):
    message = error_of(name)
    if not name.startswith("a" * 100_000):  # the operating system refuses that one
        assert "is neither an existing folder nor a name on the Hugging Face hub" in message
    assert len(message) < 500


@pytest.mark.parametrize(
    "revision",
    [
        "",
        ".",
        "..",
        "../refs/main",
        "../../../../outside",
        "main/../../outside",
        "main/",
        "/etc/hostname",
        "//main",
        "refs\\main",
        "C:main",
        "main\0",
        "main\n",
        "a..b",
        "-main",
        "ma in",
        "main;x",
        "\ud800",
    ],
)
def test_a_wrong_revision_is_refused(cache, revision):
    download(cache, "org/name")
    assert "is no branch, tag or commit" in error_of("org/name", revision)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"../../../outside",
        b"/etc",
        b".",
        COMMIT[:-1].encode(),
        COMMIT.upper().encode(),
        COMMIT.encode() + b"/..",
        COMMIT.encode() + b"\0",
        COMMIT.encode() * 1000,
        b"\xff" * 40,
    ],
)
def test_a_reference_without_a_commit_is_refused(cache, content):
    download(cache, "org/name")
    (cache / "models--org--name" / "refs" / "main").write_bytes(content)
    message = error_of("org/name")
    assert "expected a commit of 40 hexadecimal digits" in message
    assert len(message) < 1000


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders there")
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_reference_that_is_a_pipe_or_a_folder_is_not_read(cache, make):
    download(cache, "org/name")
    reference = cache / "models--org--name" / "refs" / "main"
    reference.unlink()
    make(reference)
    assert "is not in the local Hugging Face cache" in error_of("org/name")


def test_a_very_long_revision_is_an_error(cache):
    assert "cannot read the Hugging Face cache" in error_of("org/name", "x" * 10_000)
