"""Run a kernel that must fail."""

import numpy as np
import pytest
from run_kernel import compiled, run

from cuda_emulator.faults import KernelFault


def fault(kind: type[KernelFault], source: str, *args, **options) -> KernelFault:
    """Run a kernel that must fail, and check that it does on the line with `// here`."""
    kernel = compiled('extern "C" __global__ void k' + source)
    lines = [i for i, line in enumerate(source.splitlines(), 1) if "// here" in line]
    with pytest.raises(kind) as caught:
        run(kernel, *args, **options)
    error = caught.value
    assert error.kernel == "k"
    assert error.source == "kernel.cu"
    assert error.line in lines, str(error)
    assert f"kernel.cu:{error.line}, block" in str(error)
    return error


def floats(n: int) -> np.ndarray:
    return np.zeros(n, dtype=np.float32)
