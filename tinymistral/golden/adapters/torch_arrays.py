"""Arrays to torch and back, bfloat16 too."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np


def to_torch(array: np.ndarray) -> Any:
    """Bring an array of a checkpoint to torch."""
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def to_numpy(tensor: Any) -> np.ndarray:
    """Bring a tensor to NumPy in its dtype, bfloat16 as `ml_dtypes.bfloat16`."""
    import torch

    if tensor.dtype == torch.bfloat16:
        bits: np.ndarray = tensor.contiguous().view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16).copy()
    return np.array(tensor.numpy())
