"""Makes distributions that offer backends, in folders that are put on sys.path.

Nothing of the discovery is mocked: a folder holds a module and a `NAME-VERSION.dist-info`, as pip
leaves them, and importlib.metadata finds it.
"""

import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

GOOD = """
from tinymistral.numpy_backend import NumpyBackend

class Good(NumpyBackend):
    name = "good"
    dtypes = ("float64", "float32")

    @classmethod
    def device(cls):
        return "Abacus 3000"
"""


def distribution(folder: Path, module: str, source: str, entry_points: str) -> Path:
    """Write distribution `module` 1.2, with underscores as hyphens, which has this one module."""
    info = folder / f"{module}-1.2.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(source, "utf-8")
    name = module.replace("_", "-")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n", "utf-8")
    (info / "entry_points.txt").write_text(f"[tinymistral.backends]\n{entry_points}\n", "utf-8")
    return folder


class Plugins:
    """Installs distributions for the length of a test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        self.numbers, self.modules = count(), []

    def install(self, module: str, source: str, *entry_points: str) -> Path:
        """Put a new folder with it first on sys.path, and return that."""
        self.modules.append(module)
        folder = self.folder / str(next(self.numbers))
        distribution(folder, module, source, "\n".join(entry_points))
        self.monkeypatch.syspath_prepend(folder)  # invalidates the caches too
        return folder


@pytest.fixture(name="plugins")
def plugins_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugins]:
    """None are chosen by the environment, and none are left imported."""
    monkeypatch.delenv("TINYMISTRAL_BACKEND", raising=False)
    made = Plugins(tmp_path / "plugins", monkeypatch)
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)
