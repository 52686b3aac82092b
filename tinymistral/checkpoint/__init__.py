"""Checkpoints on disk: finding, reading, checking and writing them."""

from tinymistral.checkpoint.checking import check_tensors, layer_count
from tinymistral.checkpoint.errors import CheckpointError
from tinymistral.checkpoint.hub import find_checkpoint
from tinymistral.checkpoint.loading import load_tensors
from tinymistral.checkpoint.reading import read_tensors
from tinymistral.checkpoint.writing import write_tensors

__all__ = [
    "CheckpointError",
    "check_tensors",
    "find_checkpoint",
    "layer_count",
    "load_tensors",
    "read_tensors",
    "write_tensors",
]
