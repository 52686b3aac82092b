"""What peers that make rotary angles in float32 cannot run."""

from __future__ import annotations

import numpy as np

from tinymistral.golden.adapters import CannotRun


def check_counted(positions: np.ndarray) -> None:
    """Raise CannotRun where float32, in which angles are made there, cannot count positions."""
    if positions.max(initial=0) > 2**24:
        raise CannotRun("its angles are float32, which cannot count positions past 2^24")
