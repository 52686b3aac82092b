"""The README's example, and that the distribution stands alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cuda_emulator import KernelFault

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_example_in_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict[str, object] = {}
    exec(code, scope)
    assert capsys.readouterr().out == "10.0\n"
    with pytest.raises(KernelFault) as caught:
        exec(code.replace("(32, 1, 1)", "(33, 1, 1)"), scope)
    assert str(caught.value) in " ".join(README.split())


def test_it_does_not_import_tinymistral() -> None:
    program = (
        "import cuda_emulator.__main__, sys\n"
        "print(*(name for name in sys.modules if name.startswith('tinymistral')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr
