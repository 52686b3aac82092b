"""Checkpoints: from files to a configuration and the tensors that belong to it, and back."""

from tinymistral.checkpoint.loading import load_checkpoint
from tinymistral.checkpoint.tensors import check_tensors, layer_count
from tinymistral.files import CheckpointError
from tinymistral.files.consolidated import is_raw
from tinymistral.files.hub import find_checkpoint
from tinymistral.files.safetensors import read_tensors
from tinymistral.files.saving import write_tensors

__all__ = [
    "CheckpointError",
    "check_tensors",
    "find_checkpoint",
    "is_raw",
    "layer_count",
    "load_checkpoint",
    "read_tensors",
    "write_tensors",
]
