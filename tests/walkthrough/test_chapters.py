"""The walkthrough: every chapter runs, and its page and pictures are what it makes now.

Chapters run in a folder that looks like the repository, through `render.py`; what they assert fails
there. Render again what is stale: `python walkthrough/render.py 01_tokens`.
"""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
WALKTHROUGH = REPOSITORY / "walkthrough"
CHAPTERS = sorted(WALKTHROUGH.glob("[0-9][0-9]_*.py"))
PICTURE = re.compile(r"!\[[^\]]+\]\((pictures/[^)]+)\)")
NEEDED = ("matplotlib", "jupytext", "nbclient", "nbconvert", "ipykernel")
BACKENDS = "pip install ./backends/cuda-emulator ./backends/cupy"
NEEDS_MORE = {  # chapters that need more than the extra, and what of it is not here
    "12_gpu_kernel": ""
    if find_spec("cuda_emulator") and find_spec("tinymistral_cupy")
    else BACKENDS,
    "13_golden_outputs": "" if shutil.which("node") else "Node.js",
}


def missing() -> list[str]:
    """Return what of the extra is not installed."""
    names = []
    for name in NEEDED:
        try:
            version(name)
        except PackageNotFoundError:
            names.append(name)
    return names


needs_extra = pytest.mark.skipif(
    bool(missing()), reason=f'needs {", ".join(missing())}: pip install ".[walkthrough]"'
)
each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the walkthrough without its pages and pictures, in a copy of the rest."""
    root = tmp_path_factory.mktemp("repository")
    for path in REPOSITORY.iterdir():
        if path.name != "walkthrough" and not path.name.startswith("."):
            (root / path.name).symlink_to(path)
    (root / "walkthrough").mkdir()
    for path in WALKTHROUGH.iterdir():
        if path.is_dir() and path.name != "pictures":
            (root / "walkthrough" / path.name).symlink_to(path)
        elif path.suffix == ".py":
            shutil.copyfile(path, root / "walkthrough" / path.name)
    return root / "walkthrough"


def render(folder: Path, stem: str) -> None:
    command = [sys.executable, str(folder / "render.py"), stem]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@needs_extra
@each_chapter
def test_page_and_pictures_are_what_the_chapter_makes(folder: Path, chapter: Path) -> None:
    if more := NEEDS_MORE.get(chapter.stem):
        pytest.skip(f"needs {more}")
    render(folder, chapter.stem)
    page = (folder / chapter.name).with_suffix(".md").read_text("utf-8")
    assert page == chapter.with_suffix(".md").read_text("utf-8")
    made = sorted((folder / "pictures").glob(f"{chapter.stem[:3]}*"))
    assert made
    assert [path.name for path in made] == [Path(link).name for link in sorted(links(chapter))]
    for path in made:
        drawn = (WALKTHROUGH / "pictures" / path.name).read_bytes()
        if f"Matplotlib v{version('matplotlib')},".encode() not in drawn:
            pytest.skip("the text is right; pictures are compared with the Matplotlib that drew it")
        assert path.read_bytes() == drawn, path.name


def links(chapter: Path) -> list[str]:
    """Return the pictures in a chapter's page."""
    return PICTURE.findall(chapter.with_suffix(".md").read_text("utf-8"))


@each_chapter
def test_a_chapter_has_a_picture_an_exercise_and_a_way_on(chapter: Path) -> None:
    page = chapter.with_suffix(".md").read_text("utf-8")
    number = int(chapter.stem[:2])
    assert page.startswith(f"# {number}. ")
    assert re.search("^## Exercise", page, re.MULTILINE)
    assert page.index("def check(") < page.index("<details><summary>Solution</summary>")
    assert "Right." in page[page.index("<details>") :]
    if chapter != CHAPTERS[-1]:
        assert page.splitlines()[-1].startswith(f"Next: [{number + 1}. ")
    for link in links(chapter):
        assert Path(link).name.startswith(chapter.stem[:3])


def test_the_contents_list_the_chapters() -> None:
    text = (WALKTHROUGH / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| \[(\d+)\. .*?\]\((\w+)\.md\)", text, re.MULTILINE)
    assert [name for _, name in listed] == [path.stem for path in CHAPTERS]
    assert [int(number) for number, _ in listed] == list(range(1, len(CHAPTERS) + 1))


def test_no_picture_is_left_over() -> None:
    shown = {link for chapter in CHAPTERS for link in links(chapter)}
    there = {f"pictures/{path.name}" for path in (WALKTHROUGH / "pictures").iterdir()}
    assert there == shown


@pytest.mark.slow
@needs_extra
def test_the_commands_in_the_contents_run_a_script_and_make_notebooks(folder: Path) -> None:
    text = (WALKTHROUGH / "README.md").read_text("utf-8")
    block = text.partition("```sh\n")[2].partition("```")[0]
    install, script, notebooks = block.splitlines()
    assert install == 'pip install ".[walkthrough]"'
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    shell = {"shell": True, "cwd": folder.parent, "env": env, "encoding": "utf-8", "timeout": 600}
    printed = subprocess.run(script, check=True, stdout=subprocess.PIPE, **shell).stdout
    assert "Return the ids of a text" in printed  # the source of `encode`
    assert "[picture: Two texts" in printed
    subprocess.run(notebooks, check=True, **shell)
    made = {path.stem for path in folder.glob("*.ipynb")}
    assert made == {path.stem for path in folder.glob("[0-9]*.py")}


@needs_extra
@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("assert 1 + 1 == 3", "AssertionError"),
        ("import warnings\nwarnings.warn('old')", "expected a chapter without warnings"),
    ],
)
@pytest.mark.slow
def test_a_chapter_that_fails_or_warns_is_not_rendered(folder: Path, cell: str, says: str) -> None:
    (folder / "99_broken.py").write_text(f"# %%\n{cell}\n", "utf-8")
    with pytest.raises(AssertionError, match=says):
        render(folder, "99_broken")
    assert not (folder / "99_broken.md").exists()
