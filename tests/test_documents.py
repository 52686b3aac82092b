"""The documents: their commands and Python snippets run, and what they refer to exists.

A document is run section by section, in folders that look like the repository:

- A block of commands that begins with `# needs ...` is a test of its own, skipped where that is
  missing.
- A command followed by `# exits with N` has to exit so, any other with 0.
- `pip install` is not run (.ci/run does that), but its folders and extras have to exist.
- `pytest` only collects, with its options, the tests of this file.
- A block of text is output: the commands before it have to print each of its lines.
- A block after `<!-- file: NAME -->` is written to that file.
- Blocks after `<!-- backend: ... -->` are followed in conformance/test_backends_readme.py.
"""

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import tinymistral.scoring
from tinymistral import DEMO, MistralForCausalLM, MistralForSequenceClassification
from tinymistral.scoring import score

REPOSITORY = Path(__file__).parents[1]
NAMES = ("README.md", "CONTRIBUTING.md", "backends/README.md", "tinymistral/golden/README.md")
ALL_DOCUMENTS = [
    path
    for path in sorted(REPOSITORY.rglob("*.md"))
    if not any(part.startswith(".") for part in path.relative_to(REPOSITORY).parts)
    and "site-packages" not in path.parts
]
LINES = {"README.md": 200}  # at most

FENCED = re.compile(r"(?:^<!-- (.+) -->\n)?^```(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

NEEDS = {
    "Node.js": shutil.which("node") is not None,
    "transformers": importlib.util.find_spec("transformers") is not None,
    "a GPU": False,
    "a package index": False,
}


class Block(NamedTuple):
    """A fenced block: what the comment before it says, the language, the text."""

    mark: str
    language: str
    text: str

    @property
    def need(self) -> str:
        match = re.match(r"# needs (.+)\n", self.text)
        return match[1] if match else ""


def without_blocks(text: str) -> str:
    return FENCED.sub("", text)


def anchor(heading: str) -> str:
    """As GitHub makes it: `What is promised of v1` -> `what-is-promised-of-v1`."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def sections(name: str) -> dict[str, list[Block]]:
    """Return the blocks of each section of a document, by its anchor."""
    text = (REPOSITORY / name).read_text("utf-8")
    found: dict[str, list[Block]] = {}
    title = ""
    for match in re.finditer(rf"{FENCED.pattern}|{HEADING.pattern}", text, re.MULTILINE):
        mark, language, body, heading = match.groups()
        if heading is not None:
            title = anchor(heading)
        elif not (mark or "").startswith("backend: "):
            found.setdefault(title, []).append(Block(mark or "", language, body))
    return found


def split(blocks: list[Block]) -> tuple[list[Block], list[list[Block]]]:
    """Return the blocks that run anywhere; and those that need something, with their output."""
    anywhere: list[Block] = []
    special: list[list[Block]] = []
    target = anywhere
    for block in blocks:
        if block.need:
            target = []
            special.append(target)
        elif block.language != "text":
            target = anywhere
        target.append(block)
    return anywhere, special


SECTIONS = {
    (name, title): split(found) for name in NAMES for title, found in sections(name).items()
}
ANYWHERE = [
    pytest.param(blocks, id=f"{name}#{title}")
    for (name, title), (blocks, _) in SECTIONS.items()
    if blocks
]
SPECIAL = [
    pytest.param(
        blocks,
        id=f"{name}#{title}",
        marks=pytest.mark.skipif(not NEEDS[blocks[0].need], reason=f"needs {blocks[0].need}"),
    )
    for (name, title), (_, special) in SECTIONS.items()
    for blocks in special
]


@pytest.fixture
def folder(tmp_path):
    """Return a folder with links to what is in the repository, to write more into."""
    for path in REPOSITORY.iterdir():
        if not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def check_pip_install(arguments: list[str]) -> None:
    for argument in arguments:
        if not argument.startswith("-"):
            place, _, extras = argument.rstrip("]").partition("[")
            project = (REPOSITORY / place / "pyproject.toml").read_text("utf-8")
            for extra in filter(None, extras.split(",")):
                assert re.search(rf"^{re.escape(extra)} = \[", project, re.MULTILINE), extra


def run(command: list[str] | str, folder: Path, expected: int = 0) -> str:
    """Run a command that has to exit with a code, with this python first -> its output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == expected, f"{command}\n{done.stdout}"
    return done.stdout


def run_line(line: str, folder: Path) -> str:
    """Run a line of commands -> its output."""
    command, _, code = line.partition("  # exits with ")
    output = ""
    for part in command.split(" && "):
        words = shlex.split(part)
        if words[:2] == ["pip", "install"]:
            check_pip_install(words[2:])
        elif words[0] == "pytest":
            python = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
            output += run(
                [*python, "--collect-only", *words[1:], "tests/test_documents.py"], folder
            )
        else:
            output += run(part, folder, int(code or 0))
    return output


def run_blocks(blocks: list[Block], folder: Path) -> None:
    output = ""
    for block in blocks:
        if block.language == "sh":
            lines = [line for line in block.text.splitlines() if not line.startswith("#")]
            output = "".join(run_line(line, folder) for line in lines)
        elif block.mark.startswith("file: "):
            (folder / block.mark.removeprefix("file: ")).write_text(block.text, "utf-8")
        elif block.language == "python":
            output = run([sys.executable, "-c", block.text], folder)
        elif block.language == "text":
            for line in block.text.splitlines():
                assert line.strip() in output


@pytest.mark.slow
@pytest.mark.parametrize("blocks", ANYWHERE)
def test_what_a_section_shows_runs(blocks: list[Block], folder: Path) -> None:
    run_blocks(blocks, folder)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", SPECIAL)
def test_what_needs_more_runs_where_there_is_more(blocks: list[Block], folder: Path) -> None:
    run_blocks(blocks, folder)


def test_few_commands_cannot_run_everywhere() -> None:
    assert len(SPECIAL) <= 5
    assert len(SPECIAL) < len(ANYWHERE)


@pytest.mark.parametrize("name", NAMES)
def test_every_block_says_its_language(name: str) -> None:
    blocks = FENCED.findall((REPOSITORY / name).read_text("utf-8"))
    assert {language for _, language, _ in blocks} <= {"sh", "python", "toml", "text"}


@pytest.mark.parametrize("name", LINES)
def test_it_is_no_longer_than_it_should_be(name: str) -> None:
    assert len((REPOSITORY / name).read_text("utf-8").splitlines()) <= LINES[name]


# The table of calls in README.md


def calls() -> list[str]:
    """Return the code in the second column of the table under `From Python`."""
    text = (REPOSITORY / "README.md").read_text("utf-8")
    table = text.partition("| to … | write |\n")[2].partition("\n\n")[0]
    spans = [code for row in table.splitlines() for code in re.findall("`([^`]+)`", row)]
    return [code for code in spans if re.search(r"\w\(|\w\[", code)]


@pytest.fixture(scope="module")
def names() -> dict[str, object]:
    """Return what the calls use."""
    model = MistralForCausalLM.from_pretrained(DEMO)
    model.generation_config["max_new_tokens"] = 10  # not a whole story for each call
    ids = [[1, 486, 501, 261]]
    output = model(ids)
    classes = MistralForSequenceClassification(model.config, seed=0)
    return {name: getattr(tinymistral, name) for name in tinymistral.__all__} | {
        "tinymistral": tinymistral,
        "score": score,
        "folder": DEMO,
        "model": model,
        "tokenizer": tinymistral.MistralTokenizer.from_pretrained(DEMO),
        "ids": ids,
        "more_ids": [[300]],
        "output": output,
        "a": "Once upon a time",
        "b": "The fox",
        "cache": model(ids).past_key_values,
        "all_ids": [[*ids[0], 300, 301]],
        "token": 300,
        "config": classes.config,
        "logits": classes(ids).logits,
    }


@pytest.mark.parametrize("code", calls())
def test_a_call_in_the_table_runs(
    code: str, names: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(ast.parse(code), code, "exec"), dict(names))


# What documents refer to


@pytest.mark.parametrize("path", ALL_DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(path: Path) -> None:
    text = without_blocks(path.read_text("utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    missing = []
    for link in links:
        place, _, section = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = path.parent / place if place else path
        found = target.exists()
        if found and section:
            headings = HEADING.findall(without_blocks(target.read_text("utf-8")))
            found = section in map(anchor, headings)
        if not found:
            missing.append(link)
    assert not missing


@pytest.mark.parametrize("path", ALL_DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_paths_that_are_named_exist(path: Path) -> None:
    text = without_blocks(path.read_text("utf-8"))
    folders = "|".join(p.name for p in REPOSITORY.iterdir() if p.is_dir() and p.name[0] != ".")
    named = set(re.findall(rf"`((?:{folders})/[\w./-]+)`", text))
    assert not [name for name in sorted(named) if not (REPOSITORY / name).exists()]
