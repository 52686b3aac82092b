"""Run chapters, and write each with its output to NN_name.md and its pictures to pictures/.

`python walkthrough/render.py` renders all; `python walkthrough/render.py 01 03_attention` those
whose names begin so.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import jupytext
import matplotlib.font_manager  # noqa: F401  the first time it writes a cache, and says so
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import TagRemovePreprocessor

WALKTHROUGH = Path(__file__).parent
SECONDS = 300  # for one cell; a chapter takes a few, but on a busy machine Python starts slowly


def chapters(folder: Path = WALKTHROUGH) -> list[Path]:
    """Return the files of all chapters, in order."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def render(path: Path) -> str:
    """Run a chapter, which writes its pictures, and write its page beside it -> the page's text."""
    notebook = jupytext.read(path)
    NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        coalesce_streams=True,  # in how many parts output arrives differs from run to run
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise ValueError(
                    f"{path.name} wrote to standard error, expected a chapter without warnings: "
                    f"{output.text.strip()}"
                )
    exporter = MarkdownExporter()
    hide = TagRemovePreprocessor(enabled=True, remove_input_tags={"remove-input"})
    exporter.register_preprocessor(hide, enabled=True)
    text, _ = exporter.from_notebook_node(notebook)
    text = text.strip() + "\n"
    path.with_suffix(".md").write_text(text, "utf-8", newline="\n")
    return text


def main(names: list[str]) -> None:
    """Render the chapters whose names begin with one of `names`, or all."""
    chosen = [path for path in chapters() if path.name.startswith(tuple(names or [""]))]
    if not chosen:
        known = ", ".join(path.stem for path in chapters())
        sys.exit(f"no chapter begins with {' or '.join(names)}; there are {known}")
    for path in chosen:
        started = time.perf_counter()
        render(path)
        print(f"{path.stem}: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
