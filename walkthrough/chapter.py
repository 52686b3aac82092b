"""What every chapter uses: `say`, `show` and `picture`, and the look of the pictures.

In a notebook these display Markdown, which `render.py` writes to the chapter's page; in a plain
script they print.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

WALKTHROUGH = Path(__file__).parent
REPOSITORY = WALKTHROUGH.parent

# Colours that the colour-blind can tell apart (Okabe and Ito), dark enough on white.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#AA4488"
GREY, PALE = "#808080", "#E8E8E8"
HEAT = "Blues"  # the colour map of weights: white is 0

mpl.rcParams.update(
    {
        "figure.figsize": (8, 3.6),  # inches; a page on a code host is as wide
        "figure.facecolor": "white",  # in the dark too
        "figure.constrained_layout.use": True,
        "font.family": "DejaVu Sans",  # comes with Matplotlib, so the same everywhere
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": mpl.cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE]),
        # The same bytes each time, and letters as shapes: a reader need not have the font.
        "svg.hashsalt": "tinymistral",
        "svg.fonttype": "path",
    }
)


def say(text: str) -> None:
    """Say Markdown, usually an f-string: prose whose numbers come from this run."""
    text = textwrap.dedent(text).strip()
    _display(text, text)


def show(*functions: Callable[..., Any]) -> None:
    """Show the source of functions or classes as the package has it."""
    for function in functions:
        module = function.__module__.replace(".", "/") + ".py"
        roots = (REPOSITORY, *sorted(REPOSITORY.glob("backends/*")))
        file = next(root / module for root in roots if (root / module).exists())
        path = file.relative_to(REPOSITORY).as_posix()
        source = textwrap.dedent(inspect.getsource(function)).strip()
        _display(
            f"From [{path}](../{path}):\n\n```python\n{source}\n```", f"From {path}:\n\n{source}\n"
        )


def picture(figure: Figure, name: str, alt: str) -> None:
    """Save a figure as pictures/NAME.svg and show it; `alt` says in words what it shows."""
    path = WALKTHROUGH / "pictures" / f"{name}.svg"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    # Three decimals are a thousandth of a point. More would differ between processors.
    svg = re.sub(r"(?<!scale\()(-?\d+\.\d{3})\d+", r"\1", path.read_text("utf-8"))
    path.write_text(svg, "utf-8", newline="\n")
    shown = path.relative_to(WALKTHROUGH).as_posix()
    _display(f"![{alt}]({shown})", f"[picture: {alt}: walkthrough/{shown}]\n")


def _display(markdown: str, plain: str) -> None:
    ipython = sys.modules.get("IPython")
    if ipython and ipython.get_ipython():
        ipython.display.display(ipython.display.Markdown(markdown))
    else:
        print(plain)
