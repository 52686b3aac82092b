"""Pictures as SVG files, drawn by matplotlib, which is imported only when one is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinymistral.files import whole_file

SETTINGS: dict[Any, Any] = {  # the keys of matplotlib's stubs are literals
    "svg.hashsalt": "tinymistral",  # names of elements, random otherwise
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}
# Okabe and Ito's colours, which colour-blind readers tell apart; https://jfly.uni-koeln.de/color/
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def check_drawing() -> None:
    """Raise a ValueError, in one line, if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            "a picture needs matplotlib, which is not installed; "
            'install it with pip install "tinymistral[plot]"'
        ) from None


@contextmanager
def picture(path: Path, width: float = 8.0, height: float = 4.5) -> Iterator[Any]:
    """Yield axes to draw on, of a picture in inches; then write it, the same bytes each time."""
    check_drawing()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS), whole_file(path) as temporary:
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.subplots()
        figure.savefig(temporary, format="svg", metadata={"Date": None})
