"""Pictures: what they need is checked first, and the same data give the same bytes."""

from pathlib import Path

import numpy as np
import pytest

from tinymistral.training.grading import AS_IT_IS, Grades, Place, Reading, Telling
from tinymistral.training.pictures import check_picture, draw_curve, draw_recall
from tinymistral.training.run import Curve


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("curve.jpg", "ends with .svg or .png"),
        ("no/curve.svg", "no/curve.svg: cannot be written: No such file or directory"),
        (f"{'x' * 250}.svg", "cannot be written: File name too long"),
        ("folder.svg", "is a folder"),
    ],
)
def test_a_picture_that_cannot_be_written(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(ValueError, match=says):
        check_picture(tmp_path / name)


def test_a_picture_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinymistral.training.pictures.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        check_picture(tmp_path / "curve.svg")


CURVE = Curve([3.0, 2.0, 1.5, 1.2], [2, 4], [2.1, 1.3])
RIGHT = np.arange(600) < 300
GRADES = Grades(
    stories=1,
    tokens=10,
    window=8,
    layers=2,
    places=tuple(Place("name", 0.5, n % 20, 1, 2, ()) for n in range(600)),
    readings={AS_IT_IS: Reading(RIGHT, ~RIGHT, 1, 1)},
    greedy=Telling(1, 1, 1, 1, 1, 1, 1),
    sampled=Telling(1, 1, 1, 1, 1, 1, 1),
)


@pytest.mark.parametrize("form", ["svg", "png"])
@pytest.mark.parametrize(
    ("draw", "data", "says"),
    [(draw_curve, CURVE, "held out"), (draw_recall, GRADES, "in the window, W = 8")],
)
def test_the_same_data_have_the_same_picture(tmp_path: Path, form, draw, data, says) -> None:
    pytest.importorskip("matplotlib")
    paths = [tmp_path / f"{name}.{form}" for name in "ab"]
    for path in paths:
        check_picture(path)
        draw(data, path)
    one, other = (path.read_bytes() for path in paths)
    assert one == other
    assert form == "png" or says in one.decode("utf-8")
    assert sorted(tmp_path.iterdir()) == paths
