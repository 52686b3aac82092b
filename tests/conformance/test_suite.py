"""The suite against backends that are right: all laws hold, in a process of its own."""

import os
import shutil
import sys
from pathlib import Path

import opaque
import pytest
from suite_runner import LIKE_CI, SUITE, check_all_laws_ran, laws, run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("backend", ["plain", "numpy"])
def test_all_laws_hold_on_what_is_built_in(backend: str, tmp_path: Path) -> None:
    out = run([sys.executable, *SUITE, backend, *LIKE_CI], tmp_path)
    check_all_laws_ran(out, backend)
    assert laws() >= 48


def test_all_laws_hold_on_a_backend_whose_arrays_are_closed(tmp_path: Path) -> None:
    """It is found as an installed one is: by its entry point, in a folder of sys.path."""
    plugin = tmp_path / "plugin"
    info = plugin / "opaque-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(opaque.__file__, plugin)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: opaque\nVersion: 1.0\n", "utf-8")
    (info / "entry_points.txt").write_text(
        "[tinymistral.backends]\nopaque = opaque:OpaqueBackend\n", "utf-8"
    )
    path = os.pathsep.join([str(plugin), *filter(None, [os.environ.get("PYTHONPATH")])])
    out = run([sys.executable, *SUITE, "opaque", *LIKE_CI], tmp_path, PYTHONPATH=path)
    check_all_laws_ran(out, "opaque")
