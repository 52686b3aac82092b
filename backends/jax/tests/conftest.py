"""Eight virtual devices, for the tests of a mesh; and less time for compilation."""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Small programs are compiled in two thirds of the time without LLVM's optimizations. Those of XLA,
# which decide where a number is rounded, stay.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
