"""What a picture needs is checked before anything is computed for it."""

from pathlib import Path

import pytest

from tinymistral.training.pictures import check_picture


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
