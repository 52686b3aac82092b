"""The card that a backend computes on: whether there is one, its name, and its free memory."""

from __future__ import annotations

from types import ModuleType, TracebackType
from typing import Any

from tinymistral.backend import BackendUnavailable

OLDEST = 75  # compute capability 7.5, Turing: the oldest that CUDA 13 compiles for
INSTALL = (
    'pip install "tinymistral-cupy[cuda13]", or [cuda12], whichever CUDA version `nvidia-smi` shows'
)
INSTALL_EMULATOR = "in the folder of tinymistral: pip install ./backends/cuda-emulator"
WITHOUT = "or compute without a GPU, with --backend numpy or cupy-emulated"
INSUFFICIENT_DRIVER = 35  # cudaErrorInsufficientDriver, also where there is no driver at all
NO_DEVICE = 100  # cudaErrorNoDevice


def import_cupy() -> ModuleType:
    """Return the module cupy; raise BackendUnavailable where it cannot be imported."""
    try:
        import cupy
    except ImportError as error:
        if error.name == "cupy":
            raise BackendUnavailable("CuPy is not installed", INSTALL) from None
        said = f"CuPy cannot be imported: {first_line(error)}"
        raise BackendUnavailable(said, f"reinstall it: {INSTALL}") from error
    return cupy


def check_card(cp: Any) -> str:
    """Return the name of the current card; raise BackendUnavailable where none can be used."""
    runtime = cp.cuda.runtime
    try:
        runtime.getDeviceCount()
        device = cp.cuda.Device()
        name = runtime.getDeviceProperties(device.id)["name"].decode()
        capability = int(device.compute_capability)
    except runtime.CUDARuntimeError as error:
        raise _no_device(runtime, error) from error
    if capability < OLDEST:
        raise BackendUnavailable(
            f"the {name} has compute capability {_version(capability, 10)}; "
            f"the kernels need {_version(OLDEST, 10)} or newer",
            f"choose another card by CUDA_VISIBLE_DEVICES, {WITHOUT}",
        )
    return name


def _no_device(runtime: Any, error: Any) -> BackendUnavailable:
    if error.status == NO_DEVICE:
        return BackendUnavailable(
            "the driver finds no NVIDIA GPU",
            f"check whether CUDA_VISIBLE_DEVICES hides it, {WITHOUT}",
        )
    if error.status != INSUFFICIENT_DRIVER:
        return BackendUnavailable(
            f"CUDA cannot be started: {first_line(error)}",
            f"look at the output of `nvidia-smi`, {WITHOUT}",
        )
    if (driver := runtime.driverGetVersion()) == 0:
        return BackendUnavailable(
            "there is no NVIDIA driver here", f"install the driver of your GPU, {WITHOUT}"
        )
    made_for = _version(runtime.runtimeGetVersion() // 10, 100)
    return BackendUnavailable(
        f"the driver is for CUDA {_version(driver // 10, 100)}, CuPy for CUDA {made_for}",
        f"update the driver, or uninstall CuPy and install the other one: {INSTALL}",
    )


def check_room(cp: Any, nbytes: int, dtype: str) -> None:
    """Raise BackendUnavailable unless weights of `nbytes` fit into the free memory."""
    free, total = cp.cuda.Device().mem_info
    free += cp.get_default_memory_pool().free_bytes()  # allocated, but unused
    if nbytes > free:
        smaller = "a smaller model" if dtype != "float32" else "--dtype float16 or a smaller model"
        raise BackendUnavailable(
            f"the weights take {_gigabytes(nbytes)} in {dtype}, and of the GPU's "
            f"{_gigabytes(total)} {_gigabytes(free)} are free; the cache would come on top",
            f"take {smaller}, or end what else uses the GPU",
        )


class OutOfMemoryInOneLine:
    """A context that turns CuPy's OutOfMemoryError into BackendUnavailable, with a remedy."""

    def __init__(self, cp: Any):
        """`cp` is cupy or its stand-in."""
        self._error = cp.cuda.memory.OutOfMemoryError

    def __enter__(self) -> None:
        """Do nothing; one object can be entered many times, also nested."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Turn an OutOfMemoryError into BackendUnavailable; let any other error pass."""
        if isinstance(error, self._error):
            raise BackendUnavailable(
                f"the GPU has run out of memory: {first_line(error)}",
                "take shorter texts, fewer at once, a narrower dtype or a smaller model",
            ) from error


def _version(number: int, minor: int) -> str:
    return f"{number // minor}.{number % minor}"


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's message."""
    lines = [line.strip(" =") for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)
