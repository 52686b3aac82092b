"""Pictures of a run and of grades, SVG or PNG; matplotlib is imported only to draw one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinymistral.files import check_can_be_written, whole_file

if TYPE_CHECKING:
    from tinymistral.training.grading import Grades
    from tinymistral.training.run import Curve

FORMATS = (".svg", ".png")
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "tinymistral",  # of the names of elements, which are random otherwise
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
LEAST_DRAWN = 10  # places in a bin of distances
# Of a line each: Okabe and Ito's colours, which colour-blind readers tell apart
# (https://jfly.uni-koeln.de/color/), and markers.
STYLES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "D"), ("#cc79a7", "^"))


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


def draw_curve(curve: Curve, path: Path) -> None:
    """Draw the loss by step, of each batch and of the held-out documents."""
    steps = range(1, len(curve.loss) + 1)
    with picture(path, width=7, height=4) as axes:
        axes.set(xlabel="step", ylabel="loss (nats a token)")
        axes.plot(steps, curve.loss, color="#8fa8c8", linewidth=0.8, label="each batch")
        if curve.held_out_loss:
            style: dict[str, Any] = {"color": "#c0392b", "marker": "o", "markersize": 3}
            axes.plot(curve.held_out_steps, curve.held_out_loss, label="held out", **style)
        axes.legend(frameon=False)


def draw_recall(grades: Grades, path: Path) -> None:
    """Draw recall against distance, a line for each variant, as SVG or PNG.

    A bin with fewer than LEAST_DRAWN places is left out: its share is mostly chance.
    """
    edges = np.array(grades.edges(), dtype=np.int64)
    middles, end = (edges[:-1] + edges[1:] - 1) / 2, edges[-1]
    rows = grades.by_distance()
    chance = grades.row("all", np.ones(len(grades.places), dtype=bool)).chance
    with picture(path, width=8, height=4.5) as axes:
        for name, (colour, marker) in zip(grades.readings, STYLES, strict=False):
            recalls = [r.recall(name) if r.places >= LEAST_DRAWN else math.nan for r in rows]
            axes.plot(middles, recalls, f"{marker}-", color=colour, label=name, clip_on=False)
        axes.axhline(chance, color="grey", linestyle=":", label="guessing")
        if grades.window is not None:
            W, N = grades.window, grades.layers
            axes.axvspan(0, W - 1, color="black", alpha=0.06, linewidth=0)
            axes.text(0, 1.03, f"in the window, W = {W}")
            reach = N * (W - 1)
            says = f"{N} layers reach as far as N(W − 1) = {reach}"
            if reach < 1.5 * end:
                end = max(end, reach)
                axes.axvline(reach, color="black", linestyle="--", linewidth=1)
            else:  # to show it would squeeze the rest
                reach, says = end, f"{says} →"
            axes.text(reach, 1.1, says, horizontalalignment="right")
        axes.set(xlim=(0, end), ylim=(0, 1))
        axes.set_xlabel("tokens between the last mention of a fact and the place where it is asked")
        axes.set_ylabel("share of facts recalled")
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
