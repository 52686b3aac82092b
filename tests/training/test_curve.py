"""The loss curve and its picture."""

from pathlib import Path

import pytest

from tinymistral.training.curve import Curve, draw
from tinymistral.training.pictures import check_picture

CURVE = Curve([3.0, 2.0, 1.5, 1.2], [2, 4], [2.1, 1.3])


@pytest.mark.parametrize("form", ["svg", "png"])
def test_the_same_curve_has_the_same_picture(tmp_path: Path, form: str) -> None:
    pytest.importorskip("matplotlib")
    contents = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.{form}"
        check_picture(path)
        draw(CURVE, path)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    if form == "svg":
        assert b"loss (nats a token)" in contents[0]
        assert b"held out" in contents[0]
