"""Where the backend cannot run, it gives the reason and the remedy, in one line each."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from cuda_emulator import compiler, cupy_stand_in
from tinymistral.backend import BackendUnavailable
from tinymistral_cupy import CupyBackend, EmulatedBackend
from tinymistral_cupy import backend as backend_module

EXTRAS = 'pip install "tinymistral-cupy[cuda13]", or [cuda12]'


def why_not(kind: type[CupyBackend]) -> BackendUnavailable:
    with pytest.raises(BackendUnavailable) as caught:
        kind.device()
    assert "\n" not in caught.value.reason
    return caught.value


def driverless(status: int, says: str, driver: int = 0) -> type[CupyBackend]:
    """Make a backend on a cupy where every call of CUDA fails in this way."""

    class Fails(RuntimeError):  # noqa: N818
        def __init__(self) -> None:
            super().__init__(says)
            self.status = status

    def fail(*_: Any) -> None:
        raise Fails

    runtime = SimpleNamespace(
        CUDARuntimeError=Fails,
        getDeviceCount=fail,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: 13020,
    )

    class Driverless(CupyBackend):
        @classmethod
        def module(cls) -> Any:
            return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))

    return Driverless


# CuPy


def test_without_cupy_the_extras_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    error = why_not(CupyBackend)
    assert error.reason == "CuPy is not installed"
    assert error.remedy.startswith(EXTRAS)
    with pytest.raises(BackendUnavailable, match="CuPy is not installed"):
        CupyBackend("float16")


def test_a_cupy_that_does_not_load_reports_what_is_missing(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text(
        "raise ImportError('\\n====\\nCuPy is not correctly installed.\\nA long text.\\n')", "utf-8"
    )
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    error = why_not(CupyBackend)
    assert error.reason == "CuPy cannot be imported: CuPy is not correctly installed."
    assert EXTRAS in error.remedy


# The driver and the card: numbers and names of cudaError from the CUDA runtime API's manual


@pytest.mark.parametrize(
    ("status", "says", "driver", "reason", "remedy"),
    [
        (
            35,
            "cudaErrorInsufficientDriver: ...",
            0,
            "there is no NVIDIA driver",
            "install the driv",
        ),
        (
            35,
            "cudaErrorInsufficientDriver: ...",
            12040,
            "the driver is for CUDA 12.4, CuPy for CUDA 13.2",
            "update the driver, or",
        ),
        (100, "cudaErrorNoDevice: ...", 13020, "finds no NVIDIA GPU", "CUDA_VISIBLE_DEVICES"),
        (
            802,
            "cudaErrorSystemNotReady: system not yet initialized\nmore",
            13020,
            "CUDA cannot be started: cudaErrorSystemNotReady: system not yet initialized",
            "nvidia-smi",
        ),
    ],
)
def test_without_a_driver_or_a_card(status, says, driver, reason, remedy):
    error = why_not(driverless(status, says, driver))
    assert reason in error.reason
    assert remedy in error.remedy
    assert "numpy" in error.remedy or EXTRAS in error.remedy


def test_with_the_real_cupy_and_no_driver():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if cupy.is_available():
        pytest.skip("there is a GPU here")
    error = why_not(CupyBackend)
    assert error.reason == "there is no NVIDIA driver here"
    assert "--backend numpy or cupy-emulated" in error.remedy


def test_a_card_that_is_too_old(monkeypatch):
    """Volta: the CUDA 13 toolkit compiles for 7.5 at least."""
    monkeypatch.setattr(cupy_stand_in.cuda.Device, "compute_capability", "70")
    error = why_not(EmulatedBackend)
    assert error.reason.endswith(" has compute capability 7.0; the kernels need 7.5 or newer")
    assert "numpy" in error.remedy
    for newer in ("75", "90", "121"):
        monkeypatch.setattr(cupy_stand_in.cuda.Device, "compute_capability", newer)
        EmulatedBackend.device()


def test_the_compilers_message_is_passed_on(monkeypatch):
    def broken(cp, dtype):
        cp.RawModule(code="this is no CUDA").get_function("put")

    monkeypatch.setattr(backend_module, "Kernels", broken)
    with pytest.raises(BackendUnavailable) as caught:
        EmulatedBackend("float32")
    assert "CPU, emulating sm_90 NVRTC or cuBLAS fails: kernel.cu(1): error" in caught.value.reason
    assert "\n" not in caught.value.reason
    assert EXTRAS in caught.value.remedy


def test_an_error_of_our_own_is_not_reported_as_cudas(monkeypatch):
    def broken(cp, dtype):
        raise ValueError("no such kernel")

    monkeypatch.setattr(backend_module, "Kernels", broken)
    with pytest.raises(ValueError, match="no such kernel") as caught:
        EmulatedBackend("float32")
    assert not isinstance(caught.value, BackendUnavailable)


def test_without_cublas_it_fails_at_once(monkeypatch):
    def absent(self):
        raise ImportError('Failure finding "libcublas.so"')

    monkeypatch.setattr(cupy_stand_in.cuda.Device, "cublas_handle", property(absent))
    with pytest.raises(BackendUnavailable, match=r'fails: Failure finding "libcublas\.so"'):
        EmulatedBackend("float32")


# The emulator


def test_without_the_emulator_it_says_where_it_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda_emulator", None)
    error = why_not(EmulatedBackend)
    assert error.reason == "cuda-emulator is not installed"
    assert "pip install ./backends/cuda-emulator" in error.remedy


def test_an_architecture_that_the_emulator_does_not_know(monkeypatch):
    monkeypatch.setenv("CUDA_EMULATOR_ARCH", "sm_086")
    error = why_not(EmulatedBackend)
    assert error.reason == "CUDA_EMULATOR_ARCH is 'sm_086'"
    assert "sm_75, sm_80, sm_86, " in error.remedy


def test_without_nvrtc_its_packages_are_named(monkeypatch):
    compiler._nvrtc.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    try:
        error = why_not(EmulatedBackend)
    finally:
        monkeypatch.undo()
        compiler._nvrtc.cache_clear()
    assert 'pip install "nvidia-cuda-nvrtc>=13,<14"' in error.remedy


def test_the_name_of_the_emulated_device():
    assert EmulatedBackend.device() == "CPU, emulating sm_90"


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("sm_90", "prompts by tensor cores in float16 and bfloat16, for heads of 16, 32, 64, 128 "),
        ("sm_80", "prompts by tensor cores in float16 and bfloat16, for heads of 16, 32, 64, 128 "),
        ("sm_75", "prompts by plain kernels; those for tensor cores need compute capability 8.0"),
    ],
)
def test_which_kernels_will_run_on_a_card_is_said(monkeypatch, arch, said):
    monkeypatch.setenv("CUDA_EMULATOR_ARCH", arch)
    assert EmulatedBackend.details().startswith(said)


# Importing


def in_a_new_process(*lines: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cupy_is_imported_when_it_is_asked_for():
    out = in_a_new_process(
        "import sys, tinymistral_cupy",
        "print(*(name for name in ('cupy', 'cuda', 'cuda_emulator') if name in sys.modules))",
    )
    assert out == "\n"


def test_backends_are_listed_whether_they_can_run_or_not():
    command = [sys.executable, "-m", "tinymistral", "backends", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["backends"]}
    emulated = rows["cupy-emulated"]
    assert emulated["device"] == "CPU, emulating sm_90"
    assert emulated["dtypes"] == ["float32", "float16", "bfloat16"]
    real = rows["cupy"]
    assert real["distribution"] == emulated["distribution"] == "tinymistral-cupy"
    if real["device"] is None:
        assert real["reason"] in ("CuPy is not installed", "there is no NVIDIA driver here")
        assert real["remedy"]
