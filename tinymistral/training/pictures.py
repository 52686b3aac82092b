"""Pictures, SVG or PNG, drawn by matplotlib, which is imported only when one is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinymistral.files import check_can_be_written, whole_file

FORMATS = (".svg", ".png")
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "tinymistral",  # of the names of elements, which are random otherwise
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def check_picture(path: Path) -> None:
    """Raise a ValueError if `picture` could not write this file."""
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: expected a name that ends with {' or '.join(FORMATS)}")
    check_can_be_written(path)
    if find_spec("matplotlib") is None:
        raise ValueError(
            "matplotlib, which draws the picture, is not installed: pip install matplotlib"
        )


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Any]:
    """Yield matplotlib axes to draw on, in a picture of these inches; then write it.

    The same drawing and matplotlib give the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS), whole_file(path) as temporary:
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color="#eeeeee")
        yield axes
        form = path.suffix.removeprefix(".")
        metadata = {"Date": None} if form == "svg" else {}
        figure.savefig(temporary, format=form, dpi=150, metadata=metadata)
