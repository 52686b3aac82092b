"""Fixtures for all tests; the emulated card is an sm_90."""

from __future__ import annotations

import pytest

from cuda_emulator.cupy_stand_in import _card, _raw
from cuda_emulator.report import Launch
from tinymistral_cupy import EmulatedBackend


@pytest.fixture(autouse=True)
def an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulate the default architecture, whatever the environment says."""
    monkeypatch.delenv(_card.VARIABLE, raising=False)


@pytest.fixture(scope="session", params=EmulatedBackend.dtypes)
def backend(request: pytest.FixtureRequest) -> EmulatedBackend:
    """Return the emulated backend, in each of its dtypes."""
    return EmulatedBackend(request.param)


@pytest.fixture(scope="session")
def float16() -> EmulatedBackend:
    """Return the emulated backend in float16."""
    return EmulatedBackend("float16")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Return a list to which each launch from here on is added."""
    kept: list[Launch] = []
    launch = _raw.launch
    monkeypatch.setattr(_raw, "launch", lambda *args: kept.append(launch(*args)))
    return kept
