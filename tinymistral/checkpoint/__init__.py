"""Checkpoints on disk: finding, reading, checking and writing them."""

from tinymistral.checkpoint.checking import check_tensors, layer_count
from tinymistral.checkpoint.errors import CheckpointError
from tinymistral.checkpoint.hub import find_checkpoint
from tinymistral.checkpoint.loading import load_checkpoint
from tinymistral.checkpoint.pth import read_pth
from tinymistral.checkpoint.raw import is_raw, read_raw, read_raw_config
from tinymistral.checkpoint.reading import read_tensors
from tinymistral.checkpoint.writing import write_tensors

__all__ = [
    "CheckpointError",
    "check_tensors",
    "find_checkpoint",
    "is_raw",
    "layer_count",
    "load_checkpoint",
    "read_pth",
    "read_raw",
    "read_raw_config",
    "read_tensors",
    "write_tensors",
]
