"""Finding a checkpoint: a folder, or a name in the local Hugging Face cache; never the network.

The cache's layout, which is that of huggingface_hub:

    models--mistralai--Mistral-7B-v0.1/
        refs/main                   the commit that `main` stood for when it was downloaded
        snapshots/<commit>/         the files, as symbolic links
        blobs/                      what the links point to
"""

import os
import re
import shutil
from pathlib import Path

from tinymistral.files import CheckpointError
from tinymistral.files.recognition import refuse_files
from tinymistral.text import quoted

# Names by huggingface_hub's own rules; revisions as git and the hub have them.
_NAME = re.compile(r"(?:\w(?:[\w.-]*\w)?/)?\w(?:[\w.-]*\w)?", re.ASCII)
_REVISION = re.compile(r"\w[\w.@+-]*(?:/\w[\w.@+-]*)*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_checkpoint(name_or_path: str | os.PathLike[str], revision: str = "main") -> Path:
    """Return the folder of a checkpoint: an existing folder, or a downloaded one by its hub name.

    `revision` is a branch, a tag, `refs/pr/1` or a commit of 40 hexadecimal digits; a folder has
    none. Raises CheckpointError, whose message says how to download what is not in the cache.
    """
    given = os.fspath(name_or_path)
    path = Path(given)
    try:
        if given and path.is_dir():
            return path
        if path.is_file():
            refuse_files(path)
            raise CheckpointError(f"{path} is a file; give the folder that holds the checkpoint")
    except OSError as error:
        raise CheckpointError(f"cannot open {quoted(given)}: {error.strerror}") from error
    if not _NAME.fullmatch(given) or "--" in given or ".." in given or len(given) > 96:
        raise CheckpointError(
            f"{quoted(given)} is neither an existing folder nor a name on the Hugging Face hub "
            "such as mistralai/Mistral-7B-v0.1"
        )
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise CheckpointError(
            f"the revision {quoted(revision)} is no branch, tag or commit on the Hugging Face hub"
        )
    return _find_snapshot(given, revision)


def download_command(arguments: str) -> str:
    """Return the hub's command for a download, after the one that installs it where it is not."""
    install = "" if shutil.which("hf") else "pip install -U huggingface_hub, then: "
    return f"{install}hf download {arguments}"


def _find_snapshot(name: str, revision: str) -> Path:
    cache = _cache_folder()
    repository = cache / f"models--{name.replace('/', '--')}"
    download = download_command(name + (f" --revision {revision}" if revision != "main" else ""))
    try:
        commit = _commit_of(repository, revision)
        snapshot = repository / "snapshots" / (commit or revision)
        if not commit or not snapshot.is_dir():
            raise CheckpointError(
                f"{quoted(name)} is no folder, and its revision {quoted(revision)} is not in the "
                f"local Hugging Face cache {cache}; to download it, run: {download}"
            )
        # A raw checkpoint has params.json instead.
        if not any((snapshot / file).is_file() for file in ("config.json", "params.json")):
            refuse_files(snapshot)
            raise CheckpointError(
                f"the download of {quoted(name)} is incomplete: no config.json in {snapshot}; "
                f"to complete it, run: {download}"
            )
    except OSError as error:
        raise CheckpointError(f"cannot read the Hugging Face cache: {error}") from error
    return snapshot


def _commit_of(repository: Path, revision: str) -> str | None:
    """Return the commit that a revision stands for, or None if it was never downloaded."""
    if _COMMIT.fullmatch(revision):
        return revision
    reference = repository / "refs" / revision
    if not reference.is_file():
        return None
    with reference.open("rb") as file:
        commit = file.read(100).decode("utf-8", "replace").strip()
    if not _COMMIT.fullmatch(commit):
        raise CheckpointError(
            f"{reference} holds {quoted(commit)}, expected a commit of 40 hexadecimal digits; "
            "delete the file and download the checkpoint again"
        )
    return commit


def _cache_folder() -> Path:
    """Return the hub cache by huggingface_hub's rules; an empty variable counts as unset."""
    xdg = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{xdg}/huggingface"
    older = os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    cache = os.environ.get("HF_HUB_CACHE") or older
    return Path(os.path.expandvars(os.path.expanduser(cache)))  # noqa: PTH111 - never raises
