"""A fixture for all tests: the emulated card is an sm_90."""

from __future__ import annotations

import pytest

from cuda_emulator.cupy_stand_in import _card


@pytest.fixture(autouse=True)
def an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulate the default architecture, whatever the environment says."""
    monkeypatch.delenv(_card.VARIABLE, raising=False)
